//! What a repair says of what it could not save.

use std::{
    fs,
    path::{Path, PathBuf},
};

use batchyard::{NewRequest, Queue, SledStore, Store};

use crate::{
    damage::copy,
    support::{self, NOW},
};

/// A closed store with so many requests, 10 a push, and what it left when it was still open.
async fn filled(folder: &Path, requests: usize) -> (PathBuf, PathBuf) {
    let (path, killed) = (folder.join("store"), folder.join("killed"));
    let (store, queue) = support::open(&path).await.expect("opens");
    for number in 0..requests / 10 {
        let new = (0..10).map(|index| NewRequest::new(format!("{number} {index}").repeat(20)));
        queue.push(NOW, new.collect()).await.expect("pushed");
    }
    copy(&path, &killed);
    store.close().await.expect("closes");
    (path, killed)
}

fn overwrite(store: &Path, offset: usize) {
    let database = store.join("sled/db");
    let mut bytes = fs::read(&database).expect("read");
    bytes[offset..offset + 64].fill(0x5a);
    fs::write(database, bytes).expect("written");
}

#[tokio::test]
async fn a_repair_tells_that_the_log_ends_early_and_how_many_requests_are_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, _) = filled(folder.path(), 2_000).await;
    let mut early = 0;
    for offset in [5_000, 50_000, 100_000, 200_000, 400_000] {
        let path = folder.path().join(format!("damaged-{offset}"));
        copy(&whole, &path);
        overwrite(&path, offset);
        let refused = support::open(&path).await;
        if refused.is_ok() {
            continue;
        }
        let mended = folder.path().join(format!("mended-{offset}"));
        let repaired = SledStore::repair(&path, &mended).await.expect("repaired");
        println!("{offset}: {repaired:?}");
        assert_eq!(repaired.held + repaired.missing, 2_000, "{repaired:?}");
        assert!(!repaired.is_whole(), "{repaired:?}");
        early += u64::from(repaired.lost_changes.is_some_and(|lost| lost > 0));
    }
    assert!(early > 0, "no log ended early");
}

#[tokio::test]
async fn a_repair_of_a_killed_store_says_that_its_end_cannot_be_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, killed) = filled(folder.path(), 100).await;
    let mended = folder.path().join("mended");
    let repaired = SledStore::repair(&killed, &mended).await.expect("repaired");
    assert_eq!((repaired.held, repaired.missing), (100, 0));
    assert_eq!(repaired.lost_changes, None);
    assert!(!repaired.is_whole());
}

#[tokio::test]
async fn a_note_of_a_clean_close_without_queues_is_still_a_proof() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, _) = filled(folder.path(), 100).await;
    let note = fs::read_to_string(path.join("CLEAN")).expect("a note");
    assert!(
        note.contains("pushed 100 waiting 100 dead 0 default"),
        "{note}"
    );
    let commits = note.lines().next().expect("a line");
    fs::write(path.join("CLEAN"), format!("{commits}\n")).expect("written");
    let mended = folder.path().join("mended");
    let repaired = SledStore::repair(&path, &mended).await.expect("repaired");
    assert!(repaired.is_whole() && repaired.held == 100, "{repaired:?}");
    let (store, _) = support::open(&path).await.expect("opens");
    store.close().await.expect("closes");
    let wrong = format!("commits {}\n", 7_000_000);
    fs::write(path.join("CLEAN"), wrong).expect("written");
    support::open(&path)
        .await
        .map(|_| ())
        .expect_err("another state");
}

#[cfg(feature = "cli")]
#[tokio::test]
async fn the_program_says_so_too_and_ends_with_exit_5() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, killed) = filled(folder.path(), 2_000).await;
    let repair = |from: &Path, to: &str| {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_batchyard"));
        let program = program.arg("repair").arg(from).arg(folder.path().join(to));
        let ran = program.arg("--json").output().expect("runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (ran.status.code(), text(ran.stdout), text(ran.stderr))
    };
    let (code, line, said) = repair(&path, "whole");
    assert_eq!(code, Some(0), "{said}");
    assert!(line.contains(r#""whole":true"#), "{line}");
    assert!(line.contains(r#""lost_changes":0"#), "{line}");

    overwrite(&path, 50_000);
    let (code, line, said) = repair(&path, "early");
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("the log ends early"), "{said}");
    assert!(said.contains("missing: up to "), "{said}");
    assert!(line.contains(r#""whole":false"#), "{line}");
    assert!(!line.contains(r#""missing":0"#), "{line}");

    let (code, line, said) = repair(&killed, "of-killed");
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("can't be told"), "{said}");
    assert!(line.contains(r#""lost_changes":null"#), "{line}");
}
