//! What a step collects before it is committed.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    keys::{self, Tree},
    record::{self, QueueV1, Record, RequestV1},
    rows::{CHUNK_BYTES, OpenChunk, Row, Rows},
};
use crate::error::Result;

/// What one step writes; nothing of it is there before [`Db::commit`], all of it after.
#[derive(Debug, Default)]
pub(super) struct Write {
    /// In all trees but `requests`.
    pub(super) entries: BTreeMap<(Tree, Vec<u8>), Option<Vec<u8>>>,
    /// In `requests`: what is put there lies behind all that is there.
    pub(super) rows: Rows,
    /// Chunks of `requests` that are deleted as a whole, by window.
    pub(super) chunks: BTreeMap<(u32, u64), BTreeSet<u64>>,
    pub(super) queues: BTreeMap<u32, QueueV1>,
    /// Chunks of which a part is written anew, each by its queue and first position.
    edited: BTreeSet<(u32, u64)>,
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
        self.set(tree, key, Some(value));
        Ok(())
    }

    /// A request that is ready, behind all others.
    pub(super) fn put_ready(&mut self, key: &[u8], request: &RequestV1, body: &[u8]) -> Result<()> {
        let value = record::encode(key, request, body)?;
        self.bytes += value.len();
        let at = row(key);
        let plain = (request.id == at.1 && request.parts == 0).then_some(request.bytes);
        self.rows.insert(at, Some(Row { value, plain }));
        Ok(())
    }

    /// Deletes every request of a chunk.
    pub(super) fn delete_chunk(&mut self, chunk: &OpenChunk) {
        let window = self.chunks.entry((chunk.queue, chunk.window));
        window.or_default().insert(chunk.first);
    }

    /// What is left of this chunk is written anew.
    pub(super) fn edits(&mut self, chunk: (u32, u64)) {
        self.edited.insert(chunk);
    }

    /// The record of a queue.
    pub(super) fn put_queue(&mut self, id: u32, record: &QueueV1) {
        self.queues.insert(id, record.clone());
    }

    /// An entry as it was read elsewhere.
    pub(super) fn put_raw(&mut self, tree: Tree, key: &[u8], value: &[u8]) {
        self.set(tree, key.to_vec(), Some(value.to_vec()));
    }

    /// An entry whose key says everything.
    pub(super) fn put_key(&mut self, tree: Tree, key: Vec<u8>) {
        self.set(tree, key, Some(Vec::new()));
    }

    pub(super) fn delete(&mut self, tree: Tree, key: Vec<u8>) {
        self.set(tree, key, None);
    }

    fn set(&mut self, tree: Tree, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.bytes += value.as_ref().map_or(0, Vec::len);
        if tree == Tree::Requests {
            let value = value.map(|value| Row { value, plain: None });
            self.rows.insert(row(&key), value);
        } else {
            self.entries.insert((tree, key), value);
        }
    }

    /// What was collected for a key: a value, or that it is deleted.
    pub(super) fn get(&self, tree: Tree, key: &[u8]) -> Collected<'_> {
        let value = if tree == Tree::Requests {
            let row = self.rows.get(&row(key));
            row.map(|row| row.as_ref().map(|row| &row.value))
        } else if self.entries.is_empty() {
            None
        } else {
            let value = self.entries.get(&(tree, key.to_vec()));
            value.map(Option::as_ref)
        };
        match value {
            None => Collected::Nothing,
            Some(None) => Collected::Deleted,
            Some(Some(value)) => Collected::Value(value),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.rows.is_empty()
            && self.chunks.is_empty()
            && self.queues.is_empty()
    }

    /// Whether it is time to commit, so that no transaction needs much memory.
    pub(super) fn is_large(&self) -> bool {
        self.entries.len() + self.rows.len() >= MAX_WRITE_ENTRIES
            || self.bytes + self.edited.len() * CHUNK_BYTES >= MAX_WRITE_BYTES
    }

    /// Whether it adds rows to queues and does nothing else.
    pub(super) fn only_adds_rows(&self) -> bool {
        self.entries.is_empty()
            && self.chunks.is_empty()
            && self.rows.values().all(Option::is_some)
            && self.queues.keys().all(|id| {
                let mut rows = self.rows.range((*id, 0)..=(*id, u64::MAX));
                rows.next().is_some()
            })
    }
}

/// The queue and position in a key of `requests`.
pub(super) fn row(key: &[u8]) -> (u32, u64) {
    (keys::queue(key), keys::number(key, 0))
}

/// New rows, by queue.
type Added = BTreeMap<u32, Vec<(u64, Row)>>;

/// Rows that are put, by queue, and those that are deleted.
pub(super) fn sorted(rows: Rows) -> (Added, Vec<(u32, u64)>) {
    let (mut added, mut deleted) = (BTreeMap::<u32, Vec<_>>::new(), Vec::new());
    for ((queue, position), value) in rows {
        match value {
            Some(value) => added.entry(queue).or_default().push((position, value)),
            None => deleted.push((queue, position)),
        }
    }
    (added, deleted)
}

/// A transaction holds up to this many entries before it is time to commit: sled needs about 10 KiB
/// of memory for each until it is through.
const MAX_WRITE_ENTRIES: usize = 512;
/// And so many bytes, which together with what sled adds to them fit into a segment.
const MAX_WRITE_BYTES: usize = 1 << 20;
