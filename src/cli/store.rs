//! From where a store is to an open one.
//!
//! ```text
//!   dispatch, run ─▶ own       waits for who has it open and can let go of it, and keeps it
//!   other verbs ───▶ shared    whoever has it open serves the rest, and when it is gone another does
//!   health ────────▶ served    by somebody else, or not at all
//! ```

mod shared;
mod turn;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use batchyard::{
    ControlAccess, ControlServer, ControlStore, DispatcherHandle, Error, Explanation, Queue,
    QueueName, QueueOptions, SledStore, Store, configuration::nearest, serve_control,
};
use clap::ValueEnum;

pub(crate) use self::turn::{Turn, Waited};
use self::{
    shared::{Shared, SharedStore},
    turn::{Opened, Place},
};
use super::{
    exit::{Exit, Failure},
    output::say,
};

/// What a store in a folder is. One that is there says so itself, in its `FORMAT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// On sled, an embedded database
    #[default]
    Sled,
    /// A log of our own, at the disk's speed
    Journal,
}

/// What a store is made as, if its folder is new.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NewAs {
    /// On this backend.
    pub(crate) backend: Backend,
    /// Whoever started this program says so: then a store that is another one is not meant.
    pub(crate) insisted: bool,
}

impl Backend {
    /// What the store in this folder is; `None` if there is none, or none that we know.
    pub(crate) fn of(folder: &Path) -> Option<Self> {
        let format = fs::read(folder.join(FORMAT)).ok()?;
        match String::from_utf8_lossy(&format).lines().next()? {
            "batchyard sled store" => Some(Self::Sled),
            "batchyard journal store" => Some(Self::Journal),
            _ => None,
        }
    }

    /// What the store in this folder is, even if its `FORMAT` is lost or damaged: each has files of its own.
    pub(crate) fn of_remains(folder: &Path) -> Option<Self> {
        let is_sled = || folder.join("sled/db").is_file();
        let is_journal = || {
            let files = fs::read_dir(folder.join("log")).into_iter().flatten();
            let names = files.flatten().map(|file| file.file_name());
            names.into_iter().any(|name| {
                let name = name.to_string_lossy();
                name.starts_with("segment-") && name.ends_with(".log")
            })
        };
        let remains = || match () {
            () if is_sled() => Some(Self::Sled),
            () if is_journal() => Some(Self::Journal),
            () => None,
        };
        Self::of(folder).or_else(remains)
    }

    /// The one of this name, or the usual one.
    pub(crate) fn named(name: &str) -> Self {
        Self::from_str(name, false).unwrap_or_default()
    }

    /// What the store in this folder is, or is made as.
    fn at(folder: &Path, new: NewAs) -> Result<Self, Failure> {
        match Self::of_remains(folder) {
            Some(is) if new.insisted && is != new.backend => {
                let text = format!(
                    "{} is a {is} store, and --backend says {}; leave it out, or choose another folder",
                    folder.display(),
                    new.backend
                );
                Err(Failure::new(Exit::Usage, text))
            }
            Some(is) => Ok(is),
            None => Ok(new.backend),
        }
    }

    /// The store.
    async fn open(self, path: &Path, queues: QueueOptions) -> Result<Arc<dyn Store>, Failure> {
        match self {
            Self::Sled => {
                let store = SledStore::options().queues(queues).open(path).await?;
                Ok(Arc::new(store))
            }
            #[cfg(feature = "journal")]
            Self::Journal => {
                let options = batchyard::JournalStore::options().queues(queues);
                Ok(Arc::new(options.open(path).await?))
            }
            #[cfg(not(feature = "journal"))]
            Self::Journal => {
                let text = format!(
                    "{} would be a journal store, and this batchyard was built without the feature journal",
                    path.display()
                );
                Err(Failure::new(Exit::Usage, text))
            }
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sled => "sled",
            Self::Journal => "journal",
        })
    }
}

/// An open store, and what is beside it.
pub(crate) struct OpenStore {
    /// The store.
    pub(crate) store: Arc<dyn Store>,
    /// Where the command handler keeps its locks and answers, for this store alone.
    pub(crate) commands: PathBuf,
    /// Where it is, if that is a folder.
    pub(crate) folder: Option<PathBuf>,
    by: By,
}

/// Who has it open.
enum By {
    /// A server.
    #[cfg_attr(
        not(feature = "redis"),
        expect(dead_code, reason = "a server needs the feature redis")
    )]
    Server,
    /// This process, for itself, in this folder; its turn goes when it is not served.
    Own(PathBuf, Mutex<Option<Turn>>),
    /// This process or another one, whoever is there.
    Shared(Arc<Shared>),
    /// Another process.
    Served(Arc<ControlStore>),
}

impl OpenStore {
    /// Opens the store in this folder, made if it is missing. A verb that has it open lets
    /// go of it as soon as it can, and is waited for.
    ///
    /// # Errors
    /// As [`batchyard::SledOptions::open`] and `batchyard::JournalOptions::open`, if the store is on
    /// another backend than the one that is asked for, and if another process has it open that stays.
    pub(crate) async fn own_folder(
        path: &Path,
        new: NewAs,
        queues: QueueOptions,
    ) -> Result<Self, Failure> {
        let place = Place {
            folder: path.to_owned(),
            new,
            queues,
        };
        let Opened { store, turn, .. } = place.own().await?;
        Ok(Self {
            store,
            commands: path.join(COMMANDS),
            folder: Some(path.to_owned()),
            by: By::Own(place.folder, Mutex::new(Some(turn))),
        })
    }

