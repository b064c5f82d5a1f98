//! The guarded database: every call into sled goes through here.
//!
//! sled 0.34.7 panics on some damage, and its `flush` does not reach the disk: on Linux it calls
//! `sync_file_range`, which neither writes metadata nor empties the disk's cache. So every call is
//! caught, and [`Db::sync`] adds an `fdatasync` through one descriptor that is held from before the
//! first write, because a descriptor opened later is not told of earlier write errors. After a panic,
//! a failed write or a failed sync nothing is known of what is on the disk: the store is poisoned,
//! and a sync is never tried again.

mod count;
mod left;
mod moments;
mod moving;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use sled::IVec;

use self::moving::Moving;
use super::{
    keys::{self, Tree},
    moment::Past,
    plan::{Change, Plan, Redo},
    range::{Chunks, Range, Source},
    record::{self, ChunkV1, CountsV1, QueueV1, Record},
    rows::{self, Rows, Windows},
    sentinel::Sentinel,
    synced::Synced,
    write::{self, Write, row},
};
use crate::{
    error::{Error, Result},
    fault::{point, step},
    queue::lock,
};

/// The open database of a store.
pub(super) struct Db {
    sled: Arc<sled::Db>,
    /// In the order of [`Tree::ALL`], apart from the first.
    trees: Vec<sled::Tree>,
    windows: Windows,
    /// Held from before the first write to the last.
    file: File,
    /// Where it is noted that not all that can be read is durable.
    lock: File,
    counts: Mutex<CountsV1>,
    /// The last record of each queue that was committed.
    queues: Mutex<BTreeMap<u32, QueueV1>>,
    /// Windows that are dropped and noted as such.
    dropped: Mutex<BTreeSet<(u32, u64)>>,
    /// Those of them that are still there, for moments.
    kept: Mutex<BTreeSet<(u32, u64)>>,
    pasts: Mutex<Vec<Arc<Past>>>,
    poison: Arc<OnceLock<String>>,
    syncs: AtomicU64,
    /// What was given to sled since the last sync.
    unsynced: AtomicUsize,
    moving: Mutex<Moving>,
    synced: Synced,
    redo: Redo,
    /// Looks after `sled`.
    _sentinel: Sentinel,
}

impl Db {
    /// Takes over what was just opened; `file` is its `db`, opened before anything was written.
    pub(super) fn new(
        (sled, config): (sled::Db, sled::Config),
        file: File,
        lock: File,
        (synced, redo): (Synced, Redo),
    ) -> Result<Self> {
        let sled = Arc::new(sled);
        let sentinel = Sentinel::start(&sled, &config)?;
        let mut db = Self {
            trees: Vec::new(),
            windows: Windows::new((*sled).clone()),
            file,
            lock,
            counts: Mutex::default(),
            queues: Mutex::default(),
            dropped: Mutex::default(),
            kept: Mutex::default(),
            pasts: Mutex::default(),
            poison: Arc::default(),
            syncs: AtomicU64::new(0),
            unsynced: AtomicUsize::new(0),
            moving: Mutex::default(),
            synced,
            redo,
            _sentinel: sentinel,
            sled,
        };
        match db.load_all().and_then(|()| db.redo_noted()) {
            Ok(()) => Ok(db),
            Err(error) => {
                db.let_go();
                Err(error)
            }
        }
    }

    /// Drops it. sled writes a last time then, and panics if the disk fails. Most of it is written before, while
    /// somebody looks after that.
    pub(super) fn let_go(self) {
        let last = || {
            // How it ends, those who wait for an answer are told.
            let _ = self.sled.flush();
            drop(self);
        };
        if catch_unwind(AssertUnwindSafe(last)).is_err() {
            tracing::error!("sled panicked while it was closed");
        }
    }

