//! A queue of a store that many verbs use, by whichever owner.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use batchyard::{
    Administration, BatchEntry, BatchId, Bookmark, Cancelled, Capabilities, Claim, Entry, Error,
    Lease, List, Member, NewRequest, Page, Pushed, Queue, QueueName, RequestId, ResultCursor,
    SettledPage, State, Stats, Timestamp, Update,
    transfer::{DumpFrom, DumpPage, Record, Restore, Transfer},
};
use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{Fate, Holding, Long, MOST_OWNERS, Shared, fate, lock};

/// A queue of it, by whichever owner.
#[derive(Debug)]
pub(super) struct SharedQueue {
    shared: Arc<Shared>,
    name: QueueName,
    capabilities: Capabilities,
    has_transfer: bool,
    /// The queue of the owner with this number.
    current: Mutex<(u64, Arc<dyn Queue>)>,
    /// As long as a dump of it is half out.
    dumping: Mutex<Option<Long>>,
    /// Dumps on their way in, until they have ended.
    restoring: Mutex<Vec<JoinHandle<()>>>,
}

/// Asks something of the queue, whoever has it.
macro_rules! ask {
    ($self:expr, $may_repeat:expr, |$queue:ident| $verb:expr) => {
        go_on!($self.shared, $may_repeat, |holding| {
            match $self.of(&holding).await {
                Ok($queue) => $verb.await,
                Err(error) => Err(error),
            }
        })
    };
}

impl SharedQueue {
    /// The queue of the owner with this number.
    pub(super) fn new(
        shared: Arc<Shared>,
        name: &QueueName,
        (number, queue): (u64, Arc<dyn Queue>),
    ) -> Self {
        Self {
            shared,
            name: name.clone(),
            capabilities: queue.capabilities(),
            has_transfer: queue.transfer().is_some(),
            current: Mutex::new((number, queue)),
            dumping: Mutex::default(),
            restoring: Mutex::default(),
        }
    }

    async fn of(&self, holding: &Holding) -> Result<Arc<dyn Queue>, Error> {
        let (number, queue) = lock(&self.current).clone();
        if number == holding.number {
            return Ok(queue);
        }
        let queue = holding.store()?.queue(&self.name).await?;
        *lock(&self.current) = (holding.number, Arc::clone(&queue));
        Ok(queue)
    }

    /// Pushes, once: what may have been pushed through an owner that is gone is looked for.
    async fn push_once(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Option<Bookmark>,
    ) -> Result<Vec<Pushed>, Error> {
        let mut tries = 0;
        let mut unknown = false;
        loop {
            let holding = self.shared.held().await?;
            let pushed = async {
                let queue = self.of(&holding).await?;
                if unknown && let Some(pushed) = find_pushed(&*queue, now, &requests).await? {
                    return Ok(pushed);
                }
                match &bookmark {
                    None => queue.push(now, requests.clone()).await,
                    Some(bookmark) => {
                        let bookmark = bookmark.clone();
                        queue.push_from(now, requests.clone(), bookmark).await
                    }
                }
            };
            let error = match pushed.await {
                Ok(pushed) => return Ok(pushed),
                Err(error) => error,
            };
            tries += 1;
            let fate = fate(&holding, &error).filter(|_| tries < MOST_OWNERS);
            let Some(fate) = fate else { return Err(error) };
            unknown |= fate == Fate::Unknown;
            self.shared.lost(holding).await;
        }
    }
}

