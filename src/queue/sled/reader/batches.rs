//! Looking at the batches that have not ended.

use std::{num::NonZeroU32, ops::Bound};

use super::View;
use crate::{
    batch::{BatchId, Fence},
    clock::Timestamp,
    error::Result,
    queue::{
        BatchEntry, BatchState, OutcomeCounts,
        sled::{
            db,
            keys::{Note, Tree},
            record::{BatchV1, OutcomeV1, RequestV1, VerdictV1},
        },
    },
};

impl View<'_> {
    /// A batch that has not ended, with its notes.
    pub(in crate::queue::sled) fn batch(
        &self,
        now: Timestamp,
        id: BatchId,
    ) -> Result<Option<BatchEntry>> {
        let Some(batch) = self.queue.open.get(&id.as_u128()) else {
            return Ok(None);
        };
        let (entry, _) = self.batch_entry(now, id, batch)?;
        let (checkpoint, context) = self.notes(id.as_u128(), batch)?;
        Ok(Some(BatchEntry {
            checkpoint,
            context: Some(context),
            ..entry
        }))
    }

    /// The next batches that have not ended.
    pub(in crate::queue::sled) fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: NonZeroU32,
    ) -> Result<Vec<BatchEntry>> {
        let after = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.as_u128()));
        let (mut page, mut looked_at) = (Vec::new(), 0);
        for (id, batch) in self.queue.open.range((after, Bound::Unbounded)) {
            if page.len() >= max_batches.get() as usize || looked_at >= MOST_LOOKED_AT {
                break;
            }
            let (entry, members) = self.batch_entry(now, BatchId::from_u128(*id), batch)?;
            looked_at += members;
            page.push(entry);
        }
        Ok(page)
    }

    /// What is known of a batch, without its notes, and how many members had to be looked at for it.
    fn batch_entry(
        &self,
        now: Timestamp,
        id: BatchId,
        batch: &BatchV1,
    ) -> Result<(BatchEntry, u32)> {
        let mut outcomes = OutcomeCounts {
            done: batch.requests - batch.open - batch.verdicts,
            ..OutcomeCounts::default()
        };
        let mut looked_at = 0;
        // What is stored tells how many have failed, not which way: their outcomes do.
        if batch.verdicts > 0 {
            let (from, to) = (self.key(&[batch.first]), self.key(&[batch.last]));
            for entry in self.db.range(Tree::Requests, from, to) {
                let (key, value) = entry?;
                let (member, _) = db::read::<RequestV1>(Tree::Requests, &key, &value)?;
                let key = self.key(&[member.id]);
                looked_at += 1;
                if let Some((outcome, _)) = self.db.load::<OutcomeV1>(Tree::Outcomes, &key)? {
                    match outcome.verdict {
                        VerdictV1::Done => {}
                        VerdictV1::Retry { .. } => outcomes.retry += 1,
                        VerdictV1::Reject { .. } => outcomes.reject += 1,
                    }
                }
                if outcomes.retry + outcomes.reject == batch.verdicts {
                    break;
                }
            }
        }
        let checkpoint = if batch.checkpoint {
            self.note(id.as_u128(), Note::Checkpoint)?
        } else {
            None
        };
        let entry = BatchEntry {
            id,
            parent: batch.parent.map(BatchId::from_u128),
            formed_at: Timestamp::from_nanos(batch.formed_at),
            attempt: batch.attempt,
            attempts_before: batch.prior,
            state: BatchState::new(now, batch.held, Timestamp::from_nanos(batch.until)),
            fence: batch.held.then_some(Fence(batch.fence)),
            requests: batch.requests,
            bytes: batch.bytes,
            outcomes,
            checkpoint_bytes: checkpoint.map(|checkpoint| checkpoint.len() as u64),
            checkpoint: None,
            context: None,
        };
        Ok((entry, looked_at))
    }
}

/// A page ends once so many members had to be looked at for it: the writer waits meanwhile.
const MOST_LOOKED_AT: u32 = 10_000;
