//! A sled store gives the right data, or an error that names `repair`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use batchyard::{Error, ErrorKind, QueueOptions, SledStore, Store, testing::proof};

use super::{Payloads, copy, cycles, damage, fill, in_time, look, seed, snapshot};

async fn open(path: &Path) -> Result<SledStore, Error> {
    let queues = QueueOptions::default().retention(Duration::MAX);
    let options = SledStore::options().queues(queues);
    options
        .open_timeout(Duration::from_mins(1))
        .open(path)
        .await
}

/// All that a store says, or why it says nothing.
async fn everything(path: &Path, payloads: &Payloads) -> Result<BTreeMap<String, String>, Error> {
    let store = open(path).await?;
    let seen = look(&store, payloads).await;
    let closed = store.close().await;
    // Damage that nobody had to read may still be met by the close.
    seen.and_then(|seen| closed.map(|()| seen))
}

/// A store that was closed, and one as a killed process leaves it.
async fn stores(folder: &Path) -> ([PathBuf; 2], Payloads) {
    let (closed, killed) = (folder.join("closed"), folder.join("killed"));
    let store = open(&closed).await.unwrap();
    let payloads = fill(&store).await;
    copy(&closed, &killed);
    store.close().await.unwrap();
    ([closed, killed], payloads)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_sled_store_is_verified_opened_and_repaired() {
    let start = seed();
    let folder = tempfile::tempdir().unwrap();
    let (stores, payloads) = stores(folder.path()).await;
    let (mut clean, mut refused, mut repaired) = (0, 0, 0);
    let rounds = cycles(8, 120);
    for whole in &stores {
        let right = folder.path().join("right");
        copy(whole, &right);
        let copied = right;
        let right = everything(&copied, &payloads).await.unwrap();
        fs::remove_dir_all(&copied).unwrap();
        for round in 0..rounds {
            let mut dice = fastrand::Rng::with_seed(start.wrapping_add(round));
            let path = folder.path().join("damaged");
            copy(whole, &path);
            let what = damage(&mut dice, &path);
            let what = format!("round {round} of {}: {what}", whole.display());
            let before = snapshot(&path);
            let verified = in_time(&what, SledStore::verify(&path, folder.path())).await;
            assert_eq!(
                snapshot(&path),
                before,
                "{what}: verifying changed something"
            );
            let is_clean = verified.as_ref().is_ok_and(batchyard::Verified::is_clean);
            let copied = folder.path().join("to-open");
            copy(&path, &copied);
            match in_time(&what, everything(&copied, &payloads)).await {
                Ok(served) => {
                    assert_eq!(served, right, "{what}");
                    clean += 1;
                }
                Err(error) => {
                    assert!(!is_clean, "{what}: not found by verifying: {error}");
                    let known = [ErrorKind::Corrupt, ErrorKind::Poisoned, ErrorKind::Invalid];
                    assert!(known.contains(&error.kind()), "{what}: {error}");
                    refused += 1;
                    let mended = folder.path().join("mended");
                    match in_time(&what, SledStore::repair(&path, &mended)).await {
                        Ok(saved) => {
                            let left = everything(&mended, &payloads).await.unwrap();
                            let all = right.keys().all(|id| left.contains_key(id));
                            assert!(all || !saved.is_whole(), "{what}: {saved:?}");
                            repaired += 1;
                        }
                        Err(error) => {
                            let known = [ErrorKind::Corrupt, ErrorKind::NotFound];
                            assert!(known.contains(&error.kind()), "{what}: {error}");
                        }
                    }
                    let _ = fs::remove_dir_all(&mended);
                }
            }
            fs::remove_dir_all(&path).unwrap();
            fs::remove_dir_all(&copied).unwrap();
        }
    }
    let what = format!(
        "{} damaged folders: {clean} right, {refused} refused, {repaired} of them repaired",
        2 * rounds
    );
    proof("G8", "sled", what, &[]);
}

/// sled takes damage in the middle of its log for the end: only the note of what was durable tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_store_whose_log_is_damaged_in_its_middle_is_not_served_as_an_older_one() {
    let folder = tempfile::tempdir().unwrap();
    let (stores, payloads) = stores(folder.path()).await;
    let killed = &stores[1];
    let right = folder.path().join("right");
    copy(killed, &right);
    let right = everything(&right, &payloads).await.unwrap();
    let used = fs::read(killed.join("sled/db")).unwrap();
    let used = used.iter().rposition(|byte| *byte != 0).unwrap();
    let rounds = usize::try_from(cycles(6, 40)).unwrap();
    let mut unnoticed = 0;
    for round in 0..rounds {
        let offset = used / (rounds + 1) * (round + 1);
        for is_noted in [true, false] {
            let path = folder.path().join("damaged");
            copy(killed, &path);
            if !is_noted {
                fs::remove_file(path.join("SYNCED")).unwrap();
            }
            let mut bytes = fs::read(path.join("sled/db")).unwrap();
            bytes[offset..offset + 64].fill(0x5a);
            fs::write(path.join("sled/db"), bytes).unwrap();
            let what = format!("64 bytes at {offset}, noted: {is_noted}");
            match (in_time(&what, everything(&path, &payloads)).await, is_noted) {
                (Ok(seen), true) => assert_eq!(seen, right, "{what}"),
                (Ok(seen), false) => unnoticed += usize::from(seen != right),
                (Err(error), _) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}"),
            }
            fs::remove_dir_all(&path).unwrap();
        }
    }
    println!("{unnoticed} of {rounds} were served as older ones without the note");
    assert!(unnoticed > 0, "the note is not what told");
    proof(
        "G5 G8",
        "sled",
        format!("{rounds} killed stores damaged in their middle"),
        &["no SYNCED"],
    );
}

#[tokio::test]
async fn a_repair_into_the_damaged_store_itself_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    open(&path).await.unwrap().close().await.unwrap();
    let before = snapshot(&path);
    for to in ["store", "store/sled/new", "./store/../store/x"] {
        let error = SledStore::repair(&path, folder.path().join(to))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{to}: {error}");
        assert!(
            error.to_string().contains("choose another folder"),
            "{error}"
        );
    }
    assert_eq!(snapshot(&path), before);
}
