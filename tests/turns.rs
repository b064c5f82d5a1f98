//! Many verbs want one store at the same time: none is locked out, and none loses or repeats anything when another one ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

const BACKENDS: [&str; 2] = ["sled", "journal"];

/// A folder with a store in it.
struct Yard(TempDir);

/// A program at work.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Yard {
    /// With a store on this backend, which has a request.
    fn new(backend: &str) -> Self {
        let yard = Self(TempDir::new().unwrap());
        yard.ok(&format!("push --backend {backend}"), b"\"first\"\n");
        yard
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A verb on the store.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_batchyard"));
        let mut words = line.split_whitespace();
        command
            .arg(words.next().unwrap())
            .args(["--store", "store"])
            .args(words)
            .current_dir(self.0.path())
            .env_remove("BATCHYARD_REDIS_URL")
            .env_remove("BATCHYARD_BACKEND")
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, line: &str) -> Running {
        Running::of(&mut self.command(line))
    }

    fn ok(&self, line: &str, input: &[u8]) -> String {
        let mut running = self.start(line);
        running.stdin.take().unwrap().write_all(input).unwrap();
        let (code, out, err) = running.end();
        assert_eq!(code, Some(0), "{line}: {err}");
        out
    }

    /// A push that goes on and has pushed this line.
    fn pushing(&self, line: &str) -> (Running, String) {
        let mut push = self.start("push");
        let id = push.push(line);
        (push, id)
    }

    fn stats(&self) -> Value {
        serde_json::from_str(&self.ok("stats --json", b"")).unwrap()
    }

    /// The payloads of all requests, with their ids, in order.
    fn held(&self) -> Vec<(String, String)> {
        let export = self.ok("export", b"");
        let lines = export
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        let requests = lines.filter(|line: &Value| line.get("record").is_none());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        requests
            .map(|line| (text(&line["payload"]), text(&line["id"])))
            .collect()
    }
}

impl Running {
    fn of(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            stderr: BufReader::new(child.stderr.take().unwrap()),
            child,
        }
    }

    fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(format!("\"{line}\"\n").as_bytes()).unwrap();
    }

    /// The next line on stdout.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut told = String::new();
            self.stderr.read_to_string(&mut told).unwrap();
            panic!("it ended: {told}");
        }
        line.trim_end().to_owned()
    }

    fn push(&mut self, line: &str) -> String {
        self.say(line);
        self.line()
    }

    fn event(&mut self, name: &str) -> Value {
        loop {
            let event: Value = serde_json::from_str(&self.line()).unwrap();
            if event["event"] == name {
                return event;
            }
        }
    }

    fn pid(&self) -> String {
        format!("pid {}", self.child.id())
    }

    fn kill(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(killed.unwrap().success());
    }

    /// Waits for its end, of which the end of its input may be the reason: the exit code, and what it still prints.
    fn end(mut self) -> (Option<i32>, String, String) {
        drop(self.stdin.take());
        self.ended()
    }

    /// Waits for its end, which something else is the reason for.
    fn ended(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).unwrap();
        self.stderr.read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap().code(), out, err)
    }
}

#[test]
fn a_verb_that_waits_lets_all_others_in() {
    for backend in BACKENDS {
        let yard = Yard::new(backend);
        for line in ["push", "stats --watch 10ms", "stats --watch 10ms --json"] {
            let mut waiting = yard.start(line);
            if line == "push" {
                waiting.push("typed");
            } else {
                waiting.line();
            }
            let before = yard.stats()["pushed"].as_u64().unwrap();
            let id = yard.ok("push", b"\"other\"\n");
            yard.ok("pause", b"");
            yard.ok("resume", b"");
            assert!(yard.ok("ls", b"").contains(id.trim()));
            yard.ok(&format!("cancel {}", id.trim()), b"");
            assert_eq!(yard.stats()["pushed"], before + 1);
            let dump = yard.ok("export", b"");
            fs::write(yard.path("dump"), &dump).unwrap();
            yard.ok("import dump", b"");
            waiting.kill("INT");
            assert_eq!(waiting.ended().0, Some(130), "{line}");
        }
    }
}

#[test]
fn a_push_goes_on_when_the_one_that_has_the_store_open_ends_or_is_killed() {
    for backend in BACKENDS {
        for ends_by in ["TERM", "KILL"] {
            let yard = Yard::new(backend);
            let (owner, first) = yard.pushing("owner's");
            let (mut push, second) = yard.pushing("before");
            owner.kill(ends_by);
            owner.end();
            let third = push.push("after");
            // It has it open now, and serves it.
            let (next, fourth) = yard.pushing("next");
            assert_eq!(push.end().0, Some(0));
            let mut next = next;
            let fifth = next.push("last");
            assert_eq!(next.end().0, Some(0));
            let held = yard.held();
            let expected = [
                ("owner's", first),
                ("before", second),
                ("after", third),
                ("next", fourth),
                ("last", fifth),
            ];
            let expected = expected.map(|(line, id)| (line.to_owned(), id));
            assert_eq!(held[1..], expected, "{backend} {ends_by}");
        }
    }
}

