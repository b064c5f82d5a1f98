//! What a random life consists of: steps in numbers that mean the same on every queue.

use std::time::Duration;

use fastrand::Rng;

use crate::{batch::Due, clock::Timestamp, queue::Capabilities, request::DeadReason};

/// One call, or a few. Requests, members and leases are picked by number, modulo how many there are.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Push {
        requests: Vec<Request>,
        bookmark: Option<u8>,
    },
    Claim {
        max_requests: u32,
        max_bytes: u64,
        lease: Duration,
        form: bool,
        due: Option<Due>,
        context: u8,
    },
    Read {
        lease: usize,
        max_requests: u32,
        max_bytes: u64,
    },
    Update {
        lease: usize,
        outcomes: Vec<(usize, Fate)>,
        stranger: bool,
        checkpoint: Option<u8>,
        next: Next,
    },
    Look,
    Bookmark(u8),
    Status(usize),
    List {
        state: usize,
        after: Option<usize>,
        max_requests: u32,
        payloads: bool,
    },
    Results(u32),
    Cancel(Vec<usize>),
    Redrive(Vec<usize>),
    Purge(Vec<usize>),
    Batches(u32),
    Release(Vec<usize>),
    /// Defers every batch that is held.
    LetGo,
    /// Settles everything that is left.
    Drain,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) size: usize,
    pub(super) filling: u8,
    pub(super) attribute: bool,
    pub(super) key: Option<u8>,
    pub(super) not_before: Option<Timestamp>,
    pub(super) ttl: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(super) enum Fate {
    Done(Option<u8>),
    Retry(Option<Timestamp>),
    Reject(DeadReason),
}

#[derive(Clone, Debug)]
pub(super) enum Next {
    Hold(Timestamp),
    Release,
    Defer(Timestamp),
    Split {
        retry_at: Timestamp,
        attempts: u32,
    },
    Finish {
        rest: Fate,
        retry_at: Timestamp,
        attempts: u32,
    },
}

/// An endless sequence of steps and the times at which they happen.
pub(super) struct Life {
    rng: Rng,
    now: Timestamp,
    latest: Timestamp,
    goes_back: bool,
    can: Capabilities,
}

impl Life {
    /// The life of this seed. Under every other seed `now` goes back at times.
    pub(super) fn new(seed: u64, can: Capabilities) -> Self {
        let now = Timestamp::from_millis(1_767_225_600_000);
        Self {
            rng: Rng::with_seed(seed),
            now,
            latest: now,
            goes_back: seed.is_multiple_of(2),
            can,
        }
    }

    pub(super) fn next(&mut self) -> (Timestamp, Step) {
        self.move_on();
        let step = match self.rng.u8(..100) {
            0..25 => self.push(),
            25..47 => self.claim(),
            47..80 => self.update(),
            83 if self.can.batches => Step::Batches(self.rng.u32(1..4)),
            84 if self.can.batches => Step::Release(
                (0..self.rng.usize(1..4))
                    .map(|_| self.rng.usize(..))
                    .collect(),
            ),
            80..85 => Step::Read {
                lease: self.rng.usize(..),
                max_requests: self.rng.u32(1..6),
                max_bytes: self.rng.u64(1..40),
            },
            85 if self.can.bookmarks => Step::Bookmark(self.rng.u8(..4)),
            86.. if self.can.administration => self.administer(),
            _ => Step::Look,
        };
        (self.now, step)
    }

