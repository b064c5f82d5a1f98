//! What a store lives through, step by step, and what must be there after each step.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use batchyard::{
    Claim, Error, ErrorKind, Lease, List, Member, NewRequest, Outcome, Page, Queue, RequestId,
    Result, Retries, State, Then, Timestamp, Update,
};
use fastrand::Rng;

use crate::store::{Held, in_time, oracle, oracle_of};

/// Something that a caller asks for.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Requests of so many bytes each.
    Push(Vec<New>),
    Claim(u32),
    /// The lease, by its number from the last; the outcomes of members, by theirs.
    Update(usize, Vec<(usize, Fate)>, Ending),
    Cancel(Vec<RequestId>),
    Redrive,
    Purge,
    /// Of every dead letter there is, in one call.
    RedriveAll,
    PurgeAll,
    /// One of so many that are ready.
    CancelSome(usize),
    /// What comes due.
    Wait(Duration),
}

impl Step {
    /// Whether it may be done for some of its requests when a crash cuts it off.
    pub(crate) fn may_be_done_in_part(&self) -> bool {
        use Step::{CancelSome, PurgeAll, RedriveAll};
        matches!(self, CancelSome(_) | RedriveAll | PurgeAll)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum New {
    Ready(usize),
    Delayed(usize),
    Keyed(usize),
    Mortal(usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    Done,
    Retry,
    Reject,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    Hold,
    Release,
    Defer,
    Split,
    Finish(Fate),
}

/// A step, when it is taken, and what must be there when it was.
#[derive(Debug)]
pub(crate) struct Moment {
    pub(crate) now: Timestamp,
    pub(crate) step: Step,
    /// If it is refused: how.
    pub(crate) refused: Option<ErrorKind>,
    /// What was there when only time had passed: what is due comes first, and may be there alone.
    pub(crate) due: Held,
    pub(crate) held: Held,
}

/// One side of a life: a queue, and what a caller knows of it.
pub(crate) struct Side {
    queue: Arc<dyn Queue>,
    leases: Vec<Lease>,
}

impl Side {
    pub(crate) fn new(queue: Arc<dyn Queue>) -> Self {
        Self::with(queue, Vec::new())
    }

    /// With the leases of an earlier one.
    pub(crate) fn with(queue: Arc<dyn Queue>, leases: Vec<Lease>) -> Self {
        Self { queue, leases }
    }

    /// Its leases, and no more of the queue.
    pub(crate) fn end(self) -> Vec<Lease> {
        self.leases
    }

    pub(crate) async fn take(&mut self, now: Timestamp, step: &Step) -> Result<()> {
        in_time("a verb", self.try_take(now, step)).await
    }

    /// Takes the step of a moment: whether it was answered, or refused as it has to be. Else the disk has failed.
    pub(crate) async fn goes_on(&mut self, moment: &Moment) -> bool {
        let result = self.take(moment.now, &moment.step).await;
        let is_right = result.as_ref().err().map(Error::kind) == moment.refused;
        assert!(
            is_right || result.is_err(),
            "{:?} must be {:?}",
            moment.step,
            moment.refused
        );
        is_right
    }

    async fn try_take(&mut self, now: Timestamp, step: &Step) -> Result<()> {
        // What is due by now comes first, also before a step that turns out to be none.
        self.queue.stats(now).await?;
        match step {
            Step::Push(new) => {
                let requests = (0..).zip(new).map(|(index, new)| new.request(now, index));
                self.queue.push(now, requests.collect()).await?;
            }
            Step::Claim(most) => {
                let claim = Claim {
                    max_requests: NonZeroU32::new(*most).unwrap(),
                    lease_duration: LEASE,
                    context: "as it was".into(),
                    ..Claim::new()
                };
                if let Some(lease) = self.queue.claim(now, &claim).await? {
                    self.leases.insert(0, lease);
                }
            }
            Step::Update(lease, outcomes, ending) => {
                let count = self.leases.len().max(1);
                let Some(lease) = self.leases.get(lease % count).cloned() else {
                    return Ok(());
                };
                let update = self.update(now, &lease, outcomes, *ending).await?;
                self.queue.update(now, &lease, update).await?;
            }
            Step::Cancel(ids) => {
                let admin = self.queue.admin().unwrap();
                admin.cancel(now, ids).await?;
            }
            Step::Wait(_) => {}
            Step::CancelSome(step) => {
                let admin = self.queue.admin().unwrap();
                let most = List::new(State::Ready).max_requests(NonZeroU32::MAX);
                let ready = admin.list(now, &most).await?;
                let some = ready.iter().map(|entry| entry.id);
                let some: Vec<_> = some
                    .filter(|id| id.as_u64() % (*step as u64) == 0)
                    .collect();
                admin.cancel(now, &some).await?;
            }
            Step::RedriveAll | Step::PurgeAll => {
                let admin = self.queue.admin().unwrap();
                let most = List::new(State::Dead).max_requests(NonZeroU32::MAX);
                let dead = admin.list(now, &most).await?;
                let ids: Vec<_> = dead.iter().map(|entry| entry.id).collect();
                if matches!(step, Step::RedriveAll) {
                    admin.redrive(now, &ids).await?;
                } else {
                    admin.purge(now, &ids).await?;
                }
            }
            Step::Redrive | Step::Purge => {
                let admin = self.queue.admin().unwrap();
                let dead = admin.list(now, &List::new(State::Dead)).await?;
                let ids: Vec<_> = dead.iter().map(|entry| entry.id).collect();
                if matches!(step, Step::Redrive) {
                    admin.redrive(now, &ids).await?;
                } else {
                    admin.purge(now, &ids[..ids.len() / 2]).await?;
                }
            }
        }
        Ok(())
    }

    async fn update(
        &self,
        now: Timestamp,
        lease: &Lease,
        outcomes: &[(usize, Fate)],
        ending: Ending,
    ) -> Result<Update> {
        let members = members(&*self.queue, lease).await?;
        let outcomes = outcomes.iter().filter_map(|(index, fate)| {
            let member = members.get(index % members.len().max(1))?;
            Some((member.id, fate.outcome(now)))
        });
        let retries = Retries {
            at: now.after(Duration::from_secs(2)),
            max_attempts: NonZeroU32::new(3).unwrap(),
        };
        let then = match ending {
            Ending::Hold => Then::Hold {
                until: now.after(LEASE),
            },
            Ending::Release => Then::Release,
            Ending::Defer => Then::Defer {
                until: now.after(Duration::from_secs(3)),
            },
            Ending::Split => Then::Split { retries },
            Ending::Finish(rest) => Then::Finish {
                rest: rest.outcome(now),
                retries,
            },
        };
        Ok(Update {
            outcomes: outcomes.collect(),
            checkpoint: Some(format!("at {now}").into()),
            then,
        })
    }
}

/// All members of a batch.
async fn members(queue: &dyn Queue, lease: &Lease) -> Result<Vec<Member>> {
    let (mut members, mut page) = (Vec::new(), Page::first());
    loop {
        let next = queue.read(lease, page).await?;
        let Some(last) = next.last() else {
            return Ok(members);
        };
        page = page.after(last.position);
        members.extend(next);
    }
}

impl New {
    fn request(self, now: Timestamp, index: usize) -> NewRequest {
        let (Self::Ready(bytes) | Self::Delayed(bytes) | Self::Keyed(bytes) | Self::Mortal(bytes)) =
            self;
        // Bytes that no other request has.
        let mut random = Rng::with_seed(now.as_nanos() + index as u64);
        let payload: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
        let request = NewRequest::new(payload);
        match self {
            Self::Ready(_) => request.attribute("index", index.to_string()),
            Self::Delayed(_) => request.not_before(now.after(Duration::from_secs(4))),
            Self::Keyed(_) => request.idempotency_key(format!("{now} {index}")),
            Self::Mortal(_) => request.ttl(Duration::from_secs(5)),
        }
    }
}

impl Fate {
    fn outcome(self, now: Timestamp) -> Outcome {
        match self {
            Self::Done => Outcome::result(format!("done at {now}")),
            Self::Retry => Outcome::retry("not yet"),
            Self::Reject => Outcome::reject("never"),
        }
    }
}

/// A short life with every kind of record, each step with what must be there after it.
pub(crate) async fn short() -> Life {
    use Ending::{Defer, Finish, Hold, Release, Split};
    use Fate::{Done, Reject, Retry};
    use New::{Delayed, Keyed, Mortal, Ready};
    let mut life = Life::new().await;
    let steps = [
        Step::Push(vec![Ready(300), Ready(10), Ready(0)]),
        // Larger than what one value of sled holds.
        Step::Push(vec![Ready(150_000)]),
        Step::Push(vec![Keyed(40), Delayed(50), Mortal(60), Ready(70)]),
        Step::Claim(3),
        Step::Update(0, vec![(0, Done)], Hold),
        Step::Push(vec![Ready(2_000); 40]),
        Step::Update(0, vec![(1, Retry)], Defer),
        Step::Claim(30),
        Step::Update(0, vec![(3, Reject), (4, Done)], Split),
        Step::Claim(30),
        Step::Update(0, vec![], Finish(Reject)),
        Step::Claim(30),
        Step::Update(0, vec![(0, Done)], Release),
        Step::Redrive,
        Step::Push(vec![Ready(20)]),
        Step::Claim(100),
        Step::Update(0, vec![(1, Reject)], Finish(Done)),
        Step::Claim(100),
        Step::Update(0, vec![], Finish(Done)),
        Step::Purge,
        Step::Push(vec![Ready(20)]),
    ];
    for step in steps {
        life.go_on(step).await;
    }
    life
}

/// A life as it goes on in memory.
pub(crate) struct Life {
    side: Side,
    pub(crate) now: Timestamp,
    start: Timestamp,
    /// What must be there before the first step.
    before: Held,
    pub(crate) moments: Vec<Moment>,
}

impl Life {
    pub(crate) async fn new() -> Self {
        Self::begin(oracle(), START).await
    }

    /// That goes on from what a store holds.
    pub(crate) async fn of(queue: &dyn Queue, now: Timestamp) -> Self {
        Self::begin(oracle_of(queue, now).await, now).await
    }

    async fn begin(queue: Arc<dyn Queue>, start: Timestamp) -> Self {
        Self {
            before: Held::of(&*queue, start).await.unwrap(),
            side: Side::new(queue),
            now: start,
            start,
            moments: Vec::new(),
        }
    }

    /// Takes a step a second later.
    pub(crate) async fn go_on(&mut self, step: Step) {
        self.go_on_after(Duration::from_secs(1), step).await;
    }

    pub(crate) async fn go_on_after(&mut self, time: Duration, step: Step) {
        self.now = self.now.after(time);
        self.side.queue.stats(self.now).await.unwrap();
        let due = Held::of(&*self.side.queue, self.now).await.unwrap();
        let result = self.side.take(self.now, &step).await;
        self.moments.push(Moment {
            due,
            now: self.now,
            step,
            refused: result.err().map(|error| error.kind()),
            held: Held::of(&*self.side.queue, self.now).await.unwrap(),
        });
    }

    /// What may be there after so many steps were answered, and when: all of them, that and what came due, that and
    /// the step under way; with how many steps that is.
    pub(crate) fn after(&self, steps: usize) -> Vec<(Timestamp, &Held, usize)> {
        let last = steps.checked_sub(1).map(|last| &self.moments[last]);
        let last = last.map_or((self.start, &self.before, 0), |last| {
            (last.now, &last.held, steps)
        });
        let next = self.moments.get(steps).into_iter();
        let next = next.flat_map(|next| {
            [
                (next.now, &next.due, steps),
                (next.now, &next.held, steps + 1),
            ]
        });
        [last].into_iter().chain(next).collect()
    }

    /// Finds out after which of them a queue is, and when that was.
    pub(crate) async fn find(
        &self,
        queue: &dyn Queue,
        answered: usize,
    ) -> std::result::Result<Timestamp, String> {
        let mut why = String::new();
        for (now, expected, steps) in self.after(answered) {
            match Held::of(queue, now).await {
                Ok(held) if held == *expected => return Ok(now),
                Ok(held) => {
                    let difference = expected.difference(&held);
                    why = format!("{why}\nnot as after {steps} steps: {difference}");
                }
                Err(error) => why = format!("{why}\nafter {steps} steps it can't be read: {error}"),
            }
        }
        Err(why)
    }

    /// Any step.
    pub(crate) async fn any(&self, random: &mut Rng) -> Step {
        match random.u8(..20) {
            0..=6 => Step::Push((0..random.usize(1..12)).map(|_| New::any(random)).collect()),
            7 => Step::Push(vec![
                New::Ready(random.usize(..3_000));
                random.usize(50..200)
            ]),
            8..=11 => Step::Claim(random.u32(1..150)),
            12..=16 => {
                let outcomes: Vec<_> = (0..random.usize(..5))
                    .map(|_| (random.usize(..40), Fate::any(random)))
                    .collect();
                Step::Update(random.usize(..3), outcomes, Ending::any(random))
            }
            17 => {
                let admin = self.side.queue.admin().unwrap();
                let ready = admin
                    .list(self.now, &List::new(State::Ready))
                    .await
                    .unwrap();
                let ids: Vec<_> = ready.iter().map(|entry| entry.id).collect();
                Step::Cancel(random.choose_multiple(ids, 4))
            }
            18 => Step::Redrive,
            _ => Step::Purge,
        }
    }
}

impl New {
    fn any(random: &mut Rng) -> Self {
        let bytes = match random.u8(..20) {
            0 => random.usize(..200_000),
            1..=5 => random.usize(..5_000),
            _ => random.usize(..300),
        };
        match random.u8(..8) {
            0 => Self::Delayed(bytes),
            1 => Self::Keyed(bytes),
            2 => Self::Mortal(bytes),
            _ => Self::Ready(bytes),
        }
    }
}

impl Fate {
    fn any(random: &mut Rng) -> Self {
        [Self::Done, Self::Done, Self::Retry, Self::Reject][random.usize(..4)]
    }
}

impl Ending {
    fn any(random: &mut Rng) -> Self {
        match random.u8(..10) {
            0..=1 => Self::Hold,
            2 => Self::Release,
            3 => Self::Defer,
            4 => Self::Split,
            _ => Self::Finish(Fate::any(random)),
        }
    }
}

const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);
/// Longer than a life without crashes, so that nothing depends on when a store was opened.
const LEASE: Duration = Duration::from_mins(10);
