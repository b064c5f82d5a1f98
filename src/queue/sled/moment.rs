//! Moments of a store: what all its queues held, read while it goes on.
//!
//! ```text
//!  the writer, once   all queues are brought to `now` and settled; what is in memory of them is copied
//!  and from then on   before an entry is changed for the first time, it is saved ──▶ STORE/moments/…, a database
//!                     windows are noted as dropped, and stay until the moment ends
//!  who reads          what was saved, else what is there, less what is newer
//! ```
//! A request has an id up to the queue's last position then, or it came later: so of what is pushed since nothing is saved.
//! What is saved needs no sync: a moment ends with its process, and opening clears what is left.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt, fs, iter,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use async_trait::async_trait;
use sled::IVec;
use tokio::task::spawn_blocking;

use super::{
    db::{Db, panic_text},
    handle::{Command, Core, Handle},
    keys::{self, Tree},
    plan::At,
    range::{Range, Source},
    reader::View,
    record::Record,
    recovery,
    rows::{self, Chunk},
    sentinel::Sentinel,
    state::QueueState,
};
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    fault::step,
    queue::transfer::{DumpFrom, DumpPage, Moment, PAGE_BYTES, PAGE_RECORDS, not_there},
    request::QueueName,
};

/// An entry of a tree.
type Entry = (IVec, IVec);

/// What there was at a moment, where it is something else now.
pub(super) struct Past {
    /// By the number that their keys begin with.
    queues: BTreeMap<u32, QueueState>,
    windows: BTreeMap<(u32, u64), sled::Tree>,
    /// `None` once it has ended, or given way.
    saved: Mutex<Option<Arc<Saved>>>,
    gave_way: OnceLock<String>,
}

