//! Every backend and every wrapper against every clause of the contract.

use std::sync::Arc;

use async_trait::async_trait;
use batchyard::{
    MemoryQueue, Queue, QueueOptions, Timestamp,
    testing::{Faulty, Harness, WithNow},
};

/// Queues in memory, wrapped by a function.
struct Memory(fn(Arc<dyn Queue>) -> Arc<dyn Queue>);

#[async_trait]
impl Harness for Memory {
    async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
        (self.0)(Arc::new(MemoryQueue::new(options)))
    }
}

batchyard::conformance!(memory, Memory(|queue| queue));
batchyard::conformance!(
    with_now,
    Memory(|queue| {
        let now = Timestamp::from_millis(1_800_000_000_000);
        Arc::new(WithNow::new(queue, now))
    })
);
batchyard::conformance!(faulty, Memory(|queue| Arc::new(Faulty::new(queue))));
