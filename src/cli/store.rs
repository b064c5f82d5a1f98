//! From `--store` and the environment to an open store.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use batchyard::{Queue, QueueName, QueueOptions, SledStore, Store};

use super::exit::{Exit, Failure};

/// An open store, and what is beside it.
pub(crate) struct OpenStore {
    /// The store.
    pub(crate) store: Arc<dyn Store>,
    /// Where the command handler keeps its locks and answers, for this store alone.
    pub(crate) commands: PathBuf,
}

impl OpenStore {
    /// Opens the store in this folder, made if it is missing.
    ///
    /// # Errors
    /// As [`batchyard::SledOptions::open`].
    pub(crate) async fn folder(path: &Path, queues: QueueOptions) -> Result<Self, Failure> {
        let options = SledStore::options().queues(queues);
        let store = options.open(path).await?;
        Ok(Self {
            store: Arc::new(store),
            commands: path.join(COMMANDS),
        })
    }

    /// The server at this URL.
    ///
    /// # Errors
    /// As [`batchyard::RedisStore::connect`].
    #[cfg(feature = "redis")]
    pub(crate) async fn redis(url: &str, queues: QueueOptions) -> Result<Self, Failure> {
        let store = batchyard::RedisStore::connect(url).await?;
        Ok(Self {
            store: Arc::new(store.with_options(queues)),
            commands: state_folder(url).join(COMMANDS),
        })
    }

    /// Says that this program was built without it.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "redis"))]
    #[expect(clippy::unused_async, reason = "a server is connected to")]
    pub(crate) async fn redis(_url: &str, _queues: QueueOptions) -> Result<Self, Failure> {
        Err(Failure::new(
            Exit::Usage,
            "this batchyard was built without Redis; build it with the feature redis, or use --store DIR",
        ))
    }

    /// The queue of this name, or all queues; none is made.
    ///
    /// # Errors
    /// If there is no queue of this name.
    pub(crate) async fn existing(
        &self,
        name: Option<&QueueName>,
    ) -> Result<Vec<Arc<dyn Queue>>, Failure> {
        let mut names = self.store.queues("").await?;
        if let Some(name) = name {
            names.retain(|known| known == name);
            if names.is_empty() {
                let text = format!("the store has no queue {name:?}; stats lists those it has");
                return Err(Failure::new(Exit::NotFound, text));
            }
        }
        self.open_all(&names).await
    }

    /// All queues whose name begins so.
    ///
    /// # Errors
    /// As [`Store::queues`].
    pub(crate) async fn with_prefix(&self, prefix: &str) -> Result<Vec<Arc<dyn Queue>>, Failure> {
        let names = self.store.queues(prefix).await?;
        self.open_all(&names).await
    }

    async fn open_all(&self, names: &[QueueName]) -> Result<Vec<Arc<dyn Queue>>, Failure> {
        let mut queues = Vec::with_capacity(names.len());
        for name in names {
            queues.push(self.store.queue(name).await?);
        }
        Ok(queues)
    }

    /// Closes the store after what was done with it, and answers the first failure of the two.
    ///
    /// # Errors
    /// As `result`, or if the store does not close.
    pub(crate) async fn close<T>(self, result: Result<T, Failure>) -> Result<T, Failure> {
        let closed = self.store.close().await;
        let value = result?;
        closed?;
        Ok(value)
    }
}

/// Options for verbs that don't let results go: how long those are kept is for the dispatcher to say.
pub(crate) fn keep_all() -> QueueOptions {
    QueueOptions::default().retention(Duration::MAX)
}

/// Makes sure that something is in this folder. Whether that is a store, opening it tells.
///
/// # Errors
/// If there is no such folder, or nothing in it.
pub(super) fn must_exist(folder: &Path) -> Result<(), Failure> {
    let none = |why| {
        let text = format!("no store in {}: {why}", folder.display());
        Err(Failure::new(Exit::NotFound, text))
    };
    match fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => none("there is no such folder"),
        Ok(true) => none("the folder is empty"),
        _ => Ok(()),
    }
}

/// The folder of this machine that belongs to the store at a URL, which may hold a password.
#[cfg(feature = "redis")]
fn state_folder(url: &str) -> PathBuf {
    use sha2::{Digest, Sha256};

    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let states = set("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("."));
    let hash = Sha256::digest(url.as_bytes());
    let start: [u8; 8] = hash.first_chunk().copied().unwrap_or_default();
    let name = format!("{:016x}", u64::from_be_bytes(start));
    states.join("batchyard").join(name)
}

const COMMANDS: &str = "commands";
