//! Where the entries of `requests` lie: rows in chunks, chunks in windows.
//!
//! ```text
//! window "requests" queue first ── a tree of sled ─┬─ chunk: head · row · row · row
//!                                              ├─ chunk: head · row
//!                                              └─ …at least 16, then the next window begins
//! ```
//! sled writes a leaf anew with every tenth change to it, and twice more when it splits, which it does
//! above 16 entries: a row for itself is written four times. So the rows of one commit share a value,
//! and a tree takes no more of them than its one leaf holds without a split, unless they are tiny.
//! Rows leave in the order in which they came, so a window whose rows are all gone is dropped as a
//! whole; only in the windows at the two ends of a batch are chunks deleted, or written anew without
//! some of their rows.
//!
//! Each chunk also holds what else its commit changed, the queue's record and the counts, so that a
//! push is one insert into one tree: no transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sled::IVec;

use super::{
    keys::{self, Tree},
    record::{self, ChunkV1, CountsV1, QueueV1},
};
use crate::error::{Error, Result};

/// Rows by queue and position; `None` is to be deleted.
pub(super) type Rows = BTreeMap<(u32, u64), Option<Row>>;

/// A row that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) value: Vec<u8>,
    /// The bytes of its payload, if it is where it was pushed and has no parts.
    pub(super) plain: Option<u64>,
}

/// The name of every window begins with this; the tree of this very name notes which are dropped.
const PREFIX: &[u8] = b"requests";
/// A chunk has up to so many bytes of rows, so that no leaf of them outgrows sled's log.
pub(super) const CHUNK_BYTES: usize = 60 << 10;
/// What a row takes beside its bytes.
const ROW_OVERHEAD: usize = 16;
/// A leaf of sled splits above so many entries.
const WINDOW_CHUNKS: usize = 16;
/// A window has at least so many bytes. sled keeps the names of all trees in one page, so windows grow
/// with their number: twice as large for every [`WINDOWS`] that there are.
const WINDOW_BYTES: usize = 256 << 10;
const WINDOWS: usize = 512;

/// The windows of a store.
pub(super) struct Windows {
    sled: sled::Db,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// By queue and first position.
    trees: BTreeMap<(u32, u64), sled::Tree>,
    /// The window that a queue's next chunk goes to, with its chunks and bytes so far.
    tails: BTreeMap<u32, (u64, usize, usize)>,
}

/// A chunk as it is stored: which window it is in, its own first position, its value.
pub(super) struct Chunk {
    pub(super) window: u64,
    pub(super) queue: u32,
    pub(super) first: u64,
    pub(super) value: IVec,
}

impl Windows {
    /// None of them yet.
    pub(super) fn new(sled: sled::Db) -> Self {
        Self {
            sled,
            open: Mutex::default(),
        }
    }

