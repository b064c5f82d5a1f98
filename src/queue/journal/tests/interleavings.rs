//! Callers, the writer, the thread that makes segments, and readers, in every order that thousands of schedules reach.
//!
//! ```text
//! producers ─┐                        ┌─ sometimes a disk that fails, or is full for a while
//! canceller ─┼─▶ store ── its threads ┤
//! releaser ──┤                        └─ sometimes a close while all are busy
//! worker  ───┘  claims and settles until nothing more comes
//! ```
//! After each schedule the store is drained, then opened again as it was found after the power went at the moment of
//! an answer: what was answered is there. A wake-up that is lost ends in a deadlock, which `shuttle` finds.

use std::{
    panic::{self, AssertUnwindSafe},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
};

use shuttle::{
    Config, FailurePersistence, Runner,
    future::{block_on, spawn},
    rand::{Rng, thread_rng},
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
    thread::yield_now,
};

use tokio::sync::watch;

use super::*;
use crate::{
    error::{Error, ErrorKind},
    queue::{
        Administration, Cancelled,
        journal::{
            core::Inner,
            log::fault::{self, Fault},
            simulated::Crash,
        },
    },
    sync::let_time_pass,
};

/// What goes on beside the callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Calm,
    /// Large requests, so that segments fill and are recycled.
    Recycling,
    /// The store is closed while callers are busy.
    Closing,
    /// A write, a sync or another operation of the disk fails, once or for good.
    Failing,
    /// The disk is full, and later it is not.
    Full,
    /// Callers go away while they wait.
    Leaving,
}

const WEATHERS: [(&str, Weather); 6] = [
    ("callers share groups", Weather::Calm),
    ("segments are recycled under readers", Weather::Recycling),
    (
        "the store is closed while callers are busy",
        Weather::Closing,
    ),
    ("the disk fails", Weather::Failing),
    ("the disk is full for a while", Weather::Full),
    ("callers go away", Weather::Leaving),
];

/// What a planted fault is seen in.
const PLANTED: [(Fault, Weather); 8] = [
    (Fault::AnswerBeforeSync, Weather::Calm),
    (Fault::AnswerBeforePublishing, Weather::Calm),
    (Fault::LookOnce, Weather::Calm),
    (Fault::ForgetTheWriter, Weather::Calm),
    (Fault::ForgetTheWaiting, Weather::Failing),
    (Fault::LeaveTheGroup, Weather::Leaving),
    (Fault::CloseInSilence, Weather::Closing),
    (Fault::ForgetTheRefused, Weather::Full),
];

#[test]
fn every_interleaving_answers_all_and_loses_nothing() {
    let schedules = schedules(250, 2000);
    let seed = seed();
    for (name, weather) in WEATHERS {
        println!("{name}");
        try_all(weather, seed, schedules, FailurePersistence::Print);
    }
    let caught = PLANTED.map(|(fault, _)| format!("{fault:?}"));
    let caught: Vec<&str> = caught.iter().map(String::as_str).collect();
    let cycles = format!("{} schedules", 2 * schedules * WEATHERS.len());
    crate::testing::proof("G1 G4 G5 G10", "journal", cycles, &caught);
}

#[test]
fn each_planted_fault_is_caught_in_some_interleaving() {
    let seed = seed();
    for (planted, weather) in PLANTED {
        let found = thread::spawn(move || {
            fault::plant(planted);
            let attempt = || try_all(weather, seed, 10_000, FailurePersistence::None);
            let failed = panic::catch_unwind(AssertUnwindSafe(attempt)).err()?;
            let why = failed.downcast_ref::<String>().cloned();
            let plain = failed.downcast_ref::<&str>().map(ToString::to_string);
            why.or(plain)
        });
        let found = found.join().unwrap();
        let found = found.unwrap_or_else(|| panic!("{planted:?} was not found"));
        let line = found.lines().next().unwrap_or_default();
        println!("{planted:?}: {line:.120}");
    }
}

/// So many schedules chosen at random, and as many that switch at a few chosen moments only.
fn try_all(weather: Weather, seed: u64, schedules: usize, persistence: FailurePersistence) {
    let random = RandomScheduler::new_from_seed(seed, schedules);
    let few = PctScheduler::new_from_seed(seed, 4, schedules);
    let schedulers: [Box<dyn Scheduler + Send>; 2] = [Box::new(random), Box::new(few)];
    for scheduler in schedulers {
        let mut config = Config::new();
        config.stack_size = 1 << 20;
        config.failure_persistence = persistence.clone();
        config.silence_warnings = true;
        Runner::new(scheduler, config).run(move || block_on(live(weather)));
    }
}

