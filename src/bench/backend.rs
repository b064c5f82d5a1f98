//! Our own queues as contestants.

use std::{num::NonZeroU32, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    contestant::Safety,
    yard::{Held, Tally, Yard},
};
use crate::{
    batch::{Claim, Outcome, Page, Retries, Then, Update},
    error::{Error, Result},
    queue::{Durability, Queue, Store},
    request::{NewRequest, QueueName},
};

/// An open store with one queue, and the server behind it, if any.
pub(super) struct Backend<S> {
    queue: Arc<dyn Queue>,
    store: Arc<dyn Store>,
    server: S,
}

/// What has to live as long as the store.
pub(super) trait Behind: Send + Sync + 'static {
    /// The process of a server.
    fn process(&self) -> Option<u32>;
}

impl Behind for () {
    fn process(&self) -> Option<u32> {
        None
    }
}

#[cfg(feature = "redis")]
impl Behind for super::server::Server {
    fn process(&self) -> Option<u32> {
        Some(self.process())
    }
}

/// Opens the queue of a store, and holds it to what the table says about its durability.
pub(super) async fn open<S: Behind>(
    store: impl Store,
    server: S,
    safety: Safety,
) -> Result<Box<dyn Yard>> {
    let queue = store.queue(&QueueName::default()).await?;
    let durability = queue.capabilities().durability;
    let told = match &durability {
        Durability::Process => Safety::Process,
        Durability::Disk => Safety::Synced,
        Durability::Server { policy } if policy.contains("appendfsync always") => Safety::Synced,
        Durability::Server { .. } => Safety::Later,
    };
    if told != safety {
        let text = format!("it says {durability:?}, and the table of contestants {safety:?}");
        return Err(Error::internal(text));
    }
    Ok(Box::new(Backend {
        queue,
        store: Arc::new(store),
        server,
    }))
}

#[async_trait]
impl<S: Behind> Yard for Backend<S> {
    async fn push(&self, payloads: Vec<Bytes>) -> Result<()> {
        let requests = payloads.into_iter().map(NewRequest::new).collect();
        self.queue.push(self.queue.now(), requests).await.map(drop)
    }

    async fn claim(&self, most: u32) -> Result<Option<Held>> {
        let claim = Claim {
            max_requests: NonZeroU32::new(most).unwrap_or(NonZeroU32::MIN),
            ..Claim::new()
        };
        let lease = self.queue.claim(self.queue.now(), &claim).await?;
        Ok(lease.map(Held::Lease))
    }

    async fn read(&self, held: &Held) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut page = Page::first();
        loop {
            let members = self.queue.read(held.lease()?, page).await?;
            let Some(last) = members.last() else {
                return Ok(tally);
            };
            page = page.after(last.position);
            tally.page(members.iter().map(|member| &member.payload));
        }
    }

    async fn finish(&self, held: Held) -> Result<()> {
        let now = self.queue.now();
        let retries = Retries {
            at: now,
            max_attempts: NonZeroU32::MIN,
        };
        let rest = Outcome::done();
        let finish = Update::then(Then::Finish { rest, retries });
        self.queue.update(now, held.lease()?, finish).await
    }

    fn queue(&self) -> Option<Arc<dyn Queue>> {
        Some(Arc::clone(&self.queue))
    }

    fn store(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::clone(&self.store))
    }

    fn server(&self) -> Option<u32> {
        self.server.process()
    }

    async fn close(&self) -> Result<()> {
        self.store.close().await
    }
}
