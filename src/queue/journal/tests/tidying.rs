//! What is kept in memory may be larger than a segment, and so is the baseline then: tidying up must not write more than
//! it frees.

use std::{
    future::Future,
    num::NonZeroU32,
    pin::pin,
    sync::atomic::Ordering,
    task::{Context, Waker},
    time::Duration,
};

use super::{
    Rig,
    full::{push, settle},
    options, wait,
};
use crate::{
    batch::{Claim, Outcome, Retries, Then, Update},
    clock::Timestamp,
    queue::{
        Cancelled, Queue, QueueOptions,
        journal::{JournalOptions, core::Inner, simulated::SimDisk, state::QueueState},
    },
    request::{NewRequest, RequestId},
};

/// A store whose baseline takes many segments, for the sake of keys that it has to know for a while.
fn laden(disk: &SimDisk) -> Rig {
    let mut rig = Rig::open(disk, false).unwrap();
    for at in 0..100 {
        push_keys(&rig, at);
        rig.tend.look(&rig.core, false);
    }
    rig
}

/// Pushes and settles 50 requests, of which the keys stay known.
fn push_keys(rig: &Rig, at: u64) {
    let requests = (0..50).map(|number| {
        let key = format!("a key that takes some space, {at} {number}");
        NewRequest::new("x").idempotency_key(key)
    });
    let now = Timestamp::from_millis(1000 + at);
    wait(&rig.core, rig.queue.push(now, requests.collect())).unwrap();
    while settle(rig, at).unwrap() > 0 {}
}

/// Pushes a request that stays where it is for long.
fn push_later(rig: &Rig, bytes: usize) -> RequestId {
    let later = NewRequest::new(vec![7; bytes]).not_before(Timestamp::from_millis(1 << 40));
    let now = Timestamp::from_millis(1200);
    wait(&rig.core, rig.queue.push(now, vec![later])).unwrap()[0].id
}

/// Nothing is kept of requests that are done, but for their keys.
fn forgetful() -> JournalOptions {
    let queues = QueueOptions::default()
        .retention(Duration::ZERO)
        .idempotency_window(Duration::from_secs(200));
    options().queues(queues)
}

/// The segment that is being filled: their numbers are never used again.
fn segment(rig: &Rig) -> u64 {
    rig.core.lock().unwrap().filling.place().segment.into()
}

fn baseline_segments(rig: &Rig) -> u64 {
    rig.encoded().len() as u64 / SEGMENT
}

fn live_bytes(rig: &Rig) -> u64 {
    let inner = rig.core.lock().unwrap();
    inner
        .state
        .queues
        .values()
        .map(QueueState::live_bytes)
        .sum()
}

/// Lets the writer look until it has nothing to write any more.
fn tend_until_quiet(rig: &mut Rig, disk: &SimDisk, is_idle: bool) {
    let (mut last, mut quiet, mut rounds) = (disk.operations(), 0, 0);
    while quiet < 20 {
        rig.tend.look(&rig.core, is_idle);
        let now = disk.operations();
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        rounds += 1;
        assert!(rounds < 1_000, "it never ends");
    }
}

#[test]
fn a_baseline_of_many_segments_is_written_as_rarely_as_it_pays() {
    let disk = SimDisk::new();
    let mut rig = laden(&disk);
    let own = baseline_segments(&rig);
    assert!(own >= 5, "{own} segments of state");
    // One request that is not due for long: all behind it would be kept, were it not carried.
    push_later(&rig, 5);
    let (before, mut logged) = (segment(&rig), 0);
    for at in 300..700 {
        push(&rig, at).unwrap();
        logged += 3 * 1000;
        settle(&rig, at).unwrap();
        rig.tend.look(&rig.core, false);
    }
    let written = (segment(&rig) - before) * SEGMENT;
    assert!(
        written < 6 * logged,
        "{written} bytes for {logged} bytes of requests"
    );
}

#[test]
fn who_has_nothing_to_do_tidies_up_and_then_writes_nothing() {
    let disk = SimDisk::new();
    let mut rig = laden(&disk);
    tend_until_quiet(&mut rig, &disk, true);
    let needed = live_bytes(&rig) + baseline_segments(&rig) * SEGMENT;
    let disk_bytes = rig.core.space.disk_bytes();
    assert!(
        disk_bytes < 4 * needed + 8 * SEGMENT,
        "{disk_bytes} bytes for {needed} that are needed"
    );
}

/// Each segment that goes has room for the baseline that lets go of it, and for what is carried, and for no more.
#[test]
fn a_full_disk_is_not_written_for_ever_by_tidying_up() {
    const LONG: u32 = 64 * 1024;
    let disk = SimDisk::new();
    let options = forgetful().segment_bytes(LONG);
    let mut rig = Rig::open_with(&disk, options.low_space_mark(u64::MAX)).unwrap();
    let mut at = 0;
    while rig.encoded().len() < LONG as usize * 3 / 4 {
        push_keys(&rig, at);
        at += 1;
    }
    for _ in 0..8 {
        rig.tend.write_baseline(&rig.core).unwrap();
        push_later(&rig, LONG as usize / 8);
    }
    rig.tend.look(&rig.core, false);
    assert!(push(&rig, 1300).is_err(), "there is space anyhow");
    tend_until_quiet(&mut rig, &disk, false);
    tend_until_quiet(&mut rig, &disk, true);
}

