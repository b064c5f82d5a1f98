//! The guarded database: every call into sled goes through here.
//!
//! sled 0.34.7 panics on some damage, and its `flush` does not reach the disk: on Linux it calls
//! `sync_file_range`, which neither writes metadata nor empties the disk's cache. So every call is
//! caught, and [`Db::sync`] adds an `fdatasync` through one descriptor that is held from before the
//! first write, because a descriptor opened later is not told of earlier write errors. After a panic,
//! a failed write or a failed sync nothing is known of what is on the disk: the store is poisoned,
//! and a sync is never tried again.

use std::{
    collections::BTreeMap,
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use sled::{
    IVec,
    transaction::{ConflictableTransactionError, TransactionError, Transactional},
};

use super::{
    keys::{self, Tree},
    record::{self, CountsV1, Record},
};
use crate::error::{Error, Result};

/// The open database of a store.
pub(super) struct Db {
    sled: sled::Db,
    trees: Vec<sled::Tree>,
    /// Held from before the first write to the last.
    file: File,
    counts: Mutex<CountsV1>,
    poison: Arc<OnceLock<String>>,
    syncs: AtomicU64,
}

/// What one step writes; nothing of it is there before [`Db::commit`], all of it after.
#[derive(Debug, Default)]
pub(super) struct Write {
    entries: BTreeMap<(Tree, Vec<u8>), Option<Vec<u8>>>,
    bytes: usize,
}

/// What a [`Write`] has for a key.
pub(super) enum Collected<'a> {
    Nothing,
    Deleted,
    Value(&'a [u8]),
}

impl Write {
    pub(super) fn put<R: Record>(
        &mut self,
        tree: Tree,
        key: Vec<u8>,
        record: &R,
        body: &[u8],
    ) -> Result<()> {
        let value = record::encode(&key, record, body)?;
        self.bytes += value.len();
        self.entries.insert((tree, key), Some(value));
        Ok(())
    }

    /// An entry as it was read elsewhere.
    pub(super) fn put_raw(&mut self, tree: Tree, key: &[u8], value: &[u8]) {
        self.bytes += value.len();
        self.entries
            .insert((tree, key.to_vec()), Some(value.to_vec()));
    }

    /// An entry whose key says everything.
    pub(super) fn put_key(&mut self, tree: Tree, key: Vec<u8>) {
        self.entries.insert((tree, key), Some(Vec::new()));
    }

    pub(super) fn delete(&mut self, tree: Tree, key: Vec<u8>) {
        self.entries.insert((tree, key), None);
    }

    /// What was collected for a key: a value, or that it is deleted.
    pub(super) fn get(&self, tree: Tree, key: &[u8]) -> Collected<'_> {
        match self.entries.get(&(tree, key.to_vec())) {
            None => Collected::Nothing,
            Some(None) => Collected::Deleted,
            Some(Some(value)) => Collected::Value(value),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it is time to commit, so that no transaction needs much memory.
    pub(super) fn is_large(&self) -> bool {
        self.entries.len() >= MAX_WRITE_ENTRIES || self.bytes >= MAX_WRITE_BYTES
    }
}

impl Db {
    /// Takes over what was just opened; `file` is its `db`, opened before anything was written.
    pub(super) fn new(sled: sled::Db, file: File) -> Result<Self> {
        let db = Self {
            trees: Vec::new(),
            file,
            counts: Mutex::default(),
            poison: Arc::default(),
            syncs: AtomicU64::new(0),
            sled,
        };
        let trees = db.guard("opening its trees", || {
            Tree::ALL
                .into_iter()
                .map(|(_, name)| db.sled.open_tree(name))
                .collect::<sled::Result<Vec<_>>>()
        })?;
        let db = Self { trees, ..db };
        let counts = db.load::<CountsV1>(Tree::Meta, keys::COUNTS)?;
        let counts = counts.map_or_else(
            || CountsV1 {
                commits: 0,
                entries: vec![0; Tree::ALL.len()],
            },
            |(counts, _)| counts,
        );
        if counts.entries.len() != Tree::ALL.len() {
            return Err(Error::corrupt(
                "the store counts other trees than it has; run `repair`",
            ));
        }
        *db.counts() = counts;
        Ok(db)
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

    /// How many syncs have reached the disk.
    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Acquire)
    }

    /// How many commits the store ever had; those before the last sync are durable.
    pub(super) fn commits(&self) -> u64 {
        self.counts().commits
    }

    /// How many entries it holds.
    pub(super) fn entries(&self) -> u64 {
        self.counts().entries.iter().sum()
    }

    fn counts(&self) -> MutexGuard<'_, CountsV1> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tree(&self, tree: Tree) -> &sled::Tree {
        &self.trees[tree as usize]
    }

    /// Calls sled; an error or a panic poisons.
    fn guard<T>(&self, what: &str, call: impl FnOnce() -> sled::Result<T>) -> Result<T> {
        self.check()?;
        let error = match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error @ (sled::Error::Corruption { .. } | sled::Error::ReportableBug(_)))) => {
                Error::corrupt(format!(
                    "{what} failed: the store is damaged; run `repair` to save what can be read"
                ))
                .with_source(error)
            }
            Ok(Err(error)) => Error::poisoned(format!("{what} failed: {error}")).with_source(error),
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
        self.guard("a read", || self.tree(tree).get(key))
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
        let iter = (from <= to)
            .then(|| catch_unwind(AssertUnwindSafe(|| self.tree(tree).range(from..=to))).ok())
            .flatten();
        Range { db: self, iter }
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
        if write.is_empty() {
            return Ok(());
        }
        let Write { entries, .. } = std::mem::take(write);
        let mut touched: Vec<Tree> = entries.keys().map(|(tree, _)| *tree).collect();
        touched.dedup();
        if touched.first() != Some(&Tree::Meta) {
            touched.insert(0, Tree::Meta);
        }
        let trees: Vec<&sled::Tree> = touched.iter().map(|tree| self.tree(*tree)).collect();
        let before = self.counts().clone();
        let after = self.guard("a write", || {
            let result = trees.as_slice().transaction(|views| {
                let mut after = CountsV1 {
                    commits: before.commits + 1,
                    ..before.clone()
                };
                for ((tree, key), value) in &entries {
                    // The trees are in order, so the one of this entry is found in a few steps.
                    let Ok(index) = touched.binary_search(tree) else {
                        continue;
                    };
                    let view = &views[index];
                    let old = match value {
                        Some(value) => view.insert(key.as_slice(), value.as_slice())?,
                        None => view.remove(key.as_slice())?,
                    };
                    let count = &mut after.entries[*tree as usize];
                    match (old, value) {
                        (None, Some(_)) => *count += 1,
                        (Some(_), None) => *count -= 1,
                        _ => {}
                    }
                }
                let value = record::encode(keys::COUNTS, &after, &[])
                    .map_err(|error| ConflictableTransactionError::Abort(error.to_string()))?;
                views[0].insert(keys::COUNTS, value)?;
                Ok(after)
            });
            result.map_err(|error| match error {
                TransactionError::Abort(why) => sled::Error::Unsupported(why),
                TransactionError::Storage(error) => error,
            })
        })?;
        *self.counts() = after;
        Ok(())
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&self) -> Result<()> {
        self.guard("a sync", || {
            self.sled.flush()?;
            self.file.sync_data()?;
            Ok(())
        })?;
        self.syncs.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Counts every entry and compares.
    pub(super) fn verify_counts(&self) -> Result<()> {
        let expected = self.counts().entries.clone();
        for (tree, name) in Tree::ALL {
            let mut found = 0_u64;
            for entry in self.range(tree, Vec::new(), vec![0xff; 600]) {
                let (key, _) = entry?;
                let own = tree == Tree::Meta && key.as_ref() == keys::COUNTS;
                found += u64::from(!own);
            }
            if found != expected[tree as usize] {
                return Err(Error::corrupt(format!(
                    "{name:?} holds {found} entries where {} were written; run `repair` to save what can be read",
                    expected[tree as usize]
                )));
            }
        }
        Ok(())
    }
}

/// Entries of a tree in order; ends after an error.
pub(super) struct Range<'a> {
    db: &'a Db,
    iter: Option<sled::Iter>,
}

impl Iterator for Range<'_> {
    type Item = Result<(IVec, IVec)>;

    fn next(&mut self) -> Option<Self::Item> {
        let iter = self.iter.as_mut()?;
        match self.db.guard("a read", || iter.next().transpose()) {
            Ok(Some(entry)) => Some(Ok(entry)),
            Ok(None) => {
                self.iter = None;
                None
            }
            Err(error) => {
                self.iter = None;
                Some(Err(error))
            }
        }
    }
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

/// A transaction holds up to this many entries before it is time to commit: sled needs about 10 KiB
/// of memory for each until it is through.
const MAX_WRITE_ENTRIES: usize = 1024;
const MAX_WRITE_BYTES: usize = 4 << 20;
