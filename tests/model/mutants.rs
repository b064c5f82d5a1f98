//! Queues that break one rule of the contract each: what the model check has to catch.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use batchyard::{
    Administration, BatchEntry, BatchId, BatchState, Bookmark, Cancelled, Claim, Entry, ErrorKind,
    Lease, List, Member, MemoryQueue, NewRequest, Page, Position, Pushed, Queue, QueueOptions,
    RequestId, Result, ResultCursor, Retries, SettledPage, Stats, Then, Timestamp, Update,
    transfer::Transfer,
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    backends::{Place, Restarts},
    script::Restart,
};

/// What a queue does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    ExpiredRequestClaimed,
    DelayedRequestReadyAtOnce,
    KeyForgotten,
    BookmarkNotStored,
    BookmarkOfRefusedPushStored,
    CounterOff,
    AgeOfOldestForgotten,
    BatchOverLimit,
    ContextLost,
    MembersReorderedAtRedelivery,
    OutcomeForgottenAtRedelivery,
    RetriedRequestKeepsPosition,
    LostLeaseAccepted,
    LaterOutcomeWins,
    CheckpointLost,
    ReleaseBurnsAttempt,
    DeferOffersAtOnce,
    HeartbeatIgnored,
    OneAttemptTooMany,
    BackoffIgnored,
    OnlyFirstCancelled,
    LastResultLeftOut,
    PurgedStillListed,
    OnlyFirstReleased,
    LateHolderShownAsGone,
    BoundOffByOne,
    RetentionIgnored,
    ClockNeverGoesBack,
    IdsReusedAfterReopening,
    LeasesLostAfterReopening,
    BookmarksLostAfterReopening,
    NobodyWoken,
}

impl Fault {
    /// Every fault there is.
    pub(crate) const ALL: [Self; 32] = [
        Self::ExpiredRequestClaimed,
        Self::DelayedRequestReadyAtOnce,
        Self::KeyForgotten,
        Self::BookmarkNotStored,
        Self::BookmarkOfRefusedPushStored,
        Self::CounterOff,
        Self::AgeOfOldestForgotten,
        Self::BatchOverLimit,
        Self::ContextLost,
        Self::MembersReorderedAtRedelivery,
        Self::OutcomeForgottenAtRedelivery,
        Self::RetriedRequestKeepsPosition,
        Self::LostLeaseAccepted,
        Self::LaterOutcomeWins,
        Self::CheckpointLost,
        Self::ReleaseBurnsAttempt,
        Self::DeferOffersAtOnce,
        Self::HeartbeatIgnored,
        Self::OneAttemptTooMany,
        Self::BackoffIgnored,
        Self::OnlyFirstCancelled,
        Self::LastResultLeftOut,
        Self::PurgedStillListed,
        Self::OnlyFirstReleased,
        Self::LateHolderShownAsGone,
        Self::BoundOffByOne,
        Self::RetentionIgnored,
        Self::ClockNeverGoesBack,
        Self::IdsReusedAfterReopening,
        Self::LeasesLostAfterReopening,
        Self::BookmarksLostAfterReopening,
        Self::NobodyWoken,
    ];
}

/// Where faulty queues live: in memory, which a restart leaves as it is.
pub(crate) struct Faulted {
    fault: Fault,
    kept: Arc<MemoryQueue>,
}

impl Faulted {
    pub(crate) fn new(fault: Fault) -> Self {
        Self {
            fault,
            kept: Arc::new(MemoryQueue::new(QueueOptions::default())),
        }
    }

    fn handle(&self, is_reopened: bool) -> Arc<dyn Queue> {
        Arc::new(Mutant {
            queue: self.kept.clone(),
            fault: self.fault,
            is_reopened,
            seen: Mutex::default(),
            silent: watch::Sender::default(),
        })
    }
}

#[async_trait]
impl Place for Faulted {
    async fn open(&mut self, mut options: QueueOptions, _: bool) -> Arc<dyn Queue> {
        match self.fault {
            Fault::BoundOffByOne => options.max_requests = options.max_requests.saturating_add(1),
            Fault::RetentionIgnored => options.retention = Duration::MAX,
            _ => {}
        }
        self.kept = Arc::new(MemoryQueue::new(options));
        self.handle(false)
    }

    fn restarts(&self) -> Restarts {
        Restarts::OfAClient
    }

    async fn restart(&mut self, _: Arc<dyn Queue>, _: Restart) -> Arc<dyn Queue> {
        self.handle(true)
    }
}

