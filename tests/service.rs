//! Running as a service: systemd, `health`, the files in `contrib`, and what another version does to a store.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    num::NonZeroU32,
    os::unix::net::{UnixDatagram, UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use batchyard::{
    Batch, Claim, ControlAccess, Dispatcher, Error, Event, HandlerError, Lease, Member,
    MemoryStore, NewRequest, Page, Policy, Pushed, Queue, QueueExt, QueueName, QueueOptions,
    Report, Result, Stats, Store, Timestamp, Update, serve_control,
};
use tempfile::TempDir;

const UNIT: &str = include_str!("../contrib/batchyard.service");
const CONTAINERFILE: &str = include_str!("../contrib/Containerfile");

fn program(folder: &Path, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_batchyard"));
    command.current_dir(folder).args(words.split_whitespace());
    for name in [
        "RUST_LOG",
        "BATCHYARD_REDIS_URL",
        "BATCHYARD_BACKEND",
        "NOTIFY_SOCKET",
    ] {
        command.env_remove(name);
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Its exit code and all that it said.
fn told(output: &Output) -> (Option<i32>, String) {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&both).into_owned(),
    )
}

fn run(folder: &Path, words: &str, input: &str) -> (Option<i32>, String) {
    let mut child = program(folder, words).spawn().unwrap();
    // Who refuses does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    told(&child.wait_with_output().unwrap())
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([name, &pid])
            .status()
            .unwrap()
            .success()
    );
}

/// A socket that systemd would listen at.
struct Manager(UnixDatagram);

impl Manager {
    fn new(folder: &Path) -> Self {
        let socket = UnixDatagram::bind(folder.join("notify")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Self(socket)
    }

    fn next(&self) -> String {
        let mut text = [0; 4096];
        let length = self.0.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    }

    /// Reads up to a notice that has this in it.
    fn wait(&self, part: &str) -> String {
        loop {
            let notice = self.next();
            if notice.contains(part) {
                return notice;
            }
        }
    }
}

#[test]
fn systemd_is_told_that_it_is_ready_lives_and_stops() {
    let folder = TempDir::new().unwrap();
    let manager = Manager::new(folder.path());
    let mut command = program(folder.path(), "dispatch --store store -- cat");
    command
        .env("NOTIFY_SOCKET", folder.path().join("notify"))
        .env("WATCHDOG_USEC", "400000");
    let mut child = command.spawn().unwrap();
    assert_eq!(manager.next(), "STATUS=opening the store");
    assert_eq!(manager.next(), "READY=1\nSTATUS=serving");
    // Ready is what can be asked.
    assert_eq!(run(folder.path(), "health --store store", "").0, Some(0));
    assert_eq!(run(folder.path(), "push --store store", "1\n").0, Some(0));
    for _ in 0..3 {
        assert_eq!(manager.next(), "WATCHDOG=1");
    }
    signal(&child, "-TERM");
    manager.wait("STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    manager.0.set_nonblocking(true).unwrap();
    assert!(manager.0.recv(&mut [0; 16]).is_err(), "no ping after that");
}

#[test]
fn a_program_without_a_watchdog_of_its_own_does_not_ping() {
    let folder = TempDir::new().unwrap();
    let manager = Manager::new(folder.path());
    let mut command = program(folder.path(), "dispatch --store store --drain -- cat");
    command.env("NOTIFY_SOCKET", folder.path().join("notify"));
    command
        .env("WATCHDOG_USEC", "1000")
        .env("WATCHDOG_PID", "1");
    assert!(command.output().unwrap().status.success());
    manager.0.set_nonblocking(true).unwrap();
    let notices: Vec<String> = std::iter::from_fn(|| {
        let mut text = [0; 4096];
        let length = manager.0.recv(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text[..length]).into_owned())
    })
    .collect();
    assert_eq!(
        notices,
        [
            "STATUS=opening the store",
            "READY=1\nSTATUS=serving",
            "STOPPING=1\nSTATUS=stopping"
        ]
    );
}

/// How often a dispatcher passes this point until it is ready.
#[cfg(feature = "faults")]
fn passes(folder: &Path, manager: &Manager, point: &str) -> usize {
    let passed = folder.join("passed");
    let mut command = program(folder, "dispatch --store store --queue other -- cat");
    command
        .env("NOTIFY_SOCKET", folder.join("notify"))
        .env("BATCHYARD_PASSED", &passed);
    let mut child = command.spawn().unwrap();
    manager.wait("READY=1");
    signal(&child, "-KILL");
    child.wait().unwrap();
    let passed = fs::read_to_string(passed).unwrap();
    passed.lines().filter(|line| *line == point).count()
}

#[cfg(feature = "faults")]
#[test]
fn a_dispatcher_whose_store_is_poisoned_ends_and_the_next_one_opens_it() {
    for (backend, point) in [("sled", "sled.sync"), ("journal", "journal.sync")] {
        let folder = TempDir::new().unwrap();
        let words = format!("push --store store --backend {backend}");
        assert_eq!(run(folder.path(), &words, "1\n").0, Some(0));
        let manager = Manager::new(folder.path());
        let before = passes(folder.path(), &manager, point);
        let mut command = program(folder.path(), "dispatch --store store --queue other -- cat");
        command
            .env("NOTIFY_SOCKET", folder.path().join("notify"))
            .env("FAILPOINTS", format!("{point}={before}*off->return(eio)"));
        let mut child = command.spawn().unwrap();
        manager.wait("READY=1");
        let push = || run(folder.path(), "push --store store", "1\n");
        let mut pushes = 0;
        while child.try_wait().unwrap().is_none() && pushes < 1000 {
            push();
            pushes += 1;
        }
        assert_eq!(child.wait().unwrap().code(), Some(1), "{backend}");
        manager.wait("STOPPING=1");
        let (code, said) = run(folder.path(), "health --store store", "");
        assert_eq!(code, Some(3), "{backend}: {said}");
        assert_eq!(push().0, Some(0), "{backend}: it can be opened again");
    }
}

/// A store in memory with a dispatcher, served in a folder of its own.
struct Owner {
    folder: TempDir,
    queue: Arc<dyn Queue>,
    running: batchyard::RunningDispatcher,
    events: tokio::sync::broadcast::Receiver<Event>,
    _control: batchyard::ControlServer,
}

impl Owner {
    async fn new(store: Arc<dyn Store>, handler: impl batchyard::BatchHandler) -> Self {
        let folder = TempDir::new().unwrap();
        let queue = store.queue(&QueueName::default()).await.unwrap();
        let policy = Policy {
            queue_threshold: NonZeroU32::MIN,
            max_in_flight: NonZeroU32::MIN,
            initial_backoff: Duration::from_secs(60),
            ..Policy::default()
        };
        let dispatcher = Dispatcher::builder(Arc::clone(&queue))
            .policy(policy)
            .handler(handler);
        let (running, events) = dispatcher.build().unwrap().start_observed();
        let handle = Some(running.handle());
        let control = serve_control(folder.path(), store, handle, ControlAccess::All).unwrap();
        Self {
            folder,
            queue,
            running,
            events,
            _control: control,
        }
    }