impl Past {
    /// What is there now.
    pub(super) fn of<'a>(
        queues: impl Iterator<Item = &'a QueueState>,
        windows: BTreeMap<(u32, u64), sled::Tree>,
        saved: Saved,
    ) -> Self {
        Self {
            queues: queues.map(|queue| (queue.id, queue.still())).collect(),
            windows,
            saved: Mutex::new(Some(Arc::new(saved))),
            gave_way: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Saved>>> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saved(&self) -> Result<Arc<Saved>> {
        let why = || self.gave_way.get().map_or("it has ended", String::as_str);
        let saved = self.lock().clone();
        saved.ok_or_else(|| Error::unavailable(format!("the dump was given up: {}", why())))
    }

    /// Nobody reads it any more.
    fn end(&self) {
        drop(self.lock().take());
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().is_none()
    }

    /// Ends it for a reason that who reads it is told.
    pub(super) fn give_way(&self, why: &str) {
        tracing::warn!("a dump is given up: {why}");
        let _ = self.gave_way.set(why.to_owned());
        self.end();
    }

    /// Whether it has rows of this window.
    pub(super) fn has_window(&self, window: (u32, u64)) -> bool {
        self.windows.contains_key(&window) && !self.has_ended()
    }

    /// Whether there may have been such an entry, and somebody may look for it.
    fn may_have(&self, (tree, window): At, key: &[u8]) -> bool {
        let queue = match tree {
            // What is noted of windows.
            Tree::Requests if window == (0, 0) => return false,
            Tree::Requests => window.0,
            _ => keys::queue(key),
        };
        let Some(queue) = self.queues.get(&queue) else {
            return false;
        };
        let last = queue.record.last_position;
        match tree {
            Tree::Meta | Tree::Expiry | Tree::Pending | Tree::Kept | Tree::KeyExpiry => false,
            Tree::Requests => rows::position(key) <= last,
            Tree::Delayed => keys::number(key, 1) <= last,
            Tree::Dead | Tree::Parts | Tree::Places | Tree::Outcomes | Tree::Marks => {
                keys::number(key, 0) <= last
            }
            Tree::Notes | Tree::Settled | Tree::Keys | Tree::Bookmarks => true,
        }
    }

    /// Saves an entry that is about to be changed, unless that was done before. If it can't be, the moment gives way.
    pub(super) fn save(
        &self,
        at: At,
        key: &[u8],
        is_there: impl FnOnce() -> Result<Option<IVec>>,
    ) -> Result<()> {
        if !self.may_have(at, key) {
            return Ok(());
        }
        let Some(saved) = self.lock().clone() else {
            return Ok(());
        };
        let key = saved_key(at, key);
        match saved.get(&key) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(error) => {
                self.give_way(&error.to_string());
                return Ok(());
            }
        }
        let was = is_there()?;
        if let Err(error) = saved.put(&key, was.as_deref()) {
            self.give_way(&error.to_string());
        }
        Ok(())
    }

    /// The value that a key had.
    fn get(&self, db: &Db, tree: Tree, key: &[u8]) -> Result<Option<IVec>> {
        if tree == Tree::Requests {
            let position = keys::number(key, 0);
            let at = (keys::queue(key), position);
            let mut rows = self.rows(db, at, at)?;
            return Ok(rows.next().transpose()?.map(|(_, value)| value));
        }
        let at = (tree, (0, 0));
        if !self.may_have(at, key) {
            return Ok(None);
        }
        match self.saved()?.get(&saved_key(at, key))? {
            Some(was) => Ok(value(&was)),
            None => db.get(tree, key),
        }
    }

    /// The entries that there were from one key to another, both included, in order.
    fn range<'a>(
        &'a self,
        db: &'a Db,
        tree: Tree,
        (from, to): (Vec<u8>, Vec<u8>),
    ) -> Result<Box<dyn Iterator<Item = Result<Entry>> + 'a>> {
        if from > to {
            return Ok(Box::new(iter::empty()));
        }
        if tree == Tree::Requests {
            let at = |key: &[u8]| (keys::queue(key), keys::number(key, 0));
            return Ok(Box::new(self.rows(db, at(&from), at(&to))?));
        }
        let at = (tree, (0, 0));
        let was = self.saved()?;
        let was = was.range(saved_key(at, &from), saved_key(at, &to), 1);
        let now = db.range(tree, from, to);
        let now = now.filter(move |entry| {
            let key = entry.as_ref().map(|(key, _)| key);
            key.map_or(true, |key| self.may_have(at, key))
        });
        Ok(Box::new(merged(now, was)))
    }

    /// The rows of `requests` that there were, with their keys.
    fn rows<'a>(
        &'a self,
        db: &'a Db,
        from: (u32, u64),
        to: (u32, u64),
    ) -> Result<impl Iterator<Item = Result<Entry>> + 'a> {
        let saved = self.saved()?;
        let (queue, position) = from;
        let windows = self.windows.range((queue, 0)..=from);
        let first = windows.map(|((_, first), _)| *first).next_back();
        let windows = self.windows.range((queue, first.unwrap_or(position))..);
        let windows = windows.take_while(move |(window, _)| **window <= to);
        let chunks = windows.flat_map(move |(window, tree)| {
            let chunks = self.chunks(db, &saved, (*window, tree), position);
            let (chunks, failed) = match chunks {
                Ok(chunks) => (Some(chunks), None),
                Err(error) => (None, Some(Err(error))),
            };
            chunks.into_iter().flatten().chain(failed)
        });
        let is_within = move |chunk: &Result<Chunk>| {
            (chunk.as_ref()).map_or(true, |chunk| (chunk.queue, chunk.first) <= to)
        };
        let rows = chunks.take_while(is_within).flat_map(move |chunk| {
            let opened = chunk.and_then(|chunk| rows::open(&chunk));
            let (rows, failed) = match opened {
                Ok(chunk) => (Some(chunk.rows_within(from, to)), None),
                Err(error) => (None, Some(Err(error))),
            };
            rows.into_iter().flatten().map(Ok).chain(failed)
        });
        Ok(rows)
    }

    /// The chunks that a window had, from the one that a position is in.
    fn chunks<'a>(
        &'a self,
        db: &'a Db,
        saved: &Saved,
        (window, tree): ((u32, u64), &'a sled::Tree),
        position: u64,
    ) -> Result<impl Iterator<Item = Result<Chunk>> + use<'a>> {
        let at = (Tree::Requests, window);
        let key = position.to_be_bytes();
        let there = db.guard("a read", || {
            tree.range(..=key).keys().next_back().transpose()
        })?;
        let was = saved.last_before(&saved_key(at, &[]), &saved_key(at, &key))?;
        let was = was.map(|key| IVec::from(&key[saved_key(at, &[]).len()..]));
        let from = there.max(was).unwrap_or_else(|| IVec::from(&key));
        let was = saved.range(
            saved_key(at, &from),
            saved_key(at, &u64::MAX.to_be_bytes()),
            saved_key(at, &[]).len(),
        );
        let mut entries = tree.range(from..);
        let now = iter::from_fn(move || {
            let next = db.guard("a read", || entries.next().transpose());
            next.transpose()
        });
        let now = now.filter(move |entry| {
            (entry.as_ref()).map_or(true, |(first, _)| self.may_have(at, first))
        });
        Ok(merged(now, was).map(move |entry| entry.map(|entry| rows::chunk(window, entry))))
    }
}

