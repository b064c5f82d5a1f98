//! The Redis backend on a real server: the conformance suite, and what only a shared server can go
//! through.

#![expect(
    clippy::unwrap_used,
    reason = "what can't be unwrapped fails the test that asked"
)]

mod cluster;
mod cuts;
mod differential;
mod failover;
mod failures;
mod foreign;
mod life;
mod lost_keys;
mod proxy;
mod restoring;
mod server;
mod sharing;
mod trouble;
#[cfg(feature = "cli")]
mod verbs;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use batchyard::{MemoryQueue, Queue, QueueOptions, RedisStore, Store, testing::Harness};

use self::server::Server;

/// Opens each queue under a name of its own on one server. Where none is installed, the clauses are said
/// to be skipped and look at a queue in memory instead.
struct Redis {
    server: Option<tokio::sync::Mutex<Server>>,
    opened: AtomicU64,
}

impl Redis {
    fn new() -> Self {
        Self {
            server: Server::start().map(tokio::sync::Mutex::new),
            opened: AtomicU64::new(0),
        }
    }
}

#[async_trait]
impl Harness for Redis {
    async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
        let Some(server) = &self.server else {
            return Arc::new(MemoryQueue::new(options));
        };
        let name = format!("q{}", self.opened.fetch_add(1, Ordering::Relaxed));
        Arc::new(
            server
                .lock()
                .await
                .queue_with(&name, options)
                .await
                .unwrap(),
        )
    }

    /// The server is killed, and started again on its append-only file.
    async fn reopen(&self, queue: Arc<dyn Queue>, options: QueueOptions) -> Option<Arc<dyn Queue>> {
        let name = queue.name();
        drop(queue);
        let mut server = self.server.as_ref()?.lock().await;
        server.kill_and_start();
        Some(Arc::new(
            server.queue_with(name.as_str(), options).await.unwrap(),
        ))
    }

    async fn another(
        &self,
        queue: &Arc<dyn Queue>,
        options: QueueOptions,
    ) -> Option<Arc<dyn Queue>> {
        let server = self.server.as_ref()?.lock().await;
        Some(Arc::new(
            server
                .queue_with(queue.name().as_str(), options)
                .await
                .unwrap(),
        ))
    }

    /// Each in a database of its own.
    async fn store(&self, options: QueueOptions) -> Option<Arc<dyn Store>> {
        let server = self.server.as_ref()?.lock().await;
        let database = self.opened.fetch_add(1, Ordering::Relaxed);
        let url = format!("{}?db={database}", server.url());
        let store = RedisStore::connect(&url).await.unwrap();
        Some(Arc::new(store.with_options(options)))
    }
}

batchyard::conformance!(redis, Redis::new());