    async fn push(&self) {
        self.queue.push_one(NewRequest::new("1")).await.unwrap();
    }

    async fn wait(&mut self, pick: impl Fn(&Event) -> bool) {
        while !pick(&self.events.recv().await.unwrap()) {}
    }

    async fn health(&self, more: &str) -> (Option<i32>, String) {
        let words = format!("health --store {} {more}", self.folder.path().display());
        let folder = self.folder.path().to_owned();
        let asked = tokio::task::spawn_blocking(move || run(&folder, &words, ""));
        asked.await.unwrap()
    }
}

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new(QueueOptions::default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_hangs_and_a_pause_are_told_and_are_well() {
    let hang = |_: Batch| async {
        std::future::pending::<std::result::Result<Report, HandlerError>>().await
    };
    let mut owner = Owner::new(memory(), hang).await;
    owner.push().await;
    owner
        .wait(|event| matches!(event, Event::Claimed { .. }))
        .await;
    owner.push().await;
    let (code, said) = owner.health("").await;
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.starts_with("well") && said.contains("slots of the queue are in use"),
        "{said}"
    );
    owner.queue.pause().await.unwrap();
    let (code, said) = owner.health("").await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("has been paused since"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_told_and_is_well() {
    let down = |_: Batch| async { Err::<Report, _>(HandlerError::outage("down")) };
    let mut owner = Owner::new(memory(), down).await;
    owner.push().await;
    owner
        .wait(|event| matches!(event, Event::BreakerOpened { .. }))
        .await;
    let (code, said) = owner.health("").await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the handler reported an outage"), "{said}");
}

/// A queue from which nothing can be claimed, or not even that is answered.
#[derive(Clone, Debug)]
struct Unclaimable {
    queue: Arc<dyn Queue>,
    hangs: bool,
    poisoned: bool,
}

#[async_trait]
impl Queue for Unclaimable {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        self.queue.push(now, requests).await
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        self.queue.stats(now).await
    }

    async fn claim(&self, _: Timestamp, _: &Claim) -> Result<Option<Lease>> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        tokio::task::yield_now().await;
        Ok(None)
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        self.queue.read(lease, page).await
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        self.queue.update(now, lease, update).await
    }

    fn pushed(&self) -> Option<tokio::sync::watch::Receiver<u64>> {
        self.queue.pushed()
    }

    async fn bookmark(&self, source: &str) -> Result<Option<bytes::Bytes>> {
        if self.poisoned {
            return Err(Error::poisoned("a sync failed"));
        }
        self.queue.bookmark(source).await
    }
}

#[async_trait]
impl Store for Unclaimable {
    async fn queue(&self, _: &QueueName) -> Result<Arc<dyn Queue>> {
        Ok(Arc::new(self.clone()))
    }

