//! Whose folder it takes, and what it leaves untouched.

use std::{fs, path::Path, time::Duration};

use batchyard::{ErrorKind, NewRequest, Queue, QueueExt, QueueName, SledQueue, SledStore, Store};

use crate::support::{self, NOW};

async fn refused(path: &Path) -> (ErrorKind, String) {
    let error = SledStore::open(path).await.expect_err("must be refused");
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn a_foreign_folder_is_left_untouched() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("letters.txt"), "dear").expect("written");
    let before = support::snapshot(folder.path());
    let (kind, message) = refused(folder.path()).await;
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(message.contains("letters.txt"), "{message}");
    assert_eq!(support::snapshot(folder.path()), before);
}

#[tokio::test]
async fn a_file_is_not_a_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store");
    fs::write(&path, "dear").expect("written");
    let (kind, message) = refused(&path).await;
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(message.contains("is a file"), "{message}");
    assert_eq!(fs::read(&path).expect("still there"), b"dear");
}

#[tokio::test]
async fn a_newer_format_is_named_and_left_untouched() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = SledQueue::open(folder.path()).await.expect("opens");
    queue.close().await.expect("closes");
    let format = fs::read_to_string(folder.path().join("FORMAT")).expect("a format");
    let newer = format.replace("version 1", "version 7");
    fs::write(folder.path().join("FORMAT"), newer).expect("written");
    let before = support::snapshot(folder.path());
    let (kind, message) = refused(folder.path()).await;
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(
        message.contains("format 7") && message.contains("untouched"),
        "{message}"
    );
    assert_eq!(support::snapshot(folder.path()), before);
}

#[cfg(feature = "journal")]
#[tokio::test]
async fn a_store_of_the_other_backend_is_named_and_left_untouched() {
    let folder = tempfile::tempdir().expect("a folder");
    let (sled, journal) = (folder.path().join("sled"), folder.path().join("journal"));
    let queue = SledQueue::open(&sled).await.expect("opens");
    queue.close().await.expect("closes");
    let queue = batchyard::JournalQueue::open(&journal)
        .await
        .expect("opens");
    queue.close().await.expect("closes");
    let before = support::snapshot(folder.path());

    let (kind, message) = refused(&journal).await;
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(message.contains("is a journal store"), "{message}");
    let error = batchyard::JournalQueue::open(&sled)
        .await
        .expect_err("must be refused");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("is a sled store"), "{error}");
    assert_eq!(support::snapshot(folder.path()), before);
}

#[tokio::test]
async fn a_folder_without_permission_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("closed");
    fs::create_dir(&path).expect("made");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).expect("set");
    if fs::write(path.join("probe"), "").is_ok() {
        println!("skipped: this user may write everywhere");
        return;
    }
    let (kind, message) = refused(&path.join("store")).await;
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(message.contains("can't be"), "{message}");
}

#[tokio::test]
async fn a_database_that_was_lost_or_replaced_is_not_served_as_an_empty_one() {
    for damage in ["lost", "emptied", "replaced"] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("store");
        let queue = SledQueue::open(&path).await.expect("opens");
        queue.push_one(NewRequest::new("a")).await.expect("pushed");
        queue.close().await.expect("closes");
        let database = path.join("sled/db");
        match damage {
            "lost" => fs::remove_file(&database).expect("removed"),
            "emptied" => fs::write(&database, "").expect("emptied"),
            _ => {
                let other = folder.path().join("other");
                let queue = SledQueue::open(&other).await.expect("opens");
                queue.close().await.expect("closes");
                fs::remove_dir_all(path.join("sled")).expect("removed");
                fs::rename(other.join("sled"), path.join("sled")).expect("replaced");
            }
        }
        let (kind, message) = refused(&path).await;
        assert_eq!(kind, ErrorKind::Corrupt, "{damage}: {message}");
        assert!(message.contains("repair"), "{damage}: {message}");
    }
}

#[tokio::test]
async fn an_older_state_than_the_one_that_was_closed_is_not_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store");
    let queue = SledQueue::open(&path).await.expect("opens");
    queue.push_one(NewRequest::new("a")).await.expect("pushed");
    queue.close().await.expect("closes");
    let older = support::snapshot(&path.join("sled"));
    let queue = SledQueue::open(&path).await.expect("opens");
    queue.push_one(NewRequest::new("b")).await.expect("pushed");
    queue.close().await.expect("closes");
    fs::remove_dir_all(path.join("sled")).expect("removed");
    fs::create_dir_all(path.join("sled/blobs")).expect("made");
    for (file, bytes) in older {
        fs::write(file, bytes).expect("brought back");
    }
    let (kind, message) = refused(&path).await;
    assert_eq!(kind, ErrorKind::Corrupt, "{message}");
}

#[tokio::test]
async fn files_that_sled_never_syncs_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = SledQueue::open(folder.path()).await.expect("opens");
    queue.close().await.expect("closes");
    fs::create_dir_all(folder.path().join("sled/blobs")).expect("made");
    fs::write(folder.path().join("sled/blobs/7"), "big").expect("written");
    let (kind, message) = refused(folder.path()).await;
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(message.contains("blobs"), "{message}");
}

#[tokio::test]
async fn values_of_every_size_leave_no_such_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = SledQueue::open(folder.path()).await.expect("opens");
    for size in [0, 1_023, 1_024, 1_025, 60 << 10, (60 << 10) + 1, 1 << 20] {
        support::push(&queue, (0..32).map(|_| vec![7; size])).await;
    }
    queue.close().await.expect("closes");
    let blobs = folder.path().join("sled/blobs");
    assert_eq!(fs::read_dir(blobs).map_or(0, Iterator::count), 0);
}

#[tokio::test]
async fn a_full_disk_stops_pushes_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = SledQueue::open(folder.path()).await.expect("opens");
    queue
        .push(NOW, vec![NewRequest::new("a")])
        .await
        .expect("pushed");
    drop(queue);
    let store = SledStore::options()
        .low_space_mark(u64::MAX)
        .open(folder.path());
    let queue = store
        .await
        .expect("opens")
        .queue(&QueueName::default())
        .await
        .expect("opens");
    let error = queue
        .push(NOW, vec![NewRequest::new("b")])
        .await
        .expect_err("full");
    assert_eq!(error.kind(), ErrorKind::QueueFull);
    let lease = queue
        .claim(NOW, &batchyard::Claim::new())
        .await
        .expect("claims")
        .expect("a batch");
    let retries = batchyard::Retries {
        at: NOW,
        max_attempts: std::num::NonZeroU32::MIN,
    };
    let rest = batchyard::Outcome::done();
    let finish = batchyard::Update::then(batchyard::Then::Finish { rest, retries });
    queue.update(NOW, &lease, finish).await.expect("settles");
    assert_eq!(queue.stats(NOW).await.expect("stats").done, 1);
}

#[tokio::test]
async fn a_store_that_takes_too_long_is_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SledStore::options()
        .open_timeout(Duration::ZERO)
        .open(folder.path());
    assert_eq!(
        store.await.expect_err("given up").kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test]
async fn a_handle_shows_where_its_store_is_and_nothing_of_what_is_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = SledQueue::open(folder.path()).await.expect("opens");
    queue
        .push_one(NewRequest::new("a secret"))
        .await
        .expect("pushed");
    let shown = format!("{queue:?}");
    assert!(
        shown.contains(&folder.path().display().to_string()),
        "{shown}"
    );
    assert!(shown.len() < 300, "{shown}");
}