/// What is there and what was: that counts, in the order of the keys.
fn merged<'a>(
    now: impl Iterator<Item = Result<Entry>> + 'a,
    was: impl Iterator<Item = Result<(IVec, Option<IVec>)>> + 'a,
) -> impl Iterator<Item = Result<Entry>> + 'a {
    let (mut now, mut was) = (now.peekable(), was.peekable());
    iter::from_fn(move || {
        loop {
            let order = match (now.peek(), was.peek()) {
                (None, None) => return None,
                (Some(Err(_)), _) | (Some(_), None) => Ordering::Less,
                (_, Some(Err(_))) | (None, Some(_)) => Ordering::Greater,
                (Some(Ok((now, _))), Some(Ok((was, _)))) => now.cmp(was),
            };
            if order == Ordering::Less {
                return now.next();
            }
            if order == Ordering::Equal {
                now.next();
            }
            match was.next()? {
                Ok((key, Some(value))) => return Some(Ok((key, value))),
                Ok((_, None)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    })
}

/// The key under which an entry is saved.
fn saved_key((tree, window): At, key: &[u8]) -> Vec<u8> {
    let mut saved = vec![tree as u8];
    if tree == Tree::Requests {
        saved.extend(keys::key(window.0, &[window.1]));
    }
    saved.extend(key);
    saved
}

/// A database of what was, which nobody else has and nothing has to survive.
pub(super) struct Saved {
    /// `None` while it is dropped.
    sled: Option<Arc<sled::Db>>,
    folder: PathBuf,
    sentinel: Option<Sentinel>,
}

impl Saved {
    /// An empty one in the folder of a store.
    pub(super) fn new(store: &Path) -> Result<Self> {
        let folder = folder_of(store).join(format!("{:016x}", fastrand::u64(..)));
        let made = fs::create_dir_all(&folder);
        made.map_err(|error| {
            let text = format!("{} can't be made", folder.display());
            Error::unavailable(text).with_source(error)
        })?;
        let config = recovery::config(&folder, CACHE_BYTES);
        let sled = guarded(|| config.open())?;
        let sled = Arc::new(sled);
        let sentinel = Some(Sentinel::start(&sled, &config)?);
        Ok(Self {
            sled: Some(sled),
            folder,
            sentinel,
        })
    }

    /// Calls sled about what was saved.
    fn ask<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T> {
        let sled = self.sled.as_ref();
        let sled = sled.ok_or_else(|| Error::internal("what was saved is gone"))?;
        guarded(|| call(sled))
    }

    /// What was saved under a key, as it is stored.
    fn get(&self, key: &[u8]) -> Result<Option<IVec>> {
        self.ask(|sled| sled.get(key))
    }

    fn put(&self, key: &[u8], was: Option<&[u8]>) -> Result<()> {
        match step("sled.save") {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(planted) => return guarded(|| Err(planted.into())),
        }
        let mut value = vec![u8::from(was.is_some())];
        value.extend(was.unwrap_or_default());
        self.ask(|sled| sled.insert(key, value)).map(drop)
    }

    /// What was saved from one key to another, each key without so many bytes.
    fn range(
        &self,
        from: Vec<u8>,
        to: Vec<u8>,
        prefix: usize,
    ) -> impl Iterator<Item = Result<(IVec, Option<IVec>)>> + use<> {
        let mut entries = self.sled.as_ref().map(|sled| sled.range(from..=to));
        iter::from_fn(move || {
            let entries = entries.as_mut()?;
            let next = guarded(|| entries.next().transpose()).transpose()?;
            Some(next.map(|(key, was)| (key.subslice(prefix, key.len() - prefix), value(&was))))
        })
    }

    fn last_before(&self, from: &[u8], to: &[u8]) -> Result<Option<IVec>> {
        self.ask(|sled| sled.range(from..=to).keys().next_back().transpose())
    }
}

impl Drop for Saved {
    /// sled writes a last time, for which a full disk could make it wait: nobody else has to.
    fn drop(&mut self) {
        let (sled, sentinel) = (self.sled.take(), self.sentinel.take());
        let folder = std::mem::take(&mut self.folder);
        let last = move || {
            let _ = guarded(|| sled.as_ref().map_or(Ok(0), |sled| sled.flush()));
            drop(sentinel);
            let dropped = catch_unwind(AssertUnwindSafe(|| drop(sled)));
            if dropped.is_err() {
                tracing::warn!("sled panicked while what a dump had saved was dropped");
            }
            // What stays is cleared by the next opening.
            let _ = fs::remove_dir_all(&folder);
            let _ = folder.parent().map(fs::remove_dir);
        };
        let ended = thread::Builder::new()
            .name("batchyard-moment".to_owned())
            .spawn(last);
        if let Err(error) = ended {
            tracing::warn!(%error, "what a dump had saved stays until the store is opened again");
        }
    }
}

fn value(was: &IVec) -> Option<IVec> {
    (was.first() == Some(&1)).then(|| was.subslice(1, was.len() - 1))
}

/// Calls sled about what was saved: if that fails, it is the moment that ends.
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            let text = format!("what is changed meanwhile can't be saved: {error}");
            Err(Error::unavailable(text).with_source(error))
        }
        Err(panic) => Err(Error::unavailable(format!(
            "what is changed meanwhile can't be saved: {}",
            panic_text(&*panic)
        ))),
    }
}

