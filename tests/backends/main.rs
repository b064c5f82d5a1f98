//! One program, several backends: new stores on the one that was asked for, old ones on their own.
#![cfg(all(feature = "cli", feature = "journal"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod again;
mod compacting;
mod damaged;
mod killed;
mod pairs;
mod places;
#[cfg(feature = "redis")]
#[path = "../redis/server.rs"]
#[expect(dead_code, reason = "the tests of the Redis backend use more of it")]
mod server;
mod snapshots;

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// A folder for stores.
struct Yard(TempDir);

/// How a program ended.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Yard {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// Words of a command line, in this folder.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_batchyard"));
        command
            .env_remove("BATCHYARD_REDIS_URL")
            .env_remove("BATCHYARD_BACKEND")
            .env_remove("RUST_LOG")
            .current_dir(self.0.path())
            .args(line.split_whitespace());
        command
    }

    fn ok(&self, line: &str, input: &[u8]) -> String {
        let ran = run(&mut self.command(line), input);
        assert_eq!(ran.code, Some(0), "{line}: {}", ran.err);
        ran.out
    }

    /// Runs and expects this exit code and these words on stderr.
    fn fails(&self, line: &str, code: i32, with: &[&str]) {
        let ran = run(&mut self.command(line), b"");
        assert_eq!(ran.code, Some(code), "{line}: {}", ran.err);
        for text in with {
            assert!(ran.err.contains(text), "{line}: {} lacks {text:?}", ran.err);
        }
    }

    fn kind(&self, store: &str) -> String {
        let format = fs::read_to_string(self.0.path().join(store).join("FORMAT")).unwrap();
        format.lines().next().unwrap().to_owned()
    }
}

