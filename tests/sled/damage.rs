//! Damage is never served, and a repair saves what is left.

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use batchyard::{
    Claim, ErrorKind, List, NewRequest, Outcome, Page, Queue, Retries, SledQueue, SledStore, State,
    Store, Then, Update,
};

use crate::support::{self, NOW};

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copied");
        }
    }
}

/// Flips bits of a file, zeroes a page of it, or cuts it; says what it did.
fn damage(random: &mut fastrand::Rng, store: &Path) -> String {
    let mut files: Vec<PathBuf> = fs::read_dir(store.join("sled"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let path = &files[random.usize(..files.len())];
    let mut bytes = fs::read(path).expect("read");
    let used = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(1, |last| last + 1);
    let what = match random.u8(..3) {
        0 => {
            for _ in 0..random.usize(1..64) {
                bytes[random.usize(..used)] ^= 1 << random.u8(..8);
            }
            "flipped bits"
        }
        1 => {
            let start = random.usize(..used);
            let end = (start + 4096).min(bytes.len());
            bytes[start..end].fill(0);
            "zeroed a page"
        }
        _ => {
            bytes.truncate(random.usize(..used));
            "cut"
        }
    };
    fs::write(path, bytes).expect("written");
    format!(
        "{what} of {}",
        path.file_name().unwrap_or_default().display()
    )
}

/// Everything the store says, by id; or why it says nothing.
async fn everything(path: &Path) -> batchyard::Result<BTreeMap<String, String>> {
    let (store, queue) = support::open(path).await?;
    let all = look(&queue).await;
    let closed = store.close().await;
    // Damage that nobody had to read may still be met by the close.
    all.and_then(|all| closed.map(|()| all))
}

async fn look(queue: &SledQueue) -> batchyard::Result<BTreeMap<String, String>> {
    let admin = queue.admin().expect("administration");
    let mut all = BTreeMap::new();
    for state in [
        State::Delayed,
        State::Ready,
        State::InFlight,
        State::Done,
        State::Dead,
    ] {
        for entry in admin.list(NOW, &List::new(state).with_payloads()).await? {
            all.insert(entry.id.to_string(), format!("{entry:?}"));
        }
    }
    let stats = queue.stats(NOW).await?;
    assert!(stats.adds_up(), "{stats:?}");
    all.insert("stats".into(), format!("{stats:?}"));
    Ok(all)
}

/// A closed store with requests ready and delayed, dead letters, and a batch half done; each
/// payload, by id, as it is shown.
async fn filled(random: &mut fastrand::Rng, path: &Path) -> BTreeMap<String, String> {
    let (store, queue) = support::open(path).await.expect("opens");
    let mut payloads = BTreeMap::new();
    for _ in 0..30 {
        let mut fresh = || vec![random.u8(..); random.usize(..3_000)];
        let new: Vec<_> = (0..5).map(|_| NewRequest::new(fresh())).collect();
        let pushed = queue.push(NOW, new.clone()).await.expect("pushed");
        for (pushed, new) in pushed.iter().zip(new) {
            payloads.insert(pushed.id.to_string(), format!("Some({:?})", new.payload));
        }
    }
    let later = NewRequest::new("later").not_before(NOW.after(Duration::from_hours(1)));
    queue.push(NOW, vec![later; 20]).await.expect("pushed");
    let claim = Claim {
        max_requests: NonZeroU32::new(60).expect("not zero"),
        ..Claim::new()
    };
    let first = queue.claim(NOW, &claim).await.expect("claims");
    let retries = Retries {
        at: NOW,
        max_attempts: NonZeroU32::MIN,
    };
    let rest = Outcome::reject("never");
    let finish = Update::then(Then::Finish { rest, retries });
    queue
        .update(NOW, &first.expect("a batch"), finish)
        .await
        .expect("settles");
    let lease = queue.claim(NOW, &claim).await.expect("claims");
    let lease = lease.expect("a batch");
    let members = queue.read(&lease, Page::first()).await.expect("reads");
    let outcomes = members.iter().take(20);
    let outcomes = outcomes.map(|member| (member.id, Outcome::result("r")));
    let update = Update {
        outcomes: outcomes.collect(),
        checkpoint: None,
        then: Then::Hold { until: lease.until },
    };
    queue.update(NOW, &lease, update).await.expect("records");
    store.close().await.expect("closes");
    payloads
}

#[tokio::test]
async fn damage_gives_the_right_data_or_an_error_and_a_repair_what_is_left() {
    let mut random = support::random();
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("whole");
    let payloads = filled(&mut random, &whole).await;
    let right = everything(&whole).await.expect("whole");
    let (mut served, mut repaired, mut lost) = (0, 0, 0);
    for round in 0..20 {
        let path = folder.path().join(format!("damaged-{round}"));
        copy(&whole, &path);
        let what = damage(&mut random, &path);
        match everything(&path).await {
            Ok(all) => {
                assert_eq!(all, right, "round {round}: {what}");
                served += 1;
                continue;
            }
            Err(error) => {
                let kind = error.kind();
                let known = matches!(kind, ErrorKind::Corrupt | ErrorKind::Poisoned);
                assert!(known, "round {round}: {what}: {kind:?} {error}");
            }
        }
        let mended = folder.path().join(format!("mended-{round}"));
        match SledStore::repair(&path, &mended).await {
            Ok(saved) => {
                let left = everything(&mended)
                    .await
                    .expect("a repaired store is sound");
                let all = right.keys().all(|id| left.contains_key(id));
                assert!(all || !saved.is_whole(), "round {round}: {what}: {saved:?}");
                for (id, entry) in &left {
                    let pushed = payloads
                        .get(id)
                        .filter(|_| entry.contains("payload: Some("));
                    let kept = pushed.is_none_or(|pushed| entry.contains(pushed));
                    let damaged = entry.contains("Damaged");
                    assert!(kept || damaged, "round {round}: {what}: {entry}");
                }
                repaired += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
                lost += 1;
            }
        }
    }
    println!("{served} served as they were, {repaired} repaired, {lost} past repair");
    assert!(repaired > 0, "nothing was damaged and repaired");
}

#[tokio::test]
async fn a_repair_of_what_is_not_damaged_loses_nothing() {
    let mut random = support::random();
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, mended) = (folder.path().join("whole"), folder.path().join("mended"));
    filled(&mut random, &whole).await;
    let right = everything(&whole).await.expect("whole");
    let before = support::snapshot(&whole.join("sled"));
    let repaired = SledStore::repair(&whole, &mended).await.expect("repaired");
    assert_eq!(
        (repaired.damaged, repaired.torn, repaired.queues),
        (0, 0, 1)
    );
    assert_eq!((repaired.held, repaired.dead), (90, 60));
    assert!(repaired.is_whole(), "{repaired:?}");
    assert_eq!(
        support::snapshot(&whole.join("sled")),
        before,
        "it was only read"
    );
    let mut left = everything(&mended).await.expect("sound");
    let (stats, now) = (right["stats"].clone(), left.remove("stats").expect("stats"));
    let counts = |stats: &str| stats.split("offered").next().map(str::to_owned);
    assert_eq!(counts(&now), counts(&stats));
    for (id, entry) in left {
        assert_eq!(entry, right[&id]);
    }
    let again = SledStore::repair(&whole, &mended)
        .await
        .expect_err("it is a store");
    assert_eq!(again.kind(), ErrorKind::Invalid);
}
