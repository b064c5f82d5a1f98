//! The embedded default: durable queues in a folder of this machine, on sled 0.34.7.
//!
//! ```text
//! SledStore ─┬─ SledQueue "default"      handles: check, send a verb to the writer, or read beside it
//!            └─ SledQueue "tenant-7"
//!                     │ verbs                                  │ pages, status, lists
//!                     ▼                                        ▼
//!            writer thread: group, apply, commit, sync      reader: between two groups
//!                     └───────────────▶ Db ◀───────────────────┘
//!                     guarded calls into sled, fdatasync of our own
//! ```
//! | module | holds |
//! |---|---|
//! | `open` | whose folder it is, the lock, proofs against damage, what a crash left |
//! | `recovery` | opening sled itself, so that a power cut meanwhile costs nothing |
//! | `anew` | what can be read is made durable before sled builds on it |
//! | `clean` | the note of a clean close |
//! | `copy` | copying a database that is not to be changed |
//! | `synced` | the note of what is durable |
//! | `usage` | what of the file is in use: giving the rest back |
//! | `handle` | the callers' end of the writer |
//! | `writer` | the one thread that changes anything, and its groups |
//! | `apply` | each verb as a step: what it decides, what it writes |
//! | `reader` | pages of members, status, lists, results |
//! | `state` | what is kept in memory of each queue, and published |
//! | `write`, `range` | what a step collects; walking through a tree |
//! | `db` | every call into sled, guarded; the sync |
//! | `plan` | a transaction, and the note of one that failed in its middle |
//! | `transfer` | to and from other backends |
//! | `moment` | all queues as they were, dumped while they go on |
//! | `repair` | saving what can be read of a damaged store |
//! | `verify` | reading all that is held, in a copy or beside the writer |
//! | `rows` | how requests that wait or are members lie in sled: chunks, windows |
//! | `record`, `keys` | what lies on disk |
//!
//! # Claiming moves a range, not its keys
//! Ready requests are the entries of `requests` past the queue's cursor, in position order. Nothing
//! else lies there: delayed requests and dead letters have trees of their own, and what is cancelled
//! or expires is taken out. So a batch is a range of keys: forming it writes the batch's record and
//! moves the cursor, however many requests it has. Ending one where every member is done is one small
//! write as well; its entries are cleared in slices between groups, and by the next open if need be.
//!
//! # A group of pushes is one insert
//! The requests that were pushed together share one value of up to 60 KiB, a chunk, which also holds
//! the queue's record and the counts after them; `meta` has those of the last other change. So a group
//! of pushes takes no transaction, for which sled would write its log out twice. Sixteen chunks are a
//! tree of their own, which never splits its leaf and is dropped as a whole when its requests are gone.
//!
//! # Outcomes are kept by request
//! A recorded outcome is an entry under its request's id, not a page of many: the first one of a
//! member wins without remembering anything, and looking one request up is one read. What `results`
//! lists, in the order of settling, is a tree of pages of ids beside it.
//!
//! # Limits
//! The file shrinks only where its end is unused: freed space is used again, so it is about as large as its busiest
//! moments made it. A smaller file is a new store of what is left ([`SledStore::compact`]).
//! That keeps requests which are not where they were pushed (retried, redriven) in memory until their turn has come,
//! without what is in parts of their payloads.
//! Opening takes seconds for each GB of file, and after a crash it also counts every entry. Error texts
//! are cut after 8 KiB, also those that come with a dump.

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!(
    "the `sled` backend promises durability, which it knows how to get on Linux and macOS only; \
     build with `default-features = false` and without the feature `sled` here"
);

mod anew;
mod apply;
mod clean;
mod copy;
mod db;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod handle;
mod keys;
mod moment;
mod open;
mod plan;
mod queue;
mod range;
mod reader;
mod record;
mod recovery;
mod repair;
mod rows;
mod sentinel;
mod state;
mod synced;
mod transfer;
mod usage;
mod verify;
mod write;
mod writer;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};

use self::{handle::Handle, moment::Still, state::QueueState, writer::Writer};
pub use self::{queue::SledQueue, repair::Repaired};
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    queue::{
        Moment, Queue, QueueOptions, Store, Verified, VerifyProgress,
        compact::{self, Compact, Compacted},
        progress,
    },
    request::QueueName,
};

/// Many named queues in one folder, which one process at a time has open.
///
/// What [`push`](Queue::push) answered is on stable storage, power loss included; all callers that
/// wait share one sync. There is no weaker mode. See the crate's design page for how.
///
/// ```
/// use batchyard::{NewRequest, Queue, QueueExt, SledStore, Store};
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("store");
/// # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
/// let store = SledStore::open(&path).await?;
/// let queue = store.queue(&"tenant-7.emails".parse()?).await?;
/// queue.push_one(NewRequest::new("hello")).await?;
/// assert_eq!(store.queues("tenant-").await?.len(), 1);
/// store.close().await?;
/// # Ok::<(), batchyard::Error>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct SledStore {
    handle: Handle,
}

