//! Dumping and restoring a queue in memory.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;

use super::{
    MemoryQueue, MemoryStore,
    state::{Incoming, State},
};
use crate::{
    clock::Timestamp,
    error::Result,
    queue::transfer::{DumpFrom, DumpPage, Moment, Record, Restore, Transfer, is_over, not_there},
    request::QueueName,
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

/// What the queues of a store held; payloads are shared with them.
#[derive(Debug)]
pub(super) struct Still {
    queues: BTreeMap<QueueName, State>,
    _turn: Arc<()>,
}

impl Still {
    /// All queues at once: none of them goes on before the last is copied.
    pub(super) fn of(store: &MemoryStore, now: Timestamp) -> Result<Self> {
        let turn = store.turns.take()?;
        let queues = store.queues();
        let held = queues.values().map(|queue| queue.at(now));
        let held: Vec<_> = held.collect::<Result<_>>()?;
        let states = held.iter().map(|state| State::clone(state));
        Ok(Self {
            queues: queues.keys().cloned().zip(states).collect(),
            _turn: turn,
        })
    }
}

#[async_trait]
impl Moment for Still {
    fn queues(&self) -> Vec<QueueName> {
        self.queues.keys().cloned().collect()
    }

    async fn dump(&self, queue: &QueueName, from: DumpFrom) -> Result<DumpPage> {
        let state = self.queues.get(queue).ok_or_else(|| not_there(queue))?;
        Ok(state.dump(from))
    }
}
