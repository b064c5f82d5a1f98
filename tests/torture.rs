//! `batchyard torture`, as a shell uses it: what it prints, that it holds, and that it finds what is planted.
//!
//! `BATCHYARD_LONG=1` gives each store half a minute, `BATCHYARD_MINUTES` as many as one likes; `BATCHYARD_SEED` sets the seed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, ChildStderr, Command, Output, Stdio},
};

use batchyard::testing::proof;
use serde_json::Value;
use tempfile::TempDir;

/// Faults that a kill alone brings to light, and what they are planted in.
const BY_KILLS: [(&str, &str); 6] = [
    ("journal", "journal.write=20*off->return(skip)"),
    ("journal", "journal.checkpoint=return(skip)"),
    ("journal", "journal.finish=return(skip)"),
    ("sled", "sled.flush=return(skip)"),
    ("sled", "sled.checkpoint=return(skip)"),
    ("sled", "sled.finish=return(skip)"),
];
/// Those that take a loss of power.
const BY_POWER: [(&str, &str); 2] = [
    ("journal", "journal.sync=return(skip)"),
    ("sled", "sled.sync=return(skip)"),
];

fn torture(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_batchyard"));
    command
        .env_remove("RUST_LOG")
        .env_remove("FAILPOINTS")
        .arg("torture")
        .arg("--dir")
        .arg(dir)
        .args(line.split_whitespace())
        .stdin(Stdio::null());
    if let Ok(seed) = env::var("BATCHYARD_SEED") {
        command.args(["--seed", &seed]);
    }
    command
}

/// Runs it and expects this exit code: what it printed, and what it said.
fn run(command: &mut Command, code: i32) -> (String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let (out, err) = (
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    );
    assert_eq!(status.code(), Some(code), "{command:?}: {out}{err}");
    (out, err)
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

fn minutes() -> String {
    let is_long = env::var("BATCHYARD_LONG").is_ok_and(|value| value == "1");
    let usual = if is_long { "0.5" } else { "0.1" };
    env::var("BATCHYARD_MINUTES").unwrap_or_else(|_| usual.to_owned())
}

/// Tortures one backend, and prints what that has proved.
fn holds(backend: &str, options: &str, caught: &[(&str, &str)]) {
    let dir = TempDir::new().unwrap();
    let line = format!(
        "--minutes {} --backend {backend} --json {options}",
        minutes()
    );
    let (out, err) = run(&mut torture(dir.path(), &line), 0);
    assert!(is_empty(dir.path()), "nothing is left");
    assert!(err.contains("seed "), "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["held"], true, "{out}");
    let count = |name: &str| report[name].as_u64().unwrap();
    for none in ["lost", "duplicated", "changed_batches", "wrong"] {
        assert_eq!(count(none), 0, "{none}: {out}");
    }
    for some in ["comparisons", "requests", "calls"] {
        assert!(count(some) > 0, "{some}: {out}");
    }
    let (kills, cuts) = (count("kills"), count("power_cuts"));
    assert!(kills > 0, "{out}");
    assert_eq!(cuts > 0, options.contains("power"), "{out}");
    let cycles = format!(
        "{kills} kills, {cuts} power cuts, {} requests",
        count("requests")
    );
    let caught = caught.iter().filter(|(of, _)| *of == backend);
    let caught: Vec<_> = caught.map(|(_, fault)| *fault).collect();
    proof("G1 G2 G3 G4 G5", backend, cycles, &caught);
}

#[test]
fn a_journal_holds_whenever_its_program_is_killed() {
    holds("journal", "", &BY_KILLS);
}

#[test]
fn a_sled_store_holds_whenever_its_program_is_killed() {
    holds("sled", "", &BY_KILLS);
}

/// Whether power can be cut here; if not, why is said, and it is a failure if `fuse` is required.
fn has_fuse() -> bool {
    let Err(why) = batchyard::torture::cycle::power_loss_available() else {
        return true;
    };
    let required = env::var("BATCHYARD_REQUIRE").is_ok_and(|names| names.contains("fuse"));
    assert!(!required, "fuse is required, and {why}");
    println!("skipped: {why}");
    false
}

#[test]
fn a_journal_holds_whenever_its_disk_loses_power() {
    if has_fuse() {
        holds("journal", "--power", &BY_POWER);
    }
}

#[test]
fn a_sled_store_holds_whenever_its_disk_loses_power() {
    if has_fuse() {
        holds("sled", "--power", &BY_POWER);
    }
}

/// Plants a fault, and expects that it is found and what is left is there to be looked at.
fn is_found(backend: &str, fault: &str, options: &str) {
    let dir = TempDir::new().unwrap();
    let line = format!("--minutes 5 --backend {backend} --json {options}");
    let (out, err) = run(torture(dir.path(), &line).env("FAILPOINTS", fault), 8);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["held"], false, "{out}");
    let kept = report["kept"].as_str().unwrap();
    assert!(err.contains(kept) && err.contains("--seed"), "{err}");
    assert!(
        Path::new(kept).join("FORMAT").exists(),
        "{kept} is no store"
    );
    let first = report["damage"][0]["what"].as_str().unwrap();
    println!("{fault}: {}", first.chars().take(200).collect::<String>());
}

#[test]
fn what_is_planted_is_found_by_kills() {
    for (backend, fault) in BY_KILLS {
        is_found(backend, fault, "");
    }
}

#[test]
fn a_sync_that_is_left_out_is_found_by_a_loss_of_power() {
    if has_fuse() {
        for (backend, fault) in BY_POWER {
            is_found(backend, fault, "--power");
        }
    }
}

#[test]
fn the_verdict_is_one_line() {
    let dir = TempDir::new().unwrap();
    let (out, _) = run(
        &mut torture(dir.path(), "--minutes 0.02 --backend journal"),
        0,
    );
    assert_eq!(out.lines().count(), 1, "{out}");
    assert!(out.starts_with("held: "), "{out}");
    assert!(
        out.contains("lost 0, duplicated 0, changed batches 0"),
        "{out}"
    );
}

/// Starts it, and reads that it has begun.
#[cfg(unix)]
fn begin(dir: &Path, line: &str) -> (Child, BufReader<ChildStderr>) {
    use std::os::unix::process::CommandExt as _;
    let mut command = hearing_hang_ups(&torture(dir, line));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.process_group(0).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.starts_with("seed "), "{line}");
    (child, said)
}

