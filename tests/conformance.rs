//! Every backend and every wrapper against every clause of the contract.

use std::sync::Arc;

use batchyard::{MemoryQueue, Queue, QueueOptions, testing::Harness};

struct Memory;

#[async_trait::async_trait]
impl Harness for Memory {
    async fn open(&self, options: QueueOptions) -> Arc<dyn Queue> {
        Arc::new(MemoryQueue::new(options))
    }
}

batchyard::conformance!(memory, Memory);
