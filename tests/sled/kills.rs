//! A child process is killed at random moments; what it had been told is there afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    num::NonZeroU32,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use batchyard::{
    BatchId, Claim, ErrorKind, Lease, List, NewRequest, Outcome, Page, Queue, RequestId, Retries,
    SledQueue, SledStore, State, Store, Then, Timestamp, Update,
};

use crate::support;

const STORE: &str = "BATCHYARD_TEST_STORE";
const SEED: &str = "BATCHYARD_TEST_SEED";
const CYCLES: usize = 10;

/// Runs one of the ignored tests below as a child that works on this store.
fn child(test: &str, store: &Path, seed: u64) -> Child {
    let program = std::env::current_exe().expect("this program");
    Command::new(program)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(STORE, store)
        .env(SEED, seed.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child")
}

fn lines(child: &mut Child) -> impl Iterator<Item = Vec<String>> + use<> {
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let lines = std::iter::from_fn(move || {
        let mut line = String::new();
        output.read_line(&mut line).ok()?;
        // One that was cut off by a kill says nothing.
        line.ends_with('\n').then_some(line)
    });
    lines.filter_map(|line| {
        let words = line.trim_end_matches('\n').strip_prefix("ack ")?.split(' ');
        Some(words.map(str::to_owned).collect())
    })
}

#[tokio::test]
async fn a_store_that_is_open_elsewhere_names_the_pid() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut owner = child("kills::child_that_holds_the_store", folder.path(), 0);
    lines(&mut owner).next().expect("the child opened it");
    let error = SledStore::open(folder.path()).await.expect_err("locked");
    owner.kill().expect("killed");
    owner.wait().expect("gone");
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(
        error.to_string().contains(&owner.id().to_string()),
        "{error}"
    );
    SledStore::open(folder.path())
        .await
        .expect("opens when its owner is gone");
}

#[tokio::test]
#[ignore = "a child of a_store_that_is_open_elsewhere_names_the_pid"]
async fn child_that_holds_the_store() {
    let path = std::env::var_os(STORE).expect("a store");
    let _store = SledStore::open(path).await.expect("opens");
    tell("open");
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn tell(line: &str) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "ack {line}")
        .and_then(|()| output.flush())
        .expect("told");
}

fn ids(lease: &[RequestId]) -> String {
    lease
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

/// All members of a batch, and those of them that have no outcome yet.
async fn members(queue: &dyn Queue, lease: &Lease) -> (Vec<RequestId>, Vec<RequestId>) {
    let (mut page, mut all, mut open) = (Page::first(), Vec::new(), Vec::new());
    loop {
        let members = queue.read(lease, page).await.expect("reads");
        let Some(last) = members.last() else {
            return (all, open);
        };
        page = page.after(last.position);
        all.extend(members.iter().map(|member| member.id));
        let members = members.iter().filter(|member| member.outcome.is_none());
        open.extend(members.map(|member| member.id));
    }
}

/// Three producers, and a consumer that retries, rejects, splits, releases and finishes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a child of what_was_answered_survives_a_kill_at_any_moment"]
async fn child_that_works_until_it_is_killed() {
    let path = std::env::var_os(STORE).expect("a store");
    let (_store, queue) = support::open(Path::new(&path)).await.expect("opens");
    let queue = Arc::new(queue);
    let seed: u64 = std::env::var(SEED)
        .expect("a seed")
        .parse()
        .expect("a number");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..3 {
        let (queue, mut random) = (queue.clone(), random.fork());
        tokio::spawn(async move {
            loop {
                // Now and then one that takes several commits.
                let most = if random.u8(..20) == 0 { 2_500 } else { 30 };
                let count = random.usize(1..most);
                let new = (0..count).map(|_| NewRequest::new(vec![7; random.usize(..2_000)]));
                let pushed = queue
                    .push(queue.now(), new.collect())
                    .await
                    .expect("pushed");
                let pushed: Vec<_> = pushed.iter().map(|pushed| pushed.id).collect();
                tell(&format!("pushed {}", ids(&pushed)));
            }
        });
    }
    loop {
        step(&queue, &mut random).await;
    }
}

async fn step(queue: &SledQueue, random: &mut fastrand::Rng) {
    let claim = Claim {
        max_requests: NonZeroU32::new(random.u32(1..700)).expect("not zero"),
        lease_duration: Duration::from_hours(1),
        ..Claim::new()
    };
    let Some(lease) = queue.claim(queue.now(), &claim).await.expect("claims") else {
        tokio::task::yield_now().await;
        return;
    };
    let (members, open) = members(queue, &lease).await;
    tell(&format!("claimed {} {}", lease.batch, ids(&members)));
    let outcomes = open.iter().filter_map(|id| match random.u8(..20) {
        0 => Some((*id, Outcome::retry("again"))),
        1 => Some((*id, Outcome::reject("never"))),
        2..10 => Some((*id, Outcome::result(vec![1; random.usize(..2_000)]))),
        _ => None,
    });
    let outcomes = outcomes.collect::<Vec<_>>();
    let done = outcomes
        .iter()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Done { .. }));
    let done: Vec<RequestId> = done.map(|(id, _)| *id).collect();
    let retries = Retries {
        at: queue.now(),
        max_attempts: NonZeroU32::new(3).expect("not zero"),
    };
    let (then, ends) = match random.u8(..8) {
        0 => (Then::Release, false),
        1 => (Then::Defer { until: queue.now() }, false),
        2 if open.len() - outcomes.len() >= 2 => (Then::Split { retries }, true),
        3 => (
            Then::Finish {
                rest: Outcome::retry("all"),
                retries,
            },
            true,
        ),
        _ => (
            Then::Finish {
                rest: Outcome::done(),
                retries,
            },
            true,
        ),
    };
    let update = Update {
        outcomes,
        checkpoint: Some("here".into()),
        then,
    };
    queue
        .update(queue.now(), &lease, update)
        .await
        .expect("updates");
    tell(&format!("done {}", ids(&done)));
    if ends {
        tell(&format!("ended {}", lease.batch));
    }
}

