//! Queues of one server by name.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use tokio::sync::{Mutex, watch};

use super::{
    RedisQueue, Shared,
    codec::damaged,
    keys::{ANY_CHANGED, CREATED, QUEUES},
};
use crate::{
    error::{Error, Result},
    queue::{Queue, QueueOptions, Store},
    request::QueueName,
};

/// The queues of a Redis server, by name.
///
/// ```no_run
/// use batchyard::{QueueName, RedisStore, Store};
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let store = RedisStore::connect("redis://127.0.0.1:6379").await?;
/// let emails = store.queue(&"emails".parse()?).await?;
/// # Ok::<(), batchyard::Error>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct RedisStore {
    shared: Arc<Shared>,
    options: QueueOptions,
    queues: Mutex<Opened>,
    created: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Opened {
    queues: BTreeMap<QueueName, Arc<RedisQueue>>,
    closed: bool,
}

impl RedisStore {
    /// The queues of this server; the address is as in [`RedisQueue::connect`].
    ///
    /// # Errors
    /// As [`RedisQueue::connect`].
    pub async fn connect(url: &str) -> Result<Self> {
        let channels = vec![CREATED.to_owned(), ANY_CHANGED.to_owned()];
        let shared = Shared::connect(url, channels).await?;
        Ok(Self {
            created: shared.changes.counter(CREATED.to_owned()),
            shared,
            options: QueueOptions::default(),
            queues: Mutex::default(),
        })
    }

    /// Opens queues with these options from here on.
    #[must_use]
    pub fn with_options(mut self, options: QueueOptions) -> Self {
        self.options = options;
        self
    }

    fn closed() -> Error {
        Error::closed("the store was closed")
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn queue(&self, name: &QueueName) -> Result<Arc<dyn Queue>> {
        let mut opened = self.queues.lock().await;
        if opened.closed {
            return Err(Self::closed());
        }
        if let Some(queue) = opened.queues.get(name) {
            return Ok(queue.clone());
        }
        let queue = RedisQueue::open(Arc::clone(&self.shared), name, self.options).await?;
        let queue = Arc::new(queue);
        opened.queues.insert(name.clone(), Arc::clone(&queue));
        Ok(queue)
    }

    async fn queues(&self, prefix: &str) -> Result<Vec<QueueName>> {
        if self.queues.lock().await.closed {
            return Err(Self::closed());
        }
        let names: Vec<String> = self
            .shared
            .link
            .query(redis::cmd("SMEMBERS").arg(QUEUES))
            .await?;
        let mut names = names
            .into_iter()
            .filter(|name| name.starts_with(prefix))
            .map(|name| name.parse().map_err(|_| damaged("a queue's name")))
            .collect::<Result<Vec<QueueName>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn created(&self) -> Option<watch::Receiver<u64>> {
        Some(self.created.subscribe())
    }

    async fn close(&self) -> Result<()> {
        let mut opened = self.queues.lock().await;
        opened.closed = true;
        for queue in opened.queues.values() {
            queue.close().await?;
        }
        Ok(())
    }
}
