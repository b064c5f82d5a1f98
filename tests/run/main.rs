//! `batchyard run` as a user has it: the real program, real files, real commands.
#![cfg(feature = "cli")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ending;

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use tempfile::TempDir;

/// A folder with an INPUT, a command, and what a run makes of them.
struct Bench(TempDir);

impl Bench {
    fn new(input: &str) -> Self {
        let bench = Self(TempDir::new().unwrap());
        bench.write("in", input);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// `batchyard run in --out out` with these options and this script as its command.
    fn command(&self, options: &[&str], script: &str) -> Command {
        let mut command = self.batchyard(&["run", "in", "--out", "out"]);
        command.args(options).args(["--", "sh", "-c", script]);
        command
    }

    fn batchyard(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_batchyard"));
        command.args(args).current_dir(self.0.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::piped());
        command.env_remove("RUST_LOG");
        command
    }

    fn run(&self, options: &[&str], script: &str) -> Ended {
        Ended::of(self.command(options, script).output().unwrap())
    }

    /// A named pipe to which commands tell where they are.
    fn signals(&self) -> Signals {
        Signals(BufReader::new(self.pipe("signals")))
    }

    fn pipe(&self, name: &str) -> File {
        let made = Command::new("mkfifo").arg(self.path(name)).status();
        assert!(made.unwrap().success());
        // Open in both directions, it never ends and never blocks a writer for long.
        let both = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(name));
        both.unwrap()
    }
}

struct Signals(BufReader<File>);

impl Signals {
    fn next(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn with(&self, code: i32, stderr: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for text in stderr {
            assert!(self.stderr.contains(text), "{text:?} is not in {self:?}");
        }
    }
}

fn numbers(count: u32) -> String {
    let lines: Vec<String> = (1..=count).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    lines.concat()
}

/// Answers each request with its payload.
const ECHO: &str = r#"sed -E 's/^\{("id":"[0-9a-f]*").*"payload":(.*)\}$/{\1,"result":\2}/'"#;

#[test]
fn results_are_in_input_order_whatever_the_batches() {
    let bench = Bench::new(&numbers(500));
    let options = ["--max-batch-requests", "7", "--queue-threshold", "7"];
    bench
        .run(&options, ECHO)
        .with(0, &["500 requests: 500 done, 0 failed"]);
    for (line, number) in bench.read("out").lines().zip(1..) {
        let want = format!("\"line\":{number},\"result\":{{\"n\":{number}}}}}");
        assert!(
            line.starts_with("{\"id\":\"") && line.ends_with(&want),
            "{line}"
        );
    }
    assert_eq!(bench.read("out").lines().count(), 500);
    assert!(!bench.path("out.part").exists());
    assert!(
        !bench.path("out.batchyard").exists(),
        "nothing is left to keep"
    );
}

#[test]
fn unordered_results_are_the_same_lines() {
    let bench = Bench::new(&numbers(50));
    let options = ["--unordered", "--max-batch-requests", "3"];
    bench.run(&options, ECHO).with(0, &[]);
    let out = bench.read("out");
    let mut lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 50);
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 50);
}

#[test]
fn plain_lines_of_text_come_out_one_to_one() {
    let bench = Bench::new("one\n\nthree \"3\"\nfour");
    bench
        .run(&["--lines", "--plain"], "tr a-z A-Z")
        .with(0, &[]);
    assert_eq!(bench.read("out"), "ONE\n\nTHREE \"3\"\nFOUR\n");
}

#[test]
fn an_empty_input_makes_an_empty_output() {
    let bench = Bench::new("");
    bench.run(&[], "exit 1").with(0, &["0 requests"]);
    assert_eq!(bench.read("out"), "");
}