/// Removes what moments of an earlier process have left.
pub(super) fn clear(store: &Path) {
    let folder = folder_of(store);
    if let Err(error) = fs::remove_dir_all(&folder)
        && folder.exists()
    {
        tracing::warn!(%error, "{} can't be removed", folder.display());
    }
}

fn folder_of(store: &Path) -> PathBuf {
    store.join("moments")
}

/// What a reader sees: what is there, or what was there at a moment.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    db: &'a Db,
    past: Option<&'a Past>,
}

impl<'a> Sight<'a> {
    pub(super) fn of(db: &'a Db) -> Self {
        Self { db, past: None }
    }

    /// The record of a key, and its body.
    pub(super) fn load<R: Record>(&self, tree: Tree, key: &[u8]) -> Result<Option<(R, IVec)>> {
        let Some(past) = self.past else {
            return self.db.load(tree, key);
        };
        let value = past.get(self.db, tree, key)?;
        value
            .map(|value| super::db::read(tree, key, &value))
            .transpose()
    }

    /// The entries from one key to another, both included, in order.
    pub(super) fn range(&self, tree: Tree, from: Vec<u8>, to: Vec<u8>) -> Range<'a> {
        let Some(past) = self.past else {
            return self.db.range(tree, from, to);
        };
        let entries = past.range(self.db, tree, (from, to));
        let entries = entries.unwrap_or_else(|error| Box::new(iter::once(Err(error))));
        Range {
            db: self.db,
            source: Source::Rows(entries),
        }
    }
}

