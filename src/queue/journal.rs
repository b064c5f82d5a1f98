//! The other embedded backend: a segmented log of our own, with its index in memory.
//!
//! ```text
//! JournalStore ─┬─ JournalQueue "default"     handles: prepare, apply under the lock, wait for the group
//!               └─ JournalQueue "tenant-7"
//!                        │ events and bulk                       │ pages of members, read beside
//!                        ▼                                       ▼
//!               group that fills ─▶ writer: write, one sync    segments
//!                        └──────────▶ Log ◀──────────────────────┘
//! ```
//! | module | holds |
//! |---|---|
//! | `queue` | the handle: the verbs as callers see them |
//! | `core`, `group` | the lock, the group that fills, group commit |
//! | `step` | each verb: what it decides |
//! | `event`, `fold` | what was decided, and what that does to the state, even if some of it is lost |
//! | `state` | what is kept in memory of each queue |
//! | `published` | what of it is durable, and shown |
//! | `view` | pages of members, status, lists, results |
//! | `transfer` | to and from other backends |
//! | `moment` | all queues as they were, dumped while they go on |
//! | `verify` | reading all that is held |
//! | `compact` | a new store in the place of this one |
//! | `record`, `codec` | the bytes of requests and events |
//! | `identity` | which store it is |
//! | `open`, `tend` | recovery; baselines and freeing segments |
//! | `log`, `disk` | groups in segments, on a disk that may be a simulated one |

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!(
    "the `journal` backend promises durability, which it knows how to get on Linux and macOS only; \
     build with `default-features = false` and without the feature `journal` here"
);

mod codec;
mod compact;
mod core;
mod disk;
mod event;
mod fold;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod group;
mod identity;
mod log;
mod moment;
mod open;
mod published;
mod queue;
mod record;
#[cfg(any(test, feature = "fuzzing"))]
mod rig;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), expect(dead_code, reason = "tests do more with it"))]
mod simulated;
mod state;
mod step;
mod tend;
#[cfg(test)]
mod tests;
mod transfer;
mod verify;
mod view;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, atomic::Ordering},
    thread,
};

use async_trait::async_trait;
use tokio::sync::watch;

pub use self::queue::JournalQueue;
use self::{
    core::Core,
    disk::{Disk, Folder},
    event::{Event, Made, Of, What},
    fold::fold,
    identity::{Identity, KIND, LOG, USED, fields, lost_format, salt, wrong_salt},
    log::{Place, salts},
    moment::Still,
    open::gone,
    published::Live,
    step::Step,
};
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    fault::point,
    queue::{
        Moment, Queue, QueueOptions, Store,
        folder::{StoreFolder, unusable},
        progress,
        verified::{Finding, FindingKind, Verified, VerifyProgress},
    },
    request::QueueName,
    sync::Builder,
};

/// Many named queues in one folder, which one process at a time has open.
///
/// What [`push`](Queue::push) answered is on stable storage, power loss included; all callers that
/// wait share one sync. There is no weaker mode.
///
/// ```
/// use batchyard::{JournalStore, NewRequest, Queue, QueueExt, Store};
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("store");
/// # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
/// let store = JournalStore::open(&path).await?;
/// let queue = store.queue(&"tenant-7.emails".parse()?).await?;
/// queue.push_one(NewRequest::new("hello")).await?;
/// assert_eq!(store.queues("tenant-").await?.len(), 1);
/// store.close().await?;
/// # Ok::<(), batchyard::Error>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct JournalStore {
    keeper: Arc<Keeper>,
    report: Vec<String>,
}

/// Options of a [`JournalStore`]; they are not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalOptions {
    queues: QueueOptions,
    low_space_mark: u64,
    offer_held: bool,
    segment_bytes: u32,
    verify: bool,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            queues: QueueOptions::default(),
            low_space_mark: 64 << 20,
            offer_held: true,
            segment_bytes: 64 << 20,
            verify: false,
        }
    }
}

impl JournalOptions {
    /// Options of queues that are not given their own. Default: [`QueueOptions::default`].
    #[must_use]
    pub fn queues(mut self, options: QueueOptions) -> Self {
        self.queues = options;
        self
    }