#[test]
fn stdin_is_an_input_and_json_summarises() {
    let bench = Bench::new("");
    let mut command = bench.batchyard(&["run", "-", "--json", "--out", "out", "--"]);
    let mut child = command
        .args(["sh", "-c", ECHO])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(numbers(3).as_bytes())
        .unwrap();
    let ended = Ended::of(child.wait_with_output().unwrap());
    ended.with(0, &[]);
    let summary: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(summary["done"], 3);
    assert_eq!(summary["finished"], true);
    assert_eq!(bench.read("out").lines().count(), 3);
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let bench = Bench::new(&numbers(3));
    let mut child = bench.command(&["--json"], ECHO).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_line_that_is_not_json_is_refused_with_its_number_and_the_rest_goes_on() {
    let bench = Bench::new("{\"a\":1,\"a\":2}\nnope\n\n[1]\n{\"half\":\n\"\"");
    let options = ["--failures", "failures"];
    let refused = [
        "line 2 is refused",
        "line 3 is refused",
        "line 5 is refused",
        "3 lines refused",
    ];
    bench.run(&options, ECHO).with(5, &refused);
    let out = bench.read("out");
    let lines: Vec<&str> = out
        .lines()
        .map(|line| line.split_once(",\"line\":").unwrap().1)
        .collect();
    let want = [
        r#"1,"result":{"a":1,"a":2}}"#,
        r#"4,"result":[1]}"#,
        r#"6,"result":""}"#,
    ];
    assert_eq!(lines, want);
    assert_eq!(bench.read("failures").lines().count(), 3);
    bench.run(&["--plain"], "cat").with(5, &refused);
    assert_eq!(bench.read("out"), "{\"a\":1,\"a\":2}\n\n\n[1]\n\n\"\"\n");
}

#[test]
fn a_line_of_64_mib_is_accepted_and_one_byte_more_refused() {
    let bench = Bench::new("");
    let mut input = vec![b'x'; 64 << 20];
    input.extend_from_slice(b"\n");
    input.extend(vec![b'y'; (64 << 20) + 1]);
    input.extend_from_slice(b"\nlast\n");
    bench.write("in", input);
    let options = ["--lines", "--plain", "--max-batch-requests", "1"];
    bench
        .run(&options, "tr -d '\\n' | wc -c")
        .with(5, &["line 2 is refused: longer than 67108864 bytes"]);
    assert_eq!(bench.read("out"), "67108864\n\n4\n");
}

/// Fails every third request until there is a file `mended`, and notes what it is given.
const FAILS: &str = r#"
    while read -r line; do
        id=$(echo "$line" | cut -d'"' -f4); n=$(echo "$line" | sed 's/.*"n"://; s/}.*//')
        echo "$n" >> given
        if [ $((n % 3)) = 0 ] && [ ! -e mended ]; then echo "{\"id\":\"$id\",\"error\":\"no $n\"}"
        else echo "{\"id\":\"$id\",\"result\":$n}"; fi
    done"#;

#[test]
fn what_failed_is_told_and_retry_failed_runs_only_that() {
    let bench = Bench::new(&numbers(9));
    let options = ["--failures", "failures"];
    let told = ["line 3 failed: no 3", "6 done, 3 failed", "--retry-failed"];
    bench.run(&options, FAILS).with(5, &told);
    let failures = bench.read("failures");
    assert!(
        failures
            .lines()
            .next()
            .unwrap()
            .ends_with(r#""line":3,"error":"no 3"}"#),
        "{failures}"
    );
    assert!(bench.read("out").contains(r#""line":6,"error":"no 6"}"#));
    bench.write("mended", "");
    bench.write("given", "");
    bench
        .run(&["--retry-failed"], FAILS)
        .with(0, &["9 done, 0 failed"]);
    assert_eq!(bench.read("given"), "3\n6\n9\n");
    let out = bench.read("out");
    let results: Vec<&str> = out
        .lines()
        .map(|line| line.split_once("result").unwrap().1)
        .collect();
    assert_eq!(results[5], "\":6}");
    assert_eq!(results.len(), 9);
    assert!(!bench.path("out.batchyard").exists());
    bench
        .run(&["--retry-failed"], FAILS)
        .with(3, &["no run to retry"]);
}

#[test]
fn a_failed_plain_line_is_empty() {
    let bench = Bench::new(&numbers(4));
    let script = r#"read -r line; case "$line" in *3*) echo "three is bad" >&2; exit 9;; esac; echo "$line""#;
    let options = [
        "--plain",
        "--max-batch-requests",
        "1",
        "--max-attempts",
        "1",
    ];
    bench.run(&options, script).with(
        5,
        &["line 3 failed: the command exited with 9: three is bad"],
    );
    assert_eq!(bench.read("out"), "{\"n\":1}\n{\"n\":2}\n\n{\"n\":4}\n");
}

#[test]
fn a_finished_run_starts_anew() {
    for store in [&[][..], &["--store", "store"]] {
        let bench = Bench::new(&numbers(3));
        bench.run(store, FAILS).with(5, &[]);
        bench.write("in", numbers(4));
        let told = [
            "the run before ended with 1 failed",
            "4 requests: 3 done, 1 failed",
        ];
        bench.run(store, FAILS).with(5, &told);
        assert_eq!(bench.read("given").lines().count(), 7);
    }
}

#[test]
fn commands_that_misbehave_harm_only_their_requests() {
    for (script, why) in [
        ("exit 0", "2 of 2 requests without an answer"),
        ("echo garbage; cat", "line 1 of the command's output"),
        (
            "echo garbage; cat",
            "if the command writes plain lines, use --plain",
        ),
        ("yes", "was stopped"),
        (
            &format!("{ECHO} | head -n 1"),
            "1 of 2 requests without an answer",
        ),
        ("exec sleep 1000", "did not finish within 500ms"),
    ] {
        let bench = Bench::new(&numbers(2));
        let options = ["--max-attempts", "1", "--handler-timeout", "500ms"];
        bench.run(&options, script).with(5, &[why]);
        assert_eq!(bench.read("out").lines().count(), 2);
    }
}

#[test]
fn a_command_that_fails_all_along_is_told_in_a_few_lines() {
    let bench = Bench::new(&numbers(100));
    let ended = bench.run(&["--max-attempts", "1"], "tr n x");
    ended.with(5, &["100 failed", "… and 90 more lines"]);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert!(lines[0].contains("use --plain"), "{ended:?}");
    assert!(lines.len() < 30, "{} lines: {ended:?}", lines.len());
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_can_never_work_is_found_before_anything_is_queued() {
    let bench = Bench::new(&numbers(1));
    bench.write("file", "");
    fs::create_dir(bench.path("folder")).unwrap();
    bench.write("foreign.txt", "");
    let run = |args: &[&str]| Ended::of(bench.batchyard(args).output().unwrap());
    let cases: &[(&[&str], i32, &str)] = &[
        (
            &["run", "in", "--out", "out", "--", "no-such-command"],
            3,
            "no-such-command is not in PATH",
        ),
        (
            &["run", "in", "--out", "out", "--", "./file"],
            2,
            "may not be executed",
        ),
        (&["run", "in", "--out", "out"], 2, "COMMAND"),
        (
            &["run", "none", "--out", "out", "--", "cat"],
            3,
            "none: No such file",
        ),
        (
            &["run", "in", "--out", "no/out", "--", "cat"],
            3,
            "the folder no does not exist",
        ),
        (
            &["run", "in", "--out", "folder", "--", "cat"],
            1,
            "is a folder",
        ),
        (
            &["run", "in", "--out", "in", "--", "cat"],
            2,
            "the same file",
        ),
        (
            &["run", "in", "--out", "out", "--store", "file", "--", "cat"],
            2,
            "file",
        ),
        (
            &["run", "in", "--out", "out", "--store", ".", "--", "cat"],
            2,
            "nothing in it was touched",
        ),
        (
            &[
                "run",
                "in",
                "--out",
                "out",
                "--queue-threshold",
                "0",
                "--",
                "cat",
            ],
            2,
            "at least 1",
        ),
        (
            &[
                "run",
                "in",
                "--out",
                "out",
                "--time-threshold",
                "soon",
                "--",
                "cat",
            ],
            2,
            "such as 90s",
        ),
        (
            &[
                "run",
                "in",
                "--out",
                "out",
                "--max-batch-bytes",
                "much",
                "--",
                "cat",
            ],
            2,
            "64KiB",
        ),
        (
            &[
                "run",
                "in",
                "--out",
                "out",
                "--heartbeat-interval",
                "2h",
                "--",
                "cat",
            ],
            2,
            "heartbeat_interval",
        ),
        (
            &[
                "run",
                "in",
                "--out",
                "out",
                "--queue-treshold",
                "5",
                "--",
                "cat",
            ],
            2,
            "--queue-threshold",
        ),
        (
            &["run", "in", "--out", "out", "--handler", "smoke:signals"],
            2,
            "smoke:signals",
        ),
    ];
    for (args, code, why) in cases {
        let ended = run(args);
        ended.with(*code, &[why]);
        assert!(!bench.path("out.batchyard").exists(), "{args:?}");
        assert!(!bench.path("out.part").exists(), "{args:?}");
    }
    let help = run(&["--help"]);
    help.with(0, &[]);
    assert!(help.stdout.contains("4 conflict"), "{}", help.stdout);
}

/// A run that is in the middle of its first batch, whose command goes on when it is signalled.
fn in_the_middle(bench: &Bench, options: &[&str], script: &str) -> (Child, Signals) {
    let mut signals = bench.signals();
    let script = format!("echo started > signals; {script}");
    let child = bench
        .command(options, &script)
        .process_group(0)
        .spawn()
        .unwrap();
    assert_eq!(signals.next(), "started");
    (child, signals)
}

#[test]
fn a_changed_input_or_command_is_refused_and_fresh_starts_over() {
    let bench = Bench::new(&numbers(3));
    let (mut child, _signals) = in_the_middle(&bench, &[], "[ -e go ] || sleep 1000");
    let same = "echo started > signals; [ -e go ] || sleep 1000";
    // Another program can't have the store meanwhile.
    let pid = child.id().to_string();
    bench.run(&[], same).with(4, &[&pid]);
    child.kill().unwrap();
    child.wait().unwrap();
    bench.write("go", "");
    bench.run(&[], ECHO).with(4, &["COMMAND", "--fresh"]);
    bench
        .run(&["--plain"], same)
        .with(4, &["--plain", "--fresh"]);
    for changed in [numbers(2), numbers(4), numbers(3).replace('2', "7")] {
        bench.write("in", changed);
        bench
            .run(&[], same)
            .with(4, &["INPUT has changed", "--fresh"]);
    }
    bench
        .run(&["--fresh"], ECHO)
        .with(0, &["3 requests: 3 done"]);
    assert!(bench.read("out").contains("\"n\":7"));
}

fn kill(child: &Child, signal: &str) {
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([signal, &id])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn the_first_signal_lets_batches_finish_and_tells_how_to_resume() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let bench = Bench::new(&numbers(10));
        let script = format!("read -r _ < go; {ECHO}");
        assert!(
            Command::new("mkfifo")
                .arg(bench.path("go"))
                .status()
                .unwrap()
                .success()
        );
        let options = ["--max-batch-requests", "4", "--max-in-flight", "1"];
        let (mut child, _signals) = in_the_middle(&bench, &options, &script);
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        kill(&child, signal);
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("stopping"), "{line}");
        bench.write("go", "go\n");
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut stderr, &mut rest).unwrap();
        assert!(rest.contains("run the same command again"), "{rest}");
        assert!(
            rest.contains("10 requests: 4 done, 0 failed, 6 open"),
            "{rest}"
        );
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
}

#[test]
fn the_second_signal_stops_at_once() {
    let bench = Bench::new(&numbers(3));
    let (mut child, mut signals) = in_the_middle(&bench, &[], "exec sleep 1000");
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    kill(&child, "-INT");
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    kill(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    // And it goes on from there.
    let script = "echo started > signals; exec sleep 1000";
    let mut again = bench.command(&[], script).process_group(0).spawn().unwrap();
    assert_eq!(signals.next(), "started");
    again.kill().unwrap();
    again.wait().unwrap();
}

/// Answers each request, tells when it starts and ends, each time that it may go on, and notes what it was given
/// for which batch and whether another copy was at work on it.
const COUNTING: &str = r#"
    exec 8> seen/$BATCHYARD_BATCH_ID.lock
    flock -n 8 || echo "$BATCHYARD_BATCH_ID" >> overlaps
    read -r _ <> steps
    echo start > signals
    cat > seen/$BATCHYARD_BATCH_ID.$$
    sed -E 's/"attempt":[0-9]+,//' seen/$BATCHYARD_BATCH_ID.$$ | cksum >> seen/$BATCHYARD_BATCH_ID.members
    read -r _ <> steps
    echo read > signals
    sed -E 's/^\{("id":"[0-9a-f]*").*"payload":(.*)\}$/{\1,"result":\2}/' seen/$BATCHYARD_BATCH_ID.$$
    rm seen/$BATCHYARD_BATCH_ID.$$
    read -r _ <> steps
    echo end > signals
"#;

#[test]
fn what_a_run_killed_while_it_removed_its_store_left_goes_with_the_next() {
    let bench = Bench::new(&numbers(3));
    let half = bench.path("out.batchyard.removing");
    fs::create_dir_all(half.join("sled/blobs")).unwrap();
    bench.run(&[], ECHO).with(0, &["3 requests: 3 done"]);
    assert!(!half.exists() && !bench.path("out.batchyard").exists());
}

#[test]
fn a_run_killed_at_any_moment_goes_on_where_it_was() {
    let long = std::env::var_os("BATCHYARD_LONG").is_some();
    let (lines, kills, batch) = if long {
        (200_000, 10, "3000")
    } else {
        (5_000, 4, "100")
    };
    let bench = Bench::new(&numbers(lines));
    fs::create_dir(bench.path("seen")).unwrap();
    let mut signals = bench.signals();
    let steps = bench.pipe("steps");
    let may_go_on = |steps: &File, times: u32| {
        let mut steps = steps;
        steps
            .write_all("\n".repeat(times as usize).as_bytes())
            .unwrap();
    };
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let options = ["--max-batch-requests", batch, "--queue-threshold", batch];
    for round in 0..kills {
        let mut child = bench
            .command(&options, COUNTING)
            .process_group(0)
            .spawn()
            .unwrap();
        // All of them together are fewer than the run has. What a killed one left behind may take some of them
        // and be stopped before it tells: as many as there are at the same time.
        let count = random.u32(1..12);
        may_go_on(&steps, count + 4);
        for _ in 0..count {
            signals.next();
        }
        if round % 2 == 0 {
            kill(&child, "-KILL");
        } else {
            let group = format!("-{}", child.id());
            let killed = Command::new("kill").args(["-KILL", "--", &group]).status();
            assert!(killed.unwrap().success());
        }
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
    let drain = std::thread::spawn(move || while signals.next() != "over" {});
    may_go_on(&steps, 1000);
    let ended = bench.run(&options, COUNTING);
    bench.write("signals", "over\n");
    drain.join().unwrap();
    ended.with(0, &[&format!("{lines} requests: {lines} done")]);
    let out = bench.read("out");
    let results = out.lines().map(|line| {
        let result = line.split_once("\"result\":").unwrap().1;
        format!("{}\n", result.strip_suffix('}').unwrap())
    });
    assert!(
        results.eq(numbers(lines).split_inclusive('\n')),
        "every line once, in order"
    );
    assert!(
        !bench.path("overlaps").exists(),
        "two copies: {}",
        bench.read("overlaps")
    );
    for entry in fs::read_dir(bench.path("seen")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "members")
        {
            let text = fs::read_to_string(&path).unwrap();
            let first = text.lines().next().unwrap();
            assert!(text.lines().all(|line| line == first), "{path:?}: {text}");
        }
    }
}