#[test]
fn of_many_that_go_on_at_once_one_opens_the_store_and_serves_the_others() {
    for backend in BACKENDS {
        let yard = Yard::new(backend);
        let (owner, _) = yard.pushing("owner's");
        let mut pushes: Vec<Running> = (0..8)
            .map(|n| yard.pushing(&format!("before {n}")).0)
            .collect();
        for round in 0..3 {
            if round == 0 {
                owner.kill("KILL");
            } else {
                // Whoever has it open now may be this one.
                let gone = pushes.pop().unwrap();
                gone.kill("KILL");
            }
            for (n, push) in pushes.iter_mut().enumerate() {
                push.say(&format!("round {round} {n}"));
            }
            for push in &mut pushes {
                push.line();
            }
        }
        for push in pushes {
            let (code, _, err) = push.end();
            assert_eq!(code, Some(0), "{err}");
        }
        owner.end();
        let held = yard.held();
        let mut lines: Vec<&String> = held.iter().map(|(line, _)| line).collect();
        let count = lines.len();
        lines.sort();
        lines.dedup();
        assert_eq!(
            (lines.len(), count),
            (2 + 8 + 8 + 7 + 6, lines.len()),
            "{held:?}"
        );
    }
}

/// How often the process passes a point that pushes one line while another pushes one through it.
fn passed(backend: &str, point: &str) -> usize {
    let yard = Yard::new(backend);
    let passed = yard.path("passed");
    let mut owner = Running::of(yard.command("push").env("BATCHYARD_PASSED", &passed));
    owner.push("owner's");
    let (push, _) = yard.pushing("through it");
    let text = fs::read_to_string(passed).unwrap();
    assert_eq!((push.end().0, owner.end().0), (Some(0), Some(0)));
    text.lines().filter(|line| *line == point).count()
}

#[test]
fn a_push_whose_owner_is_killed_before_it_answered_is_there_once_and_has_its_id() {
    // Where nothing of it is durable, and where all of it is.
    for (backend, point, pushed) in [
        ("journal", "journal.write", false),
        ("journal", "journal.synced", true),
        ("sled", "sled.write", false),
        ("sled", "sled.synced", true),
    ] {
        let yard = Yard::new(backend);
        let passed = passed(backend, point);
        let kill = format!("{point}={}*off->1*return(kill)", passed - 1);
        let mut owner = Running::of(yard.command("push").env("FAILPOINTS", kill));
        owner.push("owner's");
        let (mut push, id) = yard.pushing("through it");
        assert_eq!(owner.child.wait().unwrap().code(), None, "it was killed");
        let next = push.push("then");
        assert_eq!(push.end().0, Some(0));
        let held = yard.held();
        let expected = [("through it".to_owned(), id), ("then".to_owned(), next)];
        assert_eq!(held[2..], expected, "{backend} {point} {pushed}");
    }
}

#[test]
fn a_dispatcher_takes_over_from_a_push_which_goes_on_through_it() {
    for backend in BACKENDS {
        let yard = Yard::new(backend);
        let (mut push, _) = yard.pushing("before");
        let (mut other, _) = yard.pushing("other");
        let mut dispatch = yard.start("dispatch --json --queue-threshold 5 -- cat");
        dispatch.event("serving");
        push.push("after");
        other.push("after as well");
        assert_eq!(dispatch.event("claimed")["requests"], 5);
        let health = yard.ok("health", b"");
        assert!(health.contains(&dispatch.pid()), "{health}");
        // And one more dispatcher is refused by who it is.
        let mut command = yard.command("dispatch");
        let (code, _, err) = Running::of(command.args(["--", "cat"])).end();
        assert_eq!(code, Some(4), "{err}");
        assert!(
            err.contains(&dispatch.pid()) && err.contains("--prefix"),
            "{err}"
        );
        dispatch.kill("TERM");
        assert_eq!(dispatch.end().0, Some(143));
        push.push("again");
        other.push("again as well");
        assert_eq!((push.end().0, other.end().0), (Some(0), Some(0)));
        assert_eq!(yard.stats()["pushed"], 7);
    }
}

