//! Repair: saves what can be read of a damaged store into a new one.
//!
//! The damaged store is not touched: its database is copied first, because opening it writes to it.
//! Every entry that can be read and whose checksum is right is taken over; then each queue is made
//! consistent again from its entries, not from its counters:
//!
//! - A batch keeps its id and the members that are left, and is offered at once.
//! - A request that was in flight in a batch that is lost is ready again, at the tail.
//! - A request whose payload is not whole is dead-lettered as `Damaged`.
//! - What is both done and still waiting is done.
//!
//! What is not there is told as far as anything of the old store knows it (`told`).

mod told;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use self::told::Told;
use super::{
    apply::{self, Step},
    clean::{self, Held},
    copy,
    db::{self, Db},
    keys::{self, PartOf, Tree},
    open,
    range::Range,
    record::{
        BatchV1, BookmarkV1, CountsV1, DeadV1, KeptV1, KeyExpiryV1, KeyV1, MarkV1, NoteV1,
        OutcomeV1, PartV1, PlaceV1, QueueV1, Record, RequestV1, SettledV1, VerdictV1, decode,
    },
    rows::{self, Windows},
    state::{Live, QueueState},
    synced,
    write::Write,
};
use crate::{
    error::{Error, Result},
    queue::{QueueOptions, lock, progress::Pulse},
    request::DeadReason,
};

/// What [`SledStore::repair`](super::SledStore::repair) saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Repaired {
    /// Queues.
    pub queues: u64,
    /// Requests that are delayed, ready or in flight.
    pub held: u64,
    /// Dead letters, those that are `Damaged` included.
    pub dead: u64,
    /// Entries that could be read and were not right.
    pub damaged: u64,
    /// Trees of the database that could be read in part only.
    pub torn: u64,
    /// Entries that the store counted and that are not there.
    pub absent: u64,
    /// How many of its last changes are not there, since its log can't be read to the end: what was
    /// pushed, claimed and settled then is not known here. At least so many if it was not closed; `None` if
    /// nobody can tell then.
    pub lost_changes: Option<u64>,
    /// Requests that waited, were in flight or were dead letters and are not there, as far as the note
    /// of a clean close or the queues' own counts tell: at most so many, if changes are lost as well.
    pub missing: u64,
}

impl Repaired {
    /// Whether all that the store ever acknowledged is in the new one, and it is certain.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let gone = self.damaged + self.torn + self.absent + self.missing;
        gone == 0 && self.lost_changes == Some(0)
    }
}

/// Saves what can be read of `from` into a new store in `to`.
pub(super) fn repair(from: &Path, to: &Path) -> Result<Repaired> {
    if !open::database(from).is_dir() {
        return Err(Error::not_found(format!(
            "{} holds no database to repair",
            from.display()
        )));
    }
    if open::is_within(to, from) {
        let text = "is the damaged store, or lies in it; choose another folder for the new one";
        return Err(Error::invalid(format!("{} {text}", to.display())));
    }
    let _lock = lock::take(from)?;
    open::open_new(to, |new| {
        let copy = to.join("salvage");
        let mut repaired = Repaired::default();
        let mut told = Told::new(clean::read(from), synced::read(from));
        let old = open_copy(from, &copy)?;
        salvage(&old, new, &mut told, &mut repaired)?;
        drop(old);
        let saved = rebuild_all(new, &told, &mut repaired)?;
        told.compare(&saved, &mut repaired);
        fs::remove_dir_all(&copy).map_err(|error| {
            Error::invalid(format!("{} can't be removed", copy.display())).with_source(error)
        })?;
        Ok(repaired)
    })
}

/// Opens a copy of the damaged database; without its snapshots if it must be.
fn open_copy(from: &Path, path: &Path) -> Result<sled::Db> {
    let open = |snapshots| {
        copy::database(from, path, snapshots, &Pulse::default())?;
        open::open_sled(path, CACHE_BYTES)
    };
    let opened = open(true).or_else(|_| open(false));
    opened
        .map(|(sled, _)| sled)
        .map_err(|error| error.context("nothing can be saved"))
}

