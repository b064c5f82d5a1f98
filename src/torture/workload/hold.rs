//! A holder: claims, reads all members, records outcomes page by page, and ends the batch in one of all the ways.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use super::{Child, Over, at_least_one};
use crate::{
    batch::{Claim, Lease, Member, Page, Retries, Then, Update},
    clock::Timestamp,
    error::{Error, Result},
    queue::Queue,
    request::RequestId,
    torture::{
        event::{Answer, Claimed, Fate, Next, Note, Seen, Step, Verb},
        name::Name,
    },
};

/// Holds batches until it is over.
pub(super) async fn hold(child: Arc<Child>, random: fastrand::Rng) {
    let mut holder = Holder {
        child,
        random,
        drains: false,
    };
    while let Ok(had) = holder.one().await {
        if !had {
            holder.child.pause().await;
        }
    }
}

/// Settles all that the queue holds, and forgets the dead letters.
///
/// # Errors
/// If a call failed.
pub(super) async fn drain(child: &Arc<Child>) -> Result<()> {
    let over = |_| Error::internal("the queue can't be drained: a call failed");
    let mut holder = Holder {
        child: child.clone(),
        random: fastrand::Rng::with_seed(0),
        drains: true,
    };
    loop {
        while holder.one().await.map_err(over)? {}
        super::tend::purge(child).await.map_err(over)?;
        let stats = child.queue.stats(child.queue.now()).await?;
        if stats.held() == 0 && stats.dead == 0 {
            return Ok(());
        }
        // What is delayed or deferred is due within seconds.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Holder {
    child: Arc<Child>,
    random: fastrand::Rng,
    drains: bool,
}

/// What it holds: members without an outcome, and how many updates it has made.
struct Held {
    lease: Lease,
    open: Vec<(RequestId, Name)>,
    updates: u32,
}

impl Holder {
    /// Claims a batch and does something with it; whether there was one.
    async fn one(&mut self) -> Result<bool, Over> {
        self.child.go_on()?;
        // Now and then it is held by nobody as soon as it is taken: the next claim takes it away.
        let fleeting = !self.drains && self.random.u8(..10) == 0;
        let claim = Claim {
            max_requests: at_least_one(self.random.u32(1..400)),
            lease_duration: if fleeting {
                Duration::ZERO
            } else {
                Duration::from_secs(3600)
            },
            context: format!("{:x}", self.random.u32(..)).into(),
            ..Claim::new()
        };
        let page = Page {
            max_requests: at_least_one(self.random.u32(50..500)),
            max_bytes: NonZeroU64::MAX,
            ..Page::first()
        };
        let call = self.child.begin(Verb::Claim);
        let claimed = take(&*self.child.queue, call.now, &claim, page).await;
        let Some(Some(mut held)) = Child::end(&call, claimed)? else {
            return Ok(false);
        };
        for _ in 0..self.random.u8(..4) {
            let until = self.child.queue.now().after(Duration::from_secs(3600));
            let most = self.random.usize(..100);
            if !self
                .step(&mut held, most, Then::Hold { until }, Next::On)
                .await?
            {
                return Ok(true);
            }
        }
        let most = self.random.usize(..50);
        let (then, next) = self.end(&held, most);
        self.step(&mut held, most, then, next).await?;
        Ok(true)
    }

    /// What becomes of the batch, after an update that records so many outcomes.
    fn end(&mut self, held: &Held, most: usize) -> (Then, Next) {
        let now = self.child.queue.now();
        let retries = Retries {
            at: now.after(self.moment()),
            max_attempts: at_least_one(4),
        };
        match self.random.u8(..16) {
            0..2 if !self.drains => (Then::Release, Next::On),
            2..4 if !self.drains => {
                let until = now.after(self.moment());
                (Then::Defer { until }, Next::On)
            }
            4..6 if held.open.len() >= most + 2 => (Then::Split { retries }, Next::Split),
            number => {
                let fate = match number {
                    6..8 => Fate::Retry,
                    8 => Fate::Reject,
                    _ => Fate::Plain,
                };
                // The error or the end of each is told by its outcome.
                let rest = fate.outcome(Name { push: 0, index: 0 });
                (Then::Finish { rest, retries }, Next::Finish(fate))
            }
        }
    }

    /// Records up to so many outcomes, leaves a checkpoint, and then; whether it still had the batch.
    async fn step(
        &mut self,
        held: &mut Held,
        most: usize,
        then: Then,
        next: Next,
    ) -> Result<bool, Over> {
        let most = most.min(held.open.len());
        let named: Vec<_> = held.open.drain(..most).collect();
        let fates = named.into_iter().map(|(id, name)| {
            let fate = match self.random.u8(..20) {
                0 => Fate::Retry,
                1 => Fate::Reject,
                2..8 => Fate::Plain,
                _ => Fate::Done,
            };
            (id, name, fate)
        });
        let fates: Vec<_> = fates.collect();
        held.updates += 1;
        let step = Step {
            batch: held.lease.batch,
            note: Note(held.lease.fence.0, held.updates),
            outcomes: fates.iter().map(|(id, _, fate)| (*id, *fate)).collect(),
            then: next,
        };
        let outcomes = fates.iter();
        let outcomes = outcomes.map(|(id, name, fate)| (*id, fate.outcome(*name)));
        let update = Update {
            outcomes: outcomes.collect(),
            checkpoint: Some(step.note.bytes()),
            then,
        };
        let call = self.child.begin(Verb::Update(step));
        let updated = self.child.queue.update(call.now, &held.lease, update).await;
        let updated = updated.map(|()| (Answer::Updated, ()));
        Ok(Child::end(&call, updated)?.is_some())
    }

    fn moment(&mut self) -> Duration {
        Duration::from_millis(self.random.u64(..300))
    }
}

/// Claims a batch and reads all of it.
async fn take(
    queue: &dyn Queue,
    now: Timestamp,
    claim: &Claim,
    page: Page,
) -> Result<(Answer, Option<Held>)> {
    let Some(lease) = queue.claim(now, claim).await? else {
        return Ok((Answer::Claimed(None), None));
    };
    let members = read(queue, &lease, page).await?;
    let claimed = Answer::Claimed(Some(told(&lease, &members)));
    let open = members.iter().filter(|member| member.outcome.is_none());
    let open = open.filter_map(|member| Some((member.id, Name::of(&member.attributes)?)));
    let held = Held {
        open: open.collect(),
        lease,
        updates: 0,
    };
    Ok((claimed, Some(held)))
}

async fn read(queue: &dyn Queue, lease: &Lease, mut page: Page) -> Result<Vec<Member>> {
    let mut all = Vec::new();
    loop {
        let members = queue.read(lease, page).await?;
        let Some(last) = members.last() else {
            return Ok(all);
        };
        page = page.after(last.position);
        all.extend(members);
    }
}

fn told(lease: &Lease, members: &[Member]) -> Claimed {
    let seen = |member: &Member| {
        let name = Name::of(&member.attributes);
        Seen {
            id: member.id,
            name,
            intact: name.map(Name::payload).as_ref() == Some(&member.payload),
            fate: member
                .outcome
                .as_ref()
                .map(|outcome| Fate::of(outcome, name)),
        }
    };
    Claimed {
        batch: lease.batch,
        parent: lease.parent,
        fence: lease.fence.0,
        note: lease.checkpoint.as_deref().and_then(Note::parse),
        context: String::from_utf8_lossy(&lease.context).into_owned(),
        members: members.iter().map(seen).collect(),
    }
}