    fn load_all(&mut self) -> Result<()> {
        let db = self;
        db.trees = db.guard("opening its trees", || {
            let names = Tree::ALL.into_iter();
            names.map(|(_, name)| db.sled.open_tree(name)).collect()
        })?;
        let counts = db.load::<CountsV1>(Tree::Meta, keys::COUNTS)?;
        let mut counts = counts.map_or_else(CountsV1::new, |(counts, _)| counts);
        let chunks = db.guard("opening its trees", || {
            let notes = db.tree(Tree::Requests).iter().keys();
            let dropped: sled::Result<BTreeSet<_>> =
                notes.map(|key| key.map(|key| row(&key))).collect();
            let dropped = dropped?;
            db.windows.load(&dropped)?;
            *held(&db.dropped) = dropped;
            db.windows.last_chunks()
        })?;
        for chunk in chunks {
            let key = keys::key(chunk.queue, &[chunk.first]);
            let (head, _) = record::decode::<ChunkV1>(Tree::Requests, &key, &chunk.value)?;
            if head.counts.commits > counts.commits {
                counts = head.counts;
            }
            held(&db.queues).insert(chunk.queue, head.queue);
        }
        if counts.entries.len() != Tree::ALL.len() {
            return Err(Error::corrupt(
                "the store counts other trees than it has; run `repair`",
            ));
        }
        *held(&db.counts) = counts;
        Ok(())
    }

    /// Makes the changes of a step again that failed in its middle, if the state that it was for is there: what power loss
    /// took before that has taken them, too.
    fn redo_noted(&mut self) -> Result<()> {
        let unusable = |error: std::io::Error| {
            Error::unavailable(format!(
                "the note of a step that was cut off can't be read: {error}"
            ))
            .with_source(error)
        };
        let Some((before, changes)) = self.redo.read().map_err(unusable)? else {
            return Ok(());
        };
        if (before..=before + 1).contains(&self.commits()) {
            for Change { at, key, value } in changes {
                self.guard("a write", || {
                    let tree = match at {
                        (tree, (0, 0)) => self.tree(tree).clone(),
                        (_, window) => self.windows.made(window)?,
                    };
                    match value {
                        Some(value) => tree.insert(key, value)?,
                        None => tree.remove(key)?,
                    };
                    Ok(())
                })?;
            }
            self.load_all()?;
            self.sync()?;
        }
        self.redo.remove().map_err(unusable)
    }

    /// A queue's record, given the one in `meta`: a later one is in the last chunk that was pushed.
    pub(super) fn newest_record(&self, id: u32, record: QueueV1) -> QueueV1 {
        let mut queues = held(&self.queues);
        let newest = match queues.remove(&id) {
            Some(pushed) if pushed.last_position > record.last_position => pushed,
            _ => record,
        };
        queues.insert(id, newest.clone());
        newest
    }