/// Takes over every entry that is right.
fn salvage(old: &sled::Db, new: &Db, told: &mut Told, repaired: &mut Repaired) -> Result<()> {
    let incoming = incoming(old);
    salvage_rows(old, new, &incoming, (told, repaired))?;
    for (tree, name) in Tree::ALL {
        let opened = catch_unwind(AssertUnwindSafe(|| old.open_tree(name)));
        let Ok(Ok(entries)) = opened else {
            repaired.torn += 1;
            continue;
        };
        let mut write = Write::default();
        let mut take = |key: &[u8], value: &[u8]| -> Result<()> {
            if tree == Tree::Meta && key == keys::COUNTS {
                if let Ok((counts, _)) = decode::<CountsV1>(tree, key, value) {
                    told.counts(counts);
                }
            } else {
                told.found(tree);
            }
            if is_own(tree, key) || (tree != Tree::Meta && incoming.contains(&keys::queue(key))) {
                return Ok(());
            }
            if is_right(tree, key, value) {
                if tree == Tree::Meta
                    && let Ok((record, _)) = decode::<QueueV1>(tree, key, value)
                {
                    told.queue(keys::queue(&key[1..]), record);
                }
                write.put_raw(tree, key, value);
            } else {
                repaired.damaged += 1;
            }
            if write.is_large() {
                new.commit(&mut write)
            } else {
                Ok(())
            }
        };
        let whole = read_all(&entries, &mut take)?;
        new.commit(&mut write)?;
        repaired.torn += u64::from(!whole);
    }
    Ok(())
}

/// Takes over every row of `requests` that is right, in order.
fn salvage_rows(
    old: &sled::Db,
    new: &Db,
    incoming: &BTreeSet<u32>,
    (told, repaired): (&mut Told, &mut Repaired),
) -> Result<()> {
    let windows = Windows::new(old.clone());
    let found = catch_unwind(AssertUnwindSafe(|| windows.load(&BTreeSet::new())));
    repaired.torn += u64::from(!matches!(found, Ok(Ok(()))));
    let (mut write, mut last) = (Write::default(), None);
    for ((queue, window), tree) in windows.all() {
        let note = keys::key(queue, &[window]);
        let is_dropped = || old.open_tree(Tree::Requests.name())?.contains_key(&note);
        if matches!(catch_unwind(AssertUnwindSafe(is_dropped)), Ok(Ok(true))) {
            continue;
        }
        let mut chunks = BTreeMap::new();
        let whole = read_all(&tree, &mut |key, value| {
            chunks.insert(key.to_vec(), sled::IVec::from(value));
            Ok(())
        })?;
        repaired.torn += u64::from(!whole);
        for (key, value) in chunks {
            let chunk = rows::chunk((queue, window), (key.into(), value));
            let is_incoming = incoming.contains(&queue);
            told.chunk(&chunk, !is_incoming);
            if is_incoming {
                continue;
            }
            let Some(rows) = rows::salvaged_rows(&chunk) else {
                repaired.damaged += 1;
                continue;
            };
            for (position, row) in rows {
                let key = keys::key(queue, &[position]);
                if last < Some((queue, position)) && is_right(Tree::Requests, &key, &row) {
                    write.put_raw(Tree::Requests, &key, &row);
                    last = Some((queue, position));
                } else {
                    repaired.damaged += 1;
                }
            }
            if write.is_large() {
                new.commit(&mut write)?;
            }
        }
    }
    new.commit(&mut write)
}

/// The numbers under which restores were cut off: what is there is no queue.
fn incoming(old: &sled::Db) -> BTreeSet<u32> {
    let found = catch_unwind(AssertUnwindSafe(|| {
        let meta = old.open_tree(Tree::Meta.name())?;
        let keys = meta.range(keys::incoming(0)..=keys::incoming(u32::MAX));
        let numbers = keys.keys().map(|key| Ok(keys::queue(&key?[1..])));
        numbers.collect::<sled::Result<_>>()
    }));
    // Without the notes, what came in is taken for a queue.
    found.ok().and_then(Result::ok).unwrap_or_default()
}

/// Entries that a new store writes itself: places are those of the entries it has.
fn is_own(tree: Tree, key: &[u8]) -> bool {
    matches!(tree, Tree::Places | Tree::Requests)
        || (tree == Tree::Meta && key.first() != Some(&b'q'))
}

/// Whether an entry is what was written under this key.
pub(super) fn is_right(tree: Tree, key: &[u8], value: &[u8]) -> bool {
    fn right<R: Record>(tree: Tree, key: &[u8], value: &[u8]) -> bool {
        decode::<R>(tree, key, value).is_ok()
    }
    let check = match tree {
        Tree::Meta => right::<QueueV1>,
        Tree::Requests | Tree::Delayed => right::<RequestV1>,
        Tree::Dead => right::<DeadV1>,
        Tree::Parts => right::<PartV1>,
        Tree::Places => right::<PlaceV1>,
        Tree::Expiry => |_, _: &[u8], value: &[u8]| value.is_empty(),
        Tree::Pending => right::<BatchV1>,
        Tree::Notes => right::<NoteV1>,
        Tree::Outcomes => right::<OutcomeV1>,
        Tree::Marks => right::<MarkV1>,
        Tree::Settled => right::<SettledV1>,
        Tree::Kept => right::<KeptV1>,
        Tree::Keys => right::<KeyV1>,
        Tree::KeyExpiry => right::<KeyExpiryV1>,
        Tree::Bookmarks => right::<BookmarkV1>,
    };
    check(tree, key, value)
}