fn run(command: &mut Command, input: &[u8]) -> Ran {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may have ended without reading any of it.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn values(lines: &str) -> Vec<Value> {
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

const SLED: &str = "batchyard sled store";
const JOURNAL: &str = "batchyard journal store";

#[test]
fn a_new_store_is_what_was_asked_for_and_an_old_one_says_what_it_is() {
    let yard = Yard::new();
    yard.ok("push --store a", b"1\n");
    yard.ok("push --store b --backend journal", b"1\n");
    yard.ok("push --store c --backend sled", b"1\n");
    assert_eq!(
        ["a", "b", "c"].map(|store| yard.kind(store)),
        [SLED, JOURNAL, SLED]
    );

    yard.ok("push --store b", b"2\n");
    yard.ok("push --store b --backend journal", b"3\n");
    let export = values(&yard.ok("export --store b", b""));
    let requests = export.iter().filter(|line| line.get("record").is_none());
    let payloads: Vec<_> = requests.map(|line| &line["payload"]).collect();
    assert_eq!(payloads, [1, 2, 3]);
    yard.fails(
        "push --store a --backend journal",
        2,
        &["a is a sled store", "says journal"],
    );
    yard.fails(
        "dispatch --store b --backend sled -- cat",
        2,
        &["b is a journal store", "says sled"],
    );
    yard.fails(
        "push --store d --backend tape",
        2,
        &["tape", "sled, journal"],
    );
    assert!(!yard.0.path().join("d").exists());
}

#[test]
fn the_environment_names_the_backend_of_new_stores_alone() {
    let yard = Yard::new();
    let push = |store: &str, flag: &str, backend: &str| {
        let mut command = yard.command(&format!("push --store {store} {flag}"));
        run(command.env("BATCHYARD_BACKEND", backend), b"1\n")
    };
    assert_eq!(push("a", "", "journal").code, Some(0));
    assert_eq!(push("b", "--backend sled", "journal").code, Some(0));
    assert_eq!(push("b", "", "journal").code, Some(0));
    assert_eq!(push("c", "", "").code, Some(0));
    assert_eq!(
        ["a", "b", "c"].map(|store| yard.kind(store)),
        [JOURNAL, SLED, SLED]
    );
    let refused = push("d", "", "tape");
    assert_eq!(refused.code, Some(2));
    assert!(
        refused
            .err
            .contains("BATCHYARD_BACKEND: \"tape\" is not possible: it may be sled or journal"),
        "{}",
        refused.err
    );
    let mut at_server = yard.command("push --backend journal");
    let refused = run(
        at_server.env("BATCHYARD_REDIS_URL", "redis://localhost:1"),
        b"",
    );
    assert_eq!(refused.code, Some(2));
    assert!(
        refused
            .err
            .contains("--backend is about a store in a folder"),
        "{}",
        refused.err
    );
}

#[test]
fn the_verbs_work_on_a_journal() {
    let yard = Yard::new();
    yard.ok("push --store store --backend journal", b"1\n2\n3\n");
    let script = r#"while read -r line; do
        id=${line#*\"id\":\"}; id=${id%%\"*}
        case $line in
            *'"payload":2}') printf '{"id":"%s","error":"not this"}\n' "$id" ;;
            *) printf '{"id":"%s","result":["one"]}\n' "$id" ;;
        esac
    done"#;
    let mut dispatch = yard.command("dispatch --store store --drain -- sh -c");
    assert_eq!(run(dispatch.arg(script), b"").code, Some(5));
    let stats = values(&yard.ok("stats --json --store store", b""));
    assert_eq!(
        (&stats[0]["done"], &stats[0]["dead"]),
        (&2.into(), &1.into())
    );
    let dead = values(&yard.ok("dead ls --json --store store", b""));
    assert_eq!(dead[0]["error"], "not this");
    let export = values(&yard.ok("export --store store", b""));
    let ends: Vec<_> = export
        .iter()
        .filter_map(|line| line["state"].as_str())
        .collect();
    assert_eq!(ends, ["done", "dead", "done"]);
    yard.fails(
        "repair store other",
        2,
        &["store is a journal store", "what is left", "stats"],
    );
    assert!(!yard.0.path().join("other").exists());
}

#[test]
fn a_run_keeps_its_own_store_on_a_journal() {
    let yard = Yard::new();
    fs::write(yard.0.path().join("in"), "1\n2\n").unwrap();
    // What fails leaves the folder behind.
    let fail = "--plain -- sh -c";
    let mut failing = yard.command(&format!(
        "run in --out out --max-attempts 1 --backend journal {fail}"
    ));
    assert_eq!(run(failing.arg("exit 1"), b"").code, Some(5));
    assert_eq!(yard.kind("out.batchyard"), JOURNAL);
    yard.fails(
        "run in --out out --backend sled --plain -- cat",
        2,
        &["out.batchyard is a journal store"],
    );
    yard.ok("run in --out out --plain -- cat", b"");
    assert_eq!(
        fs::read_to_string(yard.0.path().join("out")).unwrap(),
        "1\n2\n"
    );
    assert!(!yard.0.path().join("out.batchyard").exists());
}

/// A store with a bit of everything that verbs can bring about, on a journal.
fn lived_in(yard: &Yard) {
    yard.ok("push --store a --backend journal", b"1\n2\n [3, \t4] \n");
    let script = "read one; case $one in 2) exit 1;; esac; echo '\"done\"'";
    let settle =
        "dispatch --store a --drain --plain --max-batch-requests 1 --max-attempts 1 -- sh -c";
    let ran = run(yard.command(settle).arg(script), b"");
    assert_eq!(ran.code, Some(5), "{}", ran.err);
    yard.ok("push --store a --lines --attribute n=1", b"\xff\x00\ntext");
    yard.ok("push --store a --delay 9h --ttl 10h", b"{\"later\":1}\n");
    let keyed = "push --store a --queue keyed --idempotency-key-from k";
    yard.ok(keyed, b"{\"k\":1}\n{\"k\":1}\n");
}

#[test]
fn what_is_exported_and_imported_is_the_same() {
    let yard = Yard::new();
    lived_in(&yard);
    let export = yard.ok("export --store a", b"");
    let taken = values(&yard.ok(
        "import --store b --backend journal --json",
        export.as_bytes(),
    ));
    let queues: Vec<_> = taken.iter().map(|line| &line["queue"]).collect();
    assert_eq!(queues, ["default", "keyed"]);
    assert_eq!(yard.ok("export --store b", b""), export);
    assert_eq!(
        yard.ok("stats --json --store b", b""),
        yard.ok("stats --json --store a", b"")
    );
    yard.ok("import --from a --store c --backend journal", b"");
    assert_eq!(yard.ok("export --store c", b""), export);

    let pushed = yard.ok(
        "push --store c --queue keyed --json --idempotency-key-from k",
        b"{\"k\":1}",
    );
    assert_eq!(values(&pushed)[0]["duplicate"], true);
    let requests = values(&export);
    let default = requests.iter().filter(|line| line["queue"] == "default");
    let states: Vec<_> = default.filter_map(|line| line["state"].as_str()).collect();
    assert_eq!(
        states,
        ["done", "dead", "done", "ready", "ready", "delayed"]
    );
}

#[test]
fn an_import_is_whole_or_not_at_all() {
    let yard = Yard::new();
    lived_in(&yard);
    let export = yard.ok("export --store a --queue default", b"");
    let lines: Vec<&str> = export.lines().collect();
    let all_but = |lost: usize| {
        let mut some = lines.clone();
        some.remove(lost);
        some.join("\n")
    };
    let refused = |input: &str, with: &str| {
        let ran = run(
            &mut yard.command("import --store b --backend journal"),
            input.as_bytes(),
        );
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        assert!(ran.err.contains(with), "{} lacks {with:?}", ran.err);
    };
    refused(&all_but(lines.len() - 1), "is cut off");
    refused(&all_but(0), "not settled");
    refused(&all_but(3), "not whole: 6 requests were pushed");
    refused("{}", "line 1: not a line of a dump");
    for line in values(&yard.ok("stats --json --store b", b"")) {
        assert_eq!(line["pushed"], 0);
    }
    refused(&format!("{export}{export}"), "goes on behind its end");
    yard.fails("import --store a missing", 3, &["missing"]);
    yard.fails("import --store b --from nowhere", 3, &["nowhere"]);
    yard.ok("push --store a", b"1");
    let ran = run(&mut yard.command("import --store a"), export.as_bytes());
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    assert!(ran.err.contains("in use"), "{}", ran.err);
}
