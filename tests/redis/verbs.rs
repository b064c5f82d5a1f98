//! The verbs of the command line on a server: several processes at the same time.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use super::server::Server;

/// A server, and a home for those who use it.
struct Yard {
    server: Server,
    home: TempDir,
}

impl Yard {
    fn start() -> Option<Self> {
        Some(Self {
            server: Server::start()?,
            home: TempDir::new().unwrap(),
        })
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_batchyard"));
        command
            .args(line.split_whitespace())
            .env("BATCHYARD_REDIS_URL", self.server.url())
            .env("XDG_STATE_HOME", self.home.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// The exit code and the lines of JSON on stdout.
    fn run(&self, line: &str, input: &str) -> (Option<i32>, Vec<Value>) {
        let mut child = self.command(line).spawn().unwrap();
        // It may end without reading it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        (output.status.code(), lines.collect())
    }

    fn ok(&self, line: &str, input: &str) -> Vec<Value> {
        let (code, lines) = self.run(line, input);
        assert_eq!(code, Some(0), "{line}");
        lines
    }
}

fn next_event(events: &mut BufReader<ChildStdout>, name: &str) -> Value {
    loop {
        let mut line = String::new();
        let length = events.read_line(&mut line).unwrap();
        assert!(length > 0, "it ended before {name}");
        let event: Value = serde_json::from_str(&line).unwrap();
        if event["event"] == name {
            return event;
        }
    }
}

fn terminate(mut child: Child, mut events: BufReader<ChildStdout>) -> Option<i32> {
    let pid = child.id().to_string();
    let killed = Command::new("kill").args(["-s", "TERM", &pid]).status();
    assert!(killed.unwrap().success());
    events.read_to_string(&mut String::new()).unwrap();
    child.wait().unwrap().code()
}

#[test]
fn what_is_pushed_while_another_process_dispatches_is_handled() {
    let Some(yard) = Yard::start() else { return };
    yard.ok("push --queue tenant-1 --json", "1\n");
    let dispatch =
        "dispatch --prefix tenant- --queue-threshold 1 --json --plain -- sed s/^/[/;s/$/]/";
    let mut child = yard.command(dispatch).spawn().unwrap();
    let mut events = BufReader::new(child.stdout.take().unwrap());
    next_event(&mut events, "finished");

    let pushed = yard.ok("push --queue tenant-1 --json", "2\n");
    assert_eq!(next_event(&mut events, "finished")["queue"], "tenant-1");
    // A queue that is made later is served as well.
    yard.ok("push --queue tenant-2 --json", "3\n");
    assert_eq!(next_event(&mut events, "finished")["queue"], "tenant-2");
    assert_eq!(terminate(child, events), Some(143));

    let mut export = yard.ok("export --queue tenant-1", "");
    export.retain(|line| line.get("record").is_none());
    let states: Vec<_> = export.iter().map(|request| &request["state"]).collect();
    assert_eq!(states, ["done", "done"]);
    assert_eq!(export[1]["id"], pushed[0]["id"]);
    assert_eq!(export[1]["result"][0], 2);
    let queues = yard.ok("stats --json", "");
    let done: Vec<_> = queues.iter().map(|queue| &queue["done"]).collect();
    assert_eq!(done, [2, 1]);
}

/// A dispatch on a machine of its own: it shares the server with the others, and no folder.
struct Dispatch {
    child: Child,
    events: BufReader<ChildStdout>,
    _home: TempDir,
}

impl Dispatch {
    /// Batches of ten, two at a time, whose holders count as dead after two seconds of silence.
    fn start(yard: &Yard, rest: &str) -> Self {
        let line = "dispatch --queue-threshold 10 --max-in-flight 2 --lease-duration 2s \
                    --heartbeat-interval 500ms --json";
        Self::of(yard, &format!("{line} {rest}"))
    }

    fn of(yard: &Yard, line: &str) -> Self {
        let home = TempDir::new().unwrap();
        let mut command = yard.command(line);
        let mut child = command.env("XDG_STATE_HOME", home.path()).spawn().unwrap();
        let events = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            events,
            _home: home,
        }
    }

    fn next(&mut self, event: &str) -> Value {
        next_event(&mut self.events, event)
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(killed.unwrap().success());
    }

    /// Its events to its end, which must be a good one.
    fn end(mut self) -> Vec<Value> {
        let lines = self.events.by_ref().lines();
        let events = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        let events = events.collect();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        events
    }
}

impl Drop for Dispatch {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How the batch of a claim was claimed in these events.
fn claim_of<'a>(events: &'a [Value], claimed: &Value) -> &'a Value {
    let same = |event: &&Value| event["event"] == "claimed" && event["batch"] == claimed["batch"];
    events.iter().find(same).expect("taken over under its id")
}

