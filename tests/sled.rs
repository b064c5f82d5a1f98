//! What only the sled backend promises: whose folder it takes, one sync a group, no loss at a kill,
//! damage that is never served.

#![cfg(feature = "sled")]

mod support {
    use std::{collections::BTreeMap, fs, path::Path, time::Duration};

    use batchyard::{NewRequest, Queue, QueueName, QueueOptions, SledQueue, SledStore, Timestamp};

    pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    /// A store and its queue `default`, which keeps its results for ever.
    pub(crate) async fn open(path: &Path) -> batchyard::Result<(SledStore, SledQueue)> {
        let options = QueueOptions::default().retention(Duration::MAX);
        let store = SledStore::options()
            .open_timeout(Duration::from_mins(1))
            .open(path)
            .await?;
        let queue = store.queue_with(&QueueName::default(), options).await?;
        Ok((store, queue))
    }

    pub(crate) async fn push(queue: &dyn Queue, payloads: impl IntoIterator<Item = Vec<u8>>) {
        let requests = payloads.into_iter().map(NewRequest::new).collect();
        queue.push(NOW, requests).await.expect("pushed");
    }

    /// A generator whose seed is printed, and taken from `SEED` to do the same again.
    pub(crate) fn random() -> fastrand::Rng {
        let seed = std::env::var("SEED").ok();
        let seed = seed.and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("SEED={seed}");
        fastrand::Rng::with_seed(seed)
    }

    /// Every file under a folder with its bytes.
    pub(crate) fn snapshot(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![path.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.insert(path.display().to_string(), fs::read(&path).expect("a file"));
                }
            }
        }
        files
    }
}

mod refusals {
    use std::{fs, path::Path, time::Duration};

    use batchyard::{
        ErrorKind, NewRequest, Queue, QueueExt, QueueName, SledQueue, SledStore, Store,
    };

    use super::support::{self, NOW};

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
}

mod syncs {
    use batchyard::{NewRequest, QueueName, SledStore, Store};
    use tokio::task::JoinSet;

    use super::support::NOW;

    #[tokio::test]
    async fn a_push_is_answered_after_a_sync_of_its_own_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = SledStore::open(folder.path()).await.expect("opens");
        let queue = store.queue(&QueueName::default()).await.expect("opens");
        for _ in 0..10 {
            let before = store.sync_count();
            queue
                .push(NOW, vec![NewRequest::new("a")])
                .await
                .expect("pushed");
            assert_eq!(store.sync_count(), before + 1);
        }
        let before = store.sync_count();
        queue.stats(NOW).await.expect("stats");
        queue.push(NOW, Vec::new()).await.expect("nothing pushed");
        assert_eq!(
            store.sync_count(),
            before,
            "what changes nothing syncs nothing"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sixty_four_producers_share_their_syncs() {
        const PRODUCERS: usize = 64;
        const PUSHES: usize = 20;
        let folder = tempfile::tempdir().expect("a folder");
        let store = SledStore::open(folder.path()).await.expect("opens");
        let queue = store.queue(&QueueName::default()).await.expect("opens");
        let before = store.sync_count();
        let mut producers = JoinSet::new();
        for _ in 0..PRODUCERS {
            let queue = queue.clone();
            producers.spawn(async move {
                for _ in 0..PUSHES {
                    queue
                        .push(NOW, vec![NewRequest::new("a")])
                        .await
                        .expect("pushed");
                }
            });
        }
        producers.join_all().await;
        let syncs = store.sync_count() - before;
        let pushes = (PRODUCERS * PUSHES) as u64;
        println!("{pushes} pushes of {PRODUCERS} producers in {syncs} syncs");
        assert!(
            syncs >= PUSHES as u64,
            "each producer waits for each of its pushes"
        );
        assert!(syncs * 4 <= pushes, "{syncs} syncs for {pushes} pushes");
    }
}

mod damage {
    use std::{
        collections::BTreeMap,
        fs,
        path::{Path, PathBuf},
    };

    use batchyard::{
        Claim, ErrorKind, List, Outcome, Page, Queue, SledQueue, State, Store, Then, Update,
    };

    use super::support::{self, NOW};

    fn copy(from: &Path, to: &Path) {
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

    #[tokio::test]
    async fn damage_gives_the_right_data_or_an_error() {
        let mut random = support::random();
        let folder = tempfile::tempdir().expect("a folder");
        let whole = folder.path().join("whole");
        let (store, queue) = support::open(&whole).await.expect("opens");
        for _ in 0..30 {
            let sizes = (0..5).map(|_| random.usize(..3_000)).collect::<Vec<_>>();
            support::push(
                &queue,
                sizes.into_iter().map(|size| vec![random.u8(..); size]),
            )
            .await;
        }
        let claim = Claim {
            max_requests: std::num::NonZeroU32::new(60).expect("not zero"),
            ..Claim::new()
        };
        let lease = queue
            .claim(NOW, &claim)
            .await
            .expect("claims")
            .expect("a batch");
        let members = queue.read(&lease, Page::first()).await.expect("reads");
        let outcomes = members
            .iter()
            .take(20)
            .map(|member| (member.id, Outcome::result("r")));
        let update = Update {
            outcomes: outcomes.collect(),
            checkpoint: None,
            then: Then::Hold { until: lease.until },
        };
        queue.update(NOW, &lease, update).await.expect("records");
        store.close().await.expect("closes");
        let right = everything(&whole).await.expect("whole");
        let (mut served, mut refused) = (0, 0);
        for round in 0..60 {
            let path = folder.path().join(format!("damaged-{round}"));
            copy(&whole, &path);
            let what = damage(&mut random, &path);
            match everything(&path).await {
                Ok(all) => {
                    assert_eq!(all, right, "round {round}: {what}");
                    served += 1;
                }
                Err(error) => {
                    let kind = error.kind();
                    let known = matches!(kind, ErrorKind::Corrupt | ErrorKind::Poisoned);
                    assert!(known, "round {round}: {what}: {kind:?} {error}");
                    refused += 1;
                }
            }
            fs::remove_dir_all(&path).expect("removed");
        }
        println!("{served} served as they were, {refused} refused");
        assert!(refused > 0, "the damage reached nothing");
    }
}

/// A child process is killed at random moments; what it had been told is there afterwards.
mod kills {
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
        BatchId, Claim, ErrorKind, Lease, List, NewRequest, Outcome, Page, Queue, RequestId,
        Retries, SledQueue, SledStore, State, Store, Then, Timestamp, Update,
    };

    use super::support;

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
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let lines = output.lines().map_while(Result::ok);
        lines.filter_map(|line| {
            let words = line.strip_prefix("ack ")?.split(' ');
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
    }
}