    /// Fails if something failed before.
    pub(super) fn check(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some(why) => Err(poisoned(why)),
        }
    }

    /// Why the store stopped, if it did.
    pub(super) fn health(&self) -> Arc<OnceLock<String>> {
        self.poison.clone()
    }

    /// Refuses every later call.
    pub(super) fn poison(&self, why: impl Into<String>) {
        let why = why.into();
        tracing::error!(why, "sled store poisoned");
        let _ = self.poison.set(why);
    }

    /// Refuses every later call, since a write or a sync has failed: what can be read may be in memory only.
    pub(super) fn fail(&self, why: impl Into<String>) {
        self.poison(why);
        if let Err(error) = lock::note(&self.lock, true) {
            tracing::error!(%error, "it can't be noted that a sync has failed");
        }
    }

    /// How many syncs have reached the disk.
    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Acquire)
    }

    /// How many commits the store ever had; those before the last sync are durable.
    pub(super) fn commits(&self) -> u64 {
        held(&self.counts).commits
    }

    /// How many entries it holds.
    pub(super) fn entries(&self) -> u64 {
        held(&self.counts).entries.iter().sum()
    }

    fn tree(&self, tree: Tree) -> &sled::Tree {
        &self.trees[tree as usize]
    }

    pub(super) fn windows(&self) -> &Windows {
        &self.windows
    }

    /// Calls sled; an error or a panic poisons.
    pub(super) fn guard<T>(&self, what: &str, call: impl FnOnce() -> sled::Result<T>) -> Result<T> {
        self.check()?;
        let error = match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error @ (sled::Error::Corruption { .. } | sled::Error::ReportableBug(_)))) => {
                Error::corrupt(format!(
                    "{what} failed: the store is damaged; run `repair` to save what can be read"
                ))
                .with_source(error)
            }
            Ok(Err(error)) => {
                let error = Error::poisoned(format!("{what} failed: {error}")).with_source(error);
                self.fail(error.to_string());
                return Err(error);
            }
            Err(panic) => Error::corrupt(format!(
                "{what} failed: the store is damaged ({}); run `repair` to save what can be read",
                panic_text(&*panic)
            )),
        };
        self.poison(error.to_string());
        Err(error)
    }

    /// The value of a key.
    pub(super) fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<IVec>> {
        if tree == Tree::Requests {
            let (queue, position) = row(key);
            let chunk = self.guard("a read", || self.windows.chunk_at(queue, position))?;
            let chunk = chunk.map(|chunk| rows::open(&chunk)).transpose()?;
            let rows = chunk.map_or_else(Vec::new, |chunk| chunk.rows);
            let found = rows.binary_search_by_key(&position, |(at, _)| *at);
            return Ok(found.ok().map(|index| rows[index].1.clone()));
        }
        self.guard("a read", || self.tree(tree).get(key))
    }

    /// The queue and first position of the chunk that a row of `requests` would be in.
    pub(super) fn chunk_of(&self, key: &[u8]) -> Result<Option<(u32, u64)>> {
        let (queue, position) = row(key);
        let chunk = self.guard("a read", || self.windows.chunk_at(queue, position))?;
        Ok(chunk.map(|chunk| (queue, chunk.first)))
    }

    /// The record of a key, and its body.
    pub(super) fn load<R: Record>(&self, tree: Tree, key: &[u8]) -> Result<Option<(R, IVec)>> {
        let Some(value) = self.get(tree, key)? else {
            return Ok(None);
        };
        read(tree, key, &value).map(Some)
    }

    /// The entries from one key to another, both included, in order.
    pub(super) fn range(&self, tree: Tree, from: Vec<u8>, to: Vec<u8>) -> Range<'_> {
        let source = if from > to {
            Source::Ended
        } else if tree == Tree::Requests {
            Source::Rows(Box::new(self.chunks(row(&from), row(&to)).rows()))
        } else {
            let iter = catch_unwind(AssertUnwindSafe(|| self.tree(tree).range(from..=to)));
            iter.map_or(Source::Ended, |iter| Source::Entries(Box::new(iter)))
        };
        Range { db: self, source }
    }

    /// The chunks of `requests` with rows from one place to another, both included, in order.
    pub(super) fn chunks(&self, from: (u32, u64), to: (u32, u64)) -> Chunks<'_> {
        Chunks::new(self, from, to)
    }

    /// The first entry from one key to another, both included.
    pub(super) fn first(
        &self,
        tree: Tree,
        from: Vec<u8>,
        to: Vec<u8>,
    ) -> Result<Option<(IVec, IVec)>> {
        self.range(tree, from, to).next().transpose()
    }

    /// Writes all of it or nothing, and empties it. Not durable before [`sync`](Self::sync).
    pub(super) fn commit(&self, write: &mut Write) -> Result<()> {
        let write = std::mem::take(write);
        if write.is_empty() {
            return Ok(());
        }
        match step("sled.write") {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(planted) => return self.guard("a write", || Err(planted.into())),
        }
        if write.only_adds_rows() {
            self.append(write)?;
        } else {
            self.transact(write)?;
        }
        point("sled.written");
        Ok(())
    }

    /// Adds rows to queues, each chunk with one insert. The record that shows them comes with the last
    /// one: a crash leaves the first ones past the queue's last position, where opening clears them.
    fn append(&self, write: Write) -> Result<()> {
        let Write {
            rows, mut queues, ..
        } = write;
        let (added, _) = write::sorted(rows);
        for (id, rows) in added {
            let mut chunks = rows::share(rows).into_iter().peekable();
            while let Some(rows) = chunks.next() {
                let record = chunks.peek().is_none().then(|| queues.remove(&id));
                let record = record.flatten().unwrap_or_else(|| self.record(id));
                let mut after = held(&self.counts).clone();
                after.commits += 1;
                after.entries[Tree::Requests as usize] += 1;
                let first = rows[0].0;
                let value = rows::encode((id, first), &rows, record.clone(), after.clone())?;
                self.make_way(value.len())?;
                self.guard("a write", || {
                    let (_, tree) = self.windows.tail(id, first, value.len())?;
                    tree.insert(first.to_be_bytes(), value)
                })?;
                *held(&self.counts) = after;
                held(&self.queues).insert(id, record);
                point("sled.chunk");
            }
        }
        Ok(())
    }

    /// The record of a queue that was last committed.
    fn record(&self, id: u32) -> QueueV1 {
        let record = held(&self.queues).get(&id).cloned();
        record.unwrap_or_else(|| QueueV1::new(""))
    }

    fn transact(&self, write: Write) -> Result<()> {
        let Write {
            mut entries,
            rows,
            chunks,
            queues,
            ..
        } = write;
        for (id, record) in queues {
            let key = keys::queue_record(id);
            let value = record::encode(&key, &record, &[])?;
            entries.insert((Tree::Meta, key), Some(value));
            held(&self.queues).insert(id, record);
        }
        let mut before = held(&self.counts).clone();
        before.commits += 1;
        let mut plan = Plan::default();
        plan.tree(Tree::Meta, (0, 0), || self.tree(Tree::Meta).clone());
        let dropped = self.plan_rows(rows, chunks, &mut before, &mut plan)?;
        let kept = held(&self.kept).clone();
        let gone: BTreeSet<_> = held(&self.dropped).difference(&kept).copied().collect();
        for (noted, value) in [(&gone, None), (&dropped, Some(Vec::new()))] {
            for (queue, first) in noted {
                let key = keys::key(*queue, &[*first]);
                entries.insert((Tree::Requests, key), value.clone());
            }
        }
        for ((tree, key), value) in entries {
            let index = plan.tree(tree, (0, 0), || self.tree(tree).clone());
            plan.changes.push((index, key, value));
        }
        self.make_way(plan.bytes())?;
        self.save(&plan)?;
        let mut begun = None;
        let after = self.guard("a write", || plan.run(&before, &mut begun));
        if let (Err(_), Some(begun)) = (&after, &begun) {
            self.redo.note(&plan, begun);
        }
        let after = after?;
        *held(&self.counts) = after;
        for window in &dropped {
            point("sled.drop");
            self.drop_or_keep(*window)?;
            point("sled.dropped");
        }
        *held(&self.dropped) = &dropped | &kept;
        Ok(())
    }

    /// Plans the chunks of new rows, and those that lose rows; the windows to be dropped as a whole.
    fn plan_rows(
        &self,
        rows: Rows,
        gone: BTreeMap<(u32, u64), BTreeSet<u64>>,
        counts: &mut CountsV1,
        plan: &mut Plan,
    ) -> Result<BTreeSet<(u32, u64)>> {
        let (added, deleted) = write::sorted(rows);
        let mut dropped = BTreeSet::new();
        let mut edited = self.without(&deleted)?;
        for (window, chunks) in gone {
            let chunks = chunks.into_iter().map(|first| (first, Vec::new()));
            edited.entry(window).or_default().extend(chunks);
        }
        for (window, chunks) in edited {
            let Some(tree) = self.windows.tree(window) else {
                continue;
            };
            let emptied = chunks.iter().filter(|(_, left)| left.is_empty());
            let emptied: BTreeSet<u64> = emptied.map(|(first, _)| *first).collect();
            if self.guard("a read", || rows::is_all(&tree, &emptied))? {
                counts.entries[Tree::Requests as usize] -= emptied.len() as u64;
                // What this very write adds must not go there any more.
                self.windows.end(window);
                dropped.insert(window);
                continue;
            }
            let index = plan.tree(Tree::Requests, window, || tree);
            for (first, left) in chunks {
                let at = (window.0, first);
                let value = (!left.is_empty())
                    .then(|| rows::encode_left(at, &left, self.record(window.0), counts.clone()))
                    .transpose()?;
                plan.changes
                    .push((index, first.to_be_bytes().to_vec(), value));
            }
        }
        for (id, rows) in added {
            for rows in rows::share(rows) {
                let first = rows[0].0;
                let value = rows::encode((id, first), &rows, self.record(id), counts.clone())?;
                let bytes = value.len();
                let (window, tree) =
                    self.guard("a write", || self.windows.tail(id, first, bytes))?;
                let index = plan.tree(Tree::Requests, (id, window), || tree);
                plan.changes
                    .push((index, first.to_be_bytes().to_vec(), Some(value)));
            }
        }
        Ok(dropped)
    }

    /// By window: its chunks that lose rows, with what is left of each.
    fn without(&self, deleted: &[(u32, u64)]) -> Result<BTreeMap<(u32, u64), Left>> {
        let mut windows: BTreeMap<(u32, u64), Left> = BTreeMap::new();
        let mut deleted = deleted.iter().peekable();
        while let Some((queue, position)) = deleted.next() {
            let Some(chunk) = self.guard("a read", || self.windows.chunk_at(*queue, *position))?
            else {
                continue;
            };
            let mut rows = rows::open(&chunk)?.rows;
            let last = rows.last().map_or(0, |(position, _)| *position);
            let mut gone = BTreeSet::from([*position]);
            while let Some((_, position)) =
                deleted.next_if(|(other, position)| other == queue && *position <= last)
            {
                gone.insert(*position);
            }
            let all = rows.len();
            rows.retain(|(position, _)| !gone.contains(position));
            if rows.len() < all {
                let window = windows.entry((*queue, chunk.window)).or_default();
                window.insert(chunk.first, rows);
            }
        }
        Ok(windows)
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&self) -> Result<()> {
        let commits = self.commits();
        self.guard("a sync", || {
            if step("sled.flush")? {
                self.sled.flush()?;
            }
            if step("sled.sync")? {
                self.file.sync_data()?;
            }
            point("sled.synced");
            Ok(())
        })
        .inspect_err(|error| self.fail(error.to_string()))?;
        self.unsynced.store(0, Ordering::Release);
        self.synced.note(commits);
        self.syncs.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// How many commits that were durable are not there.
    pub(super) fn lost_commits(&self) -> u64 {
        let synced = self.synced.found.unwrap_or(0);
        synced.saturating_sub(self.commits())
    }
}

