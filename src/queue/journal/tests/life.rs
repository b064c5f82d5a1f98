//! A life of a store, from a seed: verbs, what they were answered, and what was seen after each.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{Rig, SOURCE, View, wait};
use crate::{
    batch::{Claim, Lease, Member, Outcome, Retries, Then, Update},
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    queue::{Administration, Queue, journal::simulated::SimDisk},
    request::{Bookmark, NewRequest, Pushed, RequestId, State},
};

/// After a step: what is seen then, and by how many operations it was answered.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub(super) what: String,
    pub(super) answered: usize,
    pub(super) now: Timestamp,
    pub(super) view: Arc<View>,
    pub(super) leases: Vec<Lease>,
    /// The highest fence that was answered.
    pub(super) fence: u64,
}

/// All that was done.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) moments: Vec<Moment>,
    /// Of everything that was ever pushed, whether it was answered or not.
    pub(super) payloads: BTreeMap<RequestId, Bytes>,
    /// Of the pushes with a key: the moment, the key, the payload, the id.
    pub(super) keyed: Vec<(usize, String, Bytes, RequestId)>,
    /// Members, as they were first read.
    pub(super) members: BTreeMap<u128, Vec<Member>>,
    pub(super) reopened: usize,
    pub(super) baselines: usize,
    pub(super) verbs: BTreeMap<&'static str, usize>,
    /// What ended it before its time.
    pub(super) error: Option<Error>,
}

pub(super) struct Life<'a> {
    disk: &'a SimDisk,
    dice: fastrand::Rng,
    pub(super) rig: Rig,
    pub(super) now: Timestamp,
    held: Vec<Lease>,
    fence: u64,
    pushes: u64,
    pub(super) history: History,
}

/// Lives for so many steps, or until something fails.
pub(super) fn run(disk: &SimDisk, seed: u64, steps: usize) -> History {
    let mut life = match Life::begin(disk, seed) {
        Ok(life) => life,
        Err(error) => {
            return History {
                error: Some(error),
                ..History::default()
            };
        }
    };
    for _ in 0..steps {
        if let Err(error) = life.step() {
            life.history.error = Some(error);
            break;
        }
    }
    life.history
}

/// Fails a life in which something is not as it should be.
fn ensure(is_so: bool, otherwise: &str) -> Result<()> {
    if is_so {
        return Ok(());
    }
    Err(Error::internal(otherwise))
}

impl<'a> Life<'a> {
    pub(super) fn begin(disk: &'a SimDisk, seed: u64) -> Result<Self> {
        // The salts of queues are rolled with the dice of the thread.
        fastrand::seed(seed);
        let mut life = Self {
            disk,
            dice: fastrand::Rng::with_seed(seed),
            rig: Rig::open(disk, false)?,
            now: Timestamp::from_millis(1_000_000),
            held: Vec::new(),
            fence: 0,
            pushes: 0,
            history: History::default(),
        };
        life.note("open")?;
        Ok(life)
    }