    /// Finds all windows but those that are to be dropped.
    pub(super) fn load(&self, dropped: &BTreeSet<(u32, u64)>) -> sled::Result<()> {
        let mut open = self.lock();
        for name in self.sled.tree_names() {
            if let Some(window) = parse(&name).filter(|window| !dropped.contains(window)) {
                open.trees.insert(window, self.sled.open_tree(name)?);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The window of these or the last before it.
    fn at(&self, queue: u32, position: u64) -> Option<(u64, sled::Tree)> {
        let open = self.lock();
        let mut before = open.trees.range((queue, 0)..=(queue, position));
        before
            .next_back()
            .map(|((_, first), tree)| (*first, tree.clone()))
    }

    /// The chunk that a position is in, if it is in one.
    pub(super) fn chunk_at(&self, queue: u32, position: u64) -> sled::Result<Option<Chunk>> {
        let Some((window, tree)) = self.at(queue, position) else {
            return Ok(None);
        };
        let found = tree.range(..=position.to_be_bytes()).next_back();
        Ok(found
            .transpose()?
            .map(|entry| chunk((queue, window), entry)))
    }

    /// Some chunks in order, of whatever queue: from the one that a position is in, or those that begin
    /// after it. One look at a leaf serves all of them.
    pub(super) fn chunks(
        &self,
        (queue, position): (u32, u64),
        after: bool,
    ) -> sled::Result<Vec<Chunk>> {
        if let Some((window, tree)) = self.at(queue, position) {
            let key = position.to_be_bytes();
            let from = match tree.range(..=key).keys().next_back().transpose()? {
                Some(first) if !after => Bound::Included(first),
                _ => Bound::Excluded(IVec::from(&key)),
            };
            let chunks = some((queue, window), tree.range((from, Bound::Unbounded)))?;
            if !chunks.is_empty() {
                return Ok(chunks);
            }
        }
        let mut after = (queue, position);
        loop {
            let next = {
                let open = self.lock();
                let mut later = open.trees.range((Bound::Excluded(after), Bound::Unbounded));
                later.next().map(|(window, tree)| (*window, tree.clone()))
            };
            let Some((window, tree)) = next else {
                return Ok(Vec::new());
            };
            let chunks = some(window, tree.iter())?;
            if !chunks.is_empty() {
                return Ok(chunks);
            }
            after = window;
        }
    }

    /// The last chunk of each queue.
    pub(super) fn last_chunks(&self) -> sled::Result<Vec<Chunk>> {
        let mut last: BTreeMap<u32, Chunk> = BTreeMap::new();
        for (window, tree) in self.all().into_iter().rev() {
            if !last.contains_key(&window.0)
                && let Some(entry) = tree.last()?
            {
                last.insert(window.0, chunk(window, entry));
            }
        }
        Ok(last.into_values().collect())
    }

    pub(super) fn all(&self) -> BTreeMap<(u32, u64), sled::Tree> {
        self.lock().trees.clone()
    }

    /// The windows of a queue that begin after a position.
    pub(super) fn after(&self, queue: u32, position: u64) -> Vec<(u32, u64)> {
        let after = (
            Bound::Excluded((queue, position)),
            Bound::Included((queue, u64::MAX)),
        );
        self.lock()
            .trees
            .range(after)
            .map(|(window, _)| *window)
            .collect()
    }

    /// The tree for a queue's next chunk, which begins behind all others and has so many bytes.
    pub(super) fn tail(
        &self,
        queue: u32,
        first: u64,
        bytes: usize,
    ) -> sled::Result<(u64, sled::Tree)> {
        let mut open = self.lock();
        let least = WINDOW_BYTES << (open.trees.len() / WINDOWS).min(20);
        if let Some((window, chunks, filled)) = open.tails.get_mut(&queue)
            && (*chunks < WINDOW_CHUNKS || *filled < least)
        {
            (*chunks, *filled) = (*chunks + 1, *filled + bytes);
            let window = *window;
            if let Some(tree) = open.trees.get(&(queue, window)) {
                return Ok((window, tree.clone()));
            }
        }
        let tree = self.sled.open_tree(name((queue, first)))?;
        open.trees.insert((queue, first), tree.clone());
        open.tails.insert(queue, (first, 1, bytes));
        Ok((first, tree))
    }

    /// A window, which is made if it is not there.
    pub(super) fn made(&self, window: (u32, u64)) -> sled::Result<sled::Tree> {
        let tree = self.sled.open_tree(name(window))?;
        self.lock().trees.insert(window, tree.clone());
        Ok(tree)
    }

    pub(super) fn tree(&self, window: (u32, u64)) -> Option<sled::Tree> {
        self.lock().trees.get(&window).cloned()
    }

    /// No more chunks go to this window.
    pub(super) fn end(&self, (queue, first): (u32, u64)) {
        let tails = &mut self.lock().tails;
        if tails.get(&queue).is_some_and(|tail| tail.0 == first) {
            tails.remove(&queue);
        }
    }

    /// Drops a window with all that is left in it; one that is not there is dropped already.
    pub(super) fn drop_window(&self, window: (u32, u64)) -> sled::Result<()> {
        let mut open = self.lock();
        if open.trees.remove(&window).is_some() {
            self.drop_tree(window)?;
        }
        Ok(())
    }

    /// Takes a window out, which is to be dropped later.
    pub(super) fn take_out(&self, window: (u32, u64)) {
        self.lock().trees.remove(&window);
    }

    /// Drops the tree of a window that is not open, if it is there.
    pub(super) fn drop_tree(&self, window: (u32, u64)) -> sled::Result<()> {
        self.sled.drop_tree(name(window)).map(|_| ())
    }
}

/// How many chunks a window has.
pub(super) fn count(tree: &sled::Tree) -> sled::Result<u64> {
    tree.iter()
        .keys()
        .try_fold(0, |count, key| key.map(|_| count + 1))
}

/// Whether these are all the chunks of a window.
pub(super) fn is_all(tree: &sled::Tree, chunks: &BTreeSet<u64>) -> sled::Result<bool> {
    for key in tree.iter().keys() {
        if !chunks.contains(&position(&key?)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A chunk whose checksum is right.
pub(super) struct OpenChunk {
    pub(super) queue: u32,
    pub(super) window: u64,
    pub(super) first: u64,
    /// As in [`ChunkV1`].
    pub(super) plain: Option<u64>,
    /// In order, each with its position.
    pub(super) rows: Vec<(u64, IVec)>,
}

impl OpenChunk {
    /// The position of its last row.
    pub(super) fn last(&self) -> u64 {
        self.rows.last().map_or(self.first, |(last, _)| *last)
    }

    /// The payload bytes of its rows, if it is plain and none of them is outside of these positions.
    pub(super) fn plain_within(&self, first: u64, last: u64) -> Option<u64> {
        self.plain.filter(|_| {
            let begin = self.rows.first().map_or(self.first, |(begin, _)| *begin);
            first <= begin && self.last() <= last
        })
    }

    /// The rows within these positions, each with its key.
    pub(super) fn rows_within(
        self,
        from: (u32, u64),
        to: (u32, u64),
    ) -> impl Iterator<Item = (IVec, IVec)> {
        let queue = self.queue;
        let rows = self.rows.into_iter();
        let asked = rows.filter(move |(position, _)| (from..=to).contains(&(queue, *position)));
        asked.map(move |(position, row)| (IVec::from(keys::key(queue, &[position])), row))
    }
}

/// Checks a chunk, and finds its rows.
pub(super) fn open(chunk: &Chunk) -> Result<OpenChunk> {
    let key = keys::key(chunk.queue, &[chunk.first]);
    let (head, body) = record::decode::<ChunkV1>(Tree::Requests, &key, &chunk.value)?;
    let rows = slices(chunk, &head, body.len())
        .ok_or_else(|| Error::corrupt("a chunk of \"requests\" is too short; run `repair`"))?;
    Ok(OpenChunk {
        queue: chunk.queue,
        window: chunk.window,
        first: chunk.first,
        plain: head.plain,
        rows,
    })
}

/// The rows of a chunk that may be damaged: each has a checksum of its own.
pub(super) fn salvaged_rows(chunk: &Chunk) -> Option<Vec<(u64, IVec)>> {
    let (head, body) = record::decode_unchecked::<ChunkV1>(&chunk.value)?;
    slices(chunk, &head, body.len())
}

/// What a chunk says besides its rows, if all of it is as it was written.
pub(super) fn head(chunk: &Chunk) -> Option<ChunkV1> {
    let key = keys::key(chunk.queue, &[chunk.first]);
    let decoded = record::decode::<ChunkV1>(Tree::Requests, &key, &chunk.value);
    decoded.ok().map(|(head, _)| head)
}

fn slices(chunk: &Chunk, head: &ChunkV1, body: usize) -> Option<Vec<(u64, IVec)>> {
    let mut at = chunk.value.len() - body;
    let mut rows = Vec::with_capacity(head.rows.len());
    for (offset, bytes) in &head.rows {
        let bytes = *bytes as usize;
        if at + bytes > chunk.value.len() {
            return None;
        }
        let position = chunk.first.checked_add(*offset)?;
        rows.push((position, chunk.value.subslice(at, bytes)));
        at += bytes;
    }
    Some(rows)
}

/// The value of a chunk of new rows, whose first position is in its key.
pub(super) fn encode(
    at: (u32, u64),
    rows: &[(u64, Row)],
    record: QueueV1,
    counts: CountsV1,
) -> Result<Vec<u8>> {
    let plain = rows.iter().map(|(_, row)| row.plain).sum();
    let rows = rows
        .iter()
        .map(|(position, row)| (*position, &row.value[..]));
    join(at, rows.unzip(), plain, record, counts)
}

/// The value of a chunk with the rows that are left of it.
pub(super) fn encode_left(
    at: (u32, u64),
    rows: &[(u64, IVec)],
    record: QueueV1,
    counts: CountsV1,
) -> Result<Vec<u8>> {
    let rows = rows.iter().map(|(position, row)| (*position, &row[..]));
    join(at, rows.unzip(), None, record, counts)
}

fn join(
    (queue, first): (u32, u64),
    (positions, rows): (Vec<u64>, Vec<&[u8]>),
    plain: Option<u64>,
    record: QueueV1,
    counts: CountsV1,
) -> Result<Vec<u8>> {
    let lengths = positions.iter().zip(&rows).map(|(position, row)| {
        let bytes = u32::try_from(row.len())
            .map_err(|error| Error::internal("a row is too long").with_source(error))?;
        Ok((position - first, bytes))
    });
    let head = ChunkV1 {
        counts,
        queue: record,
        plain,
        rows: lengths.collect::<Result<_>>()?,
    };
    record::encode_all(&keys::key(queue, &[first]), &head, &rows)
}

/// Shares rows out among as few chunks as hold them, evenly.
pub(super) fn share(rows: Vec<(u64, Row)>) -> Vec<Vec<(u64, Row)>> {
    let size = |row: &Row| row.value.len() + ROW_OVERHEAD;
    let total: usize = rows.iter().map(|(_, row)| size(row)).sum();
    let each = total.div_ceil(total.div_ceil(CHUNK_BYTES).max(1));
    let (mut chunks, mut filled) = (Vec::new(), usize::MAX);
    for (position, row) in rows {
        let bytes = size(&row);
        // A chunk ends with the row that reaches its share, or before one that is too much for it.
        if filled >= each || filled + bytes > CHUNK_BYTES {
            chunks.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(chunk) = chunks.last_mut() {
            chunk.push((position, row));
        }
    }
    chunks
}

/// The next chunks of a window, as many as a leaf holds.
fn some(window: (u32, u64), entries: sled::Iter) -> sled::Result<Vec<Chunk>> {
    let entries = entries.take(WINDOW_CHUNKS);
    entries.map(|entry| Ok(chunk(window, entry?))).collect()
}

/// The chunk in an entry of a window.
pub(super) fn chunk((queue, window): (u32, u64), (key, value): (IVec, IVec)) -> Chunk {
    Chunk {
        window,
        queue,
        first: position(&key),
        value,
    }
}

/// The first position of a chunk; no key of ours is too short.
pub(super) fn position(key: &[u8]) -> u64 {
    let bytes = key.get(..8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_be_bytes)
}

fn name((queue, first): (u32, u64)) -> Vec<u8> {
    [PREFIX, &keys::key(queue, &[first])].concat()
}

/// Which window a tree of this name is, if it is one.
fn parse(name: &[u8]) -> Option<(u32, u64)> {
    let key = name.strip_prefix(PREFIX).filter(|key| key.len() == 12)?;
    Some((keys::queue(key), keys::number(key, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: &[u8]) -> Row {
        Row {
            value: value.to_vec(),
            plain: Some(value.len() as u64),
        }
    }

    #[test]
    fn rows_are_shared_out_in_order_and_no_chunk_is_too_large() {
        for sizes in [vec![1_000; 100], vec![13_000; 9], vec![5], vec![50; 3_000]] {
            let rows = sizes.iter().map(|size| row(&vec![0; *size]));
            let rows: Vec<_> = (7..).zip(rows).collect();
            let chunks = share(rows.clone());
            for chunk in &chunks {
                let sizes = chunk.iter().map(|(_, row)| row.value.len() + ROW_OVERHEAD);
                let bytes: usize = sizes.sum();
                assert!(!chunk.is_empty() && bytes <= CHUNK_BYTES, "{bytes}");
            }
            assert_eq!(chunks.concat(), rows);
        }
    }

    #[test]
    fn a_chunk_gives_its_rows_back_and_no_flipped_bit_is_served() {
        let rows = [(3, row(b"abc")), (9, row(b"defg"))];
        let queue = QueueV1::new("q");
        let value = encode((7, 3), &rows, queue, CountsV1::default()).unwrap();
        let mut chunk = chunk((7, 1), (IVec::from(&3_u64.to_be_bytes()), value.into()));
        let opened = open(&chunk).unwrap();
        assert_eq!(opened.plain_within(3, 9), Some(7));
        assert_eq!(
            (opened.plain_within(4, 9), opened.plain_within(3, 8)),
            (None, None)
        );
        let read = opened
            .rows
            .iter()
            .map(|(position, row)| (*position, &row[..]));
        assert!(read.eq([(3, &b"abc"[..]), (9, &b"defg"[..])]));
        for bit in 0..chunk.value.len() * 8 {
            chunk.value[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&chunk).is_err(), "bit {bit}");
            chunk.value[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_window_is_told_from_every_other_tree() {
        assert_eq!(parse(&name((7, 1 << 40))), Some((7, 1 << 40)));
        assert!(
            Tree::ALL
                .iter()
                .all(|(_, name)| parse(name.as_bytes()).is_none())
        );
    }
}
