//! What is kept in memory may be larger than a segment, and so is the baseline then: tidying up must not write more than
//! it frees.

use super::{
    Rig,
    full::{push, settle},
    wait,
};
use crate::{
    clock::Timestamp,
    queue::{
        Queue,
        journal::{codec::Codec, simulated::SimDisk, state::QueueState},
    },
    request::NewRequest,
};

/// A store whose baseline takes many segments, for the sake of keys that it has to know for a while.
fn laden(disk: &SimDisk) -> Rig {
    let mut rig = Rig::open(disk, false).unwrap();
    for at in 0..100 {
        let requests = (0..50).map(|number| {
            let key = format!("a key that takes some space, {at} {number}");
            NewRequest::new("x").idempotency_key(key)
        });
        let now = Timestamp::from_millis(1000 + at);
        wait(&rig.core, rig.queue.push(now, requests.collect())).unwrap();
        while settle(&rig, at).unwrap() > 0 {}
        rig.tend.look(&rig.core, false);
    }
    rig
}

/// The segment that is being filled: their numbers are never used again.
fn segment(rig: &Rig) -> u64 {
    rig.core.lock().unwrap().filling.place().segment.into()
}

fn baseline_segments(rig: &Rig) -> u64 {
    let mut state = Vec::new();
    rig.core.lock().unwrap().state.put(&mut state);
    state.len() as u64 / SEGMENT
}

#[test]
fn a_baseline_of_many_segments_is_written_as_rarely_as_it_pays() {
    let disk = SimDisk::new();
    let mut rig = laden(&disk);
    let own = baseline_segments(&rig);
    assert!(own >= 5, "{own} segments of state");
    // One request that is not due for long: all behind it would be kept, were it not carried.
    let later = NewRequest::new("later").not_before(Timestamp::from_millis(1 << 40));
    let now = Timestamp::from_millis(1200);
    wait(&rig.core, rig.queue.push(now, vec![later])).unwrap();
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
    let (mut last, mut quiet, mut rounds) = (segment(&rig), 0, 0);
    while quiet < 20 {
        rig.tend.look(&rig.core, true);
        quiet = if segment(&rig) == last { quiet + 1 } else { 0 };
        last = segment(&rig);
        rounds += 1;
        assert!(rounds < 1_000, "it never ends");
    }
    let live = rig
        .core
        .lock()
        .unwrap()
        .state
        .queues
        .values()
        .map(QueueState::live_bytes)
        .sum::<u64>();
    let needed = live + baseline_segments(&rig) * SEGMENT;
    let disk_bytes = rig.core.space.disk_bytes();
    assert!(
        disk_bytes < 4 * needed + 8 * SEGMENT,
        "{disk_bytes} bytes for {needed} that are needed"
    );
}

const SEGMENT: u64 = 16 * 1024;
