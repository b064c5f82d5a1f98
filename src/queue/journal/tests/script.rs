//! A small store that holds a record of every kind, made the same way each time.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use super::{Rig, SOURCE, wait};
use crate::{
    batch::{Claim, Lease, Outcome, Page, Retries, Then, Update},
    clock::Timestamp,
    queue::{
        Administration, Queue,
        journal::{JournalQueue, simulated::SimDisk, tend::carry::slice},
    },
    request::{Bookmark, DeadReason, NewRequest, Pushed, RequestId},
};

/// Lives it; closed cleanly at its end, or left as a process that was killed leaves it.
pub(super) fn everything(disk: &SimDisk, is_closed: bool) -> Script {
    fastrand::seed(7);
    let mut script = Script {
        rig: Rig::open(disk, false).unwrap(),
        seconds: 1000,
        payloads: BTreeMap::new(),
        others: BTreeMap::new(),
    };
    script.turn_segments();
    script.wait_in_every_way();
    script.hold_outcomes_of_each_kind();
    script.split();
    script.die_for_each_reason();
    script.another_queue();
    if is_closed {
        script.rig.tend.finish(&script.rig.core).unwrap();
    }
    script
}

pub(super) struct Script {
    pub(super) rig: Rig,
    seconds: u64,
    /// Of everything that was pushed to the first queue.
    pub(super) payloads: BTreeMap<RequestId, Bytes>,
    /// Of everything that was pushed to the other one.
    pub(super) others: BTreeMap<RequestId, Bytes>,
}