/// A handle of a queue with a fault.
#[derive(Debug)]
struct Mutant {
    queue: Arc<MemoryQueue>,
    fault: Fault,
    is_reopened: bool,
    seen: Mutex<Seen>,
    silent: watch::Sender<u64>,
}

/// What a mutant remembers to do wrong.
#[derive(Debug, Default)]
struct Seen {
    latest: Timestamp,
    purged: Vec<Entry>,
}

impl Mutant {
    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// Whether it has this fault, and was opened again.
    fn has_since_reopening(&self, fault: Fault) -> bool {
        self.has(fault) && self.is_reopened
    }

    fn time(&self, now: Timestamp) -> Timestamp {
        let latest = &mut self.seen.lock().expect("not poisoned").latest;
        *latest = now.max(*latest);
        if self.has(Fault::ClockNeverGoesBack) {
            *latest
        } else {
            now
        }
    }

    fn inner(&self) -> &dyn Administration {
        self.queue.admin().expect("it has administration")
    }

    fn requests(&self, mut requests: Vec<NewRequest>) -> Vec<NewRequest> {
        for request in &mut requests {
            match self.fault {
                Fault::ExpiredRequestClaimed => request.ttl = None,
                Fault::DelayedRequestReadyAtOnce => request.not_before = None,
                Fault::KeyForgotten => request.idempotency_key = None,
                _ => {}
            }
        }
        requests
    }

    fn pushed(&self, mut pushed: Vec<Pushed>) -> Vec<Pushed> {
        if self.has_since_reopening(Fault::IdsReusedAfterReopening) {
            for one in &mut pushed {
                one.id = RequestId::from_u64(one.id.as_u64() - 1);
            }
        }
        pushed
    }

    fn check_lease(&self, lease: &Lease) -> Result<()> {
        if self.has_since_reopening(Fault::LeasesLostAfterReopening) {
            return Err(batchyard::Error::lease_lost(format!("{lease:?}")));
        }
        Ok(())
    }
}

#[async_trait]
impl Queue for Mutant {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        let push = self.queue.push(self.time(now), self.requests(requests));
        push.await.map(|pushed| self.pushed(pushed))
    }

    async fn push_from(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Bookmark,
    ) -> Result<Vec<Pushed>> {
        if self.has(Fault::BookmarkNotStored) {
            return self.push(now, requests).await;
        }
        let (now, requests) = (self.time(now), self.requests(requests));
        let pushed = self.queue.push_from(now, requests, bookmark.clone()).await;
        if pushed.is_err() && self.has(Fault::BookmarkOfRefusedPushStored) {
            self.queue.push_from(now, Vec::new(), bookmark).await?;
        }
        pushed.map(|pushed| self.pushed(pushed))
    }

    async fn bookmark(&self, source: &str) -> Result<Option<Bytes>> {
        let value = self.queue.bookmark(source).await?;
        Ok(value.filter(|_| !self.has_since_reopening(Fault::BookmarksLostAfterReopening)))
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        let mut stats = self.queue.stats(self.time(now)).await?;
        match self.fault {
            Fault::CounterOff if stats.cancelled > 0 => stats.in_flight += 1,
            Fault::AgeOfOldestForgotten => {
                stats.oldest_ready_at = stats.oldest_ready_at.map(|_| now);
            }
            _ => {}
        }
        Ok(stats)
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        let mut claim = claim.clone();
        match self.fault {
            Fault::BatchOverLimit => claim.max_requests = claim.max_requests.saturating_add(1),
            Fault::ContextLost => claim.context = Bytes::new(),
            _ => {}
        }
        self.queue.claim(self.time(now), &claim).await
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        self.check_lease(lease)?;
        let mut members = self.queue.read(lease, page).await?;
        match self.fault {
            Fault::MembersReorderedAtRedelivery if lease.attempt > 1 => members.reverse(),
            Fault::OutcomeForgottenAtRedelivery if lease.attempt > 1 => {
                for member in &mut members {
                    member.outcome = None;
                }
            }
            Fault::RetriedRequestKeepsPosition => {
                let retried = |member: &&mut Member| member.attempt > lease.attempt;
                for member in members.iter_mut().filter(retried) {
                    member.position = Position::from_u64(member.id.as_u64());
                }
                members.sort_by_key(|member| member.position);
            }
            _ => {}
        }
        Ok(members)
    }

    async fn update(&self, now: Timestamp, lease: &Lease, mut update: Update) -> Result<()> {
        self.check_lease(lease)?;
        match (self.fault, &mut update.then) {
            (Fault::LaterOutcomeWins, _) => update.outcomes.reverse(),
            (Fault::CheckpointLost, _) => update.checkpoint = None,
            (Fault::ReleaseBurnsAttempt, then @ Then::Release) => {
                *then = Then::Defer {
                    until: Timestamp::EPOCH,
                };
            }
            (Fault::DeferOffersAtOnce, Then::Defer { until }) => *until = Timestamp::EPOCH,
            (Fault::HeartbeatIgnored, Then::Hold { until }) => *until = lease.until,
            (
                Fault::OneAttemptTooMany,
                Then::Split {
                    retries: Retries { max_attempts, .. },
                }
                | Then::Finish {
                    retries: Retries { max_attempts, .. },
                    ..
                },
            ) => *max_attempts = max_attempts.saturating_add(1),
            (Fault::BackoffIgnored, Then::Finish { retries, .. }) => retries.at = Timestamp::EPOCH,
            _ => {}
        }
        match self.queue.update(self.time(now), lease, update).await {
            Err(error)
                if error.kind() == ErrorKind::LeaseLost && self.has(Fault::LostLeaseAccepted) =>
            {
                Ok(())
            }
            updated => updated,
        }
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        if self.has(Fault::NobodyWoken) {
            return Some(self.silent.subscribe());
        }
        self.queue.pushed()
    }

    fn admin(&self) -> Option<&dyn Administration> {
        Some(self)
    }

    fn transfer(&self) -> Option<&dyn Transfer> {
        self.queue.transfer()
    }
}

