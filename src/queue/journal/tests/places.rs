//! The folder of a store when somebody else had a hand in it.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::{Rig, wait};
use crate::{
    batch::Claim,
    clock::Timestamp,
    error::ErrorKind,
    queue::{
        Queue, QueueExt, Store,
        journal::{
            JournalStore,
            simulated::{Crash, SimDisk},
        },
    },
    request::{NewRequest, QueueName},
};

/// A closed store with one request.
async fn store() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = JournalStore::open(folder.path()).await.unwrap();
    let queue = store.queue(&QueueName::default()).await.unwrap();
    queue.push_one(NewRequest::new("kept")).await.unwrap();
    store.close().await.unwrap();
    folder
}

/// How many requests are ready in it, and what its opening reports.
async fn look(path: &Path) -> (u64, Vec<String>) {
    let store = JournalStore::open(path).await.unwrap();
    let queue = store.queue(&QueueName::default()).await.unwrap();
    let ready = queue.stats(queue.now()).await.unwrap().ready;
    let report = store.report().to_vec();
    store.close().await.unwrap();
    (ready, report)
}

async fn refusal(path: &Path) -> (ErrorKind, String) {
    let error = JournalStore::open(path).await.unwrap_err();
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn a_log_that_is_gone_is_not_served_as_an_empty_one() {
    let folder = store().await;
    let (log, away) = (folder.path().join("log"), folder.path().join("away"));
    fs::rename(&log, &away).unwrap();
    for is_made in [false, true] {
        let (kind, text) = refusal(folder.path()).await;
        assert_eq!(kind, ErrorKind::Corrupt);
        assert!(text.contains("the log of"), "{text}");
        assert_eq!(log.exists(), is_made, "nothing was made in its place");
        fs::create_dir_all(&log).unwrap();
    }
    let is_segment = |path: &Path| path.to_string_lossy().contains("segment-000");
    for entry in fs::read_dir(&away).unwrap() {
        let from = entry.unwrap().path();
        if !is_segment(&from) {
            fs::copy(&from, log.join(from.file_name().unwrap())).unwrap();
        }
    }
    let (kind, _) = refusal(folder.path()).await;
    assert_eq!(
        kind,
        ErrorKind::Corrupt,
        "only spares and the root are left"
    );
    fs::remove_dir_all(&log).unwrap();
    fs::rename(&away, &log).unwrap();
    assert_eq!(look(folder.path()).await, (1, vec![]));
    fs::remove_file(log.join("root")).unwrap();
    let (ready, report) = look(folder.path()).await;
    assert_eq!(ready, 1);
    assert!(report[0].contains("root"), "{report:?}");
    assert_eq!(look(folder.path()).await, (1, vec![]), "it was mended");
}

#[tokio::test]
async fn a_store_that_was_never_used_has_nothing_to_lose() {
    let folder = tempfile::tempdir().unwrap();
    let store = JournalStore::open(folder.path()).await.unwrap();
    store.close().await.unwrap();
    fs::remove_dir_all(folder.path().join("log")).unwrap();
    assert_eq!(look(folder.path()).await, (0, vec![]));
}

#[tokio::test]
async fn the_salt_is_found_in_the_log_if_format_lost_it() {
    let folder = store().await;
    let path = folder.path().join("FORMAT");
    let format = fs::read_to_string(&path).unwrap();
    let at = format.find("salt ").unwrap() + 5;
    let other = if &format[at..=at] == "0" { "1" } else { "0" };
    let wrong = format!("{}{other}{}", &format[..at], &format[at + 1..]);
    let short = format!("{}{}", &format[..at], &format[at + 1..]);
    let without = format!("{}used yes\n", &format[..format.find("salt").unwrap()]);
    for damaged in [wrong, short, without] {
        fs::write(&path, &damaged).unwrap();
        let (ready, report) = look(folder.path()).await;
        assert_eq!(ready, 1, "{damaged}");
        assert!(
            report.len() == 1 && report[0].contains("FORMAT"),
            "{report:?}"
        );
        let mended = fs::read_to_string(&path).unwrap();
        assert_eq!(mended.lines().max(), format.lines().max(), "as it was");
        assert_eq!(look(folder.path()).await, (1, vec![]));
    }
}

#[tokio::test]
async fn the_log_of_another_store_is_not_served_as_this_one() {
    let (folder, other) = (store().await, store().await);
    let log = folder.path().join("log");
    fs::rename(&log, folder.path().join("away")).unwrap();
    fs::rename(other.path().join("log"), &log).unwrap();
    let format = fs::read_to_string(folder.path().join("FORMAT")).unwrap();
    assert_eq!(refusal(folder.path()).await.0, ErrorKind::Corrupt);
    assert_eq!(
        fs::read_to_string(folder.path().join("FORMAT")).unwrap(),
        format
    );
    fs::rename(&log, other.path().join("log")).unwrap();
    assert_eq!(look(other.path()).await, (1, vec![]), "it was left alone");
    fs::rename(folder.path().join("away"), &log).unwrap();
    assert_eq!(look(folder.path()).await, (1, vec![]));
}

#[tokio::test]
async fn a_first_opening_that_was_cut_off_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = JournalStore::open(folder.path()).await.unwrap();
    store.close().await.unwrap();
    let log = folder.path().join("log");
    for entry in fs::read_dir(&log).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(
        look(folder.path()).await,
        (0, vec![]),
        "before anything is in the log"
    );
    drop(folder);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("LOCK"), "").unwrap();
    fs::write(folder.path().join("FORMAT.new"), "batchy").unwrap();
    assert_eq!(
        look(folder.path()).await,
        (0, vec![]),
        "before FORMAT is whole"
    );
}

