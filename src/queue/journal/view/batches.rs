//! Looking at the batches that have not ended: all of it is in memory.

use std::{num::NonZeroU32, ops::Bound};

use crate::{
    batch::{BatchId, Fence},
    clock::Timestamp,
    error::Result,
    queue::{
        BatchEntry, BatchState, OutcomeCounts,
        journal::{
            fold::{DONE, RETRY},
            state::{Open, QueueState},
            step::Step,
        },
    },
};

impl Step<'_> {
    pub(in crate::queue::journal) fn batch(
        &mut self,
        now: Timestamp,
        id: BatchId,
    ) -> Result<Option<BatchEntry>> {
        self.advance(now)?;
        let queue = self.queue()?;
        let open = queue.open(id);
        Ok(open.map(|(_, open)| BatchEntry {
            checkpoint: open.checkpoint.clone(),
            context: Some(open.context.clone()),
            ..entry(queue, now, id, open)
        }))
    }

    pub(in crate::queue::journal) fn batches(
        &mut self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: NonZeroU32,
    ) -> Result<Vec<BatchEntry>> {
        self.advance(now)?;
        let queue = self.queue()?;
        // Those that were formed at the same time as one of another queue come after it if their ids do.
        let from = after.map_or(0, |after| after.halves().0);
        let open = queue
            .stored
            .open
            .range((Bound::Included(from), Bound::Unbounded));
        let page = open
            .map(|(batch, open)| (queue.batch_id(*batch), open))
            .filter(|(id, _)| Some(*id) > after)
            .take(max_batches.get() as usize);
        Ok(page.map(|(id, open)| entry(queue, now, id, open)).collect())
    }
}

/// What is known of a batch, without its notes.
fn entry(queue: &QueueState, now: Timestamp, id: BatchId, open: &Open) -> BatchEntry {
    let mut outcomes = OutcomeCounts::default();
    for kind in open.recorded.values() {
        match *kind {
            DONE => outcomes.done += 1,
            RETRY => outcomes.retry += 1,
            _ => outcomes.reject += 1,
        }
    }
    let checkpoint = open.checkpoint.as_ref();
    BatchEntry {
        id,
        parent: open.parent.map(|parent| queue.batch_id(parent)),
        formed_at: Timestamp::from_nanos(open.formed_at),
        attempt: open.attempt,
        attempts_before: open.prior,
        state: BatchState::new(now, open.held, Timestamp::from_nanos(open.until)),
        fence: open.held.then_some(Fence(open.fence)),
        requests: open.members.requests,
        bytes: open.members.bytes,
        outcomes,
        checkpoint_bytes: checkpoint.map(|checkpoint| checkpoint.len() as u64),
        checkpoint: None,
        context: None,
    }
}