    /// One verb, and a look at what it did.
    pub(super) fn step(&mut self) -> Result<&'static str> {
        let what = self.act()?;
        *self.history.verbs.entry(what).or_default() += 1;
        self.note(what)?;
        Ok(what)
    }

    fn note(&mut self, what: &str) -> Result<()> {
        // What opening decided is written with the first call.
        wait(&self.rig.core, self.rig.queue.bookmark(SOURCE))?;
        let answered = self.disk.operations();
        let view = self.rig.see(self.now, &self.held)?;
        assert_eq!(self.disk.operations(), answered, "looking changes nothing");
        let checked = view.check(&self.history.payloads);
        checked.map_err(Error::internal)?;
        for (batch, members) in &view.held {
            self.history
                .members
                .entry(*batch)
                .or_insert_with(|| members.clone());
        }
        self.history.moments.push(Moment {
            what: what.to_owned(),
            answered,
            now: self.now,
            view: Arc::new(view),
            leases: self.held.clone(),
            fence: self.fence,
        });
        Ok(())
    }

    fn act(&mut self) -> Result<&'static str> {
        Ok(match self.dice.u32(0..36) {
            0..4 => self.tick(Duration::from_secs(40))?,
            4..8 => self.push(1)?,
            8..13 => {
                let count = self.dice.usize(2..30);
                self.push(count)?
            }
            13 => self.push_together()?,
            14 => self.push_again()?,
            15 => self.bookmark()?,
            16..20 => self.claim()?,
            20..23 => self.record()?,
            23 => self.let_go(Then::Release, "release")?,
            24 => {
                let until = self.now.after(Duration::from_secs(20));
                self.let_go(Then::Defer { until }, "defer")?
            }
            25 => self.split()?,
            26..29 => self.finish()?,
            29 => self.cancel()?,
            30 => self.redrive_or_purge()?,
            31 => {
                self.history.baselines += 1;
                self.rig.tend.write_baseline(&self.rig.core)?;
                "baseline"
            }
            32..34 => {
                self.rig.tend.look(&self.rig.core, true);
                "tend"
            }
            34 => self.reopen(false)?,
            _ => self.reopen(true)?,
        })
    }

    fn tick(&mut self, most: Duration) -> Result<&'static str> {
        let most = u64::try_from(most.as_millis()).unwrap();
        let passed = Duration::from_millis(self.dice.u64(1..most));
        self.now = self.now.after(passed);
        wait(&self.rig.core, self.rig.queue.stats(self.now))?;
        let now = self.now;
        self.held.retain(|lease| lease.until > now);
        Ok("tick")
    }

    fn request(&mut self) -> (Bytes, NewRequest) {
        self.pushes += 1;
        let size = [0, 10, 40, 200, 700, 1500][self.dice.usize(..6)];
        let payload = Bytes::from(format!("{:08}-{}", self.pushes, "x".repeat(size)));
        let mut request = NewRequest::new(payload.clone());
        if self.dice.u8(..6) == 0 {
            let due = Duration::from_secs(self.dice.u64(1..60));
            request = request.not_before(self.now.after(due));
        }
        if self.dice.u8(..6) == 0 {
            request = request.ttl(Duration::from_secs(self.dice.u64(1..90)));
        }
        if self.dice.u8(..5) == 0 {
            request = request.idempotency_key(format!("key {}", self.pushes));
        }
        if self.dice.u8(..4) == 0 {
            request = request.attribute("kind", "some");
        }
        (payload, request)
    }

    /// What will be pushed is known before it is answered: ids follow from the time and the last one.
    fn expect(&mut self, requests: &[(Bytes, NewRequest)]) {
        let last = self.rig.core.lock().map_or(0, |inner| {
            let queue = inner.state.queues.values().next();
            queue.map_or(0, |queue| queue.stored.last_position)
        });
        let next = self.now.as_nanos().max(last + 1);
        for (id, (payload, _)) in (next..).zip(requests) {
            let id = RequestId::from_u64(id);
            self.history.payloads.insert(id, payload.clone());
        }
    }

    fn pushed(&mut self, requests: Vec<(Bytes, NewRequest)>, pushed: &[Pushed]) -> Result<()> {
        let moment = self.history.moments.len();
        for ((payload, request), pushed) in requests.into_iter().zip(pushed) {
            let is_expected = self.history.payloads.get(&pushed.id) == Some(&payload);
            ensure(is_expected, "a request has another id")?;
            if let Some(key) = request.idempotency_key {
                self.history.keyed.push((moment, key, payload, pushed.id));
            }
        }
        Ok(())
    }

    fn push(&mut self, count: usize) -> Result<&'static str> {
        let requests: Vec<_> = (0..count).map(|_| self.request()).collect();
        self.expect(&requests);
        let new = requests.iter().map(|(_, request)| request.clone());
        let pushed = wait(&self.rig.core, self.rig.queue.push(self.now, new.collect()))?;
        self.pushed(requests, &pushed)?;
        Ok(if count == 1 { "push" } else { "bulk" })
    }

    /// Three callers in one group.
    fn push_together(&mut self) -> Result<&'static str> {
        let requests: Vec<_> = (0..3).map(|_| self.request()).collect();
        self.expect(&requests);
        let queue = &self.rig.queue;
        let push = |index: usize| queue.push(self.now, vec![requests[index].1.clone()]);
        let core = &self.rig.core;
        let write = async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            core.log_now(super::super::core::Inner::seal)
        };
        let (first, second, third, written) = wait(core, async {
            tokio::join!(push(0), push(1), push(2), write)
        });
        written?;
        let pushed = [first?, second?, third?].concat();
        self.pushed(requests, &pushed)?;
        Ok("push together")
    }

    /// A key that is known names the request that has it.
    fn push_again(&mut self) -> Result<&'static str> {
        let Some((_, key, payload, id)) = self.history.keyed.last().cloned() else {
            return self.push(1);
        };
        let request = NewRequest::new(payload.clone()).idempotency_key(key);
        self.expect(&[(payload, request.clone())]);
        let pushed = wait(&self.rig.core, self.rig.queue.push(self.now, vec![request]))?;
        ensure(
            pushed[0].duplicate == (pushed[0].id == id),
            "a key names another request",
        )?;
        if !pushed[0].duplicate {
            self.history.keyed.pop();
        }
        Ok("push again")
    }

    fn bookmark(&mut self) -> Result<&'static str> {
        let requests = vec![self.request()];
        self.expect(&requests);
        let bookmark = Bookmark {
            source: SOURCE.into(),
            value: self.pushes.to_string().into(),
        };
        let new = vec![requests[0].1.clone()];
        let pushed = wait(
            &self.rig.core,
            self.rig.queue.push_from(self.now, new, bookmark),
        )?;
        self.pushed(requests, &pushed)?;
        Ok("bookmark")
    }

    fn claim(&mut self) -> Result<&'static str> {
        let claim = Claim {
            max_requests: self.dice.u32(1..25).try_into().unwrap(),
            lease_duration: Duration::from_secs(self.dice.u64(30..100)),
            context: Bytes::from_static(b"context"),
            ..Claim::new()
        };
        let lease = wait(&self.rig.core, self.rig.queue.claim(self.now, &claim))?;
        if let Some(lease) = lease {
            ensure(lease.fence.0 > self.fence, "a fence is used again")?;
            self.fence = lease.fence.0;
            self.held.retain(|held| held.batch != lease.batch);
            self.held.push(lease);
        }
        Ok("claim")
    }

    fn lease(&mut self) -> Option<usize> {
        (!self.held.is_empty()).then(|| self.dice.usize(..self.held.len()))
    }

    /// Outcomes for about half of those without one.
    fn outcomes(&mut self, lease: &Lease) -> Result<Vec<(RequestId, Outcome)>> {
        let members = wait(
            &self.rig.core,
            self.rig.queue.read(lease, crate::batch::Page::first()),
        )?;
        let members = members
            .into_iter()
            .filter(|member| member.outcome.is_none());
        let mut outcomes = Vec::new();
        for member in members {
            let outcome = match self.dice.u8(..8) {
                0 => Outcome::done(),
                1 => Outcome::result(format!("result of {}", member.id)),
                2 => Outcome::retry("try again"),
                3 => Outcome::reject("no good"),
                _ => continue,
            };
            outcomes.push((member.id, outcome));
        }
        Ok(outcomes)
    }

    fn record(&mut self) -> Result<&'static str> {
        let Some(index) = self.lease() else {
            return self.claim();
        };
        let lease = self.held[index].clone();
        let outcomes = self.outcomes(&lease)?;
        let until = self.now.after(Duration::from_secs(60));
        let update = Update {
            outcomes,
            checkpoint: Some(format!("checkpoint {}", self.pushes).into()),
            then: Then::Hold { until },
        };
        wait(
            &self.rig.core,
            self.rig.queue.update(self.now, &lease, update),
        )?;
        self.held[index].until = until;
        Ok("record")
    }

    fn let_go(&mut self, then: Then, what: &'static str) -> Result<&'static str> {
        let Some(index) = self.lease() else {
            return self.claim();
        };
        let lease = self.held[index].clone();
        wait(
            &self.rig.core,
            self.rig.queue.update(self.now, &lease, Update::then(then)),
        )?;
        self.held.remove(index);
        Ok(what)
    }

    fn retries(&mut self) -> Retries {
        Retries {
            at: self.now.after(Duration::from_secs(self.dice.u64(0..30))),
            max_attempts: 3.try_into().unwrap(),
        }
    }

    fn split(&mut self) -> Result<&'static str> {
        let Some(index) = self.lease() else {
            return self.claim();
        };
        let lease = self.held[index].clone();
        let retries = self.retries();
        let update = Update::then(Then::Split { retries });
        match wait(
            &self.rig.core,
            self.rig.queue.update(self.now, &lease, update),
        ) {
            Ok(()) => {
                self.held.remove(index);
                Ok("split")
            }
            Err(error) if error.kind() == ErrorKind::Invalid => Ok("no split"),
            Err(error) => Err(error),
        }
    }

    fn finish(&mut self) -> Result<&'static str> {
        let Some(index) = self.lease() else {
            return self.claim();
        };
        let lease = self.held[index].clone();
        let outcomes = self.outcomes(&lease)?;
        let rest = match self.dice.u8(..4) {
            0 => Outcome::done(),
            1 => Outcome::result("result of the rest"),
            2 => Outcome::retry("all again"),
            _ => Outcome::reject("none is good"),
        };
        let retries = self.retries();
        let update = Update {
            outcomes,
            ..Update::then(Then::Finish { rest, retries })
        };
        wait(
            &self.rig.core,
            self.rig.queue.update(self.now, &lease, update),
        )?;
        self.held.remove(index);
        Ok("finish")
    }

    /// Some that are in these states.
    fn some(&mut self, states: &[State]) -> Vec<RequestId> {
        let last = self
            .history
            .moments
            .last()
            .map(|moment| moment.view.clone());
        let last = last.unwrap_or_default();
        let entries = last.entries.values();
        let fitting = entries.filter(|entry| states.contains(&entry.state));
        let dice = &mut self.dice;
        let some = fitting.filter(|_| dice.u8(..4) == 0);
        some.map(|entry| entry.id).take(6).collect()
    }

    fn cancel(&mut self) -> Result<&'static str> {
        let ids = self.some(&[State::Ready, State::Delayed, State::InFlight]);
        wait(&self.rig.core, self.rig.queue.cancel(self.now, &ids))?;
        Ok("cancel")
    }

    fn redrive_or_purge(&mut self) -> Result<&'static str> {
        let ids = self.some(&[State::Dead]);
        if self.dice.bool() {
            wait(&self.rig.core, self.rig.queue.redrive(self.now, &ids))?;
            return Ok("redrive");
        }
        wait(&self.rig.core, self.rig.queue.purge(self.now, &ids))?;
        Ok("purge")
    }

    /// As a process does that was killed, or that ended cleanly.
    fn reopen(&mut self, is_clean: bool) -> Result<&'static str> {
        if is_clean {
            self.rig.tend.finish(&self.rig.core)?;
        }
        self.history.reopened += 1;
        self.rig = Rig::open(self.disk, is_clean)?;
        if is_clean {
            // Their holders are gone.
            self.held.clear();
        }
        Ok("reopen")
    }
}
