//! Dumping and restoring a queue of a journal.
//!
//! What is restored is written to the log as it comes, with its place known to nobody. At the end all that is
//! to be stored of the queue is one more thing that happened to it; before, a restart forgets it.

use async_trait::async_trait;

use super::{JournalQueue, step::Incoming};
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    queue::transfer::{DumpFrom, DumpPage, Record, Restore, Transfer},
};

#[async_trait]
impl Transfer for JournalQueue {
    async fn dump(&self, now: Timestamp, from: DumpFrom) -> Result<DumpPage> {
        self.call(|step| step.dump(now, from)).await
    }

    async fn restore(&self) -> Result<Box<dyn Restore + '_>> {
        let mut restoring = Restoring {
            queue: self,
            has_begun: false,
            incoming: None,
        };
        let has_begun = &mut restoring.has_begun;
        let begin = self.call(|step| {
            let incoming = step.begin_restore()?;
            *has_begun = true;
            Ok(incoming)
        });
        restoring.incoming = Some(begin.await?);
        Ok(Box::new(restoring))
    }
}

/// A queue that takes in records.
struct Restoring<'a> {
    queue: &'a JournalQueue,
    /// Whether it keeps what has come from being freed.
    has_begun: bool,
    incoming: Option<Incoming>,
}

#[async_trait]
impl Restore for Restoring<'_> {
    async fn add(&mut self, records: Vec<Record>) -> Result<()> {
        // What fails is forgotten.
        let incoming = self.incoming.take().ok_or_else(|| {
            Error::invalid("this restore has ended; begin another one, in a new queue")
        })?;
        let taken = self.queue.call(|step| step.take_in(incoming, records));
        self.incoming = Some(taken.await?);
        Ok(())
    }
}

impl Drop for Restoring<'_> {
    /// What it wrote to the log is not needed any more, or has its place.
    fn drop(&mut self) {
        if self.has_begun
            && let Ok(mut inner) = self.queue.keeper.core.lock()
        {
            let queue = inner.state.queues.get_mut(&self.queue.live.id);
            if let Some(queue) = queue {
                queue.incoming_from = None;
            }
        }
    }
}