/// Requests that were pushed at this time, and are those of a push of which nobody knows: all of them are there, or none. What has a
/// key is simply pushed again.
async fn find_pushed(
    queue: &dyn Queue,
    now: Timestamp,
    requests: &[NewRequest],
) -> Result<Option<Vec<Pushed>>, Error> {
    let Some(admin) = queue.admin() else {
        return Ok(None);
    };
    let has_key = |request: &NewRequest| request.idempotency_key.is_some();
    if requests.is_empty() || requests.iter().any(has_key) {
        return Ok(None);
    }
    // Ids are no smaller than the time of their push.
    let before = format!("{:016x}", now.as_nanos().saturating_sub(1));
    let before: RequestId = before.parse()?;
    let mut found = Vec::new();
    for state in [
        State::Delayed,
        State::Ready,
        State::InFlight,
        State::Done,
        State::Dead,
    ] {
        let mut pages = List::new(state).after(before);
        loop {
            let page = admin.list(queue.now(), &pages).await?;
            let Some(last) = page.last() else { break };
            pages = pages.after(last.id);
            let own = page.into_iter().filter(|entry| entry.pushed_at == now);
            found.extend(own.map(|entry| entry.id));
        }
    }
    found.sort_unstable();
    // One that moved on while it was looked for may have been seen twice.
    found.dedup();
    match found.len() {
        0 => Ok(None),
        count if count == requests.len() => {
            let pushed = found.into_iter().map(|id| Pushed {
                id,
                duplicate: false,
            });
            Ok(Some(pushed.collect()))
        }
        count => Err(Error::unavailable(format!(
            "the process that had the store open is gone: {} requests were pushed, of which {count} are still known, from {} to {}",
            requests.len(),
            found[0],
            found[count - 1]
        ))),
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Queue for SharedQueue {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>, Error> {
        self.push_once(now, requests, None).await
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats, Error> {
        ask!(self, true, |queue| queue.stats(now))
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>, Error> {
        ask!(self, false, |queue| queue.claim(now, claim))
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>, Error> {
        ask!(self, true, |queue| queue.read(lease, page))
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<(), Error> {
        ask!(self, false, |queue| queue.update(
            now,
            lease,
            update.clone()
        ))
    }

    fn now(&self) -> Timestamp {
        lock(&self.current).1.now()
    }

    fn name(&self) -> QueueName {
        self.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    /// Those of the owner of now; the counter ends with it.
    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        lock(&self.current).1.pushed()
    }

    async fn push_from(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Bookmark,
    ) -> Result<Vec<Pushed>, Error> {
        self.push_once(now, requests, Some(bookmark)).await
    }

    async fn bookmark(&self, source: &str) -> Result<Option<Bytes>, Error> {
        ask!(self, true, |queue| queue.bookmark(source))
    }

    fn admin(&self) -> Option<&dyn Administration> {
        self.capabilities.administration.then_some(self as _)
    }

    fn transfer(&self) -> Option<&dyn Transfer> {
        self.has_transfer.then_some(self as _)
    }

    /// The store is closed with its last verb.
    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Asks something of the administration of the queue.
macro_rules! administer {
    ($self:expr, $may_repeat:expr, |$admin:ident| $verb:expr) => {
        ask!($self, $may_repeat, |queue| async {
            let none = || Error::invalid("this backend has no administration");
            let $admin = queue.admin().ok_or_else(none)?;
            $verb.await
        })
    };
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Administration for SharedQueue {
    async fn status(&self, now: Timestamp, id: RequestId) -> Result<Option<Entry>, Error> {
        administer!(self, true, |admin| admin.status(now, id))
    }

    async fn list(&self, now: Timestamp, list: &List) -> Result<Vec<Entry>, Error> {
        administer!(self, true, |admin| admin.list(now, list))
    }

    async fn results(
        &self,
        now: Timestamp,
        after: Option<ResultCursor>,
        max_requests: NonZeroU32,
    ) -> Result<SettledPage, Error> {
        administer!(self, true, |admin| admin.results(now, after, max_requests))
    }

    async fn cancel(&self, now: Timestamp, ids: &[RequestId]) -> Result<Vec<Cancelled>, Error> {
        administer!(self, false, |admin| admin.cancel(now, ids))
    }

    async fn redrive(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64, Error> {
        administer!(self, false, |admin| admin.redrive(now, ids))
    }

    async fn purge(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64, Error> {
        administer!(self, false, |admin| admin.purge(now, ids))
    }

    async fn batch(&self, now: Timestamp, id: BatchId) -> Result<Option<BatchEntry>, Error> {
        administer!(self, true, |admin| admin.batch(now, id))
    }

    async fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: NonZeroU32,
    ) -> Result<Vec<BatchEntry>, Error> {
        administer!(self, true, |admin| admin.batches(now, after, max_batches))
    }

    async fn release(&self, now: Timestamp, ids: &[BatchId]) -> Result<Vec<BatchId>, Error> {
        administer!(self, false, |admin| admin.release(now, ids))
    }
}

fn transfer(queue: &dyn Queue) -> Result<&dyn Transfer, Error> {
    let none = || Error::invalid("this backend can't be exported or imported");
    queue.transfer().ok_or_else(none)
}

#[async_trait]
impl Transfer for SharedQueue {
    async fn dump(&self, now: Timestamp, from: DumpFrom) -> Result<DumpPage, Error> {
        if from == DumpFrom::Start {
            *lock(&self.dumping) = Some(Long::begin(&self.shared));
        }
        let page = ask!(self, true, |queue| async {
            transfer(&*queue)?.dump(now, from).await
        });
        if page.as_ref().is_ok_and(|page| page.next.is_none()) || page.is_err() {
            *lock(&self.dumping) = None;
        }
        page
    }

    async fn restore(&self) -> Result<Box<dyn Restore + '_>, Error> {
        self.wait_for_those_that_end().await;
        let long = Long::begin(&self.shared);
        let parts = go_on!(self.shared, true, |holding| {
            match self.of(&holding).await {
                Ok(queue) => self.begin_restore(queue).await,
                Err(error) => Err(error),
            }
        })?;
        Ok(Box::new(Restoring { parts, _long: long }))
    }
}

impl SharedQueue {
    /// Has a dump taken in, as long as its parts come.
    async fn begin_restore(&self, queue: Arc<dyn Queue>) -> Result<mpsc::Sender<Part>, Error> {
        let (sender, mut parts) = mpsc::channel::<Part>(1);
        let (begun, begins) = oneshot::channel();
        let ending = tokio::spawn(async move {
            let restore = match transfer(&*queue) {
                Ok(transfer) => transfer.restore().await,
                Err(error) => Err(error),
            };
            let mut restore = match restore {
                Ok(restore) => restore,
                Err(error) => return drop(begun.send(Err(error))),
            };
            // Whoever waits no longer sends no parts.
            let _ = begun.send(Ok(()));
            while let Some((records, added)) = parts.recv().await {
                let _ = added.send(restore.add(records).await);
            }
        });
        lock(&self.restoring).push(ending);
        begins.await.map_err(|_| cut_off())??;
        Ok(sender)
    }

    /// A dump that was given up is in no other's way.
    async fn wait_for_those_that_end(&self) {
        let ending = std::mem::take(&mut *lock(&self.restoring));
        for ended in ending {
            // How it ended, those who waited for it were told.
            let _ = ended.await;
        }
    }
}

/// Records, and who is told what became of them.
type Part = (Vec<Record>, oneshot::Sender<Result<(), Error>>);

/// A dump on its way in.
struct Restoring {
    parts: mpsc::Sender<Part>,
    _long: Long,
}

#[async_trait]
impl Restore for Restoring {
    async fn add(&mut self, records: Vec<Record>) -> Result<(), Error> {
        let (added, answer) = oneshot::channel();
        let sent = self.parts.send((records, added)).await;
        sent.map_err(|_| cut_off())?;
        answer.await.map_err(|_| cut_off())?
    }
}

fn cut_off() -> Error {
    Error::internal("who takes in a dump is gone")
}
