//! Lives of queues as plain values, so that proptest can make them, and make a failing one shorter.
//!
//! Requests, members and leases are named by number, modulo how many there are; times are seconds from
//! the `now` of their step. So each step means something whatever was left out before it.

use std::{fmt, ops::Range, time::Duration};

use batchyard::{DeadReason, QueueOptions};
use proptest::{collection::vec, option, prelude::*, sample::select};

/// What happens to one queue from its first opening on.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) options: QueueOptions,
    /// Whether opening offers the batches of holders that are gone, as it does by default.
    pub(crate) offers_held: bool,
    pub(crate) scale: Scale,
    pub(crate) moments: Vec<Moment>,
}

/// How many times more, and larger, everything is: what fits in one row, page or segment of a backend at
/// one scale takes many of them at another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) requests: u32,
    pub(crate) bytes: u32,
}

impl Scale {
    /// So many requests at this scale.
    pub(crate) fn times(self, requests: u64) -> u64 {
        requests.saturating_mul(self.requests.into())
    }

    /// So many bytes of requests at this scale.
    pub(crate) fn times_bytes(self, bytes: u64) -> u64 {
        self.times(bytes).saturating_mul(self.bytes.into())
    }

    /// The numbers that one number stands for.
    pub(crate) fn spread(self, number: usize) -> impl Iterator<Item = usize> {
        let many = self.requests as usize;
        number * many..(number + 1) * many
    }
}