    /// With fewer bytes free on the file system than this, pushes are
    /// [`QueueFull`](crate::ErrorKind::QueueFull), so that what was paid for can still be recorded
    /// and settled. Default: 64 MiB.
    #[must_use]
    pub fn low_space_mark(mut self, bytes: u64) -> Self {
        self.low_space_mark = bytes;
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

    /// How long the files of the log are; one that holds a larger push is longer. Default: 64 MiB.
    #[must_use]
    pub fn segment_bytes(mut self, bytes: u32) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// Reads all that is held while the store is opened, so that [`JournalStore::report`] also tells which requests,
    /// outcomes and results are damaged; that takes as long as the disk needs for it. Otherwise each is checked when it
    /// is read. Default: no.
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Opens the store in this folder, made if it is missing or empty.
    ///
    /// # Errors
    /// [`Locked`](crate::ErrorKind::Locked): another process has it open, whose pid is named.
    /// [`Invalid`](crate::ErrorKind::Invalid): it is a file, can't be written, holds something else,
    /// or has a newer format; it was left untouched. [`Corrupt`](crate::ErrorKind::Corrupt): nothing is left of its log,
    /// or that is of another store, or its `FORMAT` is lost. All other damage is no error: see [`JournalStore::report`].
    pub async fn open(self, path: impl AsRef<Path>) -> Result<JournalStore> {
        let path: PathBuf = path.as_ref().to_owned();
        let opened = tokio::task::spawn_blocking(move || self.open_now(path)).await;
        opened.map_err(|error| Error::internal("opening was cut off").with_source(error))?
    }

    fn open_now(self, path: PathBuf) -> Result<JournalStore> {
        let opened = StoreFolder::open(&path, KIND);
        let mut folder = opened.map_err(|error| lost_format(&path, error))?;
        if folder.fields.is_none() {
            // First of all: a folder that holds anything else, and not this, is nobody's.
            let salt = fastrand::u64(..);
            let is_used = false;
            folder.write_format(fields(Identity { salt, is_used }))?;
        }
        let stated = folder.fields.clone().unwrap_or_default();
        let log = path.join(LOG);
        let is_used = stated.contains_key(USED);
        if is_used && !log.is_dir() {
            return Err(gone(&path));
        }
        let disk = make_folder(&log)
            .and_then(|()| Folder::open(&log))
            .map_err(|error| unusable(&log, "can't be opened", error))?;
        folder.lock_too(&log)?;
        let there = salts(&disk).map_err(|error| unusable(&log, "can't be read", error))?;
        let (salt, is_mended) = salt(&path, &stated, &there)?;
        let identity = Identity { salt, is_used };
        if is_mended {
            folder.write_format(fields(identity))?;
        }
        let mut store = self.serve(Arc::new(disk), identity, path, Some(folder))?;
        if is_mended {
            let line = format!(
                "damaged: {}; it was written again",
                wrong_salt(&stated, salt)
            );
            tracing::warn!(store = ?store.keeper.core, "{line}");
            store.report.insert(0, line);
        }
        Ok(store)
    }

    /// Opens the log on this disk, and starts the writer.
    fn serve(
        self,
        disk: Arc<dyn Disk>,
        identity: Identity,
        path: PathBuf,
        mut folder: Option<StoreFolder>,
    ) -> Result<JournalStore> {
        let mut opened = open::open(disk, identity, path, &self)?;
        let core = Arc::new(opened.core);
        core.publish_all(self.offer_held)?;
        point("journal.offered");
        if self.verify {
            opened.report.extend(verify::held_by(&core)?);
        }
        if let Some(folder) = &folder {
            let locks = folder.locks();
            core.locks
                .hold(locks.map_err(|error| unusable(&core.path, "can't be locked", error))?);
        }
        let mut tend = opened.tend;
        let is_damaged = |found: &Finding| found.kind == FindingKind::Damaged;
        if opened.report.iter().any(is_damaged)
            && let Err(error) = tend.write_baseline(&core)
        {
            // What is served goes on from here, not from what was damaged; if not now, then when there is space.
            tracing::warn!(store = ?core, "{error}");
        }
        tend.look(&core, false);
        note_use(&core, identity, &mut folder);
        point("journal.open");
        let ended = watch::Sender::new(false);
        let keeper = Keeper {
            core: core.clone(),
            ended: ended.subscribe(),
        };
        let run = move || {
            let mut ending = Ending {
                core,
                folder,
                ended,
            };
            let core = &ending.core;
            let folder = &mut ending.folder;
            core.serve(|core, is_idle| {
                tend.look(core, is_idle);
                note_use(core, identity, folder);
            });
            if core.check().is_ok() {
                // A clean end opens at once: nothing is left to fold.
                point("journal.close");
                let tidied = tend.finish(core);
                if let Err(error) = tidied {
                    tracing::warn!(store = ?core, "{error}");
                }
                point("journal.closed");
            }
            note_use(core, identity, &mut ending.folder);
        };
        Builder::new()
            .name("batchyard-journal".into())
            .spawn(run)
            .map_err(|error| Error::internal("no thread for the writer").with_source(error))?;
        let report: Vec<String> = opened.report.iter().map(ToString::to_string).collect();
        for line in &report {
            tracing::warn!(store = ?keeper.core, "{line}");
        }
        Ok(JournalStore {
            keeper: Arc::new(keeper),
            report,
        })
    }
}

impl JournalStore {
    /// Opens the store in this folder with the default options, made if it is missing or empty.
    ///
    /// # Errors
    /// As [`JournalOptions::open`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::options().open(path).await
    }