/// What the child was told before it was killed.
#[derive(Default)]
struct Told {
    pushed: BTreeSet<String>,
    done: BTreeSet<String>,
    batches: BTreeMap<String, String>,
    ended: BTreeSet<String>,
}

impl Told {
    fn hear(&mut self, words: &[String]) {
        let list = |words: &str| {
            words
                .split(',')
                .filter(|id| !id.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        match words {
            [verb, ids] if verb == "pushed" => self.pushed.extend(list(ids)),
            [verb, ids] if verb == "done" => self.done.extend(list(ids)),
            [verb, batch] if verb == "ended" => {
                self.ended.insert(batch.clone());
            }
            [verb, batch, ids] if verb == "claimed" => {
                let known = self.batches.insert(batch.clone(), ids.clone());
                assert!(
                    known.is_none_or(|known| known == *ids),
                    "batch {batch} changed"
                );
            }
            other => panic!("the child said {other:?}"),
        }
    }

    async fn check(&self, queue: &SledQueue) {
        let now = Timestamp::MAX.before(Duration::from_hours(1));
        let stats = queue.stats(queue.now()).await.expect("stats");
        assert!(stats.adds_up(), "{stats:?}");
        let found = states(queue).await;
        let lost: Vec<_> = self
            .pushed
            .iter()
            .filter(|id| !found.contains_key(*id))
            .collect();
        assert!(lost.is_empty(), "lost {lost:?}");
        let undone: Vec<_> = self
            .done
            .iter()
            .filter(|id| found[*id] != State::Done)
            .collect();
        assert!(undone.is_empty(), "not done any more: {undone:?}");
        for (state, count) in [
            (State::Ready, stats.ready),
            (State::InFlight, stats.in_flight),
            (State::Done, stats.done),
            (State::Dead, stats.dead),
        ] {
            let held = found.values().filter(|held| **held == state).count() as u64;
            assert_eq!(held, count, "{state}");
        }
        // Whoever held a batch is gone: all of them are offered again, as they were.
        let claim = Claim {
            form: false,
            lease_duration: Duration::from_hours(1),
            ..Claim::new()
        };
        let mut leases = Vec::new();
        while let Some(lease) = queue.claim(now, &claim).await.expect("claims") {
            let members = ids(&members(queue, &lease).await.0);
            let id: BatchId = lease.batch;
            if let Some(known) = self.batches.get(&id.to_string()) {
                assert_eq!(*known, members, "batch {id} came back with other members");
            }
            assert!(
                !self.ended.contains(&id.to_string()),
                "batch {id} had ended"
            );
            leases.push(lease);
        }
        for lease in leases {
            let release = Update::then(Then::Release);
            queue
                .update(queue.now(), &lease, release)
                .await
                .expect("releases");
        }
    }
}

async fn states(queue: &SledQueue) -> BTreeMap<String, State> {
    let admin = queue.admin().expect("administration");
    let mut states = BTreeMap::new();
    for state in [State::Ready, State::InFlight, State::Done, State::Dead] {
        let mut list = List::new(state);
        loop {
            let page = admin.list(queue.now(), &list).await.expect("lists");
            let Some(end) = page.last() else { break };
            list = list.after(end.id);
            for entry in page {
                let before = states.insert(entry.id.to_string(), entry.state);
                assert_eq!(before, None, "request {} is in two states", entry.id);
            }
        }
    }
    states
}

#[tokio::test]
async fn what_was_answered_survives_a_kill_at_any_moment() {
    let mut random = support::random();
    let folder = tempfile::tempdir().expect("a folder");
    let mut told = Told::default();
    for cycle in 0..CYCLES {
        let mut worker = child(
            "kills::child_that_works_until_it_is_killed",
            folder.path(),
            random.u64(..),
        );
        let mut heard = lines(&mut worker);
        let most = random.usize(1..80);
        println!("cycle {cycle}: killed after {most} answers");
        for words in heard.by_ref().take(most) {
            told.hear(&words);
        }
        worker.kill().expect("killed");
        heard.for_each(|words| told.hear(&words));
        worker.wait().expect("gone");
        let (store, queue) = support::open(folder.path())
            .await
            .expect("opens after a kill");
        told.check(&queue).await;
        store.close().await.expect("closes");
    }
    println!(
        "{} pushed, {} done, {} batches",
        told.pushed.len(),
        told.done.len(),
        told.batches.len()
    );
    assert!(!told.done.is_empty() && !told.ended.is_empty());
    #[cfg(feature = "testing")]
    batchyard::testing::proof(
        "G1 G2 G3 G4 G5",
        "sled",
        format!(
            "{CYCLES} kills, {} acknowledged requests",
            told.pushed.len()
        ),
        &[],
    );
}

#[tokio::test]
async fn a_snapshot_that_a_crash_has_cut_off_is_no_damage() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store");
    let (store, queue) = support::open(&path).await.expect("opened");
    support::push(&queue, [b"a".to_vec()]).await;
    store.close().await.expect("closed");
    // sled takes the last one that is there.
    let cut_off = path.join("sled/snap.7FFFFFFFFFFFFFFF.generating");
    std::fs::write(&cut_off, [1; 100]).expect("written");
    let (_store, queue) = support::open(&path).await.expect("opened again");
    assert_eq!(queue.stats(support::NOW).await.expect("stats").ready, 1);
    assert!(!cut_off.exists());
}