impl fmt::Display for Life {
    /// A line for each step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (options, scale, offers_held) = (self.options, self.scale, self.offers_held);
        writeln!(f, "{options:?}, {scale:?}, offers_held: {offers_held}")?;
        (self.moments.iter())
            .try_for_each(|Moment { clock, step }| writeln!(f, "  {clock:?}: {step:?}"))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Moment {
    /// How `now` moves before it.
    pub(crate) clock: Clock,
    pub(crate) step: Step,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Clock {
    StandsStill,
    GoesOn(Duration),
    GoesBack(Duration),
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Push {
        requests: Vec<New>,
        bookmark: Option<u8>,
    },
    Claim {
        max_requests: u32,
        max_bytes: u64,
        lease_seconds: u64,
        form: bool,
        due: Option<DueAt>,
        context: u8,
    },
    Update {
        lease: usize,
        outcomes: Vec<(usize, Fate)>,
        /// Names a request that is not a member, too.
        stranger: bool,
        checkpoint: Option<u8>,
        then: Next,
    },
    Cancel(Vec<usize>),
    Redrive(Vec<usize>),
    Purge(Vec<usize>),
    Release(Vec<usize>),
    Restart(Restart),
}

/// How a queue ends before it is opened again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Restart {
    /// It is closed.
    Closed,
    /// Its last handle is dropped.
    Dropped,
    /// What kill -9 leaves is all there is.
    Killed,
    /// It is taken to a fresh queue.
    Moved,
}

#[derive(Clone, Debug)]
pub(crate) struct New {
    pub(crate) bytes: usize,
    pub(crate) attribute: bool,
    pub(crate) key: Option<u8>,
    pub(crate) due: Option<i64>,
    pub(crate) ttl: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct DueAt {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) oldest: Option<i64>,
}

#[derive(Clone, Debug)]
pub(crate) enum Fate {
    Done(Option<u8>),
    Retry(Option<i64>),
    Reject(DeadReason),
}

#[derive(Clone, Debug)]
pub(crate) enum Next {
    Hold(i64),
    Release,
    Defer(i64),
    Split {
        retry: i64,
        max_attempts: u32,
    },
    Finish {
        rest: Fate,
        retry: i64,
        max_attempts: u32,
    },
}

/// Lives of so many steps.
pub(crate) fn lives(steps: Range<usize>) -> impl Strategy<Value = Life> {
    let moment = (clock(), step()).prop_map(|(clock, step)| Moment { clock, step });
    (scale(), options(), any::<bool>(), vec(moment, steps)).prop_map(
        |(scale, options, offers_held, moments)| Life {
            options: QueueOptions {
                max_requests: scale.times(options.max_requests),
                max_bytes: scale.times_bytes(options.max_bytes),
                ..options
            },
            offers_held,
            scale,
            moments,
        },
    )
}

fn scale() -> impl Strategy<Value = Scale> {
    let scale = |requests, bytes| Just(Scale { requests, bytes });
    prop_oneof![18 => scale(1, 1), 1 => scale(40, 1), 1 => scale(15, 200)]
}

/// Bounds and windows that a short life meets.
fn options() -> impl Strategy<Value = QueueOptions> {
    let seconds = |choices: Vec<u64>| select(choices).prop_map(Duration::from_secs);
    let requests = select(vec![u64::MAX, 20, 8]);
    let bytes = select(vec![u64::MAX, 120]);
    let windows = (seconds(vec![90, 0, 3_600]), seconds(vec![60, 0]));
    (requests, bytes, windows).prop_map(|(requests, bytes, (retention, window))| {
        QueueOptions::default()
            .max_requests(requests)
            .max_bytes(bytes)
            .retention(retention)
            .idempotency_window(window)
    })
}

fn clock() -> impl Strategy<Value = Clock> {
    let seconds = |range: Range<u64>| range.prop_map(Duration::from_secs);
    prop_oneof![
        16 => Just(Clock::StandsStill),
        4 => (1..3_u64).prop_map(Duration::from_nanos).prop_map(Clock::GoesOn),
        20 => seconds(1..15).prop_map(Clock::GoesOn),
        4 => seconds(15..120).prop_map(Clock::GoesOn),
        4 => seconds(1..60).prop_map(Clock::GoesBack),
        1 => Just(Clock::GoesOn(YEAR)),
        1 => Just(Clock::GoesBack(YEAR)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let restarts = vec![
        Restart::Closed,
        Restart::Dropped,
        Restart::Killed,
        Restart::Killed,
        Restart::Moved,
    ];
    let some = || vec(prop_oneof![0..4_usize, 0..64_usize], 1..4);
    prop_oneof![
        25 => push(),
        22 => claim(),
        33 => update(),
        4 => some().prop_map(Step::Cancel),
        6 => some().prop_map(Step::Redrive),
        3 => some().prop_map(Step::Purge),
        4 => vec(0..6_usize, 1..4).prop_map(Step::Release),
        8 => select(restarts).prop_map(Step::Restart),
    ]
}

fn push() -> impl Strategy<Value = Step> {
    let new = (
        0..24_usize,
        any::<bool>(),
        sometimes(0..12_u8),
        sometimes(soon()),
        sometimes(1..60_u64),
    );
    let new = new.prop_map(|(bytes, attribute, key, due, ttl)| New {
        bytes,
        attribute,
        key,
        due,
        ttl,
    });
    (vec(new, 0..7), sometimes(0..SOURCES))
        .prop_map(|(requests, bookmark)| Step::Push { requests, bookmark })
}

fn claim() -> impl Strategy<Value = Step> {
    let due = (1..20_u64, 1..200_u64, option::of(-60..5_i64));
    let due = due.prop_map(|(requests, bytes, oldest)| DueAt {
        requests,
        bytes,
        oldest,
    });
    let limits = (1..9_u32, select(vec![u64::MAX, 60, 15]));
    let rest = (
        0..60_u64,
        prop::bool::weighted(0.9),
        sometimes(due),
        any::<u8>(),
    );
    (limits, rest).prop_map(
        |((max_requests, max_bytes), (lease_seconds, form, due, context))| Step::Claim {
            max_requests,
            max_bytes,
            lease_seconds,
            form,
            due,
            context,
        },
    )
}

fn update() -> impl Strategy<Value = Step> {
    let outcomes = vec((0..9_usize, fate()), 0..4);
    let stranger = prop::bool::weighted(0.05);
    // Mostly the last lease, which is mostly good.
    let lease = prop_oneof![3 => Just(0_usize), 2 => 0..6_usize];
    (lease, outcomes, stranger, sometimes(any::<u8>()), next()).prop_map(
        |(lease, outcomes, stranger, checkpoint, then)| Step::Update {
            lease,
            outcomes,
            stranger,
            checkpoint,
            then,
        },
    )
}

fn next() -> impl Strategy<Value = Next> {
    let attempts = || 1..6_u32;
    let split = (soon(), attempts()).prop_map(|(retry, max_attempts)| Next::Split {
        retry,
        max_attempts,
    });
    let finish = (fate(), soon(), attempts());
    let finish = finish.prop_map(|(rest, retry, max_attempts)| Next::Finish {
        rest,
        retry,
        max_attempts,
    });
    prop_oneof![
        4 => finish,
        2 => soon().prop_map(Next::Hold),
        1 => Just(Next::Release),
        1 => soon().prop_map(Next::Defer),
        2 => split,
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    let reasons = vec![DeadReason::Rejected, DeadReason::Undecodable];
    prop_oneof![
        3 => option::of(any::<u8>()).prop_map(Fate::Done),
        2 => sometimes(soon()).prop_map(Fate::Retry),
        1 => select(reasons).prop_map(Fate::Reject),
    ]
}

/// Seconds from now, mostly to come.
fn soon() -> impl Strategy<Value = i64> {
    -5..35_i64
}

fn sometimes<S: Strategy>(what: S) -> impl Strategy<Value = Option<S::Value>> {
    option::weighted(0.25, what)
}

/// How many sources have bookmarks.
pub(crate) const SOURCES: u8 = 3;
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