#[test]
fn of_two_dispatches_one_takes_over_what_the_other_held_and_fences_it_off() {
    let Some(yard) = Yard::start() else { return };
    let lines = |count: u32| {
        (0..count)
            .map(|n| format!("{n}\n"))
            .collect::<Vec<_>>()
            .concat()
    };
    yard.ok("push --json", &lines(40));
    // One holds two batches and falls silent, as a machine does that is cut off.
    let mut silent = Dispatch::start(&yard, "-- sleep 1000");
    let held = [silent.next("claimed"), silent.next("claimed")];
    silent.signal("STOP");
    let events = Dispatch::start(&yard, "--drain --plain -- cat").end();
    for batch in &held {
        let again = claim_of(&events, batch);
        assert_eq!(
            (&again["attempt"], &again["requests"]),
            (&2.into(), &10.into())
        );
    }
    // It comes back late, and is told that both are another's now.
    silent.signal("CONT");
    let lost = [silent.next("lease_lost"), silent.next("lease_lost")];
    assert!(
        held.iter()
            .all(|batch| lost.iter().any(|lost| lost["batch"] == batch["batch"]))
    );
    // And then it dies in the middle of a batch.
    yard.ok("push --json", &lines(10));
    let held = silent.next("claimed");
    silent.signal("KILL");
    let events = Dispatch::start(&yard, "--drain --plain -- cat").end();
    assert_eq!(claim_of(&events, &held)["attempt"], 2);
    let stats = yard.ok("stats --json", "");
    assert_eq!(
        (&stats[0]["done"], &stats[0]["pushed"]),
        (&50.into(), &50.into())
    );
}

#[test]
fn dead_letters_on_a_server_are_listed_redriven_and_purged() {
    let Some(yard) = Yard::start() else { return };
    yard.ok("push --json", "1\n2\n");
    let mut command = yard.command("dispatch --drain --json -- sed");
    let drained = command
        .arg(r#"s/"attempt.*/"error":"no"}/"#)
        .output()
        .unwrap();
    assert_eq!(drained.status.code(), Some(5));
    let dead = yard.ok("dead ls --json", "");
    assert_eq!(dead.len(), 2);
    assert_eq!(yard.ok("dead ls --json --error no --newer 1h", "").len(), 2);
    assert!(yard.ok("dead ls --json --error other", "").is_empty());
    let results = yard.ok("results --json --state dead", "");
    assert_eq!(results.len(), 2);
    let since = results[0]["cursor"].as_str().unwrap();
    assert_eq!(
        yard.ok(&format!("results --json --since {since}"), ""),
        results[1..]
    );
    let id = dead[0]["id"].as_str().unwrap();
    let shown = yard.ok(&format!("dead show --json {id}"), "");
    assert_eq!(
        (&shown[0]["payload"], &shown[0]["error"]),
        (&1.into(), &"no".into())
    );
    yard.ok(&format!("dead redrive --rate 1000/s --json {id}"), "");
    assert_eq!(yard.ok("dead purge --json --all", "").len(), 1);
    let stats = yard.ok("stats --json", "");
    assert_eq!(
        (&stats[0]["dead"], &stats[0]["ready"]),
        (&0.into(), &1.into())
    );
    assert_eq!(yard.run("stats --queue other", "").0, Some(3));
}

#[test]
fn batches_on_a_server_are_released_and_results_followed() {
    let Some(yard) = Yard::start() else { return };
    let pushed = yard.ok("push --json", "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n");
    let mut silent = Dispatch::of(
        &yard,
        "dispatch --queue-threshold 10 --heartbeat-interval 500ms --json -- sleep 1000",
    );
    let held = silent.next("claimed");
    silent.signal("STOP");
    let listed = yard.ok("batches ls --json", "");
    assert_eq!(listed.len(), 1);
    let batch = listed[0]["id"].as_str().unwrap();
    assert_eq!(
        (&held["batch"], &listed[0]["state"], &listed[0]["requests"]),
        (&batch.into(), &"held".into(), &10.into())
    );
    let shown = yard.ok(&format!("batches show --json {batch}"), "");
    assert_eq!(shown[0]["unsettled"], 10);
    let mut child = yard.command("results --follow --json").spawn().unwrap();
    let mut results = BufReader::new(child.stdout.take().unwrap()).lines();
    let released = yard.ok(&format!("batches release --json {batch}"), "");
    assert_eq!((released.len(), &released[0]["id"]), (1, &batch.into()));
    assert_eq!(yard.run(&format!("batches release {batch}"), "").0, Some(3));
    let events = Dispatch::start(&yard, "--drain --plain -- cat").end();
    let again = claim_of(&events, &held);
    assert_eq!(again["attempt"], 1);
    for pushed in &pushed {
        let line = results.next().unwrap().unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["id"], &line["state"]),
            (&pushed["id"], &"done".into())
        );
    }
    let pid = child.id().to_string();
    let killed = Command::new("kill").args(["-s", "INT", &pid]).status();
    assert!(killed.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    silent.signal("CONT");
    assert_eq!(silent.next("lease_lost")["batch"], batch);
}

