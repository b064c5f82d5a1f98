//! Stores in real folders, damaged from outside: what is served is right, what is missing is told, and `verify` finds it
//! without changing anything.
//!
//! `BATCHYARD_SEED` tries others; `BATCHYARD_LONG` makes it longer, and `BATCHYARD_CYCLES` as long as wanted.
#![cfg(all(feature = "journal", feature = "sled", feature = "testing"))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod journal;
#[cfg(feature = "cli")]
mod program;
mod sled;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use batchyard::{
    Administration, Bookmark, Claim, DeadReason, List, NewRequest, Outcome, Page, Queue, QueueName,
    Result, Retries, State, Store, Then, Timestamp, Update,
};
use bytes::Bytes;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// What was pushed, by queue and id.
type Payloads = BTreeMap<(String, String), Bytes>;

/// A record of every kind, in two queues; what is in flight is left so.
async fn fill(store: &dyn Store) -> Payloads {
    let mut payloads = Payloads::new();
    for name in ["default", "mail"] {
        let queue = store.queue(&name.parse().unwrap()).await.unwrap();
        fill_queue(&*queue, name, &mut payloads).await;
    }
    payloads
}

async fn fill_queue(queue: &dyn Queue, name: &str, payloads: &mut Payloads) {
    let new =
        |index: usize| NewRequest::new(format!("{name} {index} {}", "x".repeat(index * 37 % 900)));
    let mut requests: Vec<NewRequest> = (0..40).map(new).collect();
    let later = NOW.after(Duration::from_secs(9000));
    requests.push(new(40).not_before(later).attribute("kind", "some"));
    requests.push(new(41).idempotency_key("a key"));
    for some in requests.chunks(7) {
        let bookmark = Bookmark {
            source: "a file".into(),
            value: Bytes::from_static(b"line 7"),
        };
        let pushed = queue.push_from(NOW, some.to_vec(), bookmark).await.unwrap();
        for (pushed, new) in pushed.iter().zip(some) {
            let id = (name.to_owned(), pushed.id.to_string());
            payloads.insert(id, new.payload.clone());
        }
    }
    let claim = Claim {
        max_requests: 8.try_into().unwrap(),
        lease_duration: Duration::from_secs(600),
        ..Claim::new()
    };
    let retries = Retries {
        at: NOW.after(Duration::from_secs(60)),
        max_attempts: 3.try_into().unwrap(),
    };
    let reject = Outcome::Reject {
        reason: DeadReason::Undecodable,
        error: "not JSON".into(),
    };
    let kinds = [
        Outcome::done(),
        Outcome::result("a result"),
        Outcome::retry("once more"),
        reject,
    ];
    let until = NOW.after(Duration::from_secs(600));
    let endings = [
        Then::Finish {
            rest: Outcome::result("of the rest"),
            retries,
        },
        Then::Split { retries },
        Then::Defer { until },
        Then::Hold { until },
    ];
    for then in endings {
        let lease = queue.claim(NOW, &claim).await.unwrap().unwrap();
        let members = queue.read(&lease, Page::first()).await.unwrap();
        let ids = members.iter().map(|member| member.id);
        let update = Update {
            outcomes: ids.clone().zip(kinds.clone()).collect(),
            checkpoint: Some(Bytes::from_static(b"a checkpoint")),
            then,
        };
        queue.update(NOW, &lease, update).await.unwrap();
        let marked: Vec<_> = ids.skip(7).collect();
        admin(queue).cancel(NOW, &marked).await.unwrap();
    }
}

fn admin(queue: &dyn Queue) -> &dyn Administration {
    queue.admin().unwrap()
}

/// All that a store says, by queue, id and state; fails if it is wrong, or does not add up.
async fn look(store: &dyn Store, payloads: &Payloads) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for name in store.queues("").await? {
        let queue = store.queue(&name).await?;
        look_at(&*queue, &name, payloads, &mut all).await?;
    }
    Ok(all)
}

