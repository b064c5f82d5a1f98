//! What each call asks of the store, and what it is answered.

use std::sync::Arc;

use super::{Served, exchange::Answer};
use crate::{
    batch::Page,
    control::wire::{Call, Opened, PAGE_ENTRIES, Verb},
    error::{Error, Result},
    queue::{Administration, Queue, Transfer},
    request::QueueName,
};

impl Served {
    /// A call's result.
    pub(super) async fn obey(&self, call: Call) -> Answer {
        match call {
            Call::Hello { .. }
            | Call::HandOver
            | Call::Moment(_)
            | Call::Page(..)
            | Call::Verify => self.answer::<()>(Err(out_of_place())).await,
            Call::Damages => self.answer(self.store.damages().await).await,
            Call::Queues(prefix) => {
                let _turn = self.budget.page().await;
                self.answer(self.store.queues(&prefix).await).await
            }
            Call::Open(name) => self.answer(self.open(&name).await).await,
            Call::To(name, verb) => match self.allowed(&name, &verb).await {
                Ok(queue) => self.ask(&*queue, verb).await,
                Err(error) => self.answer::<()>(Err(error)).await,
            },
        }
    }

    async fn allowed(&self, name: &QueueName, verb: &Verb) -> Result<Arc<dyn Queue>> {
        self.access.check(verb)?;
        self.store.queue(name).await
    }

    async fn open(&self, name: &QueueName) -> Result<Opened> {
        let queue = self.store.queue(name).await?;
        Ok(Opened {
            capabilities: queue.capabilities(),
            has_transfer: queue.transfer().is_some(),
            changes: queue.pushed().map(|changes| *changes.borrow()),
        })
    }

    async fn ask(&self, queue: &dyn Queue, verb: Verb) -> Answer {
        let _turn = match verb {
            Verb::Read(..)
            | Verb::Status(..)
            | Verb::List(..)
            | Verb::Results(..)
            | Verb::Batches(..)
            | Verb::Dump(..) => self.budget.page().await,
            _ => None,
        };
        match verb {
            Verb::Push(now, requests) => self.answer(queue.push(now, requests).await).await,
            Verb::PushFrom(now, requests, bookmark) => {
                self.answer(queue.push_from(now, requests, bookmark).await)
                    .await
            }
            Verb::Bookmark(source) => self.answer(queue.bookmark(&source).await).await,
            Verb::Stats(now) => self.answer(queue.stats(now).await).await,
            Verb::Claim(now, claim) => self.answer(queue.claim(now, &claim).await).await,
            Verb::Read(lease, page) => self.answer(queue.read(&lease, bounded(page)).await).await,
            Verb::Update(now, lease, update) => {
                self.answer(queue.update(now, &lease, update).await).await
            }
            Verb::Changed(seen) => self.answer(self.changed(queue, seen).await).await,
            Verb::Explain => self.answer(self.explain(&queue.name()).await).await,
            Verb::Dump(now, from) => {
                self.answer(match transfer(queue) {
                    Ok(transfer) => transfer.dump(now, from).await,
                    Err(error) => Err(error),
                })
                .await
            }
            Verb::Restore | Verb::Add(_) => self.answer::<()>(Err(out_of_place())).await,
            verb => match queue.admin() {
                Some(admin) => self.administer(admin, verb).await,
                None => {
                    self.answer::<()>(Err(Error::invalid("this backend has no administration")))
                        .await
                }
            },
        }
    }

    /// Waits until the counter of changes is another than the one that was seen, or somebody else needs the connection.
    async fn changed(&self, queue: &dyn Queue, seen: u64) -> Result<u64> {
        let ended = || Error::closed("the queue was closed");
        let mut changes = queue.pushed().ok_or_else(ended)?;
        tokio::select! {
            moved = changes.wait_for(|count| *count != seen) => {
                moved.map(|count| *count).map_err(|_| ended())
            }
            () = self.crowded.notified() => {
                // For when this one is idle, in a moment.
                self.crowded.notify_one();
                Ok(seen)
            }
            () = self.stop.cancelled() => Err(ended()),
        }
    }

    async fn explain(&self, queue: &QueueName) -> Result<crate::dispatcher::Explanation> {
        let none = || {
            Error::not_found(
                "the process that has the store open serves no queue with a dispatcher",
            )
        };
        let dispatcher = self.dispatcher.as_ref().ok_or_else(none)?;
        dispatcher.explain(queue).await
    }

    /// What is asked of the administration of a queue.
    async fn administer(&self, admin: &dyn Administration, verb: Verb) -> Answer {
        match verb {
            Verb::Status(now, id) => self.answer(admin.status(now, id).await).await,
            Verb::List(now, list) => {
                let list = list.max_requests(list.max_requests.min(PAGE_ENTRIES));
                self.answer(admin.list(now, &list).await).await
            }
            Verb::Results(now, after, most) => {
                let most = most.min(PAGE_ENTRIES);
                self.answer(admin.results(now, after, most).await).await
            }
            Verb::Cancel(now, ids) => self.answer(admin.cancel(now, &ids).await).await,
            Verb::Redrive(now, ids) => self.answer(admin.redrive(now, &ids).await).await,
            Verb::Purge(now, ids) => self.answer(admin.purge(now, &ids).await).await,
            Verb::Batch(now, id) => self.answer(admin.batch(now, id).await).await,
            Verb::Batches(now, after, most) => {
                let most = most.min(PAGE_ENTRIES);
                self.answer(admin.batches(now, after, most).await).await
            }
            Verb::Release(now, ids) => self.answer(admin.release(now, &ids).await).await,
            _ => self.answer::<()>(Err(out_of_place())).await,
        }
    }
}

/// Whatever a client wants at most, a page of members is no larger than usual: its next one goes on behind it.
fn bounded(page: Page) -> Page {
    let usual = Page::first();
    Page {
        after: page.after,
        max_requests: page.max_requests.min(usual.max_requests),
        max_bytes: page.max_bytes.min(usual.max_bytes),
    }
}

pub(super) fn transfer(queue: &dyn Queue) -> Result<&dyn Transfer> {
    queue
        .transfer()
        .ok_or_else(|| Error::invalid("this backend can't be exported or imported"))
}

pub(super) fn out_of_place() -> Error {
    Error::internal("the control socket was asked for something out of place")
}