/// Reads a tree from its start, and if that breaks off, from its end; whether it was whole.
fn read_all(tree: &sled::Tree, take: &mut impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<bool> {
    let mut reached: Option<sled::IVec> = None;
    let mut forward = tree.iter();
    loop {
        match catch_unwind(AssertUnwindSafe(|| forward.next())) {
            Ok(None) => return Ok(true),
            Ok(Some(Ok((key, value)))) => {
                take(&key, &value)?;
                reached = Some(key);
            }
            Ok(Some(Err(_))) | Err(_) => break,
        }
    }
    let after = reached.map_or(Bound::Unbounded, Bound::Excluded);
    let mut backward = tree.range::<sled::IVec, _>((after, Bound::Unbounded)).rev();
    while let Ok(Some(Ok((key, value)))) = catch_unwind(AssertUnwindSafe(|| backward.next())) {
        take(&key, &value)?;
    }
    Ok(false)
}

/// Makes every queue that has an entry anywhere consistent again; what each holds then.
fn rebuild_all(db: &Db, told: &Told, repaired: &mut Repaired) -> Result<BTreeMap<u32, Held>> {
    let mut saved = BTreeMap::new();
    let mut records: BTreeMap<u32, QueueV1> = BTreeMap::new();
    let (first, last) = (keys::queue_record(0), keys::queue_record(u32::MAX));
    for entry in db.range(Tree::Meta, first, last) {
        let (key, value) = entry?;
        let (record, _) = db::read::<QueueV1>(Tree::Meta, &key, &value)?;
        records.insert(keys::queue(&key[1..]), record);
    }
    for tree in [Tree::Requests, Tree::Delayed, Tree::Dead] {
        let mut from = 0;
        while let Some((key, _)) = db.first(tree, keys::key(from, &[]), vec![0xff; 32])? {
            let queue = keys::queue(&key);
            if !records.contains_key(&queue) {
                let name = told.name(queue);
                let name =
                    name.filter(|name| records.values().all(|known| known.name != name.as_str()));
                let name =
                    name.map_or_else(|| format!("recovered-{queue}"), |name| name.to_string());
                records.insert(queue, QueueV1::new(&name));
            }
            let Some(next) = queue.checked_add(1) else {
                break;
            };
            from = next;
        }
    }
    for (id, record) in records {
        let name = record.name.parse()?;
        let mut state = QueueState::new(id, record, QueueOptions::default(), Live::new(id, name));
        let mut write = Write::default();
        Step {
            db,
            write: &mut write,
            queue: &mut state,
            low_space: None,
        }
        .rebuild()?;
        repaired.queues += 1;
        repaired.held += state.record.delayed + state.record.ready + state.record.in_flight;
        repaired.dead += state.record.dead;
        saved.insert(id, Held::of(&state.record));
    }
    Ok(saved)
}

/// A batch as its entries say.
struct Rebuilt {
    id: u128,
    batch: BatchV1,
    /// It had ended, and those of its members that are left are done.
    ended: bool,
}

impl Step<'_> {
    /// Makes the queue's record, batches and places what its entries say.
    fn rebuild(&mut self) -> Result<()> {
        self.reset_counts()?;
        let mut batches = self.rebuilt_batches()?;
        self.rebuild_delayed()?;
        let rest = self.rebuild_requests(&mut batches)?;
        let recorded = self.rebuild_outcomes(&batches)?;
        for Rebuilt { id, batch, .. } in &batches {
            if batch.requests == 0 {
                self.write
                    .delete(Tree::Pending, keys::batch(self.queue.id, *id));
            } else {
                self.write
                    .put(Tree::Pending, keys::batch(self.queue.id, *id), batch, &[])?;
            }
        }
        let record = &mut self.queue.record;
        record.done = record.done.max(recorded + rest);
        record.pushed = record.delayed
            + record.ready
            + record.in_flight
            + record.done
            + record.dead
            + record.expired
            + record.cancelled
            + record.purged;
        self.commit()
    }

    /// Every entry of a tree of this queue.
    fn all(&self, tree: Tree) -> Range<'_> {
        let to = keys::key(self.queue.id, &[u64::MAX; 80]);
        self.db.range(tree, keys::key(self.queue.id, &[]), to)
    }

    /// Counts nothing yet, and lies behind no position, batch or fence that was ever given.
    fn reset_counts(&mut self) -> Result<()> {
        let (mut position, mut sequence) = (0, 0);
        for tree in [
            Tree::Requests,
            Tree::Dead,
            Tree::Outcomes,
            Tree::Settled,
            Tree::Delayed,
        ] {
            for entry in self.all(tree) {
                let (key, _) = entry?;
                match tree {
                    Tree::Settled => sequence = keys::number(&key, 0).max(sequence),
                    Tree::Delayed => position = keys::number(&key, 1).max(position),
                    _ => position = keys::number(&key, 0).max(position),
                }
            }
        }
        let record = &mut self.queue.record;
        record.last_position = record.last_position.max(position);
        record.last_settled = record.last_settled.max(sequence);
        record.last_fence = record.last_fence.saturating_add(FENCES_LEFT_OUT);
        (record.delayed, record.ready, record.ready_bytes) = (0, 0, 0);
        (record.in_flight, record.dead, record.held_bytes) = (0, 0, 0);
        Ok(())
    }

    fn rebuilt_batches(&mut self) -> Result<Vec<Rebuilt>> {
        let mut batches = Vec::new();
        for entry in self.all(Tree::Pending) {
            let (key, value) = entry?;
            let (mut batch, _) = db::read::<BatchV1>(Tree::Pending, &key, &value)?;
            let id = u128::from(keys::number(&key, 0)) << 64 | u128::from(keys::number(&key, 1));
            let done = |ending: &super::record::EndingV1| ending.rest == Some(VerdictV1::Done);
            batch.ending = batch.ending.filter(done);
            (batch.requests, batch.bytes, batch.open, batch.open_bytes) = (0, 0, 0, 0);
            (batch.verdicts, batch.verdict_bytes, batch.marks) = (0, 0, 0);
            (batch.staging, batch.held, batch.until) = (false, false, 0);
            let ended = batch.ending.is_some();
            batches.push(Rebuilt { id, batch, ended });
        }
        let record = &mut self.queue.record;
        for Rebuilt { id, batch, .. } in &batches {
            record.cursor = record.cursor.max(batch.last);
            record.last_batch = record.last_batch.max(apply::formed(*id));
            record.last_fence = record.last_fence.max(batch.fence);
        }
        Ok(batches)
    }

    fn rebuild_delayed(&mut self) -> Result<()> {
        let entries: Vec<sled::IVec> = self
            .all(Tree::Delayed)
            .map(|entry| Ok(entry?.0))
            .collect::<Result<_>>()?;
        for key in entries {
            let Some((request, _)) = self.db.load::<RequestV1>(Tree::Delayed, &key)? else {
                continue;
            };
            if self.is_elsewhere(&request, None)? || self.bury_torn(&request)? {
                self.write.delete(Tree::Delayed, key.to_vec());
            } else {
                let place = PlaceV1::Delayed(keys::number(&key, 0), keys::number(&key, 1));
                self.write.put(
                    Tree::Places,
                    keys::key(self.queue.id, &[request.id]),
                    &place,
                    &[],
                )?;
                self.queue.record.delayed += 1;
                self.queue.record.held_bytes += request.bytes;
            }
            self.commit_if_large()?;
        }
        Ok(())
    }

    /// Gives each entry of `requests` to its batch, to the ready ones, or, if its batch is lost, to the
    /// tail; how many of them are done with the rest of a batch that had ended.
    fn rebuild_requests(&mut self, batches: &mut [Rebuilt]) -> Result<u64> {
        let mut rest = 0;
        let (db, first, last) = (
            self.db,
            keys::key(self.queue.id, &[]),
            keys::key(self.queue.id, &[self.queue.record.last_position]),
        );
        for entry in db.range(Tree::Requests, first, last) {
            let (key, value) = entry?;
            let (request, body) = db::read::<RequestV1>(Tree::Requests, &key, &value)?;
            let position = keys::number(&key, 0);
            let owner = batches
                .iter_mut()
                .find(|owner| owner.batch.first <= position && position <= owner.batch.last);
            let owner_id = owner.as_ref().map(|owner| owner.id);
            if self.is_elsewhere(&request, owner_id)? || self.bury_torn(&request)? {
                self.write.delete(Tree::Requests, key.to_vec());
                self.commit_if_large()?;
                continue;
            }
            if position != request.id {
                let place = keys::key(self.queue.id, &[request.id]);
                self.write
                    .put(Tree::Places, place, &PlaceV1::At(position), &[])?;
            }
            let record = &mut self.queue.record;
            match owner {
                Some(owner) => rest += u64::from(self.join(owner, &request)?),
                None if position > record.cursor => {
                    record.ready += 1;
                    record.ready_bytes += request.bytes;
                    record.held_bytes += request.bytes;
                }
                None => {
                    record.held_bytes += request.bytes;
                    self.write.delete(Tree::Requests, key.to_vec());
                    let now = crate::clock::Timestamp::from_nanos(request.ready_at);
                    self.make_ready(now, request.ready_at, request, &body)?;
                }
            }
            self.commit_if_large()?;
        }
        Ok(rest)
    }

    /// Counts a member of its batch; whether it is done with the rest of it.
    fn join(&mut self, owner: &mut Rebuilt, request: &RequestV1) -> Result<bool> {
        let key = keys::key(self.queue.id, &[request.id]);
        let outcome = self.db.load::<OutcomeV1>(Tree::Outcomes, &key)?;
        let batch = &mut owner.batch;
        batch.requests += 1;
        batch.bytes += request.bytes;
        batch.marks += u32::from(self.db.get(Tree::Marks, &key)?.is_some());
        let record = &mut self.queue.record;
        match outcome.map(|(outcome, _)| outcome.verdict) {
            Some(VerdictV1::Done) => return Ok(false),
            Some(_) => {
                batch.verdicts += 1;
                batch.verdict_bytes += request.bytes;
            }
            // The rest is counted as done already, and whoever settles it must look for outcomes.
            None if owner.ended => return Ok(true),
            None => {
                batch.open += 1;
                batch.open_bytes += request.bytes;
            }
        }
        record.in_flight += 1;
        record.held_bytes += request.bytes;
        Ok(false)
    }

    /// Whether a request is done or dead, apart from a member whose own batch has recorded it.
    fn is_elsewhere(&self, request: &RequestV1, owner: Option<u128>) -> Result<bool> {
        let key = keys::key(self.queue.id, &[request.id]);
        if self.db.get(Tree::Dead, &key)?.is_some() {
            return Ok(true);
        }
        let outcome = self.db.load::<OutcomeV1>(Tree::Outcomes, &key)?;
        Ok(outcome.is_some_and(|(outcome, _)| {
            outcome.verdict == VerdictV1::Done && Some(outcome.batch) != owner
        }))
    }

    /// Dead-letters a request that has lost a part of its payload; whether it has.
    fn bury_torn(&mut self, request: &RequestV1) -> Result<bool> {
        for number in 0..request.parts {
            let part = keys::part(self.queue.id, request.id, PartOf::Payload, number);
            if self.db.get(Tree::Parts, &part)?.is_none() {
                let torn = RequestV1 {
                    bytes: 0,
                    parts: 0,
                    ..request.clone()
                };
                let error = format!(
                    "part {number} of its payload of {} bytes is lost",
                    request.bytes
                );
                self.bury_alone(torn, (DeadReason::Damaged, error))?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Counts done requests and dead letters, and drops outcomes whose batch is gone.
    fn rebuild_outcomes(&mut self, batches: &[Rebuilt]) -> Result<u64> {
        let mut done = 0;
        let db = self.db;
        let (from, to) = (
            keys::key(self.queue.id, &[]),
            keys::key(self.queue.id, &[u64::MAX]),
        );
        for entry in db.range(Tree::Outcomes, from.clone(), to.clone()) {
            let (key, value) = entry?;
            let (outcome, _) = db::read::<OutcomeV1>(Tree::Outcomes, &key, &value)?;
            if outcome.verdict == VerdictV1::Done {
                done += 1;
            } else if !batches.iter().any(|owner| owner.id == outcome.batch) {
                self.write.delete(Tree::Outcomes, key.to_vec());
                self.commit_if_large()?;
            }
        }
        self.db.commit(self.write)?;
        self.queue.record.dead = 0;
        for entry in db.range(Tree::Dead, from, to) {
            entry?;
            self.queue.record.dead += 1;
        }
        Ok(done)
    }

    fn commit_if_large(&mut self) -> Result<()> {
        if self.write.is_large() {
            self.db.commit(self.write)
        } else {
            Ok(())
        }
    }
}

/// So many fences are never given: the last claims may be among what was lost.
const FENCES_LEFT_OUT: u64 = 1 << 20;
/// A repair reads everything once.
const CACHE_BYTES: u64 = 32 << 20;
