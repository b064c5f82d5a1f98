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

/// Every verb through the control socket of another process, as far as this one can be another.
#[cfg(feature = "control")]
mod control {
    use std::{collections::HashMap, path::PathBuf, sync::Mutex};

    use batchyard::{ControlAccess, ControlServer, ControlStore, QueueName, serve_control};
    use tempfile::TempDir;

    use super::{Arc, Harness, Queue, QueueOptions, Store, async_trait};

    /// Makes an owner's store in a folder.
    #[async_trait]
    pub(super) trait Owner: Send + Sync + 'static {
        async fn open(folder: PathBuf, options: QueueOptions) -> Arc<dyn Store>;
    }

    pub(super) struct Memory;

    #[async_trait]
    impl Owner for Memory {
        async fn open(_folder: PathBuf, options: QueueOptions) -> Arc<dyn Store> {
            Arc::new(super::MemoryStore::new(options))
        }
    }

    #[cfg(feature = "journal")]
    pub(super) struct Journal;

    #[cfg(feature = "journal")]
    #[async_trait]
    impl Owner for Journal {
        async fn open(folder: PathBuf, options: QueueOptions) -> Arc<dyn Store> {
            let opening = batchyard::JournalStore::options().segment_bytes(1 << 20);
            let opening = opening.offer_held(false).queues(options).open(folder);
            Arc::new(opening.await.expect("the store opens"))
        }
    }

    struct Owned {
        folder: TempDir,
        serving: Option<(ControlServer, Arc<dyn Store>)>,
    }

    /// Each queue in a store of its own, which is served in a folder that lives as long as the harness.
    pub(super) struct Served<O> {
        owners: Mutex<HashMap<QueueName, Owned>>,
        _owner: O,
    }

    impl<O: Owner> Served<O> {
        pub(super) fn new(owner: O) -> Self {
            Self {
                owners: Mutex::default(),
                _owner: owner,
            }
        }

        async fn serve(&self, folder: TempDir, name: QueueName, options: QueueOptions) -> PathBuf {
            let path = folder.path().join("store");
            std::fs::create_dir_all(&path).expect("a folder");
            let store = O::open(path.clone(), options).await;
            let server = serve_control(&path, Arc::clone(&store), None, ControlAccess::All)
                .expect("a socket");
            let serving = Some((server, store));
            let owned = Owned { folder, serving };
            self.owners
                .lock()
                .expect("not poisoned")
                .insert(name, owned);
            path
        }

        async fn connect(path: PathBuf, name: &QueueName) -> Arc<dyn Queue> {
            let store = ControlStore::connect(path).await.expect("an owner");
            store.queue(name).await.expect("the queue opens")
        }

        fn fresh_name(&self) -> QueueName {
            let number = self.owners.lock().expect("not poisoned").len();
            format!("q{number}").parse().expect("a name")
        }
    }

    #[async_trait]
    impl<O: Owner> Harness for Served<O> {
        async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
            let (name, folder) = (self.fresh_name(), TempDir::new().expect("a folder"));
            let path = self.serve(folder, name.clone(), options).await;
            Self::connect(path, &name).await
        }

        async fn reopen(
            &self,
            queue: Arc<dyn Queue>,
            options: QueueOptions,
        ) -> Option<Arc<dyn Queue>> {
            let name = queue.name();
            drop(queue);
            let owned = self.owners.lock().expect("not poisoned").remove(&name)?;
            let (server, store) = owned.serving?;
            server.close().await;
            store.close().await.expect("it closes");
            drop(store);
            let path = self.serve(owned.folder, name.clone(), options).await;
            Some(Self::connect(path, &name).await)
        }

        async fn another(
            &self,
            queue: &Arc<dyn Queue>,
            _options: QueueOptions,
        ) -> Option<Arc<dyn Queue>> {
            let path = {
                let owners = self.owners.lock().expect("not poisoned");
                owners.get(&queue.name())?.folder.path().join("store")
            };
            Some(Self::connect(path, &queue.name()).await)
        }

        async fn store(&self, options: QueueOptions) -> Option<Arc<dyn Store>> {
            let (name, folder) = (self.fresh_name(), TempDir::new().expect("a folder"));
            let path = self.serve(folder, name, options).await;
            Some(Arc::new(
                ControlStore::connect(path).await.expect("an owner"),
            ))
        }
    }
}

#[cfg(feature = "control")]
batchyard::conformance!(control_memory, control::Served::new(control::Memory));
#[cfg(all(feature = "control", feature = "journal"))]
batchyard::conformance!(control_journal, control::Served::new(control::Journal));
