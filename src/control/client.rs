//! The side of everybody else: the store of another process, as a store.

mod dumps;
mod owner;

use std::{
    num::NonZeroU32,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::{io::AsyncReadExt, sync::watch, task::JoinHandle};

use self::{
    dumps::ControlMoment,
    owner::{Connection, Lost, Owner, held},
};
use super::wire::{self, Call, Opened, PAGE_ENTRIES, Told, Verb};
use crate::{
    batch::{BatchId, Claim, Lease, Member, Page, Update},
    clock::Timestamp,
    dispatcher::Explanation,
    error::{Error, Result},
    queue::{
        Administration, BatchEntry, Cancelled, Capabilities, Entry, List, Moment, Queue,
        ResultCursor, SettledPage, Store, Transfer, Verified, VerifyProgress,
    },
    request::{Bookmark, NewRequest, Pushed, QueueName, RequestId},
    stats::Stats,
};

/// A store that another process has open, through the socket in its folder.
///
/// What it answers is as durable as the owner's answers are. Options of queues are the owner's.
///
/// # Errors
/// Every verb fails with [`Unavailable`](crate::ErrorKind::Unavailable) when the owner is gone; the error says whether the verb had
/// no effect, or whether that is unknown.
///
/// # Cancel safety
/// As [`Queue`] says: a verb whose future is dropped is given up by the owner as well, unless it has taken effect.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> batchyard::Result<()> {
/// use batchyard::{ControlStore, Store};
/// let store = ControlStore::connect("./store").await?;
/// println!("{:?}, served by {}", store.queues("").await?, store.pid());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ControlStore {
    owner: Arc<Owner>,
    pid: u32,
    stays: bool,
}

impl ControlStore {
    /// Connects to the process that has the store in this folder open.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): nobody serves it. [`Unavailable`](crate::ErrorKind::Unavailable): who does, answers
    /// nothing within 30 seconds, refuses this user, or is of a version that speaks otherwise.
    pub async fn connect(folder: impl AsRef<Path>) -> Result<Self> {
        let owner = Owner {
            folder: folder.as_ref().to_owned(),
            idle: Mutex::default(),
            is_closed: AtomicBool::new(false),
            ending: Mutex::default(),
        };
        let (connection, welcome) = owner.dial().await?;
        owner.put_back(connection);
        Ok(Self {
            owner: Arc::new(owner),
            pid: welcome.pid,
            stays: welcome.stays,
        })
    }

    /// The process that has the store open.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it keeps the store, such as one with a dispatcher; else it lets another one [have it](Self::hand_over).
    pub fn stays(&self) -> bool {
        self.stays
    }

    /// Why nothing has gone yet from a queue, and when it will, as the owner's dispatcher says.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): no dispatcher of the owner serves the queue. And as
    /// [`RunningDispatcher::explain`](crate::RunningDispatcher::explain).
    pub async fn explain(&self, queue: &QueueName) -> Result<Explanation> {
        self.owner
            .call(&Call::To(queue.clone(), Verb::Explain))
            .await
    }
}

impl ControlStore {
    /// Asks the process that has the store open to let this one have it. False: it stays, such as one with a dispatcher. True:
    /// it closes the store, and takes no more calls; it may be a moment until the store can be opened, and by then somebody else
    /// may have it.
    ///
    /// # Errors
    /// As every verb, unless it is gone.
    pub async fn hand_over(&self) -> Result<bool> {
        let call = wire::encode(&Call::HandOver)?;
        let owner = &self.owner;
        let asked = async {
            let mut connection = owner.dial_again().await?;
            let answer = owner.ask(&mut connection, &call).await?;
            let lets_go: bool = answer.ok_or_else(|| owner.said_bye())??;
            if lets_go {
                // Whatever comes, it is over then.
                let _ = connection.stream.read(&mut [0]).await;
            }
            Ok(lets_go)
        };
        match asked.await {
            Err(error) if OwnerGone::of(&error).is_some() => Ok(true),
            asked => asked,
        }
    }
}

/// Why a verb failed that was asked of a process which is gone, or closes the store: the next one that has it may be asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerGone {
    /// It did not do it.
    Undone,
    /// Nobody knows whether it did it.
    Unknown,
}

