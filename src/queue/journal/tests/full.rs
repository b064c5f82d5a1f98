//! A disk that gets full: what does not fit is refused and undone, what is there can be settled, and then there is
//! space again.

use std::{num::NonZeroU32, sync::mpsc, thread, time::Duration};

use super::{Rig, options, wait};
use crate::{
    batch::{Claim, Outcome, Page, Retries, Then, Update},
    clock::Timestamp,
    error::{Error, ErrorKind},
    queue::{
        Queue, QueueOptions, WhenFull,
        journal::{JournalOptions, simulated::SimDisk},
    },
    request::{NewRequest, Pushed},
};

pub(super) fn push(rig: &Rig, at: u64) -> Result<Vec<Pushed>, Error> {
    let requests = (0..3).map(|_| NewRequest::new(vec![7; 1000])).collect();
    let now = Timestamp::from_millis(1000 + at);
    wait(&rig.core, rig.queue.push(now, requests))
}

/// Claims and finishes some; how many.
pub(super) fn settle(rig: &Rig, at: u64) -> Result<u64, Error> {
    let now = Timestamp::from_millis(1000 + at);
    let claim = Claim {
        max_requests: NonZeroU32::new(5).unwrap(),
        ..Claim::new()
    };
    wait(&rig.core, async {
        let Some(lease) = rig.queue.claim(now, &claim).await? else {
            return Ok(0);
        };
        let members = rig.queue.read(&lease, Page::first()).await?;
        assert_eq!(members.len(), lease.requests as usize);
        let finish = Then::Finish {
            rest: Outcome::done(),
            retries: Retries {
                at: now,
                max_attempts: NonZeroU32::MIN,
            },
        };
        rig.queue.update(now, &lease, Update::then(finish)).await?;
        Ok(lease.requests.into())
    })
}

#[test]
fn what_there_is_no_space_for_is_refused_and_taken_back() {
    let disk = SimDisk::new();
    let rig = Rig::open(&disk, false).unwrap();
    disk.set_space(8 * 16 * 1024);
    let mut pushed = 0;
    // Nobody looks how much space is left, so it is found out when a group is to be written.
    let error = loop {
        match push(&rig, pushed) {
            Ok(_) => pushed += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::QueueFull, "{error}");
    let again = Rig::open(&disk.restart(), false).unwrap();
    assert_eq!(rig.encoded(), again.encoded(), "not what is on the disk");
    let now = Timestamp::from_millis(5000);
    let stats = wait(&rig.core, rig.queue.stats(now)).unwrap();
    assert_eq!((stats.pushed, stats.ready), (3 * pushed, 3 * pushed));
    // Once there is space, all goes on.
    disk.set_space(u64::MAX);
    rig.core.lock().unwrap().no_room = None;
    push(&rig, pushed).unwrap();
    let mut settled = 0;
    loop {
        match settle(&rig, 4000).unwrap() {
            0 => break,
            more => settled += more,
        }
    }
    assert_eq!(settled, 3 * (pushed + 1));
    let again = Rig::open(&disk.restart(), false).unwrap();
    assert_eq!(rig.encoded(), again.encoded());
}

#[test]
fn a_full_disk_drains_and_then_takes_pushes_again() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, false).unwrap();
    disk.set_space(12 * 16 * 1024);
    for round in 0..3 {
        // What was kept of earlier requests is forgotten, and the writer looks what that set free.
        let now = Timestamp::from_millis(1000 + ROUND * round);
        wait(&rig.core, rig.queue.stats(now)).unwrap();
        rig.tend.look(&rig.core, true);
        let mut pushed = 0;
        let error = loop {
            match push(&rig, ROUND * round + pushed) {
                Ok(_) => pushed += 1,
                Err(error) => break error,
            }
            rig.tend.look(&rig.core, false);
        };
        assert_eq!(error.kind(), ErrorKind::QueueFull, "{error}");
        assert!(pushed > 10, "{pushed} pushes were taken in round {round}");
        let mut settled = 0;
        loop {
            match settle(&rig, ROUND * round + 999).unwrap() {
                0 => break,
                more => settled += more,
            }
            rig.tend.look(&rig.core, false);
        }
        assert_eq!(settled, 3 * pushed);
    }
}