#[tokio::test]
async fn it_is_noted_while_a_store_is_open_that_there_is_something_to_lose() {
    let folder = tempfile::tempdir().unwrap();
    let store = JournalStore::open(folder.path()).await.unwrap();
    let queue = store.queue(&QueueName::default()).await.unwrap();
    let is_noted = || {
        let format = fs::read_to_string(folder.path().join("FORMAT")).unwrap();
        format.lines().any(|line| line.starts_with("used"))
    };
    assert!(!is_noted());
    queue.push_one(NewRequest::new("kept")).await.unwrap();
    // Once the writer is idle.
    while !is_noted() {
        tokio::task::yield_now().await;
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn files_of_several_stores_are_left_alone_if_nothing_tells_whose_they_should_be() {
    let (folder, other) = (store().await, store().await);
    let segment = other.path().join("log/segment-000.log");
    fs::copy(segment, folder.path().join("log/segment-009.log")).unwrap();
    let format = fs::read_to_string(folder.path().join("FORMAT")).unwrap();
    let without: Vec<&str> = (format.lines())
        .filter(|line| !line.starts_with("salt"))
        .collect();
    fs::write(folder.path().join("FORMAT"), without.join("\n")).unwrap();
    let names = || {
        let names = fs::read_dir(folder.path().join("log")).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    assert_eq!(refusal(folder.path()).await.0, ErrorKind::Corrupt);
    assert_eq!(names(), before);
    fs::write(folder.path().join("FORMAT"), format).unwrap();
    let (ready, report) = look(folder.path()).await;
    assert_eq!(ready, 1);
    assert!(
        report.len() == 1 && report[0].contains("segment-009"),
        "{report:?}"
    );
}

#[tokio::test]
async fn a_lock_that_was_removed_still_keeps_others_out() {
    let folder = store().await;
    let open = JournalStore::open(folder.path()).await.unwrap();
    fs::remove_file(folder.path().join("LOCK")).unwrap();
    assert_eq!(refusal(folder.path()).await.0, ErrorKind::Locked);
    open.close().await.unwrap();
    assert_eq!(look(folder.path()).await, (1, vec![]));
}

#[test]
fn what_was_begun_and_never_answered_is_no_reason_not_to_open_on_a_full_disk() {
    let disk = SimDisk::new();
    let rig = Rig::open(&disk, false).unwrap();
    let now = Timestamp::from_millis(1000);
    let push = |rig: &Rig| {
        wait(
            &rig.core,
            rig.queue.push(now, vec![NewRequest::new(vec![7; 3000])]),
        )
    };
    push(&rig).unwrap();
    let first = disk.operations();
    push(&rig).unwrap();
    let mut dropped = 0;
    for after in first..disk.operations() {
        for seed in 0..20 {
            let image = disk.crash(after, Crash::Torn, seed);
            let ready = |disk: &SimDisk| {
                let rig = Rig::open(disk, false).unwrap();
                let ready = wait(&rig.core, rig.queue.stats(now)).unwrap().ready;
                (ready, rig.report.clone())
            };
            let (expected, report) = ready(&image.restart());
            if !report.iter().any(|line| line.starts_with("unconfirmed")) {
                continue;
            }
            let bytes = image.image().values().map(|file| file.len() as u64).sum();
            image.set_space(bytes);
            let (found, report) = ready(&image);
            assert_eq!(found, expected);
            assert!(report[0].contains("dropped"), "{report:?}");
            dropped += 1;
        }
    }
    assert!(dropped > 0);
}

#[test]
fn numbers_that_leave_no_room_for_others_are_refused_and_do_not_wrap() {
    let rig = Rig::open(&SimDisk::new(), false).unwrap();
    let push = |now| wait(&rig.core, rig.queue.push(now, vec![NewRequest::new("one")]));
    push(Timestamp::from_nanos(u64::MAX - 1)).unwrap();
    let pushed = push(Timestamp::from_millis(1000));
    assert_eq!(pushed.unwrap_err().kind(), ErrorKind::Invalid);
    let claim = |now| wait(&rig.core, rig.queue.claim(now, &Claim::new()));
    let claimed = claim(Timestamp::MAX);
    assert_eq!(claimed.unwrap_err().kind(), ErrorKind::Invalid);
    let lease = claim(Timestamp::from_nanos(u64::MAX - 1)).unwrap();
    assert_eq!(lease.unwrap().requests, 1);
    let stats = wait(&rig.core, rig.queue.stats(Timestamp::from_millis(1000))).unwrap();
    assert_eq!((stats.pushed, stats.in_flight), (1, 1));
}