    /// The step that this number stands for, and nothing that was before decides but the time.
    #[cfg(feature = "fuzzing")]
    pub(super) fn chosen(&mut self, choice: u64) -> (Timestamp, Step) {
        self.rng = Rng::with_seed(choice);
        self.next()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    /// A time past every time that a step has named.
    pub(super) fn long_after(&self) -> Timestamp {
        self.latest.after(Duration::from_secs(100_000))
    }

    fn move_on(&mut self) {
        self.now = match self.rng.u8(..10) {
            0..3 => self.now,
            3 => self.now.after(Duration::from_nanos(self.rng.u64(1..4))),
            4 if self.goes_back => self.now.before(self.seconds(30)),
            4..9 => self.now.after(self.seconds(10)),
            _ => self.now.after(self.seconds(90)),
        };
        self.latest = self.latest.max(self.now);
    }

    fn seconds(&mut self, most: u64) -> Duration {
        Duration::from_secs(self.rng.u64(..=most))
    }

    /// A time around now: mostly later.
    fn soon(&mut self) -> Timestamp {
        let base = self.now.before(Duration::from_secs(5));
        base.after(self.seconds(40))
    }

    fn maybe<T>(&mut self, one_in: u8, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.rng.u8(..one_in) == 0).then(|| make(self))
    }

    fn push(&mut self) -> Step {
        let requests = (0..self.rng.usize(..7)).map(|_| Request {
            size: self.rng.usize(..24),
            filling: self.rng.u8(..4),
            attribute: self.rng.bool(),
            key: self.maybe(4, |life| life.rng.u8(..12)),
            not_before: self.maybe(4, Self::soon),
            ttl: self.maybe(4, |life| Duration::from_secs(life.rng.u64(1..60))),
        });
        let requests = requests.collect();
        Step::Push {
            requests,
            bookmark: self
                .maybe(4, |life| life.rng.u8(..4))
                .filter(|_| self.can.bookmarks),
        }
    }

    fn claim(&mut self) -> Step {
        Step::Claim {
            max_requests: self.rng.u32(1..9),
            max_bytes: *self.rng.choice(&[u64::MAX, 60, 15]).expect("not empty"),
            lease: self.seconds(60),
            form: self.rng.u8(..8) != 0,
            due: self.maybe(4, Self::due),
            context: self.rng.u8(..),
        }
    }

    fn due(&mut self) -> Due {
        Due {
            requests: self.rng.u64(1..20),
            bytes: self.rng.u64(1..200),
            // When a time in the future was first seen depends on who looked, and when.
            oldest_at: Some(self.now.before(self.seconds(60))).filter(|_| !self.goes_back),
        }
    }

    fn fate(&mut self) -> Fate {
        match self.rng.u8(..6) {
            0..3 => Fate::Done(self.maybe(2, |life| life.rng.u8(..))),
            3..5 => Fate::Retry(self.maybe(3, Self::soon)),
            _ => Fate::Reject(if self.rng.bool() {
                DeadReason::Rejected
            } else {
                DeadReason::Undecodable
            }),
        }
    }

    fn update(&mut self) -> Step {
        let outcomes: Vec<_> = (0..self.rng.usize(..4))
            .map(|_| (self.rng.usize(..), self.fate()))
            .collect();
        let attempts = self.rng.u32(1..6);
        let retry_at = self.soon();
        let next = match self.rng.u8(..10) {
            0..2 => Next::Hold(self.soon()),
            2 => Next::Release,
            3 => Next::Defer(self.soon()),
            4..6 => Next::Split { retry_at, attempts },
            _ => Next::Finish {
                rest: self.fate(),
                retry_at,
                attempts,
            },
        };
        Step::Update {
            lease: self.rng.usize(..),
            outcomes,
            stranger: self.rng.u8(..20) == 0,
            checkpoint: self.maybe(3, |life| life.rng.u8(..)),
            next,
        }
    }

    fn administer(&mut self) -> Step {
        let some: Vec<usize> = (0..self.rng.usize(..5))
            .map(|_| self.rng.usize(..))
            .collect();
        match self.rng.u8(..8) {
            0 => Step::Status(self.rng.usize(..)),
            1..3 => Step::List {
                state: self.rng.usize(..),
                after: self.maybe(2, |life| life.rng.usize(..)),
                max_requests: self.rng.u32(1..20),
                payloads: self.rng.bool(),
            },
            3 => Step::Results(self.rng.u32(1..9)),
            4 => Step::Purge(some),
            5 => Step::Cancel(some),
            _ => Step::Redrive(some),
        }
    }
}