async fn look_at(
    queue: &dyn Queue,
    name: &QueueName,
    payloads: &Payloads,
    all: &mut BTreeMap<String, String>,
) -> Result<()> {
    let stats = queue.stats(NOW).await?;
    assert!(stats.adds_up(), "{stats:?}");
    let counts = [
        (State::Delayed, Some(stats.delayed)),
        (State::Ready, Some(stats.ready)),
        (State::InFlight, Some(stats.in_flight)),
        (State::Done, None),
        (State::Dead, Some(stats.dead)),
    ];
    for (state, count) in counts {
        let entries = admin(queue)
            .list(NOW, &List::new(state).with_payloads())
            .await?;
        let listed = entries.len() as u64;
        assert!(
            count.is_none_or(|count| count == listed),
            "{listed} {state:?} in {stats:?}"
        );
        for entry in entries {
            let id = (name.to_string(), entry.id.to_string());
            if let Some(payload) = &entry.payload {
                // A queue whose name is lost is called by its number.
                let is_lost = name.as_str().starts_with("recovered-");
                let of_any = |((_, other), pushed): (&(String, String), &Bytes)| {
                    *other == id.1 && pushed == payload
                };
                let is_right =
                    payloads.get(&id) == Some(payload) || (is_lost && payloads.iter().any(of_any));
                assert!(is_right, "never pushed: {entry:?}");
            }
            all.insert(format!("{id:?}"), format!("{entry:?}"));
        }
    }
    // When batches are offered again depends on when the store was opened.
    let counted = (stats.pushed, stats.done, stats.held_bytes, stats.batches);
    all.insert(format!("{name}"), format!("{counted:?}"));
    Ok(())
}

/// Every file below a folder: its bytes, and when it was changed.
fn snapshot(path: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut files = BTreeMap::new();
    for path in files_of(path) {
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        let bytes = fs::read(&path).unwrap();
        files.insert(path, (bytes, changed));
    }
    files
}

fn files_of(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_of(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Damages one file of a store, or two; says how.
fn damage(dice: &mut fastrand::Rng, store: &Path) -> String {
    let files = files_of(store);
    let path = &files[dice.usize(..files.len())];
    let mut bytes = fs::read(path).unwrap();
    let shown = path.strip_prefix(store).unwrap().display();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    let at = dice.usize(..used.max(1)).min(bytes.len().saturating_sub(1));
    let what = match dice.u8(..8) {
        0 => {
            fs::remove_file(path).unwrap();
            return format!("{shown} is gone");
        }
        1 => {
            let other = &files[dice.usize(..files.len())];
            let others = fs::read(other).unwrap();
            fs::write(path, others).unwrap();
            fs::write(other, bytes).unwrap();
            let other = other.strip_prefix(store).unwrap().display();
            return format!("{shown} and {other} are swapped");
        }
        2 => {
            bytes.truncate(at);
            format!("{shown} ends at {at}")
        }
        3 => {
            let page = at / 4096 * 4096;
            let end = bytes.len().min(page + 4096);
            bytes[page..end].fill(0);
            format!("page {page} of {shown} is blank")
        }
        _ if bytes.is_empty() => "nothing".to_owned(),
        _ => {
            bytes[at] ^= 1 << dice.u8(..8);
            format!("a bit of byte {at} of {shown}")
        }
    };
    fs::write(path, bytes).unwrap();
    what
}

fn is_long() -> bool {
    std::env::var_os("BATCHYARD_LONG").is_some()
}

/// How many cycles are wanted.
fn cycles(quick: u64, long: u64) -> u64 {
    let wanted = std::env::var("BATCHYARD_CYCLES").ok();
    let wanted = wanted.and_then(|wanted| wanted.parse().ok());
    wanted.unwrap_or(if is_long() { long } else { quick })
}

/// The seed of a run, which is printed: another one each time in the long run.
fn seed() -> u64 {
    let seed = std::env::var("BATCHYARD_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| if is_long() { fastrand::u64(..) } else { 1 });
    println!("BATCHYARD_SEED={seed}");
    seed
}

/// Nothing takes so long unless it hangs.
async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_mins(2), future).await;
    done.unwrap_or_else(|_| panic!("it hangs: {what}"))
}