impl OwnerGone {
    /// Whether that is why, and what it says of the verb.
    pub fn of(error: &Error) -> Option<Self> {
        let source = std::error::Error::source(error)?;
        source.downcast_ref::<Lost>().map(|lost| lost.verb)
    }
}

#[async_trait]
impl Store for ControlStore {
    async fn queue(&self, name: &QueueName) -> Result<Arc<dyn Queue>> {
        let opened: Opened = self.owner.call(&Call::Open(name.clone())).await?;
        let capabilities = Capabilities {
            // Whatever the owner's is by itself: here are two.
            shared: true,
            ..opened.capabilities
        };
        Ok(Arc::new(ControlQueue {
            owner: Arc::clone(&self.owner),
            name: name.clone(),
            capabilities,
            has_transfer: opened.has_transfer,
            first_seen: opened.changes,
            changes: OnceLock::new(),
            is_closed: AtomicBool::new(false),
        }))
    }

    async fn queues(&self, prefix: &str) -> Result<Vec<QueueName>> {
        self.owner.call(&Call::Queues(prefix.to_owned())).await
    }

    async fn damages(&self) -> Result<u64> {
        self.owner.call(&Call::Damages).await
    }

    async fn verify(&self, tell: &mut (dyn FnMut(VerifyProgress) + Send)) -> Result<Verified> {
        let owner = &self.owner;
        owner.check_open()?;
        let call = wire::encode(&Call::Verify)?;
        let mut connection = owner.dial_again().await?;
        let mut told: Told = owner
            .ask(&mut connection, &call)
            .await?
            .ok_or_else(|| owner.said_bye())??;
        loop {
            match told {
                Told::Progress(progress) => tell(progress),
                Told::Ended(verified) => return Ok(verified),
            }
            let answer = connection.answer().await;
            let next = owner.read(answer)?;
            told = next.ok_or_else(|| owner.said_bye())??;
        }
    }

    async fn moment(&self, now: Timestamp) -> Result<Option<Box<dyn Moment>>> {
        let moment = ControlMoment::begin(&self.owner, now).await?;
        Ok(moment.map(|moment| Box::new(moment) as _))
    }

    /// Refuses new calls through this handle; the owner's store stays open.
    async fn close(&self) -> Result<()> {
        self.owner.is_closed.store(true, Ordering::Release);
        Ok(())
    }
}

/// A queue of a [`ControlStore`].
///
/// Pages above 1,000 entries are asked for one after the other, so what such a page holds may be of several moments.
#[derive(Debug)]
pub struct ControlQueue {
    owner: Arc<Owner>,
    name: QueueName,
    capabilities: Capabilities,
    has_transfer: bool,
    /// Its counter of changes when it was opened, if it has one.
    first_seen: Option<u64>,
    changes: OnceLock<Changes>,
    is_closed: AtomicBool,
}