/// The same, even if these tests were started with SIGHUP ignored: it leaves that so.
#[cfg(unix)]
fn hearing_hang_ups(command: &Command) -> Command {
    let mut hearing = Command::new("env");
    hearing.stdin(Stdio::null());
    if cfg!(target_os = "linux") {
        hearing.arg("--default-signal=HUP");
    }
    hearing.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => hearing.env(name, value),
            None => hearing.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        hearing.current_dir(folder);
    }
    hearing
}

/// Waits for its end: its exit code, what it printed, and what it said.
fn end(child: Child, mut said: BufReader<ChildStderr>) -> (Option<i32>, String, String) {
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), out, rest)
}

/// As a terminal sends them: to all that it runs.
#[cfg(unix)]
#[test]
fn a_signal_ends_it_with_the_verdict_so_far() {
    let power = if has_fuse() { "--power" } else { "" };
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let dir = TempDir::new().unwrap();
        let (child, said) = begin(dir.path(), &format!("--minutes 60 {power}"));
        let group = format!("-{}", child.id());
        let killed = Command::new("kill")
            .args(["-s", signal, "--", &group])
            .status();
        assert!(killed.unwrap().success());
        let (ended, out, rest) = end(child, said);
        assert_eq!(ended, Some(code), "{signal}: {out}{rest}");
        assert!(out.starts_with("held: "), "{out}");
        assert!(is_empty(dir.path()), "{signal}: nothing is left");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        assert!(!mounts.contains(dir.path().to_str().unwrap()), "{mounts}");
    }
}

#[cfg(all(feature = "fuse", target_os = "linux"))]
#[test]
fn a_disk_without_space_is_no_verdict() {
    use batchyard::torture::forgetful::Forgetful;
    if !has_fuse() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let disk = Forgetful::mount(dir.path()).unwrap();
    // Less than what is kept free of pushes, and hardly anything.
    for space in [60 << 20, 1 << 20, 0] {
        disk.set_space(Some(space));
        let (out, err) = run(&mut torture(dir.path(), "--minutes 1"), 1);
        assert!(
            err.contains("bytes free, and ") && err.contains("another disk"),
            "{err}"
        );
        assert_eq!(out, "");
        assert!(is_empty(dir.path()), "nothing is left");
    }
    // A journal has what it needs to drain; sled has not.
    disk.set_space(None);
    let (child, said) = begin(dir.path(), "--minutes 60 --backend sled");
    let begun = disk.operations();
    while disk.operations() < begun + 2_000 {
        std::thread::yield_now();
    }
    // Something else has taken the rest.
    disk.set_space(Some(1));
    let (code, out, err) = end(child, said);
    assert_eq!((code, &*out), (Some(1), ""), "{err}");
    assert!(err.contains("no space is left on the disk"), "{err}");
    assert!(is_empty(dir.path()), "nothing is left");
}

#[test]
fn where_nothing_is_acknowledged_nothing_is_shown() {
    let dir = TempDir::new().unwrap();
    // No time for anything.
    let line = "--minutes 1e-12 --backend journal";
    let (_, err) = run(&mut torture(dir.path(), line), 1);
    assert!(err.contains("nothing was acknowledged"), "{err}");
}

#[test]
fn a_number_of_minutes_that_can_not_be_is_told_what_may_be() {
    let dir = TempDir::new().unwrap();
    for minutes in [
        "0", "-1", "-0.5", "nan", "inf", "-inf", "1e300", "525601", "soon", "1,5", "",
    ] {
        let mut command = torture(dir.path(), "");
        let (_, err) = run(command.args(["--minutes", minutes]), 2);
        let allowed = "a number of minutes above 0 and up to 525600 is needed, such as 10 or 0.5";
        assert!(err.contains(allowed), "{minutes}: {err}");
    }
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let (_, err) = run(&mut torture(&dir.path().join("none"), ""), 3);
    assert!(err.contains("none does not exist"), "{err}");
    let (_, err) = run(&mut torture(&file, ""), 1);
    assert!(err.contains("file"), "{err}");
    for line in [
        "--minutes 0",
        "--minutes soon",
        "--backend redis",
        "--seed x",
    ] {
        run(&mut torture(dir.path(), line), 2);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