/// What was missing when it was opened was told then; that it still is costs nothing more.
#[test]
fn a_store_of_which_a_segment_is_missing_goes_on_from_a_full_disk() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, false).unwrap();
    for at in 0..40 {
        push(&rig, at).unwrap();
    }
    rig.tend.write_baseline(&rig.core).unwrap();
    push(&rig, 40).unwrap();
    let mut image = disk.image();
    let mut segments = image.keys().filter(|name| name.starts_with("segment-"));
    let name = segments.nth(2).unwrap().clone();
    image.remove(&name).unwrap();
    let disk = SimDisk::from_image(image);
    let rig = Rig::open(&disk, false).unwrap();
    let is_told = rig.report.iter().any(|line| line.contains("is missing"));
    assert!(is_told, "{:?}", rig.report);
    disk.set_space(0);
    let mut at = 41;
    let error = loop {
        match push(&rig, at) {
            Ok(_) => at += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::QueueFull, "{error}");
    disk.set_space(u64::MAX);
    rig.core.lock().unwrap().no_room = None;
    push(&rig, at).unwrap();
}

/// Each group that finds out by itself that there is no segment has the log read again.
#[test]
fn once_it_is_known_that_there_is_no_space_the_log_is_left_alone() {
    let timeout = Duration::ZERO;
    let blocking = QueueOptions::default().when_full(WhenFull::Block { timeout });
    for options in [options(), options().queues(blocking)] {
        leave_the_log_alone(options);
    }
}

fn leave_the_log_alone(options: JournalOptions) {
    let disk = SimDisk::new().in_background();
    let mut rig = Rig::open_with(&disk, options).unwrap();
    disk.set_space(8 * 16 * 1024);
    let mut pushed = 0;
    while push(&rig, pushed).is_ok() {
        pushed += 1;
    }
    let core = rig.core.clone();
    let writing = core.log.lock().unwrap();
    let (told, was_told) = mpsc::channel();
    let pushing = thread::spawn(move || {
        // As if nobody had looked how much space there is.
        rig.core.lock().unwrap().no_room = None;
        let refused = push(&rig, pushed).map_err(|error| error.kind());
        // Nobody listens any more if it took too long.
        let _ = told.send(refused);
        rig
    });
    let refused = was_told.recv_timeout(Duration::from_secs(60));
    drop(writing);
    rig = pushing.join().unwrap();
    let refused = refused.expect("it waits for the log");
    assert_eq!(refused.unwrap_err(), ErrorKind::QueueFull);
    disk.set_space(u64::MAX);
    loop {
        rig.tend.look(&rig.core, false);
        // A thread tries twice a second whether there is space again.
        match push(&rig, pushed) {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::QueueFull, "{error}"),
        }
        thread::yield_now();
    }
    let now = Timestamp::from_millis(5000);
    let stats = wait(&rig.core, rig.queue.stats(now)).unwrap();
    assert_eq!(
        (stats.pushed, stats.ready),
        (3 * pushed + 3, 3 * pushed + 3)
    );
}

/// What is kept of requests that are done is little, and lies in a segment of its own.
#[test]
fn what_is_kept_of_settled_requests_does_not_keep_pushes_out() {
    const SEGMENT: u64 = 16 * 1024;
    let disk = SimDisk::new();
    // Above the mark there is space for the root, the open segment, two spares, and hardly anything else.
    disk.set_space(8 * SEGMENT);
    let options = options().low_space_mark(4 * SEGMENT + SEGMENT / 2);
    let mut rig = Rig::open_with(&disk, options).unwrap();
    let mut pushed = 0;
    while push(&rig, pushed).is_ok() {
        pushed += 1;
        rig.tend.look(&rig.core, false);
    }
    while settle(&rig, 500).unwrap() > 0 {
        rig.tend.look(&rig.core, false);
    }
    assert!(push(&rig, 600).is_err(), "there is space anyhow");
    // The writer is idle for some seconds.
    for _ in 0..8 {
        rig.tend.look(&rig.core, true);
    }
    push(&rig, 700).unwrap();
}

/// So many milliseconds later nothing is kept of what is done.
const ROUND: u64 = 300_000;