impl ControlQueue {
    async fn ask<T: DeserializeOwned>(&self, verb: Verb) -> Result<T> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::closed(format!("queue {:?} was closed", self.name)));
        }
        self.owner.call(&Call::To(self.name.clone(), verb)).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Queue for ControlQueue {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        self.ask(Verb::Push(now, requests)).await
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        self.ask(Verb::Stats(now)).await
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        self.ask(Verb::Claim(now, claim.clone())).await
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        self.ask(Verb::Read(lease.clone(), page)).await
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        self.ask(Verb::Update(now, lease.clone(), update)).await
    }

    fn now(&self) -> Timestamp {
        crate::clock::now()
    }

    fn name(&self) -> QueueName {
        self.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        let first_seen = self.first_seen?;
        let watch = || Changes::watch(&self.owner, &self.name, first_seen);
        Some(self.changes.get_or_init(watch).seen.clone())
    }

    async fn push_from(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Bookmark,
    ) -> Result<Vec<Pushed>> {
        self.ask(Verb::PushFrom(now, requests, bookmark)).await
    }

    async fn bookmark(&self, source: &str) -> Result<Option<Bytes>> {
        self.ask(Verb::Bookmark(source.to_owned())).await
    }

    fn admin(&self) -> Option<&dyn Administration> {
        self.capabilities.administration.then_some(self as _)
    }

    fn transfer(&self) -> Option<&dyn Transfer> {
        self.has_transfer.then_some(self as _)
    }

    /// Refuses new calls through this handle; the owner's queue stays open.
    async fn close(&self) -> Result<()> {
        self.is_closed.store(true, Ordering::Release);
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Administration for ControlQueue {
    async fn status(&self, now: Timestamp, id: RequestId) -> Result<Option<Entry>> {
        self.ask(Verb::Status(now, id)).await
    }

    async fn list(&self, now: Timestamp, list: &List) -> Result<Vec<Entry>> {
        let (mut entries, mut list) = (Vec::new(), *list);
        loop {
            let page: Vec<Entry> = self.ask(Verb::List(now, list)).await?;
            let (is_cut, end) = (is_cut(page.len()), page.last().map(|entry| entry.id));
            entries.extend(page);
            match (left(list.max_requests), end) {
                (Some(rest), Some(end)) if is_cut => list = list.after(end).max_requests(rest),
                _ => return Ok(entries),
            }
        }
    }

    async fn results(
        &self,
        now: Timestamp,
        after: Option<ResultCursor>,
        max_requests: NonZeroU32,
    ) -> Result<SettledPage> {
        let mut settled = SettledPage {
            entries: Vec::new(),
            next: None,
        };
        let (mut after, mut most) = (after, max_requests);
        loop {
            let page: SettledPage = self.ask(Verb::Results(now, after, most)).await?;
            let is_cut = is_cut(page.entries.len());
            settled.entries.extend(page.entries);
            settled.next = page.next.or(settled.next);
            match left(most) {
                Some(rest) if is_cut => (after, most) = (settled.next, rest),
                _ => return Ok(settled),
            }
        }
    }

    async fn cancel(&self, now: Timestamp, ids: &[RequestId]) -> Result<Vec<Cancelled>> {
        self.ask(Verb::Cancel(now, ids.to_owned())).await
    }

    async fn redrive(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        self.ask(Verb::Redrive(now, ids.to_owned())).await
    }

    async fn purge(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        self.ask(Verb::Purge(now, ids.to_owned())).await
    }

    async fn batch(&self, now: Timestamp, id: BatchId) -> Result<Option<BatchEntry>> {
        self.ask(Verb::Batch(now, id)).await
    }

    async fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: NonZeroU32,
    ) -> Result<Vec<BatchEntry>> {
        let (mut batches, mut after, mut most) = (Vec::new(), after, max_batches);
        loop {
            let page: Vec<BatchEntry> = self.ask(Verb::Batches(now, after, most)).await?;
            let is_cut = is_cut(page.len());
            batches.extend(page);
            match left(most) {
                Some(rest) if is_cut => {
                    after = batches.last().map(|batch| batch.id);
                    most = rest;
                }
                _ => return Ok(batches),
            }
        }
    }

    async fn release(&self, now: Timestamp, ids: &[BatchId]) -> Result<Vec<BatchId>> {
        self.ask(Verb::Release(now, ids.to_owned())).await
    }
}

/// Whether a page ends where it does because no larger one goes through.
fn is_cut(entries: usize) -> bool {
    entries == PAGE_ENTRIES.get() as usize
}

/// How many entries are wanted behind such a page, if any.
fn left(most: NonZeroU32) -> Option<NonZeroU32> {
    NonZeroU32::new(most.get().saturating_sub(PAGE_ENTRIES.get()))
}

/// Follows the counter of changes of a queue.
#[derive(Debug)]
struct Changes {
    seen: watch::Receiver<u64>,
    following: JoinHandle<()>,
}

impl Changes {
    fn watch(owner: &Arc<Owner>, name: &QueueName, seen: u64) -> Self {
        let (sender, receiver) = watch::channel(seen);
        let (owner, name) = (Arc::clone(owner), name.clone());
        let following = tokio::spawn(async move {
            let mut seen = seen;
            // When it fails the owner is gone, and the channel ends.
            while let Ok(count) = owner
                .call(&Call::To(name.clone(), Verb::Changed(seen)))
                .await
            {
                seen = count;
                sender.send_replace(count);
            }
        });
        Self {
            seen: receiver,
            following,
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.following.abort();
    }
}