/// Options of a [`SledStore`]; they are not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SledOptions {
    queues: QueueOptions,
    low_space_mark: u64,
    cache_bytes: u64,
    open_timeout: Duration,
    offer_held: bool,
    moves_pages: bool,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self {
            queues: QueueOptions::default(),
            low_space_mark: 64 << 20,
            cache_bytes: 32 << 20,
            open_timeout: Duration::from_mins(10),
            offer_held: true,
            moves_pages: true,
        }
    }
}

impl SledOptions {
    /// Options of queues that are not given their own. Default: [`QueueOptions::default`].
    #[must_use]
    pub fn queues(mut self, options: QueueOptions) -> Self {
        self.queues = options;
        self
    }

    /// With fewer bytes free on the file system than this, pushes are
    /// [`QueueFull`](crate::ErrorKind::QueueFull), so that what was paid for can still be recorded
    /// and settled. If something else takes the rest, the store is poisoned until there is space and it is opened again.
    /// Default: 64 MiB.
    #[must_use]
    pub fn low_space_mark(mut self, bytes: u64) -> Self {
        self.low_space_mark = bytes;
        self
    }

    /// How many bytes of pages sled keeps in memory. Default: 32 MiB.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// How long opening may take before it is given up: a damaged database might never open.
    /// Default: 10 minutes.
    #[must_use]
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.open_timeout = timeout;
        self
    }

    /// Offers batches that were held when the store was last open at once, instead of when their
    /// leases run out: only one process at a time has it open, so those who held them are gone. Say no
    /// in a process that keeps a lease across a close and an open of its own. Default: yes.
    #[must_use]
    pub fn offer_held(mut self, offer: bool) -> Self {
        self.offer_held = offer;
        self
    }

    /// Opens the store in this folder, made if it is missing or empty.
    ///
    /// # Errors
    /// [`Locked`](crate::ErrorKind::Locked): another process has it open, whose pid is named.
    /// [`Invalid`](crate::ErrorKind::Invalid): it is a file, can't be written, holds something else,
    /// or has a newer format; it was left untouched. [`Corrupt`](crate::ErrorKind::Corrupt): it is
    /// damaged; nothing of it is served. [`Unavailable`](crate::ErrorKind::Unavailable): it took
    /// longer than [`open_timeout`](Self::open_timeout).
    pub async fn open(self, path: impl AsRef<Path>) -> Result<SledStore> {
        let path: PathBuf = path.as_ref().to_owned();
        let shown = path.display().to_string();
        let (reply, answer) = oneshot::channel();
        let serve = move || match open::open(&path, self.queues, self.cache_bytes) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(mut opened) => {
                if self.offer_held {
                    opened.queues.values_mut().for_each(QueueState::offer_held);
                }
                if !self.moves_pages {
                    opened.db.move_nothing();
                }
                let (writer, handle) = Writer::new(opened, self.queues, self.low_space_mark);
                // Nobody waits any more: the handle is dropped, and the writer ends at once.
                drop(reply.send(Ok(handle)));
                writer.run();
            }
        };
        thread::Builder::new()
            .name("batchyard-sled".into())
            .spawn(serve)
            .map_err(|error| Error::internal("no thread for the writer").with_source(error))?;
        match tokio::time::timeout(self.open_timeout, answer).await {
            Ok(Ok(opened)) => opened.map(|handle| SledStore { handle }),
            Ok(Err(_)) => Err(Error::corrupt(format!(
                "{shown} does not open; run `repair` to save what can be read"
            ))),
            Err(_) => Err(Error::unavailable(format!(
                "{shown} did not open within {:?}; wait longer, or run `repair` to save what can be read",
                self.open_timeout
            ))),
        }
    }
}