/// A store, and what its callers were told.
struct Yard {
    weather: Weather,
    disk: SimDisk,
    store: JournalStore,
    queue: JournalQueue,
    told: Mutex<Told>,
    ended: watch::Sender<bool>,
}

#[derive(Default)]
struct Told {
    tried: usize,
    /// The payload of each request, and how far the disk was when that was answered.
    pushed: BTreeMap<RequestId, (Bytes, usize)>,
    done: BTreeMap<RequestId, usize>,
    to_cancel: BTreeSet<RequestId>,
    cancelled: Vec<usize>,
}

async fn live(weather: Weather) {
    fastrand::seed(1);
    let_time_pass(thread_rng().gen_range(0..4));
    let disk = SimDisk::new().in_background();
    let shared = Arc::new(disk.clone());
    let store = options().serve(shared, IDENTITY, "simulated".into(), None);
    let store = store.unwrap();
    let live = store.live(&QueueName::default(), None).await.unwrap();
    let yard = Arc::new(Yard {
        weather,
        queue: JournalQueue::new(store.keeper.clone(), live),
        store,
        told: Mutex::default(),
        ended: watch::Sender::new(false),
        disk,
    });
    yard.spoil_the_disk();
    let worker = spawn(Yard::work(yard.clone()));
    let mut others = vec![spawn(Yard::release(yard.clone()))];
    others.push(spawn(Yard::cancel(yard.clone())));
    others.extend((0..3).map(|_| spawn(Yard::push(yard.clone()))));
    if weather == Weather::Closing {
        others.push(spawn(Yard::close(yard.clone())));
    }
    if weather == Weather::Full {
        others.push(spawn(Yard::make_space(yard.clone())));
    }
    for other in others {
        yard.expect(other.await.unwrap());
    }
    if weather == Weather::Leaving {
        yard.wait_for_the_writer();
    }
    yard.ended.send_replace(true);
    yard.expect(worker.await.unwrap());
    yard.drain().await;
    yard.expect(yard.store.close().await);
    yard.check_what_is_found();
}

impl Yard {
    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the weather brings is no failure.
    fn may_fail(&self, error: &Error) -> bool {
        use ErrorKind::{Closed, Poisoned, QueueFull, Unavailable};
        match self.weather {
            Weather::Closing => error.kind() == Closed,
            // To make a segment may fail as well.
            Weather::Failing => matches!(error.kind(), Poisoned | QueueFull | Unavailable),
            Weather::Full => matches!(error.kind(), QueueFull | Unavailable),
            Weather::Calm | Weather::Recycling | Weather::Leaving => false,
        }
    }

