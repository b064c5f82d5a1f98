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
    use std::{collections::HashMap, path::PathBuf, sync::Mutex};

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

    /// Each queue in a store of its own, in a folder that lives as long as the harness.
    pub(super) struct InFolders<B> {
        folders: Mutex<HashMap<usize, TempDir>>,
        stores: Mutex<Vec<TempDir>>,
        _backend: B,
    }

    impl<B> InFolders<B> {
        pub(super) fn new(backend: B) -> Self {
            Self {
                folders: Mutex::default(),
                stores: Mutex::default(),
                _backend: backend,
            }
        }
    }

    fn address(queue: &Arc<dyn Queue>) -> usize {
        Arc::as_ptr(queue).cast::<()>().addr()
    }

    impl<B: Backend> InFolders<B> {
        async fn open_in(&self, folder: TempDir, options: QueueOptions) -> Arc<dyn Queue> {
            let path = folder.path().join("store");
            let queue = B::queue(path, QueueName::default(), options).await;
            let mut folders = self.folders.lock().expect("not poisoned");
            folders.insert(address(&queue), folder);
            queue
        }
    }

    #[async_trait]
    impl<B: Backend> Harness for InFolders<B> {
        async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
            let folder = TempDir::new().expect("a folder");
            self.open_in(folder, options).await
        }

        async fn reopen(
            &self,
            queue: Arc<dyn Queue>,
            options: QueueOptions,
        ) -> Option<Arc<dyn Queue>> {
            let folder = {
                let mut folders = self.folders.lock().expect("not poisoned");
                folders.remove(&address(&queue)).expect("its folder")
            };
            drop(queue);
            Some(self.open_in(folder, options).await)
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
