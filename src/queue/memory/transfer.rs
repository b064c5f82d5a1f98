//! Dumping and restoring a queue in memory.

use async_trait::async_trait;

use super::{MemoryQueue, state::Incoming};
use crate::{
    clock::Timestamp,
    error::Result,
    queue::transfer::{DumpFrom, DumpPage, Record, Restore, Transfer, is_over},
};

#[async_trait]
impl Transfer for MemoryQueue {
    async fn dump(&self, now: Timestamp, from: DumpFrom) -> Result<DumpPage> {
        Ok(self.at(now)?.dump(from))
    }

    async fn restore(&self) -> Result<Box<dyn Restore + '_>> {
        let incoming = self.at(Timestamp::EPOCH)?.incoming()?;
        Ok(Box::new(Restoring {
            queue: self,
            incoming: Some(incoming),
        }))
    }
}

/// A queue that takes in records; they stand apart until all are there.
#[derive(Debug)]
struct Restoring<'a> {
    queue: &'a MemoryQueue,
    incoming: Option<Incoming>,
}

#[async_trait]
impl Restore for Restoring<'_> {
    async fn add(&mut self, records: Vec<Record>) -> Result<()> {
        // What fails is forgotten.
        let mut incoming = self.incoming.take().ok_or_else(is_over)?;
        if let Some(state) = incoming.take_in(records)? {
            self.queue.at(Timestamp::EPOCH)?.replace_with(state)?;
            self.queue.changed();
        }
        self.incoming = Some(incoming);
        Ok(())
    }
}
