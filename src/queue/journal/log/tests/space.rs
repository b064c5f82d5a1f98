//! Files: how many there are, where they come from, and what happens when there is no space for more.

use std::{io, sync::Arc};

use super::{append, open, script::OPTIONS};
use crate::{
    error::ErrorKind,
    queue::journal::{
        disk::Disk,
        log::{Cursor, Log, LogOptions, Place, Root},
        simulated::{Crash, SimDisk},
    },
};

fn free_all(log: &mut Log, cursor: Cursor) {
    let from = Place {
        offset: cursor.body().offset - 64,
        ..cursor.body()
    };
    let root = Root {
        oldest: from.segment,
        from,
        note: [0; 64],
    };
    log.set_root(root).unwrap();
}

#[test]
fn a_full_disk_refuses_groups_and_goes_on_when_there_is_space() {
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut log, mut cursor, ..) = open(&shared, OPTIONS).unwrap();
    disk.set_space(6 * 16 * 1024);
    assert!(disk.free_bytes().unwrap() < 6 * 16 * 1024);
    let mut appended = 0;
    let mut refused_pushes = None;
    let error = loop {
        if log.space().has_room().is_err() && refused_pushes.is_none() {
            refused_pushes = Some(appended);
        }
        match append(&mut log, &mut cursor, &[1; 3000], b"one") {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::QueueFull);
    // Pushes are refused early: there is a reserve for settling what is there.
    assert!(appended > refused_pushes.unwrap() + 3);
    // Nothing was written and nothing is lost: once there is space, the same call goes through.
    disk.set_space(u64::MAX);
    append(&mut log, &mut cursor, &[2; 3000], b"two").unwrap();
    append(&mut log, &mut cursor, &[3; 3000], b"three").unwrap();
    assert!(log.space().has_room().is_ok());
    drop(log);
    let image: Arc<dyn Disk> = Arc::new(disk.crash(disk.operations(), Crash::Lost, 0));
    let (.., seen, _) = open(&image, OPTIONS).unwrap();
    assert_eq!(seen.groups.len(), appended + 2);
    assert_eq!(seen.damage, Vec::<String>::new());
}

#[test]
fn freeing_makes_room_on_a_full_disk() {
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut log, mut cursor, ..) = open(&shared, OPTIONS).unwrap();
    disk.set_space(5 * 16 * 1024);
    for round in 0..100 {
        append(&mut log, &mut cursor, &[4; 3000], b"").unwrap();
        if round % 5 == 0 {
            free_all(&mut log, cursor);
            assert!(log.space().has_room().is_ok(), "round {round}");
        }
    }
}

#[test]
fn a_group_too_large_for_the_disk_is_refused_and_smaller_ones_go_on() {
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut log, mut cursor, ..) = open(&shared, OPTIONS).unwrap();
    append(&mut log, &mut cursor, b"small", b"").unwrap();
    disk.set_space(8 * 16 * 1024);
    let before = cursor;
    let error = append(&mut log, &mut cursor, &vec![1; 1 << 20], b"").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueFull);
    cursor = before;
    append(&mut log, &mut cursor, b"small", b"again").unwrap();
    disk.set_space(u64::MAX);
    append(&mut log, &mut cursor, &vec![1; 1 << 20], b"large").unwrap();
    append(&mut log, &mut cursor, b"small", b"last").unwrap();
    drop(log);
    let (.., seen, _) = open(&shared, OPTIONS).unwrap();
    let lengths: Vec<_> = seen.groups.iter().map(|(_, body)| body.len()).collect();
    assert_eq!(lengths, [5, 5, 1 << 20, 5]);
}

#[test]
fn after_a_drain_the_open_segment_and_the_spares_are_left() {
    for in_background in [false, true] {
        let disk = SimDisk::new();
        let disk = if in_background {
            disk.in_background()
        } else {
            disk
        };
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let (mut log, mut cursor, ..) = open(&shared, OPTIONS).unwrap();
        for _ in 0..200 {
            append(&mut log, &mut cursor, &[4; 3000], b"").unwrap();
        }
        append(&mut log, &mut cursor, &vec![4; 50_000], b"").unwrap();
        append(&mut log, &mut cursor, &[4; 3000], b"").unwrap();
        free_all(&mut log, cursor);
        cursor = log.mark(cursor).unwrap();
        // The thread ends when it has nothing to do; this waits for its last step.
        while log.space().disk_bytes() != 3 * 16 * 1024 + 8192 {
            std::thread::yield_now();
        }
        let files = disk.image();
        assert_eq!(files.len(), 4, "{:?}", files.keys());
        append(&mut log, &mut cursor, b"more", b"").unwrap();
        drop(log);
        let (log, ..) = open(&shared, OPTIONS).unwrap();
        drop(log);
        assert_eq!(disk.image().len(), 4);
    }
}

#[test]
fn what_is_consumed_as_it_comes_is_written_to_recycled_files() {
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut log, mut cursor, ..) = open(&shared, OPTIONS).unwrap();
    for _ in 0..20 {
        append(&mut log, &mut cursor, &[4; 3000], b"").unwrap();
        free_all(&mut log, cursor);
    }
    let made = disk.created();
    for _ in 0..200 {
        append(&mut log, &mut cursor, &[4; 3000], b"").unwrap();
        free_all(&mut log, cursor);
    }
    assert_eq!(
        disk.created(),
        made,
        "new files were made, though enough were freed"
    );
}

#[test]
fn the_size_of_segments_may_change_between_opens() {
    let shared: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let mut expected = Vec::new();
    for segment_bytes in [16, 64, 8, 32].map(|kib| kib * 1024) {
        let options = LogOptions {
            segment_bytes,
            ..OPTIONS
        };
        let (mut log, mut cursor, _, seen, _) = open(&shared, options).unwrap();
        assert_eq!(seen.groups, expected);
        for number in 0..15 {
            append(&mut log, &mut cursor, &[number; 3000], b"").unwrap();
            expected.push((Vec::new(), vec![number; 3000]));
        }
    }
}

#[test]
fn a_poisoned_log_refuses_all_that_follows() {
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut log, mut cursor, reader, ..) = open(&shared, OPTIONS).unwrap();
    let place = append(&mut log, &mut cursor, b"first", b"").unwrap();
    disk.fail_at(disk.operations() + 1, io::ErrorKind::Other, false);
    let retry = cursor;
    let error = append(&mut log, &mut cursor, b"second", b"").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    let operations = disk.operations();
    cursor = retry;
    let again = append(&mut log, &mut cursor, b"second", b"").unwrap_err();
    let root = log.set_root(Root::default()).unwrap_err();
    let mark = log.mark(cursor).unwrap_err();
    assert_eq!(
        [again.kind(), root.kind(), mark.kind()],
        [ErrorKind::Poisoned; 3]
    );
    assert_eq!(disk.operations(), operations, "something was tried again");
    assert_eq!(reader.read(place, 5).unwrap(), b"first"[..]);
}

#[test]
fn a_group_costs_one_sync() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let (mut log, mut cursor, ..) = open(&disk, OPTIONS).unwrap();
    append(&mut log, &mut cursor, b"the first begins a segment", b"").unwrap();
    for _ in 0..10 {
        let before = log.syncs();
        append(&mut log, &mut cursor, b"the others do not", b"").unwrap();
        assert_eq!(log.syncs(), before + 1);
    }
    let before = log.syncs();
    cursor = log.mark(cursor).unwrap();
    log.mark(cursor).unwrap();
    assert_eq!(log.syncs(), before + 1, "a witness needs no witness");
}
