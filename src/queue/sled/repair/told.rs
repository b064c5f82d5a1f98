//! What a damaged store tells of what it held, and how much of that is not there.
//!
//! | what | says |
//! |---|---|
//! | the note of what is durable | at least how many changes there were |
//! | the note of a clean close | how many changes there were, and what each queue held |
//! | the newest counts | how many entries each tree must have |
//! | the newest record of each queue | what it held, as far as the log goes |
//!
//! sled goes through its log up to what is damaged and takes that for the end. What it then shows is
//! sound, and older: only the note can tell that.

use std::collections::BTreeMap;

use super::{
    super::{
        clean::{Closed, Held},
        keys::Tree,
        record::{CountsV1, QueueV1},
        rows::{self, Chunk},
    },
    Repaired,
};
use crate::request::QueueName;

/// All that was told, and how many entries were found.
#[derive(Debug)]
pub(super) struct Told {
    closed: Option<Closed>,
    /// How many changes were durable, at least.
    synced: Option<u64>,
    counts: CountsV1,
    queues: BTreeMap<u32, QueueV1>,
    /// By tree, in the order of [`Tree::ALL`].
    found: Vec<u64>,
}

impl Told {
    pub(super) fn new(closed: Option<Closed>, synced: Option<u64>) -> Self {
        Self {
            closed,
            synced,
            counts: CountsV1::new(),
            queues: BTreeMap::new(),
            found: vec![0; Tree::ALL.len()],
        }
    }

    /// What the store says it must hold.
    pub(super) fn counts(&mut self, counts: CountsV1) {
        if counts.commits > self.counts.commits && counts.entries.len() == self.found.len() {
            self.counts = counts;
        }
    }

    /// What a queue says of itself; the record in `meta` is the later one unless more was pushed after it.
    pub(super) fn queue(&mut self, id: u32, record: QueueV1) {
        let known = self.queues.get(&id);
        if known.is_none_or(|known| known.last_position <= record.last_position) {
            self.queues.insert(id, record);
        }
    }

    /// A chunk is there; what it says besides its rows, if all of it is as it was written.
    pub(super) fn chunk(&mut self, chunk: &Chunk, is_of_queue: bool) {
        self.found(Tree::Requests);
        if let Some(head) = rows::head(chunk) {
            self.counts(head.counts);
            if is_of_queue {
                self.queue(chunk.queue, head.queue);
            }
        }
    }

    /// An entry is there, right or not.
    pub(super) fn found(&mut self, tree: Tree) {
        self.found[tree as usize] += 1;
    }

    /// The name of a queue whose record is lost.
    pub(super) fn name(&self, id: u32) -> Option<QueueName> {
        let closed = self.closed.as_ref();
        let noted = closed.and_then(|closed| closed.queues.get(&id));
        let noted = noted.map(|held| &held.name);
        let record = self.queues.get(&id).map(|record| &record.name);
        noted.or(record)?.parse().ok()
    }

    /// Compares it with what was saved of each queue.
    pub(super) fn compare(&self, saved: &BTreeMap<u32, Held>, repaired: &mut Repaired) {
        let expected = self.counts.entries.iter().zip(&self.found);
        repaired.absent = expected
            .map(|(expected, found)| expected.saturating_sub(*found))
            .sum();
        // A note of fewer changes than there are is of another database.
        repaired.lost_changes = self
            .closed
            .as_ref()
            .and_then(|closed| closed.commits.checked_sub(self.counts.commits));
        if self.closed.is_none() {
            let lost = self.synced.unwrap_or(0).saturating_sub(self.counts.commits);
            repaired.lost_changes = (lost > 0).then_some(lost);
        }
        let is_older = repaired.lost_changes.is_some_and(|lost| lost > 0);
        let noted = self
            .closed
            .as_ref()
            .filter(|_| repaired.lost_changes.is_some());
        let noted = noted
            .map(|closed| closed.queues.clone())
            .unwrap_or_default();
        let mut held: BTreeMap<u32, Held> = self
            .queues
            .iter()
            .map(|(id, record)| (*id, Held::of(record)))
            .collect();
        held.extend(noted);
        for (id, held) in held {
            let nothing = Held {
                name: String::new(),
                pushed: 0,
                waiting: 0,
                dead: 0,
            };
            let saved = saved.get(&id).unwrap_or(&nothing);
            let expected = held.waiting + held.dead;
            repaired.missing += if is_older {
                // Some of what is saved may have been settled later, so it does not stand for what is not.
                held.pushed.saturating_sub(saved.pushed).min(expected)
            } else {
                expected.saturating_sub(saved.waiting + saved.dead)
            };
        }
    }
}