    async fn queues(&self, _: &str) -> Result<Vec<QueueName>> {
        Ok(vec![QueueName::default()])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_due_and_not_claimed_from_is_stuck() {
    let done = |_: Batch| async { Ok::<_, HandlerError>(Report::done()) };
    for (hangs, exit, text) in [(false, 1, "is stuck"), (true, 7, "no answer within")] {
        let queue = memory().queue(&QueueName::default()).await.unwrap();
        let owner = Owner::new(
            Arc::new(Unclaimable {
                queue,
                hangs,
                poisoned: false,
            }),
            done,
        )
        .await;
        let (code, said) = owner.health("").await;
        assert_eq!(code, Some(0), "{said}");
        owner.push().await;
        // Its loop has seen the push.
        while !hangs && owner.running.handle().turned().await.is_err() {}
        let (code, said) = owner.health("--timeout 2s").await;
        assert_eq!(code, Some(exit), "{said}");
        assert!(said.contains(text), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_poisoned_is_not_well() {
    let done = |_: Batch| async { Ok::<_, HandlerError>(Report::done()) };
    let store = Unclaimable {
        queue: memory().queue(&QueueName::default()).await.unwrap(),
        hangs: false,
        poisoned: true,
    };
    let owner = Owner::new(Arc::new(store), done).await;
    let (code, said) = owner.health("").await;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.starts_with("not well") && said.contains("a sync failed"),
        "{said}"
    );
}

#[test]
fn a_store_that_is_open_and_not_served_is_no_store_that_nobody_has_open() {
    let folder = TempDir::new().unwrap();
    assert_eq!(run(folder.path(), "push --store store", "1\n").0, Some(0));
    let (code, said) = run(folder.path(), "health --store store", "");
    assert_eq!(code, Some(3), "{said}");
    let lock = fs::File::open(folder.path().join("store/LOCK")).unwrap();
    lock.try_lock().unwrap();
    fs::write(folder.path().join("store/LOCK"), "4711\n").unwrap();
    let (code, said) = run(folder.path(), "health --store store", "");
    assert_eq!(code, Some(7), "{said}");
    assert!(
        said.contains("pid 4711") && said.contains("serves it to nobody"),
        "{said}"
    );
}

/// The settings of the unit, the last one of a name.
fn unit() -> BTreeMap<&'static str, &'static str> {
    let lines = UNIT
        .lines()
        .filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
    lines.map(|line| line.split_once('=').unwrap()).collect()
}

/// Words of a command line, with `""` for an empty one, less the program.
fn words(line: &str) -> Vec<String> {
    let words = line.split_whitespace().skip(1);
    words.map(|word| word.replace("\"\"", "")).collect()
}

/// Has the options of a `dispatch` understood, on a store of this test, until it is drained.
fn dispatches(mut options: Vec<String>) {
    let folder = TempDir::new().unwrap();
    for option in &mut options {
        match option.as_str() {
            "/var/lib/batchyard/store" => *option = "store".into(),
            address if address.ends_with(":9464") => *option = "127.0.0.1:0".into(),
            _ => {}
        }
    }
    let end = options.iter().position(|word| word == "--").unwrap();
    options.splice(end.., ["--drain", "--", "cat"].map(str::to_owned));
    let output = program(folder.path(), "").args(&options).output().unwrap();
    let (code, said) = told(&output);
    assert_eq!(code, Some(0), "{options:?}: {said}");
    assert!(folder.path().join("store/FORMAT").exists());
}

#[test]
fn the_unit_starts_what_there_is_and_waits_longer_than_that_takes_to_stop() {
    let unit = unit();
    let start = words(unit["ExecStart"]);
    let seconds = |text: &str| -> u64 { text.trim_end_matches('s').parse().unwrap() };
    let at = start
        .iter()
        .position(|word| word == "--shutdown-timeout")
        .unwrap();
    assert!(seconds(unit["TimeoutStopSec"]) > seconds(&start[at + 1]));
    assert_eq!((unit["Type"], unit["KillSignal"]), ("notify", "SIGTERM"));
    assert_eq!(unit["SuccessExitStatus"], "143");
    let at = start.iter().position(|word| word == "--store").unwrap();
    let state = format!("/var/lib/{}/", unit["StateDirectory"]);
    assert!(start[at + 1].starts_with(&state));
    dispatches(start);
}

#[test]
fn systemd_takes_the_unit() {
    let folder = TempDir::new().unwrap();
    let own = UNIT.replace("/usr/local/bin/batchyard", env!("CARGO_BIN_EXE_batchyard"));
    let path = folder.path().join("batchyard.service");
    fs::write(&path, own).unwrap();
    let Ok(output) = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&path)
        .output()
    else {
        println!("skipped: systemd-analyze is not installed");
        return;
    };
    let (code, said) = told(&output);
    assert_eq!((code, said.as_str()), (Some(0), ""));
}

/// The last instruction of a name, in the last stage.
fn instruction(name: &str) -> &'static str {
    let stage = CONTAINERFILE.rsplit("\nFROM ").next().unwrap();
    let mut found = stage
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.next_back().unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn the_container_is_no_root_and_runs_what_there_is() {
    assert_eq!(
        CONTAINERFILE.matches("\nFROM ").count(),
        2,
        "built in one, run in another"
    );
    assert!(!instruction("USER").starts_with("root") && !instruction("USER").starts_with('0'));
    assert_eq!(instruction("STOPSIGNAL"), "SIGTERM");
    let json = |text: &str| -> Vec<String> { serde_json::from_str(text).unwrap() };
    assert_eq!(json(instruction("ENTRYPOINT")), ["batchyard"]);
    dispatches(json(instruction("CMD")));
    let health = instruction("HEALTHCHECK").split_once(" CMD ").unwrap().1;
    assert_eq!(
        json(health),
        ["batchyard", "health", "--store", "/var/lib/batchyard/store"]
    );
    let features = CONTAINERFILE.split("--features ").nth(1).unwrap();
    let features = features.split_whitespace().next().unwrap();
    let manifest = include_str!("../Cargo.toml");
    for feature in features.split(',') {
        assert!(manifest.contains(&format!("\n{feature} = [")), "{feature}");
    }
}

/// All files below a folder, but for the note of who locked it last.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else if !path.ends_with("LOCK") {
            files.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    files
}

#[test]
fn a_newer_format_of_either_backend_is_refused_by_every_verb_and_left_untouched() {
    for backend in ["sled", "journal"] {
        let folder = TempDir::new().unwrap();
        let store = folder.path().join("store");
        let words = format!("push --store store --backend {backend}");
        assert_eq!(run(folder.path(), &words, "1\n").0, Some(0));
        let format = fs::read_to_string(store.join("FORMAT")).unwrap();
        let newer = format.replace("version 1", "version 2");
        assert_ne!(newer, format);
        fs::write(store.join("FORMAT"), newer).unwrap();
        let before = snapshot(&store);
        for verb in [
            "push",
            "stats",
            "ls",
            "peek",
            "export",
            "dead ls",
            "dispatch --drain -- cat",
            "flush",
        ] {
            let (verb, rest) = verb
                .split_once(" --")
                .map_or((verb, ""), |(verb, _)| (verb, "--drain -- cat"));
            let (code, said) = run(
                folder.path(),
                &format!("{verb} --store store {rest}"),
                "1\n",
            );
            assert_eq!(code, Some(2), "{backend} {verb}: {said}");
            assert!(
                said.contains("format 2") && said.contains("newer version"),
                "{said}"
            );
        }
        assert_eq!(snapshot(&store), before, "{backend}");
    }
}

#[test]
fn a_dump_of_a_newer_format_is_refused_and_takes_nothing_in() {
    let folder = TempDir::new().unwrap();
    assert_eq!(run(folder.path(), "push --store store", "1\n").0, Some(0));
    let dump = program(folder.path(), "export --store store")
        .output()
        .unwrap()
        .stdout;
    let dump = String::from_utf8(dump).unwrap();
    let newer = dump.replace("\"format\":1", "\"format\":2");
    assert_ne!(newer, dump);
    let (code, said) = run(folder.path(), "import --store other", &newer);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("format 2") && said.contains("use a newer one"),
        "{said}"
    );
    let (code, said) = run(folder.path(), "queues --store other", "");
    assert!(
        code != Some(0) || said.is_empty() || {
            let (_, stats) = run(folder.path(), "stats --json --store other", "");
            stats.contains("\"pushed\":0")
        },
        "{said}"
    );
}

#[test]
fn an_owner_of_another_version_is_named() {
    let folder = TempDir::new().unwrap();
    let mut child = program(folder.path(), "dispatch --store store --json -- cat")
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    // What it answers to somebody who speaks another version, which is what one of another version answers to us.
    let mut stream = UnixStream::connect(folder.path().join("store/control.sock")).unwrap();
    stream.write_all(&[2, 0, 0, 0, 0, 99]).unwrap();
    let mut welcome = Vec::new();
    stream.read_to_end(&mut welcome).unwrap();
    signal(&child, "-TERM");
    child.wait().unwrap();
    // The length, that it is an answer, and the version of the protocol.
    assert_eq!(welcome[4], 0);
    welcome[5] += 1;
    let listener = UnixListener::bind(folder.path().join("store/control.sock")).unwrap();
    let owner = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 6]).unwrap();
        stream.write_all(&welcome).unwrap();
    });
    let (code, said) = run(folder.path(), "health --store store", "");
    owner.join().unwrap();
    assert_eq!(code, Some(7), "{said}");
    let version = format!("is batchyard {}", env!("CARGO_PKG_VERSION"));
    assert!(
        said.contains("another version of the control protocol") && said.contains(&version),
        "{said}"
    );
}