    /// Options to open a store with.
    pub fn options() -> JournalOptions {
        JournalOptions::default()
    }

    /// The queue of this name with options of its own, made if it does not exist yet.
    ///
    /// They hold for every handle of this queue, from now on.
    ///
    /// # Errors
    /// As [`Store::queue`].
    pub async fn queue_with(
        &self,
        name: &QueueName,
        options: QueueOptions,
    ) -> Result<JournalQueue> {
        let live = self.live(name, Some(options)).await?;
        Ok(JournalQueue::new(self.keeper.clone(), live))
    }

    /// What was found amiss when the store was opened, a line each: damage, with what it cost, and
    /// bytes that were begun and never answered. Empty after anything but damage or an unclean stop.
    /// Requests and outcomes are only read when they are needed, unless [`JournalOptions::verify`] asks for it: damage
    /// to them is told then, by lists and as dead letters.
    pub fn report(&self) -> &[String] {
        &self.report
    }

    /// Reads all that the store in this folder holds, and every checksum, without changing anything: it may lie on a file
    /// system that is read only. Nobody may have it open, nor opens it meanwhile.
    ///
    /// What opening it would report is found, and also what that does not look at: requests, outcomes and results, and
    /// what nothing needs any more. It takes as long as the disk needs for it.
    ///
    /// # Errors
    /// [`Locked`](crate::ErrorKind::Locked): it is open. [`NotFound`](crate::ErrorKind::NotFound): there is none.
    /// Otherwise those of [`JournalOptions::open`], but for [`Corrupt`](crate::ErrorKind::Corrupt): that is a finding.
    pub async fn verify(path: impl AsRef<Path>) -> Result<Verified> {
        Self::verify_telling(path, |_| {}).await
    }

    /// The same; `tell` hears how far it is, again and again. Dropped, it ends soon.
    ///
    /// # Errors
    /// As [`verify`](Self::verify), and [`Unavailable`](crate::ErrorKind::Unavailable): nothing went on for 10 minutes.
    pub async fn verify_telling(
        path: impl AsRef<Path>,
        tell: impl FnMut(VerifyProgress),
    ) -> Result<Verified> {
        let path: PathBuf = path.as_ref().to_owned();
        progress::telling(tell, move |pulse| verify::verify(&path, pulse)).await
    }

    /// How many syncs of groups have reached the disk since the store was opened.
    pub fn sync_count(&self) -> u64 {
        self.keeper.core.syncs.load(Ordering::Relaxed)
    }

    /// What all handles of a queue share, once the queue is there durably.
    async fn live(&self, name: &QueueName, options: Option<QueueOptions>) -> Result<Arc<Live>> {
        self.keeper.check()?;
        let core = &self.keeper.core;
        let opened = core
            .call(NO_QUEUE, |step| step.open_queue(name, options))
            .await?;
        let (live, is_new) = opened;
        if is_new {
            core.lives().insert(name.clone(), live.clone());
            core.created.send_modify(|count| *count += 1);
        }
        Ok(live)
    }
}

impl Step<'_> {
    /// The queue of this name, made if it is not there; and whether it was.
    fn open_queue(
        &mut self,
        name: &QueueName,
        options: Option<QueueOptions>,
    ) -> Result<(Arc<Live>, bool)> {
        let known = self.inner.lives.values().find(|live| live.name == *name);
        let known = known.map(|live| live.id);
        let is_new = known.is_none();
        let next = self.inner.state.queues.keys().next_back();
        let id = known.unwrap_or(next.map_or(0, |last| last + 1));
        if is_new {
            let made = What::Made(Made {
                name: name.to_string(),
                salt: fastrand::u64(..),
            });
            let event = Event::Of(Box::new(Of {
                queue: id,
                what: made,
            }));
            self.reserve(1024)?;
            self.inner.filling.put(&event);
            fold(&mut self.inner.state, event, self.inner.filling.at.body());
        }
        self.id = id;
        let defaults = self.core.defaults;
        let queue = self.inner.state.queues.get_mut(&id);
        let queue = queue.ok_or_else(|| Error::internal("no such queue"))?;
        if is_new || options.is_some() {
            queue.options = options.unwrap_or(defaults);
        }
        if is_new {
            let live = Arc::new(Live::new(id, name.clone(), queue));
            self.inner.lives.insert(id, live);
        } else if options.is_some() {
            let options = queue.options;
            if let Some(live) = self.inner.lives.get(&id) {
                live.set_options(options);
            }
        }
        let live = self.inner.lives.get(&id).cloned();
        let live = live.ok_or_else(|| Error::internal("no such queue"))?;
        Ok((live, is_new))
    }
}

