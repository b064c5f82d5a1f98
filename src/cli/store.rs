//! From `--store` and the environment to an open store.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use batchyard::{QueueOptions, SledStore, Store};

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
        let options = SledStore::options().queues(queues).offer_held(true);
        let store = options.open(path).await?;
        Ok(Self {
            store: Arc::new(store),
            commands: path.join(COMMANDS),
        })
    }

    /// The server at this URL.
    ///
    /// # Errors
    /// If this program was built without it.
    pub(crate) fn redis(_url: &str) -> Result<Self, Failure> {
        Err(Failure::new(
            Exit::Usage,
            "this batchyard was built without Redis; build it with the feature redis, or use --store DIR",
        ))
    }
}

const COMMANDS: &str = "commands";