    /// As [`own_folder`](Self::own_folder), or the same store through the control socket of the process that has it open; whoever
    /// that is may change meanwhile. What this process opens it serves.
    ///
    /// # Errors
    /// As [`own_folder`](Self::own_folder), if that process serves no such socket.
    pub(crate) async fn shared_folder(
        path: &Path,
        new: NewAs,
        queues: QueueOptions,
    ) -> Result<Self, Failure> {
        let shared = Shared::open(Place {
            folder: path.to_owned(),
            new,
            queues,
        });
        let shared = shared.await?;
        Ok(Self {
            store: Arc::new(SharedStore(Arc::clone(&shared))),
            commands: path.join(COMMANDS),
            folder: Some(path.to_owned()),
            by: By::Shared(shared),
        })
    }

    /// The store in this folder through the socket of the dispatcher or run that has it open.
    ///
    /// # Errors
    /// As [`ControlStore::connect`], and not found if that is another verb.
    pub(crate) async fn served(path: &Path) -> Result<Self, Failure> {
        let owner = Arc::new(ControlStore::connect(path).await?);
        if !owner.stays() {
            let text = format!(
                "nobody serves {}: the process with pid {} has it open for a while only, and dispatches nothing",
                path.display(),
                owner.pid()
            );
            return Err(Failure::new(Exit::NotFound, text));
        }
        Ok(Self {
            store: Arc::clone(&owner) as _,
            commands: path.join(COMMANDS),
            folder: Some(path.to_owned()),
            by: By::Served(owner),
        })
    }

    /// The process that was asked for it, if another one had to have it open.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.by {
            By::Served(owner) => Some(owner.pid()),
            _ => None,
        }
    }

    /// What its dispatcher says of a queue.
    ///
    /// # Errors
    /// [`NotFound`](batchyard::ErrorKind::NotFound): no dispatcher serves it, or none that can be asked.
    pub(crate) async fn explain(&self, queue: &QueueName) -> Result<Explanation, Error> {
        match &self.by {
            By::Shared(shared) => shared.explain(queue).await,
            By::Served(owner) => owner.explain(queue).await,
            By::Server | By::Own(..) => Err(Error::not_found("there is nobody to ask")),
        }
    }

    /// Where it is, if that is a folder that is open here.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.by {
            By::Own(folder, _) => Some(folder),
            _ => None,
        }
    }

    /// Lets other processes use it too, if it is in a folder.
    pub(crate) fn serve(
        &self,
        dispatcher: DispatcherHandle,
        access: ControlAccess,
    ) -> Option<ControlServer> {
        let By::Own(folder, turn) = &self.by else {
            return None;
        };
        match serve_control(folder, Arc::clone(&self.store), Some(dispatcher), access) {
            Ok(control) => Some(control),
            Err(error) => {
                let why = Failure::from(error);
                say(&format!(
                    "other processes can't use the store meanwhile: {why}"
                ));
                // Nobody is to wait for that.
                drop(turn.lock().unwrap_or_else(PoisonError::into_inner).take());
                None
            }
        }
    }

    /// The server at this URL.
    ///
    /// # Errors
    /// As [`batchyard::RedisStore::connect`].
    #[cfg(feature = "redis")]
    pub(crate) async fn redis(url: &str, queues: QueueOptions) -> Result<Self, Failure> {
        check_url(url)?;
        let connected = batchyard::RedisStore::connect(url).await;
        let store = connected
            .map_err(|error| Failure::from(error).at(&batchyard::configuration::redacted(url)))?;
        Ok(Self {
            store: Arc::new(store.with_options(queues)),
            commands: state_folder(url).join(COMMANDS),
            folder: None,
            by: By::Server,
        })
    }

    /// Says that this program was built without it.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "redis"))]
    #[expect(clippy::unused_async, reason = "a server is connected to")]
    pub(crate) async fn redis(url: &str, _queues: QueueOptions) -> Result<Self, Failure> {
        Err(check_url(url).err().unwrap_or_else(without_redis))
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
            if !names.contains(name) {
                return Err(no_queue(name, &names));
            }
            names.retain(|known| known == name);
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

    /// The turn of a store that is this process's own, to be kept for longer than that is open.
    pub(crate) fn take_turn(&self) -> Option<Turn> {
        match &self.by {
            By::Own(_, turn) => turn.lock().unwrap_or_else(PoisonError::into_inner).take(),
            _ => None,
        }
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

/// That there is no queue of this name, and which one may be meant.
pub(super) fn no_queue(name: &QueueName, known: &[QueueName]) -> Failure {
    let known = known.iter().map(QueueName::as_str);
    let what = match nearest(name.as_str(), known) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None => "stats lists those it has".to_owned(),
    };
    let text = format!("the store has no queue {name:?}; {what}");
    Failure::new(Exit::NotFound, text)
}

/// Checks that a server at this URL can be connected to by this program, without connecting.
///
/// # Errors
/// If it can't.
pub(crate) fn check_url(url: &str) -> Result<(), Failure> {
    if cfg!(not(feature = "redis")) {
        return Err(without_redis());
    }
    if url.starts_with("rediss://") {
        let text = "rediss:// asks for TLS, which is not compiled in; use redis://, through a tunnel if it leaves this machine";
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok(())
}

fn without_redis() -> Failure {
    Failure::new(
        Exit::Usage,
        "this batchyard was built without Redis; build it with the feature redis, or use --store DIR",
    )
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
const FORMAT: &str = "FORMAT";
