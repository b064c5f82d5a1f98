//! Where the queues of each backend live, and what a restart is there.

use std::sync::Arc;

use async_trait::async_trait;
use batchyard::{MemoryQueue, Queue, QueueOptions};

use crate::script::Restart;

/// A place for one queue at a time.
#[async_trait]
pub(crate) trait Place {
    /// A fresh queue; whatever was here is gone.
    async fn open(&mut self, options: QueueOptions, offers_held: bool) -> Arc<dyn Queue>;

    /// What a restart does here.
    fn restarts(&self) -> Restarts;

    /// Ends the queue, of which this is the last handle, and opens it again.
    async fn restart(&mut self, queue: Arc<dyn Queue>, how: Restart) -> Arc<dyn Queue>;
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Restarts {
    /// Nothing would be left.
    Never,
    /// Everything is back but what only the process knew: that holders are there, and when a time in the
    /// future was first seen.
    OfTheProcess,
    /// The server knows all that it knew.
    OfAClient,
}

/// Queues in memory.
pub(crate) struct InMemory;

#[async_trait]
impl Place for InMemory {
    async fn open(&mut self, options: QueueOptions, _: bool) -> Arc<dyn Queue> {
        Arc::new(MemoryQueue::new(options))
    }

    fn restarts(&self) -> Restarts {
        Restarts::Never
    }

    async fn restart(&mut self, queue: Arc<dyn Queue>, _: Restart) -> Arc<dyn Queue> {
        queue
    }
}

#[cfg(any(feature = "sled", feature = "journal"))]
pub(crate) mod embedded {
    use std::{fs, path::Path};

    use batchyard::QueueName;
    use tempfile::TempDir;

    use super::{Arc, Place, Queue, QueueOptions, Restart, Restarts, async_trait};

    /// How the stores of a backend are opened.
    #[async_trait]
    pub(crate) trait Backend: Send {
        async fn open(path: &Path, options: QueueOptions, offers_held: bool) -> Arc<dyn Queue>;
    }

    #[cfg(feature = "sled")]
    pub(crate) struct Sled;
    #[cfg(feature = "journal")]
    pub(crate) struct Journal;

    macro_rules! backend {
        ($name:ident, $options:expr) => {
            #[async_trait]
            impl Backend for $name {
                async fn open(
                    path: &Path,
                    options: QueueOptions,
                    offers_held: bool,
                ) -> Arc<dyn Queue> {
                    let opening = $options.offer_held(offers_held).open(path);
                    let store = opening.await.expect("the store opens");
                    let queue = store.queue_with(&QueueName::default(), options).await;
                    Arc::new(queue.expect("the queue opens"))
                }
            }
        };
    }

    #[cfg(feature = "sled")]
    backend!(Sled, batchyard::SledStore::options());
    #[cfg(feature = "journal")]
    // The smallest segments: a life goes through several.
    backend!(
        Journal,
        batchyard::JournalStore::options().segment_bytes(1 << 20)
    );

    /// A store in a folder.
    pub(crate) struct InFolder<B> {
        folder: TempDir,
        opened: (QueueOptions, bool),
        _backend: B,
    }

    impl<B: Backend> InFolder<B> {
        pub(crate) fn new(backend: B) -> Self {
            Self {
                folder: folder(),
                opened: Default::default(),
                _backend: backend,
            }
        }

        async fn open_here(&self) -> Arc<dyn Queue> {
            let (options, offers_held) = self.opened;
            B::open(&self.folder.path().join("store"), options, offers_held).await
        }
    }

    #[async_trait]
    impl<B: Backend + Sync> Place for InFolder<B> {
        async fn open(&mut self, options: QueueOptions, offers_held: bool) -> Arc<dyn Queue> {
            self.folder = folder();
            self.opened = (options, offers_held);
            self.open_here().await
        }

        fn restarts(&self) -> Restarts {
            Restarts::OfTheProcess
        }

        async fn restart(&mut self, queue: Arc<dyn Queue>, how: Restart) -> Arc<dyn Queue> {
            if how == Restart::Closed {
                queue.close().await.expect("it closes");
            }
            if how == Restart::Killed {
                // What is in the files while it is open is what kill -9 leaves.
                let left = folder();
                copy(self.folder.path(), left.path());
                drop(queue);
                self.folder = left;
            } else {
                drop(queue);
            }
            self.open_here().await
        }
    }

    fn folder() -> TempDir {
        TempDir::new().expect("a folder")
    }

    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).expect("a folder") {
            let from = entry.expect("an entry").path();
            let to = to.join(from.file_name().expect("a name"));
            if from.is_dir() {
                fs::create_dir(&to).expect("a folder");
                copy(&from, &to);
            } else {
                fs::copy(&from, &to).expect("a copy");
            }
        }
    }
}

#[cfg(feature = "redis")]
pub(crate) mod redis {
    use super::{Arc, Place, Queue, QueueOptions, Restart, Restarts, async_trait};
    use crate::server::Server;

    /// Each queue under a name of its own on one server, which syncs before it answers.
    pub(crate) struct OnAServer {
        server: Server,
        opened: u32,
        options: QueueOptions,
    }

    impl OnAServer {
        /// `None`, and said, where no server is installed.
        pub(crate) fn start() -> Option<Self> {
            Some(Self {
                server: Server::start()?,
                opened: 0,
                options: QueueOptions::default(),
            })
        }

        async fn connect(&self) -> Arc<dyn Queue> {
            let name = format!("life-{}", self.opened);
            let queue = self.server.queue_with(&name, self.options).await;
            Arc::new(queue.expect("it connects"))
        }
    }

    #[async_trait]
    impl Place for OnAServer {
        async fn open(&mut self, options: QueueOptions, _: bool) -> Arc<dyn Queue> {
            self.opened += 1;
            self.options = options;
            self.connect().await
        }

        fn restarts(&self) -> Restarts {
            Restarts::OfAClient
        }

        async fn restart(&mut self, queue: Arc<dyn Queue>, how: Restart) -> Arc<dyn Queue> {
            if how == Restart::Closed {
                queue.close().await.expect("it closes");
            }
            drop(queue);
            if how == Restart::Killed {
                self.server.kill_and_start();
            }
            self.connect().await
        }
    }
}
