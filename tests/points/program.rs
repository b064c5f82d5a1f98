//! The real program, killed at its own points: `run` with a command, and `import`.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use batchyard::{fault, testing::proof};
use tempfile::TempDir;

use crate::{chain::kill_at, server::Server, sweep::is_long};

const RUN: [&str; 19] = [
    "run.saved",
    "run.queued",
    "dispatcher.claimed",
    "dispatcher.handle",
    "command.reserved",
    "command.started",
    "command.ended",
    "command.kept",
    "handler.record",
    "handler.recorded",
    "command.recorded",
    "dispatcher.handled",
    "dispatcher.finished",
    "run.written",
    "run.renamed",
    "run.note",
    "run.noted",
    "run.removing",
    "run.removed",
];

const IMPORT: [&str; 2] = ["import.part", "import.taken_in"];

const LINES: u32 = 40;

/// Killed at this passage of a point, if there is one.
fn batchyard(folder: &Path, line: &str, points: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_batchyard"));
    command
        .args(line.split_whitespace())
        .current_dir(folder)
        .env("FAILPOINTS", points)
        .env_remove("BATCHYARD_REDIS_URL")
        .env_remove("BATCHYARD_BACKEND")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn is_killed(output: &Output) -> bool {
    output.status.signal() == Some(9)
}

fn succeed(output: &Output, after: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "after {after}: {said}");
}

/// Repeats its lines, and writes down which ones it was given for which batch.
const REPEAT: &str = r#"tee "seen/$BATCHYARD_BATCH_ID.$$""#;

fn lines(count: u32) -> String {
    let lines = (0..count).map(|line| line.to_string() + "\n");
    lines.collect()
}

fn run(folder: &Path, backend: &str, points: &str) -> Output {
    let line = "run in --out out --lines --plain --queue-threshold 15";
    let mut command = batchyard(folder, line, points);
    command.args(["--backend", backend, "--", "sh", "-c", REPEAT]);
    command.output().unwrap()
}

/// One run, killed at a point and begun again; whether it was killed.
fn run_and_kill(backend: &str, point: &str, passage: usize) -> bool {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("seen")).unwrap();
    let input = lines(LINES);
    fs::write(folder.join("in"), &input).unwrap();
    let killed = is_killed(&run(folder, backend, &kill_at(point, passage)));
    let after = format!("{point}, passage {passage}, on {backend}");
    if killed {
        succeed(&run(folder, backend, ""), &after);
    }
    assert_eq!(
        fs::read_to_string(folder.join("out")).unwrap(),
        input,
        "{after}"
    );
    let mut batches: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir(folder.join("seen")).unwrap() {
        let path = entry.unwrap().path();
        let batch = path.file_stem().unwrap().to_string_lossy().into_owned();
        batches
            .entry(batch)
            .or_default()
            .push(fs::read_to_string(path).unwrap());
    }
    let mut all = Vec::new();
    for (batch, mut copies) in batches {
        copies.sort_by_key(String::len);
        let whole = copies.pop().unwrap();
        // A copy that was killed may have read a part of it.
        let same = copies.iter().all(|copy| whole.starts_with(&**copy));
        assert!(same, "batch {batch} had other requests after {after}");
        all.extend(whole.lines().map(str::to_owned));
    }
    all.sort_unstable();
    let mut wanted: Vec<&str> = input.lines().collect();
    wanted.sort_unstable();
    assert_eq!(all, wanted, "each in one batch, after {after}");
    for left in [
        "out.part",
        "out.batchyard",
        "out.batchyard.removing",
        "out.batchyard.ended",
    ] {
        assert!(!folder.join(left).exists(), "{left} is left after {after}");
    }
    killed
}

#[test]
fn no_point_of_the_program_is_left_out() {
    for (point, _) in fault::points() {
        let part = point.split('.').next().unwrap();
        let is_own = ["command", "import", "run"].contains(&part);
        let is_tried = RUN.contains(&point) || IMPORT.contains(&point);
        assert!(!is_own || is_tried, "nothing is killed at {point}");
    }
}

#[test]
fn a_run_is_killed_at_every_point_and_goes_on() {
    let mut kills = 0;
    let backends: &[&str] = if is_long() {
        &["journal", "sled"]
    } else {
        &["journal"]
    };
    for backend in backends {
        for point in RUN {
            let mut passages = 0;
            let most = if is_long() { 3 } else { 1 };
            while passages < most && run_and_kill(backend, point, passages + 1) {
                passages += 1;
            }
            assert!(passages > 0, "no run on {backend} passes {point}");
            kills += passages;
        }
    }
    proof("G1 G3 G4", "run", format!("{kills} kills"), &[]);
}

fn import(folder: &Path, store: &Store, points: &str) -> Output {
    store
        .command(folder, "import dump", points)
        .output()
        .unwrap()
}

struct Store {
    backend: &'static str,
    address: String,
}

impl Store {
    fn command(&self, folder: &Path, line: &str, points: &str) -> Command {
        if self.backend == "redis" {
            let mut command = batchyard(folder, line, points);
            command.env("BATCHYARD_REDIS_URL", &self.address);
            return command;
        }
        let line = format!("{line} --store {}", self.address);
        let mut command = batchyard(folder, &line, points);
        command.env("BATCHYARD_BACKEND", self.backend);
        command
    }
}

#[test]
fn an_import_is_killed_at_every_point_and_begun_again() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let from = Store {
        backend: "sled",
        address: "from".into(),
    };
    fs::write(folder.join("in"), lines(2_500)).unwrap();
    succeed(
        &from.command(folder, "push in", "").output().unwrap(),
        "push",
    );
    let dump = from.command(folder, "export", "").output().unwrap();
    succeed(&dump, "export");
    fs::write(folder.join("dump"), &dump.stdout).unwrap();
    let settings = [
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--databases",
        "1000",
    ];
    let server = Server::start_with(&settings);
    let (mut kills, mut stores) = (0, 0);
    for (backend, own) in [
        ("sled", ["sled.write", "sled.written", "sled.synced"]),
        (
            "journal",
            ["journal.written", "journal.synced", "journal.answered"],
        ),
        ("redis", ["redis.call", "redis.called", "redis.taken_in"]),
    ] {
        if backend == "redis" && server.is_none() {
            continue;
        }
        for point in own.iter().chain(&IMPORT) {
            let mut passages = 0;
            let most = if is_long() { 8 } else { 2 };
            while passages < most {
                let address = match &server {
                    Some(server) if backend == "redis" => format!("{}?db={stores}", server.url()),
                    _ => format!("{backend}-{stores}"),
                };
                stores += 1;
                let into = Store { backend, address };
                let after = format!("{point}, passage {}, into {backend}", passages + 1);
                let cut_off = import(folder, &into, &kill_at(point, passages + 1));
                if !is_killed(&cut_off) {
                    succeed(&cut_off, &after);
                    break;
                }
                succeed(&import(folder, &into, ""), &after);
                let again = into.command(folder, "export", "").output().unwrap();
                assert!(
                    again.stdout == dump.stdout,
                    "another dump on {backend} after {after}"
                );
                passages += 1;
                kills += 1;
            }
            assert!(passages > 0, "no import into {backend} passes {point}");
        }
    }
    proof("G2 G5", "import", format!("{kills} kills"), &[]);
}
