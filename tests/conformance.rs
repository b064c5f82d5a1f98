//! Every backend and every wrapper against every clause of the contract.

use std::sync::Arc;

use async_trait::async_trait;
use batchyard::{
    MemoryQueue, MemoryStore, Queue, QueueOptions, Store, Timestamp,
    testing::{Faulty, Harness, WithNow},
};

/// Queues in memory, wrapped by a function.
struct Memory(fn(Arc<dyn Queue>) -> Arc<dyn Queue>);

#[async_trait]
impl Harness for Memory {
    async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
        (self.0)(Arc::new(MemoryQueue::new(options)))
    }

    async fn store(&self, options: QueueOptions) -> Option<Arc<dyn Store>> {
        Some(Arc::new(MemoryStore::new(options)))
    }
}

batchyard::conformance!(memory, Memory(|queue| queue));
batchyard::conformance!(
    with_now,
    Memory(|queue| {
        let now = Timestamp::from_millis(1_800_000_000_000);
        Arc::new(WithNow::new(queue, now))
    })
);
batchyard::conformance!(faulty, Memory(|queue| Arc::new(Faulty::new(queue))));

#[cfg(any(feature = "sled", feature = "journal"))]
mod embedded {
    use std::{
        collections::HashMap,
        path::PathBuf,
        sync::{
            Mutex,
            atomic::{AtomicU64, Ordering},
        },
    };

    use batchyard::QueueName;
    use tempfile::TempDir;

    use super::{Arc, Harness, Queue, QueueOptions, Store, async_trait};

    /// How the stores of a backend are opened.
    #[async_trait]
    pub(super) trait Backend: Send + Sync + 'static {
        /// A clause reads the same before and after a restart, leases included: held batches are not offered.
        async fn queue(path: PathBuf, name: QueueName, options: QueueOptions) -> Arc<dyn Queue>;
        async fn store(path: PathBuf, options: QueueOptions) -> Arc<dyn Store>;
    }

    #[cfg(feature = "sled")]
    pub(super) struct Sled;
    #[cfg(feature = "journal")]
    pub(super) struct Journal;

    macro_rules! backend {
        ($name:ident, $options:expr) => {
            #[async_trait]
            impl Backend for $name {
                async fn queue(
                    path: PathBuf,
                    name: QueueName,
                    options: QueueOptions,
                ) -> Arc<dyn Queue> {
                    let opening = $options.offer_held(false).open(path);
                    let store = opening.await.expect("the store opens");
                    let queue = store.queue_with(&name, options).await;
                    Arc::new(queue.expect("the queue opens"))
                }

                async fn store(path: PathBuf, options: QueueOptions) -> Arc<dyn Store> {
                    let opening = $options.queues(options).open(path);
                    Arc::new(opening.await.expect("the store opens"))
                }
            }
        };
    }

    #[cfg(feature = "sled")]
    backend!(Sled, batchyard::SledStore::options());
    #[cfg(feature = "journal")]
    // Small segments: clauses with many requests go through several.
    backend!(
        Journal,
        batchyard::JournalStore::options().segment_bytes(1 << 20)
    );

    /// Each queue in a store of its own, in a folder that lives as long as the harness and is known by the
    /// queue's name.
    pub(super) struct InFolders<B> {
        folders: Mutex<HashMap<QueueName, TempDir>>,
        stores: Mutex<Vec<TempDir>>,
        opened: AtomicU64,
        _backend: B,
    }

    impl<B: Backend> InFolders<B> {
        pub(super) fn new(backend: B) -> Self {
            Self {
                folders: Mutex::default(),
                stores: Mutex::default(),
                opened: AtomicU64::new(0),
                _backend: backend,
            }
        }

        async fn open_named(&self, name: QueueName, options: QueueOptions) -> Arc<dyn Queue> {
            let path = {
                let mut folders = self.folders.lock().expect("not poisoned");
                let folder = folders.entry(name.clone());
                let folder = folder.or_insert_with(|| TempDir::new().expect("a folder"));
                folder.path().join("store")
            };
            B::queue(path, name, options).await
        }
    }

    #[async_trait]
    impl<B: Backend> Harness for InFolders<B> {
        async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
            let number = self.opened.fetch_add(1, Ordering::Relaxed);
            let name = format!("q{number}").parse().expect("a name");
            self.open_named(name, options).await
        }

        async fn reopen(
            &self,
            queue: Arc<dyn Queue>,
            options: QueueOptions,
        ) -> Option<Arc<dyn Queue>> {
            let name = queue.name();
            drop(queue);
            Some(self.open_named(name, options).await)
        }

        async fn store(&self, options: QueueOptions) -> Option<Arc<dyn Store>> {
            let folder = TempDir::new().expect("a folder");
            let store = B::store(folder.path().join("store"), options).await;
            self.stores.lock().expect("not poisoned").push(folder);
            Some(store)
        }
    }
}

#[cfg(feature = "sled")]
batchyard::conformance!(sled_store, embedded::InFolders::new(embedded::Sled));
#[cfg(feature = "journal")]
batchyard::conformance!(journal_store, embedded::InFolders::new(embedded::Journal));