#[test]
fn a_dispatcher_waits_for_an_export_and_an_import_to_end() {
    for backend in BACKENDS {
        let yard = Yard::new(backend);
        // More than a pipe takes, so that it waits for its reader.
        let lines = (0..4000)
            .map(|n| format!("\"{n:0>100}\"\n"))
            .collect::<Vec<_>>()
            .concat();
        yard.ok("push", lines.as_bytes());
        let mut export = yard.start("export");
        let first = export.line();
        let mut dispatch = yard.start("dispatch --json -- cat");
        let mut told = String::new();
        dispatch.stderr.read_line(&mut told).unwrap();
        assert!(told.contains(&export.pid()), "{told}");
        let (code, rest, err) = export.end();
        assert_eq!(code, Some(0), "{err}");
        dispatch.event("serving");
        dispatch.kill("TERM");
        dispatch.end();

        // What was printed is whole: another store takes it in, while a dispatcher waits for that.
        let other = Yard(TempDir::new().unwrap());
        let mut import = other.start("import --backend sled");
        let dump = format!("{first}\n{rest}");
        let (half, rest) = dump.split_at(dump.len() / 2);
        let stdin = import.stdin.as_mut().unwrap();
        stdin.write_all(half.as_bytes()).unwrap();
        let mut dispatch = other.start("dispatch --json -- cat");
        let mut told = String::new();
        dispatch.stderr.read_line(&mut told).unwrap();
        assert!(told.contains(&import.pid()), "{told}");
        // Others are let in.
        other.ok("queues", b"");
        let stdin = import.stdin.as_mut().unwrap();
        stdin.write_all(rest.as_bytes()).unwrap();
        let (code, _, err) = import.end();
        assert_eq!(code, Some(0), "{err}");
        dispatch.event("serving");
        assert_eq!(other.stats()["pushed"], 4001);
        dispatch.kill("TERM");
        dispatch.end();
    }
}

#[test]
fn whoever_begins_while_the_store_is_opened_waits_for_that() {
    for backend in BACKENDS {
        let yard = Yard::new(backend);
        // All at once, on a store that nobody has open.
        let mut pushes: Vec<Running> = (0..6).map(|_| yard.start("push")).collect();
        for (n, push) in pushes.iter_mut().enumerate() {
            push.say(&n.to_string());
        }
        for push in pushes {
            let (code, _, err) = push.end();
            assert_eq!(code, Some(0), "{err}");
        }
        assert_eq!(yard.stats()["pushed"], 7);
    }
}

/// What `verify` says at its end, by its exit code.
fn verified(yard: &Yard, code: i32) -> (Vec<Value>, Value) {
    let (ended, out, err) = yard.start("verify --json").end();
    assert_eq!(ended, Some(code), "{out} {err}");
    let mut lines: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let sum = lines.pop().unwrap();
    (lines, sum)
}

#[test]
fn a_store_that_is_open_is_verified_beside_its_work() {
    for backend in BACKENDS {
        let yard = Yard::new(backend);
        let large = "x".repeat(300_000);
        yard.ok("push", format!("\"{large}\"\n").as_bytes());
        let many: Vec<String> = (0..3000).map(|n| format!("{n}\n")).collect();
        yard.ok("push", many.concat().as_bytes());
        let (_, closed) = verified(&yard, 0);
        assert_eq!(
            (&closed["held"], closed.get("not_looked_at")),
            (&3002.into(), None)
        );
        let (mut push, _) = yard.pushing("owner's");
        let (found, open) = verified(&yard, 0);
        assert_eq!(
            (found.len(), &open["held"]),
            (0, &3003.into()),
            "{backend}: {open}"
        );
        assert!(open["bytes"].as_u64().unwrap() > 300_000, "{open}");
        assert!(
            !open["not_looked_at"].as_array().unwrap().is_empty(),
            "{open}"
        );
        // While others push.
        let mut verify = yard.start("verify");
        let mut more = yard.start("push");
        for n in 0..300 {
            push.push(&format!("meanwhile {n}"));
            more.push(&format!("through it {n}"));
        }
        drop(verify.stdin.take());
        let (code, out, err) = verify.end();
        assert_eq!(code, Some(0), "{backend}: {out} {err}");
        assert!(out.contains("not looked at because it is open: "), "{out}");
        assert_eq!((more.end().0, push.end().0), (Some(0), Some(0)));
    }
}

#[test]
fn damage_in_a_journal_is_found_while_it_is_open() {
    let yard = Yard::new("journal");
    let (mut push, id) = yard.pushing("somewhere in the log");
    push.push("behind it");
    let log = yard.path("store/log");
    let mut files = fs::read_dir(log)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let text = b"somewhere in the log";
    let found = files.find_map(|path| {
        let bytes = fs::read(&path).unwrap();
        let at = bytes.windows(text.len()).position(|part| part == text)?;
        Some((path, bytes, at))
    });
    let (path, mut bytes, at) = found.unwrap();
    bytes[at] ^= 1;
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, &bytes[at..=at], at as u64).unwrap();
    let (open, sum) = verified(&yard, 8);
    assert_eq!(sum["clean"], false, "{sum}");
    assert!(open.iter().any(|line| line["request"] == *id), "{open:?}");
    push.push("and it goes on");
    assert_eq!(push.end().0, Some(0));
    let (closed, _) = verified(&yard, 8);
    assert_eq!(open, closed);
}