/// A program on a terminal of its own, by `script`.
#[cfg(target_os = "linux")]
struct Terminal {
    child: Child,
    screen: ChildStdout,
    /// What was shown since the screen was cleared.
    shown: String,
}

#[cfg(target_os = "linux")]
impl Terminal {
    fn start(yard: &Yard, line: &str) -> Self {
        let program = env!("CARGO_BIN_EXE_batchyard");
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--flush", "--return", "--command"])
            .arg(format!("'{program}' {line}"))
            .arg("/dev/null")
            .env("BATCHYARD_REDIS_URL", yard.server.url())
            .env("SHELL", "/bin/sh")
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let screen = child.stdout.take().unwrap();
        Self {
            child,
            screen,
            shown: String::new(),
        }
    }

    /// Waits for a whole screen on which the queue has so many requests that are ready, and that are done.
    fn until(&mut self, ready: &str, done: &str) {
        loop {
            if let Some((screen, rest)) = self.shown.split_once(CLEAR) {
                let is_it = |line: &str| {
                    let words: Vec<_> = line.split_whitespace().collect();
                    matches!(&words[..], ["default", is_ready, _, _, _, _, _, _, is_done, ..]
                        if (*is_ready, *is_done) == (ready, done))
                };
                let is_shown = screen.lines().any(is_it);
                self.shown = rest.to_owned();
                if is_shown {
                    return;
                }
                continue;
            }
            let mut bytes = [0; 4096];
            let length = self.screen.read(&mut bytes).unwrap();
            assert!(length > 0, "it ended: {}", self.shown);
            self.shown += std::str::from_utf8(&bytes[..length]).unwrap();
        }
    }

    /// Types Ctrl-C; the exit code, and what was shown at last.
    fn interrupt(mut self) -> (Option<i32>, String) {
        let mut keys = self.child.stdin.take().unwrap();
        keys.write_all(b"\x03").unwrap();
        self.screen.read_to_string(&mut self.shown).unwrap();
        (self.child.wait().unwrap().code(), self.shown)
    }
}

#[cfg(target_os = "linux")]
#[test]
fn stats_of_a_server_are_watched_on_a_terminal() {
    let Some(yard) = Yard::start() else { return };
    yard.ok("push --json", "1\n2\n3\n");
    let mut terminal = Terminal::start(&yard, "stats --watch 50ms");
    terminal.until("3", "0");
    yard.ok("push --json", "4\n5\n");
    terminal.until("5", "0");
    yard.ok("dispatch --drain --json --plain -- cat", "");
    terminal.until("0", "5");
    let (code, rest) = terminal.interrupt();
    assert_eq!(code, Some(130), "{rest}");
}

/// What a terminal is cleared by.
#[cfg(target_os = "linux")]
const CLEAR: &str = "\x1b[H\x1b[2J";

#[test]
fn a_server_that_is_gone_is_a_remote_error() {
    let Some(mut yard) = Yard::start() else {
        return;
    };
    yard.server.kill();
    for verb in ["push", "stats", "export", "dead ls", "dispatch -- cat"] {
        assert_eq!(yard.run(verb, "1\n").0, Some(7), "{verb}");
    }
}