/// JSON of every line.
fn lines(text: &str) -> Vec<serde_json::Value> {
    let json = |line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?}"));
    text.lines().map(json).collect()
}

#[test]
fn logs_are_json_where_that_is_asked_for() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("in"), "1\n2\n").unwrap();
    for (words, by_environment) in [
        (
            "dispatch --log-format json --store store --drain --queue-threshold 1 -- false",
            false,
        ),
        (
            "--log-format json run in --out out --max-attempts 1 -- sh -c",
            false,
        ),
        ("push --store store in", true),
        ("stats --store nowhere", true),
    ] {
        let mut command = program(folder.path(), words);
        if words.ends_with("-c") {
            command.arg("echo said >&2; exit 1");
        }
        if by_environment {
            command.env("BATCHYARD_LOG_FORMAT", "json");
        }
        let mut child = command.spawn().unwrap();
        drop(child.stdin.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        for line in lines(&stderr) {
            assert!(
                line["timestamp"].is_string() && line["level"].is_string(),
                "{line}"
            );
            assert!(line["fields"]["message"].is_string(), "{line}");
        }
        assert_eq!(
            stderr.is_empty(),
            words.starts_with("push"),
            "{words}: {stderr}"
        );
    }
    let mut command = program(folder.path(), "stats --store store");
    let output = command.env("BATCHYARD_LOG_FORMAT", "xml").output().unwrap();
    let (code, said) = told(&output);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("text or json"), "{said}");
}