/// What all queues of a store held at one moment.
pub(super) struct Still {
    handle: Handle,
    past: Arc<Past>,
    names: BTreeMap<QueueName, u32>,
    now: Timestamp,
    _turn: Arc<()>,
}

impl Still {
    /// What they hold as of `now`.
    pub(super) async fn of(handle: &Handle, now: Timestamp) -> Result<Self> {
        handle.check()?;
        let turn = handle.core.turns.take()?;
        let path = handle.core.path.clone();
        let saved = spawn_blocking(move || Saved::new(&path)).await;
        let saved = saved.map_err(|error| Error::internal("a dump was cut off").with_source(error));
        let past = handle.hold(now, saved??).await?;
        let names = past.queues.iter();
        Ok(Self {
            handle: handle.clone(),
            names: names
                .map(|(id, queue)| (queue.live.name.clone(), *id))
                .collect(),
            past,
            now,
            _turn: turn,
        })
    }
}

impl fmt::Debug for Still {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Still")
            .field("store", &self.handle)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Moment for Still {
    fn queues(&self) -> Vec<QueueName> {
        self.names.keys().cloned().collect()
    }

    async fn dump(&self, queue: &QueueName, from: DumpFrom) -> Result<DumpPage> {
        let id = *self.names.get(queue).ok_or_else(|| not_there(queue))?;
        self.handle.check()?;
        let (core, past) = (Arc::clone(&self.handle.core), Arc::clone(&self.past));
        let page = spawn_blocking(move || {
            let mut page = piece(&core, &past, id, from, (PAGE_RECORDS, PAGE_BYTES))?;
            // It ends where one that is read in one go ends.
            while let Some(next @ DumpFrom::Request(_)) = page.next
                && let Some(records) = PAGE_RECORDS.checked_sub(page.records.len())
                && let Some(bytes) = PAGE_BYTES.checked_sub(page.bytes())
                && records > 0
                && bytes > 0
            {
                let more = piece(&core, &past, id, next, (records, bytes))?;
                page.records.extend(more.records);
                page.damaged.extend(more.damaged);
                page.next = more.next;
            }
            Ok(page)
        });
        page.await
            .map_err(|error| Error::internal("a dump was cut off").with_source(error))?
    }
}

/// A part of a page. The writer waits for no more than that, and comes before the next one.
fn piece(
    core: &Core,
    past: &Past,
    queue: u32,
    from: DumpFrom,
    (records, bytes): (usize, usize),
) -> Result<DumpPage> {
    // Between two groups, so that what is saved and what is there fit together.
    let gate = core.read_gate();
    let db = gate.db.as_ref().ok_or_else(|| core.closed())?;
    db.check()?;
    let queue = past.queues.get(&queue);
    let queue = queue.ok_or_else(|| Error::internal("no such queue"))?;
    let sight = Sight {
        db,
        past: Some(past),
    };
    let most = (records.min(PIECE_RECORDS), bytes.min(PIECE_BYTES));
    let dump = || View { db: sight, queue }.dump(from, most);
    let page = catch_unwind(AssertUnwindSafe(dump));
    page.unwrap_or_else(|panic| Err(super::handle::bug(&*panic)))
}

impl Drop for Still {
    fn drop(&mut self) {
        self.past.end();
        // If there is no room for it, the writer is at work and sees it anyway.
        let _ = self.handle.commands.try_send(Command::Forget);
    }
}

/// What was saved is mostly looked up right after.
const CACHE_BYTES: u64 = 8 << 20;
/// Read in about 0.1 ms: a group takes longer to sync.
const PIECE_RECORDS: usize = 64;
const PIECE_BYTES: usize = 256 << 10;
