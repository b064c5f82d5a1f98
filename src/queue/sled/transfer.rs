//! Dumping and restoring a queue of a sled store.

use async_trait::async_trait;

use super::{SledQueue, apply::Incoming};
use crate::{
    clock::Timestamp,
    error::Result,
    queue::transfer::{
        DumpFrom, DumpPage, PAGE_BYTES, PAGE_RECORDS, Record, Restore, Transfer, is_over,
    },
};

#[async_trait]
impl Transfer for SledQueue {
    async fn dump(&self, now: Timestamp, from: DumpFrom) -> Result<DumpPage> {
        self.view(now, move |view| view.dump(from, (PAGE_RECORDS, PAGE_BYTES)))
            .await
    }

    async fn restore(&self) -> Result<Box<dyn Restore + '_>> {
        #![expect(
            clippy::redundant_closure_for_method_calls,
            reason = "the method is one lifetime's, the closure any's"
        )]
        self.check()?;
        let (handle, id) = (&self.handle, self.live.id);
        while handle.call(id, |step| step.clear_before_restore()).await? {}
        let begun = handle.call(id, |step| step.begin_restore());
        Ok(Box::new(Restoring {
            incoming: Some(begun.await?),
            queue: self,
        }))
    }
}

/// A queue that takes in records.
struct Restoring<'a> {
    queue: &'a SledQueue,
    incoming: Option<Incoming>,
}

#[async_trait]
impl Restore for Restoring<'_> {
    async fn add(&mut self, records: Vec<Record>) -> Result<()> {
        self.queue.check()?;
        // What fails is forgotten.
        let incoming = self.incoming.take().ok_or_else(is_over)?;
        let taken = self
            .queue
            .handle
            .call(self.queue.live.id, |step| step.take_in(incoming, records));
        self.incoming = taken.await?;
        Ok(())
    }
}