impl Script {
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_millis(1000 * self.seconds)
    }

    fn push(&mut self, requests: Vec<NewRequest>) -> Vec<Pushed> {
        self.seconds += 1;
        let payloads: Vec<Bytes> = requests.iter().map(|new| new.payload.clone()).collect();
        let pushed = wait(&self.rig.core, self.rig.queue.push(self.now(), requests)).unwrap();
        let ids = pushed.iter().map(|pushed| pushed.id);
        self.payloads.extend(ids.zip(payloads));
        pushed
    }

    fn push_some(&mut self, what: &str, count: usize) -> Vec<Pushed> {
        let new = |index| NewRequest::new(format!("{what} {index} {}", "x".repeat(20 * index)));
        self.push((0..count).map(new).collect())
    }

    fn claim(&mut self, max_requests: u32) -> Lease {
        let claim = Claim {
            max_requests: max_requests.try_into().unwrap(),
            max_bytes: 800.try_into().unwrap(),
            lease_duration: Duration::from_secs(30_000),
            context: Bytes::from_static(b"a context"),
            ..Claim::new()
        };
        let claimed = wait(&self.rig.core, self.rig.queue.claim(self.now(), &claim));
        claimed.unwrap().expect("a batch")
    }

    fn update(&mut self, lease: &Lease, outcomes: Vec<Outcome>, then: Then) {
        let core = &self.rig.core;
        let members = wait(core, self.rig.queue.read(lease, Page::first())).unwrap();
        let ids = members.iter().map(|member| member.id);
        let update = Update {
            outcomes: ids.zip(outcomes).collect(),
            checkpoint: Some(Bytes::from_static(b"a checkpoint")),
            then,
        };
        wait(core, self.rig.queue.update(self.now(), lease, update)).unwrap();
    }

    fn finish(&mut self, lease: &Lease, outcomes: Vec<Outcome>, rest: Outcome) {
        let retries = Retries {
            at: self.now().after(Duration::from_secs(500)),
            max_attempts: 2.try_into().unwrap(),
        };
        self.update(lease, outcomes, Then::Finish { rest, retries });
    }

    /// Several segments, some recycled; a baseline, and a stretch that was carried.
    fn turn_segments(&mut self) {
        self.push_some("kept", 3);
        let lease = self.claim(3);
        for round in 0..24 {
            let new = vec![NewRequest::new(vec![b'f'; 700]); 4];
            self.push(new);
            for _ in 0..4 {
                let lease = self.claim(1);
                self.finish(&lease, Vec::new(), Outcome::done());
            }
            self.seconds += 130;
            self.rig.tend.look(&self.rig.core, round % 4 == 3);
            if round == 12 {
                let core = self.rig.core.clone();
                slice(&mut core.lock().unwrap(), &core, 64).unwrap();
            }
        }
        let until = lease.until;
        self.update(&lease, Vec::new(), Then::Hold { until });
        self.rig.tend.write_baseline(&self.rig.core).unwrap();
    }

    /// Ready, delayed, to expire, with attributes and keys, with a bookmark.
    fn wait_in_every_way(&mut self) {
        let later = self.now().after(Duration::from_secs(7000));
        let plain = NewRequest::new("plain");
        self.push(vec![
            plain.clone().attribute("kind", "some"),
            plain.clone().idempotency_key("a key"),
            plain.clone().not_before(later),
            plain.clone().ttl(Duration::from_secs(9000)),
        ]);
        let bookmark = Bookmark {
            source: SOURCE.into(),
            value: Bytes::from_static(b"line 7"),
        };
        let pushed = self.rig.queue.push_from(self.now(), vec![plain], bookmark);
        let pushed = wait(&self.rig.core, pushed).unwrap();
        self.payloads
            .insert(pushed[0].id, Bytes::from_static(b"plain"));
    }

    /// In flight, with outcomes of each kind, and one that is cancelled if it comes back.
    fn hold_outcomes_of_each_kind(&mut self) {
        let members = self.push_some("held", 6);
        let lease = self.claim(12);
        let outcomes = vec![
            Outcome::done(),
            Outcome::result("a result"),
            Outcome::retry("a retry"),
            Outcome::reject("a reject"),
        ];
        let until = lease.until;
        self.update(&lease, outcomes, Then::Hold { until });
        let marked = [members[4].id];
        wait(&self.rig.core, self.rig.queue.cancel(self.now(), &marked)).unwrap();
    }

    /// One half in flight, the other waiting.
    fn split(&mut self) {
        self.push_some("split", 6);
        let lease = self.claim(6);
        let retries = Retries {
            at: self.now(),
            max_attempts: 3.try_into().unwrap(),
        };
        self.update(&lease, vec![Outcome::done()], Then::Split { retries });
        self.claim(6);
    }

    /// Dead letters of each reason, done by the rest of a batch, to be retried, redriven, purged, cancelled.
    fn die_for_each_reason(&mut self) {
        let half = self.claim(6);
        self.update(
            &half,
            Vec::new(),
            Then::Defer {
                until: self.now().after(Duration::from_secs(4000)),
            },
        );
        let reject = |reason| Outcome::Reject {
            reason,
            error: format!("it was {reason}"),
        };
        self.push_some("dying", 8);
        let lease = self.claim(8);
        let reasons = [
            DeadReason::Rejected,
            DeadReason::Exhausted,
            DeadReason::Undecodable,
            DeadReason::Rejected,
            DeadReason::Rejected,
        ];
        let outcomes = reasons
            .into_iter()
            .map(reject)
            .chain([Outcome::retry("later")]);
        self.finish(&lease, outcomes.collect(), Outcome::result("of the rest"));
        self.push(vec![NewRequest::new(vec![b'l'; 900])]);
        self.push_some("ready", 5);
        // The one that is too large dies by this.
        let lease = self.claim(1);
        self.update(&lease, Vec::new(), Then::Release);
        let admin = self.rig.queue.admin().unwrap();
        let dead = crate::queue::List::new(crate::request::State::Dead);
        let dead = wait(&self.rig.core, admin.list(self.now(), &dead)).unwrap();
        let rejected = dead
            .iter()
            .filter(|entry| entry.reason == Some(DeadReason::Rejected));
        let rejected: Vec<RequestId> = rejected.map(|entry| entry.id).collect();
        wait(
            &self.rig.core,
            self.rig.queue.redrive(self.now(), &rejected[..1]),
        )
        .unwrap();
        wait(
            &self.rig.core,
            self.rig.queue.purge(self.now(), &rejected[1..2]),
        )
        .unwrap();
        let last = *self.payloads.keys().next_back().unwrap();
        wait(&self.rig.core, self.rig.queue.cancel(self.now(), &[last])).unwrap();
    }

    fn another_queue(&mut self) {
        let other: JournalQueue = self.rig.another("other");
        let core = &self.rig.core;
        let new = (0..4).map(|index| NewRequest::new(format!("other {index}")));
        let new: Vec<NewRequest> = new.collect();
        let pushed = wait(core, other.push(self.now(), new.clone())).unwrap();
        let ids = pushed.iter().map(|pushed| pushed.id);
        self.others = ids.zip(new.into_iter().map(|new| new.payload)).collect();
        let claim = Claim {
            max_requests: 2.try_into().unwrap(),
            ..Claim::new()
        };
        wait(core, other.claim(self.now(), &claim))
            .unwrap()
            .unwrap();
    }
}