#[test]
fn no_payload_attribute_key_or_result_is_in_the_log_at_any_level() {
    const MARK: &str = "zz-marked-zz";
    for backend in ["sled", "journal"] {
        let folder = TempDir::new().unwrap();
        let input = format!("\"{MARK}-payload\"\n").repeat(3);
        let mut logs = String::new();
        let push = format!("push --store store --backend {backend}");
        let answer = format!(
            r#"while read -r line; do id=${{line#*\"id\":\"}}; id=${{id%%\"*}}; printf '{{"id":"%s","result":"{MARK}-result"}}\n' "$id"; done"#
        );
        for format in ["text", "json"] {
            for (words, script) in [
                (push.as_str(), None),
                (
                    "dispatch --store store --drain -- sh -c",
                    Some(answer.as_str()),
                ),
            ] {
                let mut command = program(folder.path(), words);
                command.args(script);
                command
                    .env("RUST_LOG", "trace")
                    .env("BATCHYARD_LOG_FORMAT", format);
                let mut child = command.spawn().unwrap();
                child
                    .stdin
                    .take()
                    .unwrap()
                    .write_all(input.as_bytes())
                    .unwrap();
                let output = child.wait_with_output().unwrap();
                assert!(output.status.success(), "{words}");
                logs.push_str(&String::from_utf8_lossy(&output.stderr));
            }
        }
        assert!(logs.contains("batch claimed"), "it logs");
        let line = logs.lines().find(|line| line.contains(MARK));
        assert_eq!(line, None, "{backend}");
    }
}