impl SledStore {
    /// Opens the store in this folder with the default options, made if it is missing or empty.
    ///
    /// # Errors
    /// As [`SledOptions::open`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::options().open(path).await
    }

    /// Options to open a store with.
    pub fn options() -> SledOptions {
        SledOptions::default()
    }

    /// The queue of this name with options of its own, made if it does not exist yet.
    ///
    /// They hold for every handle of this queue, from now on.
    ///
    /// # Errors
    /// As [`Store::queue`].
    pub async fn queue_with(&self, name: &QueueName, options: QueueOptions) -> Result<SledQueue> {
        let live = self.handle.open(name.clone(), Some(options)).await?;
        Ok(SledQueue::new(self.handle.clone(), live))
    }

    /// Saves what can be read of the damaged store `from` into a new store in `to`, an empty or missing
    /// folder; `from` is only read. Needs room for a copy of it beside `to` meanwhile.
    ///
    /// Batches that had not ended keep their ids and the members that are left, and are offered at
    /// once; what of them was already done outside may be done again.
    ///
    /// The new store counts what was saved only, so [`Repaired`] is what tells of the rest. sled takes what
    /// follows damage in its log for never written: how much that was is known if `from` was closed, and at least how much
    /// if its process was killed.
    ///
    /// # Errors
    /// [`Locked`](crate::ErrorKind::Locked): `from` or `to` is open.
    /// [`Invalid`](crate::ErrorKind::Invalid): `to` is not empty, or can't be written.
    /// [`Corrupt`](crate::ErrorKind::Corrupt): nothing can be read.
    pub async fn repair(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<Repaired> {
        let (from, to) = (from.as_ref().to_owned(), to.as_ref().to_owned());
        let repaired = tokio::task::spawn_blocking(move || repair::repair(&from, &to)).await;
        repaired.map_err(|error| Error::internal("the repair was cut off").with_source(error))?
    }

    /// Reads all that the store in this folder holds, and every checksum, without changing anything. Nobody may have it
    /// open, nor opens it meanwhile.
    ///
    /// sled can't open a database without writing to it, so a copy is made in a new folder within `scratch`, opened, read,
    /// and removed. It needs as much room there as the store takes, and 32 MiB; if there is less, that is said before
    /// anything is copied.
    ///
    /// # Errors
    /// [`Locked`](crate::ErrorKind::Locked): it is open. [`NotFound`](crate::ErrorKind::NotFound): there is none.
    /// [`Invalid`](crate::ErrorKind::Invalid): it is no such store, or `scratch` has no room.
    /// [`Unavailable`](crate::ErrorKind::Unavailable): nothing went on for 10 minutes, or sled needed a second longer for
    /// each MiB to open the copy.
    pub async fn verify(path: impl AsRef<Path>, scratch: impl AsRef<Path>) -> Result<Verified> {
        Self::verify_telling(path, scratch, |_| {}).await
    }

    /// The same; `tell` hears how far it is, again and again. Dropped, it ends soon, and removes its copy then.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub async fn verify_telling(
        path: impl AsRef<Path>,
        scratch: impl AsRef<Path>,
        tell: impl FnMut(VerifyProgress),
    ) -> Result<Verified> {
        let (path, scratch) = (path.as_ref().to_owned(), scratch.as_ref().to_owned());
        progress::telling(tell, move |pulse| verify::verify(&path, &scratch, pulse)).await
    }

    /// Makes the store in this folder anew from what is left in it: its file never shrinks by itself but at its end.
    /// `tell` hears how many records there are in the new one so far, again and again.
    ///
    /// Nothing is lost: see [`Transfer`](crate::transfer::Transfer). It needs room for the new store beside the old one, and
    /// nobody may have that open. Whenever it is cut off, there is the old store or the new one, whole; what is left beside
    /// it, the next compaction removes. What else lies in the folder is kept.
    ///
    /// # Errors
    /// [`Locked`](crate::ErrorKind::Locked): it is open. [`NotFound`](crate::ErrorKind::NotFound): there is none.
    /// [`Unavailable`](crate::ErrorKind::Unavailable): the file system can't exchange two folders in one step.
    /// [`Corrupt`](crate::ErrorKind::Corrupt): it is damaged. Then, and if it fails otherwise, the old store is as it was.
    pub async fn compact(
        path: impl AsRef<Path>,
        tell: impl FnMut(u64) + Send,
    ) -> Result<Compacted> {
        compact::compact::<Self>(path.as_ref(), tell).await
    }

    /// How many syncs have reached the disk since the store was opened: one for each group of calls
    /// that changed something, and more for a large one.
    pub fn sync_count(&self) -> u64 {
        self.handle.syncs()
    }
}

#[async_trait]
impl Compact for SledStore {
    const LEFT: &[&str] = &["moments", "REDO"];

    async fn open_at(path: &Path) -> Result<Self> {
        let kept = QueueOptions::default().retention(Duration::MAX);
        let mut options = Self::options().queues(kept);
        options.moves_pages = false;
        options.open(path).await
    }

    async fn locks(&self) -> Result<Vec<File>> {
        Ok(vec![self.handle.lock().await?])
    }

    fn check(&self, _: &Path) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Store for SledStore {
    async fn queue(&self, name: &QueueName) -> Result<Arc<dyn Queue>> {
        let live = self.handle.open(name.clone(), None).await?;
        Ok(Arc::new(SledQueue::new(self.handle.clone(), live)))
    }

    async fn queues(&self, prefix: &str) -> Result<Vec<QueueName>> {
        self.handle.check()?;
        let lives = self
            .handle
            .core
            .lives
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let names = lives
            .keys()
            .filter(|name| name.as_str().starts_with(prefix));
        Ok(names.cloned().collect())
    }

    fn created(&self) -> Option<watch::Receiver<u64>> {
        Some(self.handle.core.created.subscribe())
    }

    async fn moment(&self, now: Timestamp) -> Result<Option<Box<dyn Moment>>> {
        Ok(Some(Box::new(Still::of(&self.handle, now).await?)))
    }

    /// In slices between which the writer goes on. Damage that sled itself meets stops the store, as any read of it does.
    async fn verify(&self, tell: &mut (dyn FnMut(VerifyProgress) + Send)) -> Result<Verified> {
        let core = Arc::clone(&self.handle.core);
        progress::telling(tell, move |pulse| verify::verify_open(&core, pulse)).await
    }

    async fn close(&self) -> Result<()> {
        self.handle.close().await
    }
}