/// What little takes says nothing of much.
#[test]
fn what_was_learnt_of_a_little_does_not_let_a_log_of_much_grow() {
    const LONG: u32 = 64 * 1024;
    let disk = SimDisk::new();
    let mut rig = Rig::open_with(&disk, forgetful().segment_bytes(LONG)).unwrap();
    push_later(&rig, 10);
    let churn = |rig: &mut Rig, rounds| {
        for at in 0..rounds {
            push(rig, at).unwrap();
            while settle(rig, at).unwrap() > 0 {}
            rig.tend.look(&rig.core, false);
        }
    };
    churn(&mut rig, 200);
    let little = live_bytes(&rig);
    let mut later = Vec::new();
    for _ in 0..500 {
        later.push(push_later(&rig, 1500));
        churn(&mut rig, 2);
    }
    let much = live_bytes(&rig);
    assert!(much > 100 * little, "{much} and {little} bytes");
    let admin = rig.queue.admin().unwrap();
    let now = Timestamp::from_millis(1300);
    later.truncate(400);
    for answer in wait(&rig.core, admin.cancel(now, &later)).unwrap() {
        assert_eq!(answer, Cancelled::Now);
    }
    tend_until_quiet(&mut rig, &disk, true);
    let live = live_bytes(&rig);
    let disk_bytes = rig.core.space.disk_bytes();
    assert!(
        disk_bytes < 3 * live + 8 * u64::from(LONG),
        "{disk_bytes} bytes for {live} that are live"
    );
}

/// There is a witness for the last group, so that it is damage if that can't be read later.
#[test]
fn a_baseline_that_there_is_no_room_for_does_not_cost_the_witness() {
    for is_closed in [false, true] {
        let disk = SimDisk::new();
        let mut rig = Rig::open(&disk, false).unwrap();
        for at in 0..100 {
            push_keys(&rig, at);
        }
        disk.set_space(0);
        push(&rig, 1200).unwrap();
        assert!(!rig.core.lock().unwrap().is_witnessed);
        if is_closed {
            rig.tend.finish(&rig.core).unwrap_err();
        } else {
            rig.tend.look(&rig.core, true);
        }
        assert!(rig.core.lock().unwrap().is_witnessed, "closed: {is_closed}");
        let again = Rig::open(&disk.restart(), false).unwrap();
        assert_eq!(rig.encoded(), again.encoded());
    }
}

/// What is kept in memory takes more of the log than there are spares: half a baseline would use them up.
#[test]
fn a_full_disk_drains_even_if_there_is_no_room_for_a_baseline() {
    const LONG: u32 = 1024 * 1024;
    let disk = SimDisk::new();
    let mut rig = Rig::open_with(&disk, forgetful().segment_bytes(LONG)).unwrap();
    let now = Timestamp::from_millis(1000);
    let mut leases = Vec::new();
    for at in 0..60 {
        push(&rig, at).unwrap();
        let claim = Claim::new();
        let lease = wait(&rig.core, rig.queue.claim(now, &claim))
            .unwrap()
            .unwrap();
        let until = Timestamp::from_millis(100_000);
        let update = Update {
            checkpoint: Some(vec![7; 60_000].into()),
            ..Update::then(Then::Hold { until })
        };
        wait(&rig.core, rig.queue.update(now, &lease, update)).unwrap();
        leases.push(lease);
    }
    assert!(rig.encoded().len() > 3 * LONG as usize);
    disk.set_space(0);
    let mut at = 0;
    while push(&rig, at).is_ok() {
        at += 1;
        rig.tend.look(&rig.core, false);
    }
    // As at a close.
    let ready = rig.core.space.ready();
    assert!(ready > 0, "nothing is left to those who settle");
    rig.tend.finish(&rig.core).unwrap_err();
    assert_eq!(rig.core.space.ready(), ready, "half a baseline took them");
    let again = Rig::open(&disk.restart(), false).unwrap();
    assert_eq!(rig.encoded(), again.encoded());
    for lease in leases {
        let finish = Then::Finish {
            rest: Outcome::done(),
            retries: Retries {
                at: now,
                max_attempts: NonZeroU32::MIN,
            },
        };
        wait(
            &rig.core,
            rig.queue.update(now, &lease, Update::then(finish)),
        )
        .unwrap();
        rig.tend.look(&rig.core, true);
    }
    while settle(&rig, 1).unwrap() > 0 {
        rig.tend.look(&rig.core, true);
    }
    disk.set_space(u64::MAX);
    for _ in 0..8 {
        rig.tend.look(&rig.core, true);
    }
    push(&rig, 700).unwrap();
    rig.tend.finish(&rig.core).unwrap();
}

/// Or one that pushes again and again would keep the log from ever being tidied up.
#[test]
fn who_waits_for_a_turn_goes_before_a_lone_caller() {
    let rig = Rig::open(&SimDisk::new(), false).unwrap();
    rig.core.lock().unwrap().waits_for_turn = true;
    let before = rig.core.syncs.load(Ordering::Relaxed);
    let now = Timestamp::from_millis(1000);
    let mut pushing = pin!(rig.queue.push(now, vec![NewRequest::new("x")]));
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..3 {
        assert!(pushing.as_mut().poll(&mut context).is_pending());
    }
    assert_eq!(rig.core.syncs.load(Ordering::Relaxed), before, "overtaken");
    rig.core.log_now(Inner::seal).unwrap();
    assert!(pushing.as_mut().poll(&mut context).is_ready());
}

const SEGMENT: u64 = 16 * 1024;
