//! Takes a life step by step on the model and on a queue, and compares every answer, and after each step
//! all that can be seen.

use std::{
    fmt::Debug,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use batchyard::{
    Administration, BatchEntry, BatchId, Bookmark, Claim, DeadReason, Due, Entry, Error, Fence,
    Lease, List, NewRequest, Outcome, Page, Queue, RequestId, ResultCursor, Retries, State, Stats,
    Then, Timestamp, Update,
    transfer::{DumpFrom, Record},
};
use proptest::test_runner::TestCaseError;
use tokio::{sync::watch, time::timeout};

use crate::{
    backends::{Place, Restarts},
    reference::{Answer, Model},
    script::{Clock, Fate, Life, Moment, New, Next, Restart, SOURCES, Scale, Step},
};

/// Nothing, or how the queue differs from the model.
type Check<T = ()> = Result<T, TestCaseError>;

/// Lives a life on a fresh queue of this place; how many steps it took.
pub(crate) async fn live(place: &mut dyn Place, life: &Life) -> Check<usize> {
    let mut pair = Pair {
        queue: place.open(life.options, life.offers_held).await,
        model: Model::new(life.options),
        now: Timestamp::from_millis(1_767_225_600_000),
        scale: life.scale,
        steps: 0,
        leases: Vec::new(),
        read_to: (0, None),
    };
    for moment in &life.moments {
        if let Step::Restart(how) = moment.step {
            pair = pair.restart(place, life, how).await?;
        }
        pair.take(moment)
            .await
            .map_err(|error| pair.explain(&error, &format!("{moment:?}")))?;
    }
    pair.drain()
        .await
        .map_err(|error| pair.explain(&error, "everything is settled, long after"))?;
    Ok(pair.steps)
}

/// A queue and its model.
struct Pair {
    queue: Arc<dyn Queue>,
    model: Model,
    now: Timestamp,
    scale: Scale,
    steps: usize,
    /// All leases with the members of their batches, the last one first, good or lost.
    leases: Vec<(Lease, Vec<RequestId>)>,
    /// How far one reader has read the results, of the model and of the queue.
    read_to: (u64, Option<ResultCursor>),
}

impl Pair {
    fn explain(&self, error: &TestCaseError, step: &str) -> TestCaseError {
        let (steps, now) = (self.steps, self.now);
        TestCaseError::fail(format!("step {steps}, at {now}: {step}\n{error}"))
    }

    async fn restart(mut self, place: &mut dyn Place, life: &Life, how: Restart) -> Check<Self> {
        if how == Restart::Moved {
            let records = dump(&*self.queue, self.now).await;
            let records = records.map_err(|error| unexpected("dump", &error))?;
            drop(self.queue);
            self.queue = place.open(life.options, life.offers_held).await;
            let restored = restore(&*self.queue, records).await;
            restored.map_err(|error| unexpected("restore", &error))?;
            self.model.restart(true, true);
            // Cursors of results begin anew.
            self.read_to = (0, None);
        } else {
            self.queue = place.restart(self.queue, how).await;
            if place.restarts() == Restarts::OfTheProcess {
                self.model.restart(life.offers_held, false);
            }
        }
        Ok(self)
    }

    async fn take(&mut self, moment: &Moment) -> Check {
        self.steps += 1;
        self.now = match moment.clock {
            Clock::StandsStill => self.now,
            Clock::GoesOn(time) => self.now.after(time),
            Clock::GoesBack(time) => self.now.before(time),
        };
        let changes = self.queue.pushed();
        let before = self.model.stats(self.now);
        match &moment.step {
            Step::Push { requests, bookmark } => self.push(requests, *bookmark).await,
            Step::Claim { .. } => self.claim(&self.claim_of(&moment.step)).await.map(|_| ()),
            Step::Update { .. } => self.update(&moment.step).await,
            Step::Cancel(some) => {
                let ids = self.picks(some, &[State::Delayed, State::Ready, State::InFlight]);
                let cancelled = administration(&*self.queue)?.cancel(self.now, &ids).await;
                same("cancel", Ok(self.model.cancel(self.now, &ids)), cancelled).map(|_| ())
            }
            Step::Redrive(some) => {
                let ids = self.picks(some, &[State::Dead]);
                let redriven = administration(&*self.queue)?.redrive(self.now, &ids).await;
                same("redrive", self.model.redrive(self.now, &ids), redriven).map(|_| ())
            }
            Step::Purge(some) => {
                let ids = self.picks(some, &[State::Dead]);
                let purged = administration(&*self.queue)?.purge(self.now, &ids).await;
                same("purge", Ok(self.model.purge(self.now, &ids)), purged).map(|_| ())
            }
            Step::Release(some) => self.release(some).await,
            // It has happened.
            Step::Restart(_) => Ok(()),
        }?;
        if let Some(changes) = changes {
            let is_update = matches!(moment.step, Step::Update { .. });
            self.is_told(changes, before, is_update).await?;
        }
        self.look().await
    }

    /// Whoever waits is woken if the step may have given them something: a batch, room, or an outcome.
    async fn is_told(
        &mut self,
        mut changes: watch::Receiver<u64>,
        before: Stats,
        is_update: bool,
    ) -> Check {
        let after = self.model.stats(self.now);
        let settled = |stats: Stats| stats.done + stats.dead;
        let is_due = after.ready > before.ready
            || after.offered > before.offered
            // That a new lease ends sooner than the others is no news: its holder may hold on.
            || is_update
                && after
                    .next_offer
                    .is_some_and(|at| before.next_offer > Some(at))
            || after.held() < before.held()
            || settled(after) > settled(before);
        let told = async { !is_due || changes.changed().await.is_ok() };
        match timeout(HANGS_AFTER, told).await {
            Ok(true) => Ok(()),
            _ => Err(TestCaseError::fail(format!(
                "nobody is woken between {before:?} and {after:?}"
            ))),
        }
    }

    async fn push(&mut self, new: &[New], bookmark: Option<u8>) -> Check {
        let known = self.model.ids().len();
        let copies = self.scale.spread(0);
        let requests = copies.flat_map(|copy| new.iter().map(move |new| (copy, new)));
        let requests: Vec<NewRequest> = (known..)
            .zip(requests)
            .map(|(number, (copy, new))| self.request(number, copy, new))
            .collect();
        let bookmark = bookmark.map(|source| Bookmark {
            source: source.to_string(),
            value: self.steps.to_string().into(),
        });
        let pushed = match bookmark.clone() {
            None => self.queue.push(self.now, requests.clone()).await,
            Some(bookmark) => {
                let push = self.queue.push_from(self.now, requests.clone(), bookmark);
                push.await
            }
        };
        let expected = self.model.push(self.now, &requests, bookmark);
        same("push", expected, pushed).map(|_| ())
    }

    async fn claim(&mut self, claim: &Claim) -> Check<Option<Lease>> {
        let lease = self.queue.claim(self.now, claim).await;
        if let Ok(Some(lease)) = &lease {
            // The lower half is the queue's own, and the same in every id.
            self.model.salt = lower_half(lease.batch);
            // Any that is larger than all before will do.
            self.model.last_fence = lease.fence.0.max(self.model.last_fence + 1) - 1;
        }
        let expected = self.model.claim(self.now, claim);
        let lease = same("claim", Ok(expected), lease)?.flatten();
        if let Some(lease) = &lease {
            let members = self.model.members(lease.batch);
            self.leases.insert(0, (lease.clone(), members));
        }
        Ok(lease)
    }

    async fn update(&mut self, step: &Step) -> Check {
        let Step::Update {
            lease,
            outcomes,
            stranger,
            checkpoint,
            then,
        } = step
        else {
            unreachable!("only called with an update");
        };
        let count = self.leases.len().min(LEASES);
        if count == 0 {
            return Ok(());
        }
        let (lease, members) = self.leases[lease % count].clone();
        let named = outcomes.iter().flat_map(|(number, fate)| {
            let ids = self
                .scale
                .spread(*number)
                .map(|number| members[number % members.len()]);
            ids.map(|id| (id, self.outcome(fate)))
        });
        let stranger = stranger.then(|| (STRANGER, Outcome::done()));
        let update = Update {
            outcomes: named.chain(stranger).collect(),
            checkpoint: checkpoint.map(|byte| vec![byte; 3].into()),
            then: self.then(then),
        };
        let updated = self.queue.update(self.now, &lease, update.clone()).await;
        let expected = self.model.update(self.now, &lease, update);
        same("update", expected, updated).map(|_| ())
    }

    /// Compares all that can be seen.
    async fn look(&mut self) -> Check {
        let (now, queue) = (self.now, self.queue.clone());
        let expected = self.model.stats(now);
        if !expected.adds_up() {
            return Err(TestCaseError::fail(format!(
                "does not add up: {expected:?}"
            )));
        }
        same("stats", Ok(expected), queue.stats(now).await)?;
        let admin = administration(&*queue)?;
        let ids = self.model.ids();
        // Not all of very many, and others each time.
        let each = ids.len() / STATUSES + 1;
        let some = ids.into_iter().skip(self.steps % each).step_by(each);
        for id in some.chain([STRANGER]) {
            let entry = admin.status(now, id).await;
            let expected = self.model.status(now, id).map(told);
            same("status", Ok(expected), entry.map(|entry| entry.map(told)))?;
        }
        // Pages of another size each time.
        let most = u32::try_from(self.steps % 7).expect("small") * self.scale.requests;
        let most = NonZeroU32::MIN.saturating_add(most);
        for state in State::ALL {
            let mut wanted = List::new(state).max_requests(most);
            wanted.payloads = self.steps.is_multiple_of(2);
            loop {
                let page = admin.list(now, &wanted).await;
                let expected = all_told(self.model.list(now, &wanted));
                let listed = same("list", Ok(expected), page.map(all_told))?;
                let Some(last) = listed.and_then(|page| Some(page.last()?.id)) else {
                    break;
                };
                wanted = wanted.after(last);
            }
        }
        self.batches(most).await?;
        let mut read_to = (0, None);
        while self.results(&mut read_to, most).await? {}
        // One reader goes on where it was, however long ago that is.
        let mut read_to = self.read_to;
        self.results(&mut read_to, most).await?;
        self.read_to = read_to;
        for source in (0..SOURCES).map(|source| source.to_string()) {
            let value = queue.bookmark(&source).await;
            same("bookmark", Ok(self.model.bookmark(&source)), value)?;
        }
        for (lease, _) in self.leases.iter().take(LEASES) {
            let mut page = Page {
                after: None,
                max_requests: most,
                max_bytes: NonZeroU64::from(most).saturating_mul(
                    NonZeroU64::MIN.saturating_add(8 * u64::from(self.scale.bytes)),
                ),
            };
            loop {
                let members = queue.read(lease, page).await;
                let members = same("read", self.model.read(lease, page), members)?;
                let Some(last) = members.and_then(|page| Some(page.last()?.position)) else {
                    break;
                };
                page = page.after(last);
            }
        }
        Ok(())
    }

    /// Compares all open batches, page by page, and each by itself.
    async fn batches(&self, most: NonZeroU32) -> Check {
        let (now, admin) = (self.now, administration(&*self.queue)?);
        let mut after = None;
        loop {
            let page = admin.batches(now, after, most).await;
            // A page may be shorter than asked for, but not empty before the end.
            let count = page.as_ref().map_or(0, Vec::len);
            let most = u32::try_from(count).ok().and_then(NonZeroU32::new);
            let expected = self
                .model
                .batches(now, after, most.unwrap_or(NonZeroU32::MAX));
            let page = page.map(|page| page.into_iter().map(unfenced).collect());
            let page = same("batches", Ok(expected), page)?;
            let Some(last) = page.and_then(|page| Some(page.last()?.id)) else {
                break;
            };
            let alone = admin.batch(now, last).await;
            let alone = alone.map(|entry| entry.map(unfenced));
            same("batch", Ok(self.model.batch(now, last)), alone)?;
            after = Some(last);
        }
        for (lease, _) in self.leases.iter().take(LEASES) {
            let alone = admin.batch(now, lease.batch).await;
            let alone = alone.map(|entry| entry.map(unfenced));
            same("batch", Ok(self.model.batch(now, lease.batch)), alone)?;
        }
        Ok(())
    }

    /// Releases some of the batches that were claimed last.
    async fn release(&mut self, some: &[usize]) -> Check {
        let of = |number: &usize| Some(self.leases.get(*number)?.0.batch);
        let ids: Vec<BatchId> = some.iter().filter_map(of).collect();
        let released = administration(&*self.queue)?.release(self.now, &ids).await;
        same("release", Ok(self.model.release(self.now, &ids)), released).map(|_| ())
    }

    /// A page of results after a place; whether there may be more.
    async fn results(
        &mut self,
        read_to: &mut (u64, Option<ResultCursor>),
        most: NonZeroU32,
    ) -> Check<bool> {
        let (expected, next) = self.model.results(self.now, read_to.0, most.get());
        let page = administration(&*self.queue)?
            .results(self.now, read_to.1, most)
            .await;
        let cursor = page.as_ref().map_or(None, |page| page.next);
        let page = page.map(|page| (all_told(page.entries), page.next.is_some()));
        let expected = (all_told(expected), next.is_some());
        same("results", Ok(expected), page)?;
        *read_to = (next.unwrap_or(read_to.0), cursor.or(read_to.1));
        Ok(next.is_some())
    }

    /// Long after everything is due, claims and settles until nothing is left.
    async fn drain(&mut self) -> Check {
        self.now = self.now.after(LONG);
        while let Some(lease) = self.claim(&Claim::new()).await? {
            let finish = Update::then(Then::Finish {
                rest: Outcome::done(),
                retries: retries(self.now, 1),
            });
            let finished = self.queue.update(self.now, &lease, finish.clone()).await;
            let expected = self.model.update(self.now, &lease, finish);
            same("update", expected, finished)?;
        }
        self.look().await?;
        let held = self.model.stats(self.now).held();
        match held {
            0 => Ok(()),
            _ => Err(TestCaseError::fail(format!("{held} requests never end"))),
        }
    }

    fn at(&self, seconds: i64) -> Timestamp {
        let time = Duration::from_secs(seconds.unsigned_abs());
        match seconds {
            ..0 => self.now.before(time),
            0.. => self.now.after(time),
        }
    }

    /// Any requests; those with small numbers are in one of these states, if there are such.
    fn picks(&mut self, numbers: &[usize], states: &[State]) -> Vec<RequestId> {
        let mut ids = Vec::new();
        for state in states {
            let list = List::new(*state);
            let entries = self.model.list(self.now, &list);
            ids.extend(entries.iter().map(|entry| entry.id));
        }
        ids.extend(self.model.ids());
        ids.push(STRANGER);
        let numbers = numbers.iter().flat_map(|number| self.scale.spread(*number));
        numbers.map(|number| ids[number % ids.len()]).collect()
    }

    /// A request that can be told from the others by its number.
    fn request(&self, number: usize, copy: usize, new: &New) -> NewRequest {
        let filling = u8::try_from(number % 251).expect("a byte");
        let mut request = NewRequest::new(vec![filling; new.bytes * self.scale.bytes as usize]);
        if new.attribute {
            request = request.attribute("step", self.steps.to_string());
        }
        if let Some(key) = new.key {
            // The key alone decides the payload, mostly: another one is refused.
            request.payload = vec![b'k'; 3 + usize::from(new.bytes == 0)].into();
            request.idempotency_key = Some(format!("{key} {copy}"));
        }
        request.not_before = new.due.map(|due| self.at(due));
        request.ttl = new.ttl.map(Duration::from_secs);
        request
    }

    fn claim_of(&self, step: &Step) -> Claim {
        let Step::Claim {
            max_requests,
            max_bytes,
            lease_seconds,
            form,
            due,
            context,
        } = step
        else {
            unreachable!("only called with a claim");
        };
        Claim {
            max_requests: NonZeroU32::new(max_requests * self.scale.requests).expect("from one"),
            max_bytes: NonZeroU64::new(self.scale.times_bytes(*max_bytes)).expect("from one"),
            lease_duration: Duration::from_secs(*lease_seconds),
            form: *form,
            due: due.as_ref().map(|due| Due {
                requests: self.scale.times(due.requests),
                bytes: self.scale.times_bytes(due.bytes),
                oldest_at: due.oldest.map(|oldest| self.at(oldest)),
            }),
            context: vec![*context].into(),
        }
    }

    fn outcome(&self, fate: &Fate) -> Outcome {
        match fate {
            Fate::Done(result) => Outcome::Done {
                result: result.map(|byte| {
                    let bytes = usize::from(byte % 5) * self.scale.bytes as usize;
                    vec![byte; bytes].into()
                }),
            },
            Fate::Retry(due) => Outcome::Retry {
                error: format!("failed in step {}", self.steps),
                not_before: due.map(|due| self.at(due)),
            },
            Fate::Reject(reason) => Outcome::Reject {
                reason: *reason,
                error: format!("rejected in step {}", self.steps),
            },
        }
    }

    fn then(&self, next: &Next) -> Then {
        match next {
            Next::Hold(until) => Then::Hold {
                until: self.at(*until),
            },
            Next::Release => Then::Release,
            Next::Defer(until) => Then::Defer {
                until: self.at(*until),
            },
            Next::Split {
                retry,
                max_attempts,
            } => Then::Split {
                retries: retries(self.at(*retry), *max_attempts),
            },
            Next::Finish {
                rest,
                retry,
                max_attempts,
            } => Then::Finish {
                rest: self.outcome(rest),
                retries: retries(self.at(*retry), *max_attempts),
            },
        }
    }
}

/// Everything that a queue stores.
async fn dump(queue: &dyn Queue, now: Timestamp) -> batchyard::Result<Vec<Record>> {
    let transfer = queue.transfer().expect("every backend has it");
    let (mut records, mut from) = (Vec::new(), Some(DumpFrom::Start));
    while let Some(next) = from {
        let page = transfer.dump(now, next).await?;
        records.extend(page.records);
        from = page.next;
    }
    Ok(records)
}

async fn restore(queue: &dyn Queue, records: Vec<Record>) -> batchyard::Result<()> {
    let transfer = queue.transfer().expect("every backend has it");
    transfer.restore().await?.add(records).await
}

fn unexpected(what: &str, error: &Error) -> TestCaseError {
    TestCaseError::fail(format!("{what} must succeed: {:?}: {error}", error.kind()))
}

fn administration(queue: &dyn Queue) -> Check<&dyn Administration> {
    let admin = queue.admin();
    admin.ok_or_else(|| TestCaseError::fail("it has no administration"))
}

fn retries(at: Timestamp, max_attempts: u32) -> Retries {
    Retries {
        at,
        max_attempts: NonZeroU32::new(max_attempts).expect("from one"),
    }
}

fn lower_half(id: BatchId) -> u64 {
    let low = id.as_u128() & u128::from(u64::MAX);
    u64::try_from(low).expect("a half")
}

/// An entry without what each backend says in its own words.
fn told(mut entry: Entry) -> Entry {
    entry
        .error
        .take_if(|_| entry.reason == Some(DeadReason::TooLarge));
    entry
}

/// A batch without the number of its fence, of which it is only promised that it grows.
fn unfenced(mut entry: BatchEntry) -> BatchEntry {
    entry.fence = entry.fence.map(|_| Fence(0));
    entry
}

fn all_told(entries: Vec<Entry>) -> Vec<Entry> {
    entries.into_iter().map(told).collect()
}

/// What was answered, if the queue gave the answer that the model gives.
fn same<T: PartialEq + Debug>(
    verb: &str,
    model: Answer<T>,
    queue: batchyard::Result<T>,
) -> Check<Option<T>> {
    let queue = queue.map_err(|error| (error.kind(), error.to_string()));
    let differs = match (&model, &queue) {
        (Ok(expected), Ok(answer)) => expected != answer,
        (Err(kind), Err((told, _))) => kind != told,
        _ => true,
    };
    if differs {
        return Err(TestCaseError::fail(format!(
            "{verb} differs\n  model: {model:?}\n  queue: {queue:?}"
        )));
    }
    Ok(model.ok())
}

/// How many of the last leases are used and read: the older ones are mostly lost, and tried even so.
const LEASES: usize = 5;
/// How many requests are looked up one by one after each step.
const STATUSES: usize = 150;
/// Far beyond what a wake-up takes.
const HANGS_AFTER: Duration = Duration::from_secs(20);
/// Past every time that a step can name.
const LONG: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A request that nobody pushed.
const STRANGER: RequestId = RequestId::from_u64(7);