#[async_trait]
impl Administration for Mutant {
    async fn status(&self, now: Timestamp, id: RequestId) -> Result<Option<Entry>> {
        self.inner().status(self.time(now), id).await
    }

    async fn list(&self, now: Timestamp, list: &List) -> Result<Vec<Entry>> {
        let mut entries = self.inner().list(self.time(now), list).await?;
        let seen = self.seen.lock().expect("not poisoned");
        let purged = seen.purged.iter();
        entries.extend(purged.filter(|one| Some(one.id) > list.after).cloned());
        Ok(entries)
    }

    async fn results(
        &self,
        now: Timestamp,
        after: Option<ResultCursor>,
        max_requests: NonZeroU32,
    ) -> Result<SettledPage> {
        let results = self.inner().results(self.time(now), after, max_requests);
        let mut page = results.await?;
        if self.has(Fault::LastResultLeftOut) && page.entries.len() > 1 {
            page.entries.pop();
        }
        Ok(page)
    }

    async fn cancel(&self, now: Timestamp, ids: &[RequestId]) -> Result<Vec<Cancelled>> {
        let kept = if self.has(Fault::OnlyFirstCancelled) {
            1
        } else {
            ids.len()
        };
        let mut cancelled = self.inner().cancel(self.time(now), &ids[..kept]).await?;
        cancelled.resize(ids.len(), Cancelled::No);
        Ok(cancelled)
    }

    async fn redrive(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        self.inner().redrive(self.time(now), ids).await
    }

    async fn purge(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        if self.has(Fault::PurgedStillListed) {
            let entry = self.status(now, ids[0]).await?;
            let dead = entry.filter(|entry| entry.state == batchyard::State::Dead);
            self.seen.lock().expect("not poisoned").purged.extend(dead);
        }
        self.inner().purge(self.time(now), ids).await
    }

    async fn batch(&self, now: Timestamp, id: BatchId) -> Result<Option<BatchEntry>> {
        let entry = self.inner().batch(self.time(now), id).await?;
        Ok(entry.map(|entry| self.shown(entry)))
    }

    async fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: NonZeroU32,
    ) -> Result<Vec<BatchEntry>> {
        let page = self.inner().batches(self.time(now), after, max_batches);
        let page = page.await?.into_iter();
        Ok(page.map(|entry| self.shown(entry)).collect())
    }

    async fn release(&self, now: Timestamp, ids: &[BatchId]) -> Result<Vec<BatchId>> {
        let kept = if self.has(Fault::OnlyFirstReleased) {
            ids.len().min(1)
        } else {
            ids.len()
        };
        self.inner().release(self.time(now), &ids[..kept]).await
    }
}

impl Mutant {
    fn shown(&self, mut entry: BatchEntry) -> BatchEntry {
        if self.has(Fault::LateHolderShownAsGone) && entry.state == BatchState::Offered {
            entry.fence = None;
        }
        entry
    }
}
