//! Moments of a store whose log goes round meanwhile, and of one whose disk gets full.

use super::{
    Rig,
    full::{push, settle},
    options, wait,
};
use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind},
    queue::{
        Queue,
        journal::{
            log::fault::{Fault, plant},
            moment::Still,
            simulated::SimDisk,
        },
        transfer::{DumpFrom, DumpPage, Moment},
    },
    request::QueueName,
};

fn hold(rig: &Rig, at: u64) -> Still {
    let now = Timestamp::from_millis(1000 + at);
    wait(&rig.core, Still::of(&rig.queue.keeper, now)).unwrap()
}

/// All pages of the moment.
fn pages(rig: &Rig, moment: &Still) -> Result<Vec<DumpPage>, Error> {
    let (mut pages, mut from) = (Vec::new(), Some(DumpFrom::Start));
    while let Some(at) = from {
        let page = wait(&rig.core, moment.dump(&QueueName::default(), at))?;
        from = page.next;
        pages.push(page);
    }
    Ok(pages)
}

/// All pages of the queue as it is.
fn dump(rig: &Rig, at: u64) -> Vec<DumpPage> {
    let now = Timestamp::from_millis(1000 + at);
    let (mut pages, mut from) = (Vec::new(), Some(DumpFrom::Start));
    while let Some(at) = from {
        let transfer = rig.queue.transfer().unwrap();
        let page = wait(&rig.core, transfer.dump(now, at)).unwrap();
        from = page.next;
        pages.push(page);
    }
    pages
}

/// Holds a moment while the log goes round; what was there then, and what the moment says afterwards.
fn round_the_log() -> (Vec<DumpPage>, Result<Vec<DumpPage>, Error>) {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, false).unwrap();
    for at in 0..20 {
        push(&rig, at).unwrap();
    }
    settle(&rig, 20).unwrap();
    let moment = hold(&rig, 20);
    let then = dump(&rig, 20);
    let first = rig.core.lock().unwrap().filling.place().segment;
    for at in 21..150 {
        push(&rig, at).unwrap();
        while settle(&rig, at).unwrap() > 0 {}
        rig.tend.look(&rig.core, at % 7 == 0);
    }
    // Nothing of what is kept of those that are done is needed any more.
    let now = Timestamp::from_millis(1_000_000);
    wait(&rig.core, rig.queue.stats(now)).unwrap();
    rig.tend.look(&rig.core, true);
    let inner = rig.core.lock().unwrap();
    assert!(inner.filling.place().segment > first + 10);
    assert!(
        inner
            .state
            .oldest_segment()
            .is_none_or(|oldest| oldest > first)
    );
    drop(inner);
    for at in 1_000_000..1_000_030 {
        push(&rig, at).unwrap();
    }
    (then, pages(&rig, &moment))
}

#[test]
fn a_moment_is_read_from_segments_that_were_freed_meanwhile() {
    let (then, now) = round_the_log();
    assert_eq!(then, now.unwrap());
}

#[test]
fn segments_that_are_reused_under_a_moment_are_seen() {
    plant(Fault::RecycleUnderReader);
    let (then, now) = round_the_log();
    assert!(now.is_err() || now.is_ok_and(|now| now != then));
}

#[test]
fn what_a_moment_kept_is_free_when_it_is_dropped() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, false).unwrap();
    let mut held = None;
    let mut most = 0;
    for at in 0..400 {
        push(&rig, at).unwrap();
        while settle(&rig, at).unwrap() > 0 {}
        if at == 100 {
            held = Some(hold(&rig, at));
        }
        // The retention is over a few times.
        let now = Timestamp::from_millis(1000 + at * 10_000);
        wait(&rig.core, rig.queue.stats(now)).unwrap();
        rig.tend.look(&rig.core, at % 7 == 0);
        if at == 200 {
            most = rig.core.space.disk_bytes();
            drop(held.take());
        }
    }
    let least = rig.core.space.disk_bytes();
    assert!(least < most, "{least} bytes are taken, {most} were");
}

/// The disk has room for the log, and not for all that was written while a moment was held.
#[test]
fn a_moment_gives_way_to_pushes_when_the_disk_gets_low() {
    let disk = SimDisk::new();
    let options = options().low_space_mark(2 * 16 * 1024);
    let mut rig = Rig::open_with(&disk, options).unwrap();
    disk.set_space(24 * 16 * 1024);
    for at in 0..10 {
        push(&rig, at).unwrap();
    }
    let moment = hold(&rig, 10);
    assert!(pages(&rig, &moment).is_ok());
    for at in 11..300 {
        let pushed = push(&rig, at);
        assert!(pushed.is_ok(), "{at}: {pushed:?}");
        while settle(&rig, at).unwrap() > 0 {}
        let now = Timestamp::from_millis(1000 + at * 10_000);
        wait(&rig.core, rig.queue.stats(now)).unwrap();
        rig.tend.look(&rig.core, at % 7 == 0);
    }
    let error = pages(&rig, &moment).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("low-space mark"), "{error}");
    // Another one is read to its end.
    let moment = hold(&rig, 4_000_000);
    assert!(pages(&rig, &moment).is_ok());
}