/// By chunk: the rows that are left of it.
type Left = BTreeMap<u64, Vec<(u64, IVec)>>;

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The record in a value, and its body.
pub(super) fn read<R: Record>(tree: Tree, key: &[u8], value: &IVec) -> Result<(R, IVec)> {
    let (record, body) = record::decode(tree, key, value)?;
    let body = value.subslice(value.len() - body.len(), body.len());
    Ok((record, body))
}

/// What a poisoned store answers.
pub(super) fn poisoned(why: &str) -> Error {
    Error::poisoned(format!(
        "the store stopped after this: {why}; close it and open it again"
    ))
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic".to_owned())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{
        List, NewRequest, QueueName, SledStore, State, Store,
        error::ErrorKind,
        queue::{Cancelled, QueueOptions},
    };

    /// Whether the next opening has to write everything anew after sled has ended like this.
    fn is_unsynced_after(kind: ErrorKind, call: impl FnOnce() -> sled::Result<()>) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let opened = super::super::open::open(folder.path(), QueueOptions::default(), 1 << 20);
        let opened = opened.map_err(|error| error.to_string()).ok().unwrap();
        let error = opened.db.guard("a call", call).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(opened.db.check().is_err());
        lock::is_unsynced(&opened.lock)
    }

    #[test]
    fn only_a_failed_write_is_noted_as_unsynced_and_damage_is_not() {
        let failed = || Err(sled::Error::Io(io::Error::other("the disk failed")));
        assert!(is_unsynced_after(ErrorKind::Poisoned, failed));
        let damaged = || Err(sled::Error::ReportableBug("damaged".into()));
        assert!(!is_unsynced_after(ErrorKind::Corrupt, damaged));
        let panics = || panic!("as sled does on damage");
        assert!(!is_unsynced_after(ErrorKind::Corrupt, panics));
    }

    #[tokio::test]
    async fn a_window_that_was_made_for_what_a_crash_cut_off_hides_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let now = crate::clock::Timestamp::from_millis(1_700_000_000_000);
        let push = async |requests: usize| {
            let store = SledStore::open(folder.path()).await.unwrap();
            let queue = store.queue(&QueueName::default()).await.unwrap();
            let new = vec![NewRequest::new("one"); requests];
            queue.push(now, new).await.unwrap();
            (store, queue)
        };
        push(1).await.0.close().await.unwrap();
        let opened = super::super::open::open(folder.path(), QueueOptions::default(), 1 << 20);
        let opened = opened.map_err(|error| error.to_string()).ok().unwrap();
        let (id, queue) = opened.queues.first_key_value().unwrap();
        let later = queue.record.last_position + 4;
        opened.db.windows.tail(*id, later, 1).unwrap();
        opened.db.sync().unwrap();
        opened.db.let_go();
        drop(opened.lock);
        let (store, queue) = push(8).await;
        let admin = queue.admin().unwrap();
        let ready = admin.list(now, &List::new(State::Ready)).await.unwrap();
        let ids: Vec<_> = ready.iter().map(|entry| entry.id).collect();
        let cancelled = admin.cancel(now, &ids).await.unwrap();
        assert_eq!(cancelled, [Cancelled::Now; 9]);
        store.close().await.unwrap();
    }
}