    fn expect<T>(&self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if self.may_fail(&error) => None,
            Err(error) => panic!("{:?}: {error}", self.weather),
        }
    }

    /// Answers, unless the caller goes away before.
    async fn call<T>(&self, verb: impl Future<Output = T>) -> Option<T> {
        let mut polls = match self.weather {
            Weather::Leaving if !*self.ended.borrow() => thread_rng().gen_range(0..5),
            _ => u32::MAX,
        };
        let mut verb = pin!(verb);
        std::future::poll_fn(|cx| {
            if polls == 0 {
                return Poll::Ready(None);
            }
            polls -= 1;
            let polled = verb.as_mut().poll(cx).map(Some);
            if polls == 0 && polled.is_pending() {
                return Poll::Ready(None);
            }
            polled
        })
        .await
    }

    fn spoil_the_disk(&self) {
        let dice = &mut thread_rng();
        match self.weather {
            Weather::Failing => {
                let at = self.disk.operations() + dice.gen_range(0..50);
                let for_good = dice.gen_bool(0.5);
                self.disk.fail_at(at, std::io::ErrorKind::Other, for_good);
            }
            Weather::Full => {
                let segments = dice.gen_range(2..4);
                self.disk.set_space(ROOT + segments * 16 * 1024);
            }
            _ => {}
        }
    }

    /// What callers have begun and left gets to the disk even if nobody calls any more.
    fn wait_for_the_writer(&self) {
        let is_written = |inner: &Inner| inner.filling.is_empty() && inner.sealed.is_empty();
        let core = &self.store.keeper.core;
        let mut looks = 0..500;
        while !is_written(&core.lock().unwrap()) {
            assert!(looks.next().is_some(), "a group is left to nobody");
            yield_now();
        }
    }

    async fn push(yard: Arc<Self>) -> Result<()> {
        for _ in 0..3 {
            let size = match yard.weather {
                Weather::Recycling | Weather::Full => thread_rng().gen_range(1000..7000),
                _ => thread_rng().gen_range(1..100),
            };
            let count = thread_rng().gen_range(1..3);
            let payload = || {
                let mut told = yard.told();
                told.tried += 1;
                Bytes::from(format!("{:06}{}", told.tried, "x".repeat(size)))
            };
            let payloads: Vec<Bytes> = (0..count).map(|_| payload()).collect();
            let new = payloads.iter().cloned().map(NewRequest::new).collect();
            let Some(pushed) = yard.call(yard.queue.push(NOW, new)).await else {
                continue;
            };
            let answered = yard.disk.operations();
            let Some(pushed) = yard.expect(pushed) else {
                continue;
            };
            let all = {
                let mut told = yard.told();
                for (pushed, payload) in pushed.iter().zip(payloads) {
                    let twice = told.pushed.insert(pushed.id, (payload, answered));
                    assert!(twice.is_none(), "an id is given twice");
                }
                told.pushed.len() as u64
            };
            if let Some(stats) = yard.expect(yard.queue.stats(NOW).await) {
                assert!(stats.pushed >= all, "what was answered is not seen");
            }
        }
        Ok(())
    }

    /// Claims a little and lets it go again, so that others find it.
    async fn release(yard: Arc<Self>) -> Result<()> {
        for _ in 0..3 {
            let Some(lease) = yard.claim(NOW, 2).await? else {
                continue;
            };
            let release = Update::then(Then::Release);
            let released = yard.call(yard.queue.update(NOW, &lease, release)).await;
            released.transpose()?;
        }
        Ok(())
    }

    async fn cancel(yard: Arc<Self>) -> Result<()> {
        for _ in 0..3 {
            yield_now();
            let known: Vec<RequestId> = yard.told().pushed.keys().copied().collect();
            let Some(id) = known.last() else { continue };
            yard.told().to_cancel.insert(*id);
            let Some(cancelled) = yard.call(yard.queue.cancel(NOW, &[*id])).await else {
                continue;
            };
            let answered = yard.disk.operations();
            if cancelled? == [Cancelled::Now] {
                yard.told().cancelled.push(answered);
            }
        }
        Ok(())
    }

    async fn close(yard: Arc<Self>) -> Result<()> {
        for _ in 0..thread_rng().gen_range(0..30) {
            yield_now();
        }
        yard.store.close().await
    }

    async fn make_space(yard: Arc<Self>) -> Result<()> {
        for _ in 0..thread_rng().gen_range(0..60) {
            yield_now();
        }
        yard.disk.set_space(u64::MAX);
        Ok(())
    }

    /// Settles what comes, until all others have ended and nothing is left.
    async fn work(yard: Arc<Self>) -> Result<()> {
        let mut changes = yard.queue.pushed().unwrap();
        let mut ended = yard.ended.subscribe();
        loop {
            changes.borrow_and_update();
            let is_end = *ended.borrow_and_update();
            match yard.claim(NOW, 3).await? {
                Some(lease) => yard.settle(NOW, &lease).await?,
                None if is_end => return Ok(()),
                None => tokio::select! {
                    biased;
                    _ = changes.changed() => {}
                    _ = ended.changed() => {}
                },
            }
        }
    }

    async fn claim(&self, now: Timestamp, most: u32) -> Result<Option<Lease>> {
        let claim = Claim {
            max_requests: NonZeroU32::new(most).unwrap(),
            lease_duration: Duration::from_secs(60),
            ..Claim::new()
        };
        let claimed = self.call(self.queue.claim(now, &claim)).await;
        Ok(claimed.transpose()?.flatten())
    }

    async fn settle(&self, now: Timestamp, lease: &Lease) -> Result<()> {
        let Some(members) = self.call(self.queue.read(lease, Page::first())).await else {
            return Ok(());
        };
        let members = members?;
        assert_eq!(members.len(), lease.requests as usize);
        for member in &members {
            if let Some((payload, _)) = self.told().pushed.get(&member.id) {
                assert_eq!(member.payload, payload, "another payload is read");
            }
        }
        let finish = Update::then(Then::Finish {
            rest: Outcome::done(),
            retries: Retries {
                at: now,
                max_attempts: NonZeroU32::MIN,
            },
        });
        if let Some(finished) = self.call(self.queue.update(now, lease, finish)).await {
            let answered = self.disk.operations();
            finished?;
            let done = members.iter().map(|member| (member.id, answered));
            self.told().done.extend(done);
        }
        Ok(())
    }

    /// What nobody holds any more is offered again when its lease has run out, and all comes to an end.
    async fn drain(&self) {
        self.ended.send_replace(true);
        let drained: Result<Stats> = async {
            loop {
                let claim = Claim {
                    max_requests: NonZeroU32::new(50).unwrap(),
                    ..Claim::new()
                };
                match self.queue.claim(LATER, &claim).await? {
                    Some(lease) => self.settle(LATER, &lease).await?,
                    None => return self.queue.stats(LATER).await,
                }
            }
        }
        .await;
        let Some(stats) = self.expect(drained) else {
            return;
        };
        assert!(stats.adds_up(), "{stats:?}");
        let left = stats.ready + stats.delayed + stats.in_flight + stats.dead;
        assert_eq!(left, 0, "{stats:?}");
        let told = self.told();
        let (answered, tried) = (told.pushed.len() as u64, told.tried as u64);
        assert!((answered..=tried).contains(&stats.pushed), "{stats:?}");
    }

    /// The power goes just after an answer, or at the end: all that was answered by then is found.
    fn check_what_is_found(&self) {
        let told = self.told();
        let pushed = told.pushed.values().map(|(_, answered)| answered);
        let moments = pushed.chain(told.done.values()).chain(&told.cancelled);
        let mut moments: Vec<usize> = moments.copied().collect();
        moments.push(self.disk.operations());
        let at = moments[thread_rng().gen_range(0..moments.len())];
        let rig = Rig::open(&self.disk.crash(at, Crash::Lost, 0), false).unwrap();
        let found = rig.see(LATER, &[]).unwrap();
        assert!(found.stats.adds_up(), "{:?}", found.stats);
        for (id, (payload, answered)) in &told.pushed {
            let entry = found.entries.get(id);
            let Some(entry) = entry else {
                // What is cancelled is counted only.
                let is_gone = *answered > at || told.to_cancel.contains(id);
                assert!(
                    is_gone,
                    "{id}, answered at {answered}, is lost at {at}: {found:?}"
                );
                continue;
            };
            let held = entry.payload.as_ref().unwrap_or(payload);
            assert_eq!(held, payload, "another payload is found");
            let is_done = told.done.get(id).is_some_and(|told| *told <= at);
            assert!(!is_done || entry.state == State::Done, "{entry:?}");
        }
        let cancelled = told.cancelled.iter().filter(|told| **told <= at);
        assert!(found.stats.cancelled >= cancelled.count() as u64);
    }
}

/// So many of each, and more for a longer run, or as many as `BATCHYARD_SCHEDULES` says.
fn schedules(quick: usize, long: usize) -> usize {
    let wanted = std::env::var("BATCHYARD_SCHEDULES").ok();
    let is_long = std::env::var_os("BATCHYARD_LONG").is_some();
    let wanted = wanted.map(|number| number.parse().expect("a number of schedules"));
    wanted.unwrap_or(if is_long { long } else { quick })
}

/// That of `BATCHYARD_SEED`, or any; it is printed.
fn seed() -> u64 {
    let wanted = std::env::var("BATCHYARD_SEED").ok();
    let wanted = wanted.map(|number| number.parse().expect("a seed is a number"));
    let seed = wanted.unwrap_or_else(|| fastrand::u64(..));
    println!("BATCHYARD_SEED={seed}");
    seed
}

const NOW: Timestamp = Timestamp::from_millis(1_000_000);
/// All leases have run out, and what is done is still listed.
const LATER: Timestamp = Timestamp::from_millis(1_090_000);