/// What has to be done when the writer has ended, however it did.
struct Ending {
    core: Arc<Core>,
    folder: Option<StoreFolder>,
    ended: watch::Sender<bool>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if thread::panicking() {
            self.core
                .poison("the writer of the journal panicked".into());
            self.core.give_up();
        }
        self.core.moments.give_way("the store was closed");
        let mut log = (self.core.log.lock()).unwrap_or_else(PoisonError::into_inner);
        drop(log.take());
        // Others may open it only after that.
        self.core.locks.hold(Vec::new());
        self.folder = None;
        self.ended.send_replace(true);
    }
}

/// Notes in FORMAT that the log has segments, once it has: then it is damage if none is there any more.
fn note_use(core: &Core, identity: Identity, folder: &mut Option<StoreFolder>) {
    let Some(folder) = folder else { return };
    let is_noted = |fields: &BTreeMap<String, String>| fields.contains_key(USED);
    if folder.fields.as_ref().is_some_and(is_noted) {
        return;
    }
    let is_used = core.lock().is_ok_and(|inner| {
        // Of what is not durable yet there may be no segment.
        inner.sealed.is_empty() && inner.filling.at.place() != Place::start_of(1)
    });
    if !is_used {
        return;
    }
    let is_used = true;
    if let Err(error) = folder.write_format(fields(Identity {
        is_used,
        ..identity
    })) {
        tracing::warn!(store = ?core, "{error}");
    }
}

/// Makes a folder within another, durably, unless it is there.
fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => path.parent().map_or(Ok(()), |parent| {
            point("journal.log_made");
            fs::File::open(parent)?.sync_all()
        }),
    }
}

/// Ends the writer when the last handle is dropped.
#[derive(Debug)]
struct Keeper {
    core: Arc<Core>,
    ended: watch::Receiver<bool>,
}

impl Keeper {
    /// Fails if the store is closed.
    fn check(&self) -> Result<()> {
        if *self.ended.borrow() {
            self.core.check()?;
            return Err(self.core.closed());
        }
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.core.refuse();
        for live in self.core.lives().values() {
            live.changed();
        }
        let mut ended = self.ended.clone();
        // The writer drops its end only after it has said so.
        let _ = ended.wait_for(|ended| *ended).await;
        self.core.check()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.core.refuse();
    }
}

#[async_trait]
impl Store for JournalStore {
    async fn queue(&self, name: &QueueName) -> Result<Arc<dyn Queue>> {
        let live = self.live(name, None).await?;
        Ok(Arc::new(JournalQueue::new(self.keeper.clone(), live)))
    }

    async fn queues(&self, prefix: &str) -> Result<Vec<QueueName>> {
        self.keeper.check()?;
        self.keeper.core.check()?;
        let lives = self.keeper.core.lives();
        let names = lives
            .keys()
            .filter(|name| name.as_str().starts_with(prefix));
        Ok(names.cloned().collect())
    }

    fn created(&self) -> Option<watch::Receiver<u64>> {
        Some(self.keeper.core.created.subscribe())
    }

    async fn moment(&self, now: Timestamp) -> Result<Option<Box<dyn Moment>>> {
        Ok(Some(Box::new(Still::of(&self.keeper, now).await?)))
    }

    async fn damages(&self) -> Result<u64> {
        let damaged = self.report.iter();
        Ok(damaged.filter(|line| line.starts_with("damaged")).count() as u64)
    }

    /// As of one moment; no segment is reused until then, so the disk needs room for what is written meanwhile: it is given up
    /// before that would stop pushes. It takes memory for a second index.
    async fn verify(&self, tell: &mut (dyn FnMut(VerifyProgress) + Send)) -> Result<Verified> {
        self.keeper.check()?;
        let keeper = Arc::clone(&self.keeper);
        progress::telling(tell, move |pulse| verify::verify_open(&keeper.core, pulse)).await
    }

    async fn close(&self) -> Result<()> {
        self.keeper.close().await
    }
}

/// No queue has this number.
const NO_QUEUE: u32 = u32::MAX;
