//! The everyday verbs, as a shell uses them: the real program, its output and its exit codes.
#![cfg(feature = "cli")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// A folder with a store in it, and maybe other things.
struct Yard(TempDir);

/// How a program ended.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

/// A program at work.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Yard {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Words of a command line; `STORE` is the store of this yard.
    fn command(&self, line: &str) -> Command {
        let mut command = bare();
        command.current_dir(self.0.path());
        let store = self.path("store").display().to_string();
        command.args(
            line.split_whitespace()
                .map(|word| word.replace("STORE", &store)),
        );
        command
    }

    fn run(&self, line: &str, input: &[u8]) -> Ran {
        run(&mut self.command(line), input)
    }

    /// Runs and expects success.
    fn ok(&self, line: &str, input: &[u8]) -> String {
        let ran = self.run(line, input);
        assert_eq!(ran.code, Some(0), "{line}: {}", ran.err);
        ran.out
    }

    /// Runs and expects this exit code and these words on stderr.
    fn fails(&self, line: &str, code: i32, with: &[&str]) {
        let ran = self.run(line, b"");
        assert_eq!(ran.code, Some(code), "{line}: {}", ran.err);
        for text in with {
            assert!(ran.err.contains(text), "{line}: {} lacks {text:?}", ran.err);
        }
    }

    fn start(&self, line: &str) -> Running {
        start(&mut self.command(line))
    }

    fn stats(&self) -> Value {
        serde_json::from_str(&self.ok("stats --json --store STORE", b"")).unwrap()
    }

    /// Dispatches until all is settled: payloads of `1` are done, others are rejected.
    fn settle(&self) -> Ran {
        let script = r#"while read -r line; do
            id=${line#*\"id\":\"}; id=${id%%\"*}
            case $line in
                *'"payload":1}') printf '{"id":"%s","result":["one"]}\n' "$id" ;;
                *) printf '{"id":"%s","error":"not\\n one"}\n' "$id" ;;
            esac
        done"#;
        let mut command = self.command("dispatch --store STORE --drain -- sh -c");
        run(command.arg(script), b"")
    }
}

impl Running {
    fn say(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// The next line on stdout.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "it ended: {line:?}");
        line.trim_end().to_owned()
    }

    /// Reads events up to one of this name.
    fn event(&mut self, name: &str) -> Value {
        loop {
            let event: Value = serde_json::from_str(&self.line()).unwrap();
            if event["event"] == name {
                return event;
            }
        }
    }

    fn kill(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(killed.unwrap().success());
    }

    /// Waits for its end, with what it still prints.
    fn end(mut self) -> Ran {
        drop(self.stdin.take());
        let mut out = String::new();
        self.stdout.read_to_string(&mut out).unwrap();
        let Output { status, stderr, .. } = self.child.wait_with_output().unwrap();
        Ran {
            code: status.code(),
            out,
            err: String::from_utf8(stderr).unwrap(),
        }
    }
}

/// The program, untouched by the environment of the test.
fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_batchyard"));
    command
        .env_remove("BATCHYARD_REDIS_URL")
        .env_remove("RUST_LOG");
    command
}

fn start(command: &mut Command) -> Running {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    Running {
        stdin: child.stdin.take(),
        stdout: BufReader::new(child.stdout.take().unwrap()),
        child,
    }
}

fn run(command: &mut Command, input: &[u8]) -> Ran {
    let mut running = start(command);
    // It may have ended without reading any of it.
    let _ = running.stdin.take().unwrap().write_all(input);
    running.end()
}

fn values(lines: &str) -> Vec<Value> {
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The requests among the lines of an export.
fn requests(export: &str) -> Vec<Value> {
    let mut lines = values(export);
    lines.retain(|line| line.get("record").is_none());
    lines
}

fn number(id: &str) -> u64 {
    assert_eq!(id.len(), 16, "{id}");
    u64::from_str_radix(id, 16).unwrap()
}

#[test]
fn push_prints_ids_in_order_and_refuses_what_is_not_json() {
    let yard = Yard::new();
    let lines = b"{\"a\":1,\"a\":2}\nnope\n\n \"x\" \n12345678901234567890123\n\xff\n[]";
    let ran = yard.run(
        "push --store STORE --queue q --attribute tenant=7 --attribute a=b=c",
        lines,
    );
    assert_eq!(ran.code, Some(5), "{}", ran.err);
    for refused in [
        "line 2: it is not JSON",
        "line 3: it is empty",
        "line 6:",
        "4 pushed, 3 refused",
    ] {
        assert!(ran.err.contains(refused), "{}", ran.err);
    }
    let ids: Vec<&str> = ran.out.lines().collect();
    assert_eq!(ids.len(), 4);
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");

    let export = yard.ok("export --store STORE", b"");
    let payloads = [
        "{\"a\":1,\"a\":2}",
        " \"x\" ",
        "12345678901234567890123",
        "[]",
    ];
    for ((line, id), payload) in export.lines().zip(&ids).zip(payloads) {
        let head = format!("{{\"id\":\"{id}\",\"queue\":\"q\",\"state\":\"ready\",\"attempts\":0,");
        assert!(line.starts_with(&head), "{line}");
        assert!(
            line.contains("\"attributes\":{\"a\":\"b=c\",\"tenant\":\"7\"}"),
            "{line}"
        );
        let payload = format!("\"payload\":{}}}", payload.trim());
        assert!(line.ends_with(&payload), "{line} lacks {payload}");
    }
    assert_eq!(requests(&export).len(), 4);
}

#[test]
fn push_lines_takes_any_bytes_and_export_gives_them_back() {
    let yard = Yard::new();
    let printed = yard.ok("push --store STORE --lines --json", b"{\n\n\xff\x00\n7");
    let answers = values(&printed);
    let lines: Vec<_> = answers
        .iter()
        .map(|answer| answer["line"].as_u64().unwrap())
        .collect();
    assert_eq!(lines, [1, 2, 3, 4]);
    assert!(answers.iter().all(|answer| answer["duplicate"] == false));
    let export = requests(&yard.ok("export --queue default --store STORE", b""));
    assert_eq!(export[0]["payload_text"], "{");
    assert_eq!(export[1]["payload_text"], "");
    assert_eq!(export[2]["payload_base64"], "/wA=");
    assert_eq!(export[3]["payload"], 7);
    for (answer, request) in answers.iter().zip(&export) {
        assert_eq!(answer["id"], request["id"]);
    }
}

#[test]
fn a_line_that_is_typed_is_answered_at_once() {
    let yard = Yard::new();
    let mut push = yard.start("push --store STORE -");
    push.say("1\n");
    let first = push.line();
    // The beginning of a line does not hold up those before it.
    push.say("2\n3");
    let second = push.line();
    assert!(number(&first) < number(&second));
    push.say("\n");
    push.line();
    let ran = push.end();
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
    assert_eq!(yard.stats()["ready"], 3);
}

#[test]
fn a_file_is_pushed_in_bulk() {
    let yard = Yard::new();
    fs::write(yard.path("input"), "{}\n".repeat(10_000)).unwrap();
    let printed = yard.ok("push --store STORE input", b"");
    let ids: Vec<u64> = printed.lines().map(number).collect();
    assert_eq!(ids.len(), 10_000);
    // Requests of one push have consecutive ids: all of them were one.
    assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1));
}

#[test]
fn push_says_how_far_it_was_when_nobody_reads_its_ids_any_more() {
    let yard = Yard::new();
    let mut push = yard.start("push --store STORE");
    push.say("1\n");
    push.line();
    let Running {
        mut child,
        stdin,
        stdout,
    } = push;
    drop(stdout);
    let mut stdin = stdin.unwrap();
    stdin.write_all(b"2\n").unwrap();
    while yard.stats()["ready"] != 2 {}
    // Whether all is pushed shows only now.
    stdin.write_all(b"3\n").unwrap();
    let (code, err) = ended(&mut child);
    assert_eq!(code, Some(1), "{err}");
    let why = "nobody reads stdout any more: 2 lines: 2 pushed, up to line 2; those behind it were not pushed";
    assert!(err.contains(why), "{err}");
    assert_eq!(yard.stats()["ready"], 2);
}

/// Its exit code, and what it said.
fn ended(child: &mut Child) -> (Option<i32>, String) {
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    (child.wait().unwrap().code(), err)
}

/// Runs it with a stdout that nobody reads.
fn unread(command: &mut Command, input: &[u8]) -> Ran {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command
        .stdin(Stdio::piped())
        .stdout(writer)
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input);
    let (code, err) = ended(&mut child);
    Ran {
        code,
        out: String::new(),
        err,
    }
}

#[test]
fn what_changes_a_store_says_how_far_it_was_when_nobody_reads_it() {
    let yard = Yard::new();
    yard.ok("push --store STORE", b"1\n2\n3\n");
    assert_eq!(yard.settle().code, Some(5));
    let export = yard.ok("export --store STORE", b"");
    for (line, code, why) in [
        (
            "import --store other --json",
            1,
            "what follows was not taken in",
        ),
        ("dead redrive --all --dry-run --store STORE", 0, ""),
        (
            "dead purge --all --store STORE",
            1,
            "2 purged, and no more were looked at",
        ),
        ("stats --store STORE", 0, ""),
        ("export --store STORE", 0, ""),
    ] {
        let ran = unread(&mut yard.command(line), export.as_bytes());
        assert_eq!(ran.code, Some(code), "{line}: {}", ran.err);
        assert!(ran.err.contains(why), "{line}: {}", ran.err);
        assert!(
            code == 1 || !ran.err.contains("error"),
            "{line}: {}",
            ran.err
        );
    }
}

#[test]
fn what_leads_nowhere_says_what_would() {
    let yard = Yard::new();
    yard.ok("push --store STORE", b"1\n");
    for (line, code, with) in [
        ("import --from STORE --store STORE", 2, "are the same"),
        (
            "import --from STORE --store ./store/../store",
            2,
            "are the same",
        ),
        (
            "bench --dir nowhere/at/all --quick",
            3,
            "the folder nowhere/at/all does not exist",
        ),
    ] {
        yard.fails(line, code, &[with]);
    }
    let ran = yard.run("import --store other", b"what is this\n");
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    let with = "import takes what export prints";
    assert!(
        ran.err.contains("line 1") && ran.err.contains(with),
        "{}",
        ran.err
    );
    #[cfg(feature = "redis")]
    {
        let mut stats = yard.command("stats");
        let ran = run(stats.env("BATCHYARD_REDIS_URL", "rediss://localhost"), b"");
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        assert!(
            ran.err.contains("TLS, which is not compiled in"),
            "{}",
            ran.err
        );
    }
    // Words, not code.
    let ran = run(
        yard.command(
            "dispatch --store STORE --drain --queue-threshold 1 --max-attempts 1 -- sh -c",
        )
        .arg("exit 0"),
        b"",
    );
    assert!(ran.err.contains("trigger=\"count\""), "{}", ran.err);
}

#[test]
fn push_stops_at_a_signal_between_two_lines() {
    let yard = Yard::new();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let mut push = yard.start("push --store STORE");
        push.say("1\n");
        push.line();
        push.kill(signal);
        let stdin = push.stdin.take();
        assert_eq!(push.end().code, Some(code));
        drop(stdin);
    }
    assert_eq!(yard.stats()["ready"], 3);
}

#[cfg(target_os = "linux")]
#[test]
fn a_hang_up_that_is_ignored_as_by_nohup_stays_so() {
    let yard = Yard::new();
    let push = yard.command("push --store STORE");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh"])
        .arg(push.get_program())
        .args(push.get_args());
    let mut push = start(&mut shell);
    push.say("1\n");
    push.line();
    push.kill("HUP");
    push.say("2\n");
    push.line();
    assert_eq!(push.end().code, Some(0));
    assert_eq!(yard.stats()["ready"], 2);
}

#[test]
fn a_line_with_a_known_key_is_a_duplicate_unless_it_says_something_else() {
    let yard = Yard::new();
    let push = "push --store STORE --json --idempotency-key-from order";
    let first = values(&yard.ok(push, b"{\"order\":\"a\"}\n{\"order\":7}\n"));
    let ran = yard.run(
        push,
        b"{\"order\":7}\n{\"order\":\"a\",\"more\":1}\n{\"order\":\"b\"}\n{}\n",
    );
    assert_eq!(ran.code, Some(5), "{}", ran.err);
    assert!(
        ran.err.contains("line 2:") && ran.err.contains("line 4:"),
        "{}",
        ran.err
    );
    let sums = "4 lines: 1 pushed, 1 duplicate, 2 refused";
    assert!(ran.err.contains(sums), "{}", ran.err);
    let second = values(&ran.out);
    assert_eq!(second.len(), 2);
    assert_eq!(second[0]["id"], first[1]["id"]);
    assert_eq!(
        (&second[0]["duplicate"], &second[1]["duplicate"]),
        (&true.into(), &false.into())
    );
    assert_eq!(second[1]["line"], 3);
    assert_eq!(yard.stats()["pushed"], 3);
}

#[test]
fn requests_can_wait_and_expire() {
    let yard = Yard::new();
    yard.ok("push --store STORE --delay 1h", b"1\n");
    yard.ok("push --store STORE --ttl 1ns", b"2\n");
    let stats = yard.stats();
    assert_eq!(
        (&stats["delayed"], &stats["expired"]),
        (&1.into(), &1.into())
    );
    let export = requests(&yard.ok("export --store STORE", b""));
    assert_eq!((export.len(), &export[0]["state"]), (1, &"delayed".into()));
    assert_eq!(export[0]["at"], stats["next_due"]);
}

#[test]
fn what_can_never_work_is_refused_before_anything_is_made() {
    let yard = Yard::new();
    let long = "x".repeat(300);
    let attribute = "x".repeat(5000);
    for (line, with) in [
        ("push --store STORE --queue a/b", "'/'"),
        (&format!("stats --store STORE --queue {long}"), "300 bytes"),
        ("push --store STORE --ttl soon", "90s"),
        ("push --store STORE --delay=-5s", "--delay"),
        ("push --store STORE --attribute tenant", "tenant=7"),
        (
            &format!("push --store STORE --attribute a={attribute}"),
            "4096",
        ),
        (
            "push --store STORE --lines --idempotency-key-from a",
            "--lines",
        ),
        ("push --store STORE --colour red", "--colour"),
        ("push", "BATCHYARD_REDIS_URL"),
        ("dead redrive --store STORE", "--all"),
        ("dead purge --store STORE --reason exhausted", "--all"),
        (
            "dead show --store STORE xyz",
            "an id is 16 hexadecimal digits, as push and ls print them",
        ),
        ("dead redrive --store STORE --all --rate fast", "100/s"),
        ("dead purge --store STORE --all --rate 1/s", "--rate"),
        ("dead ls --store STORE --older 5", "90s"),
        ("batches release --store STORE", "--all"),
        (
            "batches show --store STORE 000000000000002a",
            "32 hexadecimal digits",
        ),
        ("results --store STORE --since 17", "a cursor is"),
        ("results --store STORE --state ready", "done"),
        ("repair redis://localhost other", "is a server"),
        (
            "dispatch --store STORE --time-interval 1ns -- cat",
            "at least 1ms",
        ),
        (
            "dispatch --store STORE --queue-threshold 0 -- cat",
            "at least 1",
        ),
        ("dispatch --store STORE --time-threshold 90 -- cat", "90s"),
        (
            "dispatch --store STORE --max-batch-bytes many -- cat",
            "64KiB",
        ),
        (
            "dispatch --store STORE --heartbeat-interval 2m -- cat",
            "lease_duration",
        ),
        ("dispatch --store STORE --prefix a/ -- cat", "'/'"),
        (
            "dispatch --store STORE --prefix a --queue b -- cat",
            "--queue",
        ),
        ("dispatch --store STORE --handler pigeon:home", "pigeon"),
        ("dispatch --store STORE", "COMMAND"),
        ("dead show --store STORE 17", "16 hexadecimal digits"),
        ("dead purge --store STORE --all 000000000000002a", "--all"),
        (
            "dead purge --store STORE --all --reason boredom",
            "exhausted",
        ),
        (
            "dead purge --store STORE --reason rejected 000000000000002a",
            "--reason",
        ),
    ] {
        yard.fails(line, 2, &[with]);
    }
    yard.fails("push --store STORE nowhere", 3, &["nowhere"]);
    yard.fails(
        "dispatch --store STORE -- no-such-command",
        3,
        &["no-such-command"],
    );
    assert!(!yard.path("store").exists());
}

#[test]
fn verbs_that_only_look_make_no_store_and_no_queue() {
    let yard = Yard::new();
    let verbs = [
        "stats",
        "export",
        "dead ls",
        "dead show 000000000000002a",
        "dead redrive --all",
        "dead purge 000000000000002a",
        "batches ls",
        "batches release --all",
        "results",
        "results --follow",
    ];
    for verb in verbs {
        yard.fails(&format!("{verb} --store STORE"), 3, &["no such folder"]);
        assert!(!yard.path("store").exists(), "{verb}");
    }
    fs::create_dir(yard.path("store")).unwrap();
    for verb in verbs {
        yard.fails(&format!("{verb} --store STORE"), 3, &["empty"]);
        assert_eq!(
            fs::read_dir(yard.path("store")).unwrap().count(),
            0,
            "{verb}"
        );
    }
    yard.ok("push --store STORE", b"1\n");
    for verb in verbs {
        yard.fails(
            &format!("{verb} --store STORE --queue other"),
            3,
            &["no queue \"other\""],
        );
    }
    assert_eq!(
        yard.ok("stats --json --store STORE", b"").lines().count(),
        1
    );
}

#[test]
fn a_path_that_is_no_store_of_this_version_is_left_untouched() {
    let yard = Yard::new();
    fs::write(yard.path("file"), "precious").unwrap();
    fs::create_dir(yard.path("foreign")).unwrap();
    fs::write(yard.path("foreign/photo"), "precious").unwrap();
    yard.ok("push --store STORE", b"1\n");
    let format = fs::read_to_string(yard.path("store/FORMAT")).unwrap();
    let newer = format.replace("version 1", "version 99");
    assert_ne!(newer, format);
    fs::write(yard.path("store/FORMAT"), &newer).unwrap();
    for verb in [
        "push",
        "stats",
        "export",
        "dispatch --drain --handler http:http://localhost",
        "dead ls",
    ] {
        if verb.contains("http") && cfg!(not(feature = "http")) {
            continue;
        }
        yard.fails(&format!("{verb} --store file"), 2, &["is a file"]);
        yard.fails(
            &format!("{verb} --store foreign"),
            2,
            &["photo", "another folder"],
        );
        yard.fails(
            &format!("{verb} --store STORE"),
            2,
            &["format 99", "newer version"],
        );
    }
    assert_eq!(fs::read_to_string(yard.path("file")).unwrap(), "precious");
    assert_eq!(fs::read_dir(yard.path("foreign")).unwrap().count(), 1);
    assert_eq!(
        fs::read_to_string(yard.path("store/FORMAT")).unwrap(),
        newer
    );
}

#[test]
fn a_store_that_lost_its_database_is_damaged() {
    let yard = Yard::new();
    yard.ok("push --store STORE", b"1\n");
    fs::remove_dir_all(yard.path("store/sled")).unwrap();
    for verb in ["push", "stats", "export", "dead ls"] {
        yard.fails(&format!("{verb} --store STORE"), 8, &["repair"]);
    }
}

#[test]
fn a_repair_saves_every_request_into_a_new_store() {
    let yard = Yard::new();
    yard.ok("push --store STORE", b"1\n2\n3\n");
    yard.settle();
    yard.ok("push --store STORE", b"4\n5\n");
    let before = yard.ok("export --store STORE", b"");
    let saved = yard.ok("repair store mended --json", b"");
    let saved: Value = serde_json::from_str(&saved).unwrap();
    assert_eq!((&saved["held"], &saved["dead"]), (&2.into(), &2.into()));
    let count = |text: &str| requests(text).len();
    assert_eq!(
        count(&yard.ok("export --store mended", b"")),
        count(&before)
    );
    yard.fails("repair nowhere other", 3, &["nowhere"]);
    yard.fails("repair store mended", 2, &["mended"]);
}

#[test]
fn a_folder_that_may_not_be_written_is_refused() {
    let yard = Yard::new();
    let folder = yard.path("sealed");
    fs::create_dir(&folder).unwrap();
    let mut sealed = fs::metadata(&folder).unwrap().permissions();
    sealed.set_readonly(true);
    fs::set_permissions(&folder, sealed).unwrap();
    if fs::write(folder.join("probe"), "").is_ok() {
        println!("skipped: nothing is sealed for root");
        return;
    }
    yard.fails("push --store sealed", 2, &["sealed"]);
    yard.fails("push --store sealed/store", 2, &["sealed/store"]);
}

/// In a name space of its own, where whoever asks may mount.
#[cfg(target_os = "linux")]
#[test]
fn a_store_on_a_read_only_file_system_is_verified_and_says_what_else_helps() {
    let yard = Yard::new();
    for backend in ["sled", "journal"] {
        yard.ok(
            &format!("push --store {backend} --backend {backend}"),
            b"1\n",
        );
        let sealed = |line: &str| {
            let script = format!(
                "mount --bind {backend} {backend} && mount -o remount,ro,bind {backend} && exec \"$0\" {line} --store {backend}"
            );
            let mut command = Command::new("unshare");
            command
                .args(["--map-root-user", "--mount", "sh", "-c", &script])
                .arg(env!("CARGO_BIN_EXE_batchyard"))
                .current_dir(yard.0.path())
                .env_remove("RUST_LOG")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            run(&mut command, b"")
        };
        let may = Command::new("unshare")
            .args(["--map-root-user", "--mount", "true"])
            .output();
        if !may.is_ok_and(|may| may.status.success()) {
            println!("skipped: nobody but root may mount here");
            return;
        }
        let verified = sealed("verify");
        assert_eq!(verified.code, Some(0), "{}", verified.err);
        for verb in ["stats", "export", "push", "snapshot --to copy", "compact"] {
            let refused = sealed(verb);
            assert_eq!(refused.code, Some(2), "{verb}: {}", refused.err);
            for part in ["read-only", "copy the folder", "verify"] {
                assert!(refused.err.contains(part), "{verb}: {}", refused.err);
            }
        }
    }
}

#[test]
fn a_store_in_use_names_its_owner_and_the_way_out() {
    let yard = Yard::new();
    let mut dispatch = yard.start("dispatch --store STORE --json -- cat");
    dispatch.event("serving");
    let pid = format!("pid {}", dispatch.child.id());
    yard.fails(
        "dispatch --store STORE -- cat",
        4,
        &[&pid, "stop it", "--prefix", "Redis"],
    );
    // It makes its socket anew, and others wait for that.
    fs::remove_file(yard.path("store/control.sock")).unwrap();
    for verb in ["push", "export"] {
        yard.ok(&format!("{verb} --store STORE"), b"");
    }
    dispatch.kill("TERM");
    assert_eq!(dispatch.end().code, Some(143));
    yard.ok("push --store STORE", b"1\n");
}

/// Leaves a batch of three in the queue `stuck`, deferred for a day, with outcomes and a checkpoint; its id.
fn leave_batch(yard: &Yard) -> String {
    use batchyard::{Claim, ControlStore, Outcome, Page, Store, Then, Update};

    yard.ok("push --store STORE --queue stuck", b"1\n2\n3\n");
    let mut dispatch = yard.start("dispatch --store STORE --json --queue other -- cat");
    dispatch.event("serving");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let id = runtime.unwrap().block_on(async {
        let store = ControlStore::connect(yard.path("store")).await.unwrap();
        let queue = store.queue(&"stuck".parse().unwrap()).await.unwrap();
        let now = queue.now();
        let lease = queue.claim(now, &Claim::new()).await.unwrap().unwrap();
        let members = queue.read(&lease, Page::first()).await.unwrap();
        let update = Update {
            outcomes: vec![
                (members[0].id, Outcome::result("\"one\"")),
                (members[2].id, Outcome::retry("busy")),
            ],
            checkpoint: Some("{\"submitted\":7}".into()),
            then: Then::Defer {
                until: now.after(std::time::Duration::from_secs(24 * 3600)),
            },
        };
        queue.update(now, &lease, update).await.unwrap();
        lease.batch.to_string()
    });
    dispatch.kill("TERM");
    assert_eq!(dispatch.end().code, Some(143));
    id
}

/// What verbs print about a store, one after the other.
fn walk(yard: &Yard, ids: &[&str]) -> Vec<String> {
    let [ready, delayed, dead, cancelled, batch] = ids else {
        panic!("four ids and a batch")
    };
    let lines = [
        "queues --store STORE".to_owned(),
        "stats --json --store STORE".to_owned(),
        "ls --store STORE".to_owned(),
        "ls --json --store STORE --state delayed --state dead".to_owned(),
        "peek --store STORE --limit 1".to_owned(),
        format!("show --store STORE {ready}"),
        format!("show --json --store STORE {delayed}"),
        format!("show --store STORE {dead}"),
        format!("cancel --store STORE {cancelled} --dry-run"),
        format!("cancel --store STORE {cancelled} {delayed} --dry-run --json"),
        "batches ls --store STORE".to_owned(),
        "batches ls --json --store STORE --queue stuck".to_owned(),
        format!("batches show --json --store STORE {batch}"),
        format!("batches release --dry-run --store STORE {batch}"),
        "batches release --all --dry-run --json --store STORE".to_owned(),
        "results --store STORE".to_owned(),
        "results --json --store STORE --state dead".to_owned(),
        "dead ls --store STORE".to_owned(),
        "dead ls --json --store STORE --newer 100h --attempts 1 --error one".to_owned(),
        format!("dead show --json --store STORE {dead}"),
        "dead redrive --all --dry-run --store STORE".to_owned(),
        format!("explain --store STORE {dead}"),
        "export --store STORE".to_owned(),
    ];
    lines.iter().map(|line| yard.ok(line, b"")).collect()
}

#[test]
fn verbs_say_the_same_whether_the_store_is_open_elsewhere_or_not() {
    for backend in ["sled", "journal"] {
        let yard = Yard::new();
        let push = format!("push --store STORE --backend {backend}");
        let dead = yard.ok(&push, b"0\n");
        yard.settle();
        let delayed = yard.ok("push --store STORE --delay 1h", b"{\"later\":1}\n");
        let ready = yard.ok("push --store STORE --attribute tenant=7", b"1\n2\n3\n");
        yard.ok("push --store STORE --queue other", b"4\n");
        let ready: Vec<&str> = ready.lines().collect();
        let batch = leave_batch(&yard);
        let ids = [ready[0], delayed.trim(), dead.trim(), ready[2], &batch];
        yard.ok("pause --store STORE", b"");
        let alone = walk(&yard, &ids);

        let mut dispatch = yard.start("dispatch --store STORE --json --queue other -- cat");
        dispatch.event("serving");
        let served = walk(&yard, &ids);
        for (alone, served) in alone.iter().zip(&served) {
            assert_eq!(alone, served, "{backend}");
        }
        // And it changes what it is asked to change.
        yard.ok(&format!("cancel --store STORE {}", ids[3]), b"");
        yard.ok("dead purge --all --store STORE", b"");
        let released = yard.ok("batches release --all --store STORE", b"");
        assert_eq!(released.trim(), batch);
        let shown = yard.ok(&format!("batches show --json --store STORE {batch}"), b"");
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(
            (&shown["state"], &shown["attempt"]),
            (&"offered".into(), &1.into())
        );
        yard.ok("push --store STORE", b"5\n6\n");
        let stats = yard.ok("stats --json --store STORE --queue default", b"");
        let stats: Value = serde_json::from_str(&stats).unwrap();
        let counts = ["pushed", "ready", "delayed", "cancelled", "purged"].map(|name| &stats[name]);
        assert_eq!(counts, [7, 4, 1, 1, 1], "{backend}: {stats}");
        assert_eq!(yard.ok("import --store STORE", b""), "");
        dispatch.kill("TERM");
        assert_eq!(dispatch.end().code, Some(143));
    }
}

#[test]
fn a_dispatcher_that_runs_is_paused_resumed_flushed_and_explained() {
    let yard = Yard::new();
    yard.ok("push --store STORE", b"1\n");
    let mut dispatch = yard.start("dispatch --store STORE --json -- cat");
    dispatch.event("serving");
    let explained = yard.ok("explain --store STORE", b"");
    assert!(
        explained.contains("the next batch leaves in"),
        "{explained}"
    );
    assert!(explained.contains("ready: 1 of 50000"), "{explained}");
    let explained = yard.ok("explain --store STORE default --json", b"");
    let explained: Value = serde_json::from_str(&explained).unwrap();
    assert_eq!(explained["queue_threshold"], 50_000);
    assert_eq!(explained["time_threshold_seconds"], 7200.0);

    let health = yard.ok("health --store STORE", b"");
    let pid = format!(
        "well, served by the process with pid {}",
        dispatch.child.id()
    );
    assert!(health.contains(&pid), "{health}");
    assert!(
        health.contains("queue default: the next batch leaves in"),
        "{health}"
    );
    let health = yard.ok("health --store STORE --json", b"");
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!(
        (&health["well"], &health["queues"][0]["well"]),
        (&true.into(), &true.into())
    );

    let mut watch = yard.start("stats --store STORE --watch 10ms --json");
    let first: Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!(
        (&first["pushed_per_second"], &first["queue_threshold"]),
        (&Value::Null, &50_000.into())
    );
    let second: Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!(
        (&second["pushed_per_second"], &second["stats"]["ready"]),
        (&0.0.into(), &1.into())
    );
    assert!(second["disk_bytes"].as_u64().unwrap() > 0, "{second}");
    watch.kill("INT");
    assert_eq!(watch.end().code, Some(130));
    let mut watch = yard.start("stats --store STORE --watch 10ms");
    while !watch.line().contains("1/50000") {}
    watch.kill("TERM");
    assert_eq!(watch.end().code, Some(143));

    yard.ok("pause --store STORE", b"");
    yard.ok("flush --store STORE", b"");
    let id = yard.ok("push --store STORE", b"2\n");
    let explained = yard.ok(&format!("explain --store STORE {}", id.trim()), b"");
    assert!(explained.contains("waits for a batch"), "{explained}");
    assert!(explained.contains("has been paused since"), "{explained}");
    yard.ok("resume --store STORE", b"");
    let claimed = dispatch.event("claimed");
    assert_eq!(
        (&claimed["trigger"], &claimed["requests"]),
        (&"flush".into(), &2.into())
    );
    dispatch.kill("TERM");
    dispatch.end();
    let explained = yard.ok("explain --store STORE", b"");
    assert!(explained.contains("no dispatcher"), "{explained}");
    yard.fails(
        "health --store STORE",
        3,
        &["nobody serves", "control.sock"],
    );
    let mut watch = yard.start("stats --store STORE --watch 10ms --json");
    let alone: Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!(alone["queue_threshold"], Value::Null, "{alone}");
    yard.fails("health --store STORE", 3, &["for a while only"]);
    watch.kill("INT");
    assert_eq!(watch.end().code, Some(130));
    yard.fails("explain --store STORE other", 3, &["no queue", "other"]);
    yard.fails("show --store STORE 0000000000000001", 3, &["no request"]);
}

#[test]
fn shells_and_man_are_told_of_every_verb() {
    let yard = Yard::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = yard.ok(&format!("completions {shell}"), b"");
        for word in ["dispatch", "redrive", "queue-threshold"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
    yard.fails("completions cobol", 2, &["bash"]);
    assert!(yard.ok("man", b"").contains("batchyard"));
    yard.ok("man --dir pages", b"");
    for page in [
        "batchyard.1",
        "batchyard-dispatch.1",
        "batchyard-dead-redrive.1",
    ] {
        let text = fs::read_to_string(yard.path("pages").join(page)).unwrap();
        let is_verb = page.contains('-');
        assert_eq!(text.contains("Example"), is_verb, "{page}");
    }
}

#[test]
fn cancelling_tells_what_became_of_each() {
    let yard = Yard::new();
    let ids = yard.ok("push --store STORE", b"1\n2\n");
    let ids: Vec<&str> = ids.lines().collect();
    let line = format!("cancel --store STORE {} {}", ids[0], ids[0]);
    assert_eq!(yard.ok(&line, b""), format!("{}  now\n", ids[0]));
    yard.fails(&line, 3, &["no request", ids[0]]);
    let line = format!("cancel --store STORE --json {} {}", ids[0], ids[1]);
    let ran = yard.run(&line, b"");
    assert_eq!(ran.code, Some(5), "{}", ran.err);
    let told: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&told["id"], &told["cancelled"]),
        (&ids[1].into(), &"now".into())
    );
    let ids = yard.ok("push --store STORE", b"1\n2\n");
    let done = ids.lines().next().unwrap();
    yard.settle();
    let waits = yard.ok("push --store STORE --delay 1h", b"3\n");
    let line = format!("cancel --store STORE --json {done} {}", waits.trim());
    // What it would do, and then does.
    for (dry_run, cancelled) in [(" --dry-run", 2), (" --dry-run", 2), ("", 3)] {
        let ran = yard.run(&format!("{line}{dry_run}"), b"");
        assert_eq!(ran.code, Some(5), "{}", ran.err);
        let told = values(&ran.out);
        for (told, state, what) in [(&told[0], "done", "no"), (&told[1], "delayed", "now")] {
            assert_eq!(
                (&told["state"], &told["cancelled"]),
                (&state.into(), &what.into())
            );
        }
        assert_eq!(yard.stats()["cancelled"], cancelled);
    }
}

#[test]
fn a_batch_is_shown_and_taken_from_its_holder() {
    let yard = Yard::new();
    let made = Command::new("mkfifo").arg(yard.path("go")).status();
    assert!(made.unwrap().success());
    let id = yard.ok("push --store STORE", b"1\n");
    let mut command = yard.command(
        "dispatch --store STORE --json --plain --queue-threshold 1 --heartbeat-interval 20ms -- sh -c",
    );
    command.arg("in=$(cat); read -r go < go; echo \"$in\"");
    let mut dispatch = start(&mut command);
    let claimed = dispatch.event("claimed");
    let batch = claimed["batch"].as_str().unwrap();

    let listed = values(&yard.ok("batches ls --json --store STORE", b""));
    assert_eq!(listed.len(), 1);
    let facts = [
        "id",
        "queue",
        "state",
        "attempt",
        "requests",
        "unsettled",
        "fence",
    ];
    let facts = facts.map(|name| listed[0][name].clone());
    let expected: [Value; 7] = [
        batch.into(),
        "default".into(),
        "held".into(),
        1.into(),
        1.into(),
        1.into(),
        1.into(),
    ];
    assert_eq!(facts, expected);
    let shown = yard.ok(&format!("batches show {batch} --store STORE"), b"");
    for text in [
        "held until",
        "unless its holder holds on to it",
        "unsettled   1",
    ] {
        assert!(shown.contains(text), "{shown}");
    }
    let place = yard.ok(&format!("explain --json {} --store STORE", id.trim()), b"");
    let place: Value = serde_json::from_str(&place).unwrap();
    let request = &place["request"];
    assert_eq!(
        (
            &request["state"],
            &request["batch"],
            &request["batch_state"]
        ),
        (&"in_flight".into(), &batch.into(), &"held".into())
    );
    assert!(
        request["until"].is_string() && place["summary"].is_string(),
        "{place}"
    );

    let release = format!("batches release {batch} {batch} --store STORE");
    let printed = yard.ok(&format!("{release} --dry-run"), b"");
    assert_eq!(printed, format!("{batch}\n"));
    assert_eq!(yard.ok(&release, b""), printed);
    // It is handed out again, and its first holder is told that it has lost it.
    let (mut again, mut lost) = (None, false);
    while again.is_none() || !lost {
        let event: Value = serde_json::from_str(&dispatch.line()).unwrap();
        match event["event"].as_str().unwrap() {
            "claimed" => again = Some(event),
            "lease_lost" => lost = true,
            _ => {}
        }
    }
    let again = again.unwrap();
    assert_eq!(
        (&again["batch"], &again["attempt"]),
        (&batch.into(), &1.into())
    );
    dispatch.kill("TERM");
    dispatch.kill("INT");
    let ran = dispatch.end();
    assert!(ran.out.contains("released"), "{}", ran.out);
    let ran = yard.run(&release, b"");
    assert_eq!(ran.code, Some(3), "{}", ran.err);
    assert!(ran.err.contains("is offered already"), "{}", ran.err);
    let unknown = "00000000000000000000000000000007";
    yard.fails(
        &format!("batches release {unknown} --store STORE"),
        3,
        &["no open batch"],
    );
    yard.fails(
        &format!("batches show {unknown} --store STORE"),
        3,
        &["no open batch"],
    );
    assert_eq!(yard.stats()["in_flight"], 1);
}

#[test]
fn dead_letters_are_picked_by_what_they_are_like_and_redriven_at_a_rate() {
    let yard = Yard::new();
    let ids = yard.ok(
        "push --store STORE",
        b"\"timeout\"\n\"gone\"\n\"timeout\"\n",
    );
    let ids: Vec<&str> = ids.lines().collect();
    let reject = r#"sed -E 's/"attempt.*"payload":("[a-z]*")}/"error":\1}/'"#;
    let dispatch = "dispatch --store STORE --drain -- sh -c";
    assert_eq!(run(yard.command(dispatch).arg(reject), b"").code, Some(5));
    for (filter, picked) in [
        ("--error time", vec![ids[0], ids[2]]),
        ("--error Time", vec![]),
        ("--older 1h", vec![]),
        ("--newer 1h", ids.clone()),
        ("--attempts 1", ids.clone()),
        ("--attempts 2", vec![]),
        ("--reason rejected --error gone --newer 1h", vec![ids[1]]),
        ("--reason exhausted --error gone", vec![]),
    ] {
        let listed = values(&yard.ok(&format!("dead ls --json {filter} --store STORE"), b""));
        let listed: Vec<&str> = listed
            .iter()
            .map(|dead| dead["id"].as_str().unwrap())
            .collect();
        assert_eq!(listed, picked, "{filter}");
        for verb in ["redrive", "purge"] {
            let line = format!("dead {verb} --all {filter} --dry-run --store STORE");
            let printed = yard.ok(&line, b"");
            assert_eq!(printed.lines().collect::<Vec<_>>(), picked, "{line}");
        }
    }
    // The first goes at once, and the second after an hour.
    let mut slow = yard.start("dead redrive --all --error timeout --rate 1/h --store STORE");
    assert_eq!(slow.line(), ids[0]);
    slow.kill("INT");
    let ran = slow.end();
    assert_eq!((ran.code, &*ran.out), (Some(130), ""), "{}", ran.err);
    assert!(
        ran.err.contains("stopped: 1 redriven so far"),
        "{}",
        ran.err
    );
    assert_eq!(yard.stats()["ready"], 1);
    yard.ok("dead purge --all --error timeout --store STORE", b"");
    let printed = yard.ok("dead redrive --all --rate 1000000/s --store STORE", b"");
    assert_eq!(printed.trim(), ids[1]);
    let stats = yard.stats();
    assert_eq!(
        (&stats["dead"], &stats["purged"], &stats["ready"]),
        (&0.into(), &1.into(), &2.into())
    );
}

#[test]
fn results_are_printed_in_order_and_go_on_behind_a_cursor() {
    let yard = Yard::new();
    let ids = yard.ok("push --store STORE", b"1\n2\n1\n3\n");
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(yard.ok("results --store STORE", b""), "");
    assert_eq!(yard.settle().code, Some(5));
    let all = values(&yard.ok("results --json --store STORE", b""));
    let named = |lines: &[Value]| -> Vec<String> {
        let id = |line: &Value| line["id"].as_str().unwrap().to_owned();
        lines.iter().map(id).collect()
    };
    // Done ones as they are recorded, dead letters as their batch ends.
    assert_eq!(named(&all), [ids[0], ids[2], ids[1], ids[3]]);
    assert_eq!(
        (&all[0]["state"], &all[0]["result"][0], &all[2]["error"]),
        (&"done".into(), &"one".into(), &"not\n one".into())
    );
    for (at, line) in all.iter().enumerate() {
        let since = line["cursor"].as_str().unwrap();
        let since = format!("results --json --store STORE --since {since}");
        assert_eq!(values(&yard.ok(&since, b"")), all[at + 1..]);
    }
    let dead = values(&yard.ok("results --json --state dead --store STORE", b""));
    assert_eq!(named(&dead), [ids[1], ids[3]]);
    let text = yard.ok("results --state done --store STORE", b"");
    assert_eq!(text.lines().count(), 2);
    for word in [
        ids[0],
        "done",
        "[\"one\"]",
        all[0]["cursor"].as_str().unwrap(),
    ] {
        assert!(text.contains(word), "{text}");
    }
    // A line that is not kept any more: what was on its page comes again, and nothing is left out.
    let cursor = all[2]["cursor"].as_str().unwrap();
    yard.ok(&format!("dead purge {} --store STORE", ids[1]), b"");
    let since = format!("results --json --store STORE --since {cursor}");
    let again = values(&yard.ok(&since, b""));
    assert_eq!(named(&again), [ids[0], ids[2], ids[3]]);
    yard.ok("push --store STORE --queue other", b"1\n");
    yard.fails(&since, 2, &["--queue"]);
    yard.ok(&format!("{since} --queue default"), b"");
    let ran = unread(&mut yard.command("results --store STORE"), b"");
    assert_eq!((ran.code, &*ran.err), (Some(0), ""));
}

#[test]
fn results_are_followed_whoever_has_the_store_open() {
    let yard = Yard::new();
    yard.ok("push --store STORE", b"1\n");
    yard.settle();
    let mut follow = yard.start("results --follow --json --store STORE");
    let mut next = || -> Value { serde_json::from_str(&follow.line()).unwrap() };
    assert_eq!(next()["state"], "done");
    // It lets go of the store for who comes to dispatch, and asks that one from then on.
    let plain = "dispatch --store STORE --json --plain --queue-threshold 1 -- cat";
    let mut dispatch = yard.start(plain);
    dispatch.event("serving");
    let id = yard.ok("push --store STORE", b"2\n");
    assert_eq!(next()["id"], id.trim());
    let id = yard.ok("push --store STORE --queue other", b"1\n");
    dispatch.kill("KILL");
    dispatch.end();
    // The next one serves another queue, which it did not know.
    let mut dispatch = yard.start(&format!("{plain} ").replace("-- ", "--queue other -- "));
    dispatch.event("serving");
    let line = next();
    assert_eq!(
        (&line["id"], &line["queue"]),
        (&id.trim().into(), &"other".into())
    );
    dispatch.kill("TERM");
    dispatch.end();
    follow.kill("INT");
    let ran = follow.end();
    assert_eq!((ran.code, &*ran.err), (Some(130), ""));
}

#[test]
fn results_that_nobody_follows_any_more_end_without_another_line() {
    let yard = Yard::new();
    yard.ok("push --store STORE", b"1\n");
    yard.settle();
    let mut command = yard.command("results --follow --store STORE");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let mut read = BufReader::new(child.stdout.take().unwrap());
    read.read_line(&mut String::new()).unwrap();
    drop(read);
    let (code, err) = ended(&mut child);
    assert_eq!((code, &*err), (Some(0), ""));
}

/// The pipe holds less than the first page, so the signal is there before the second one is read.
#[test]
fn results_that_are_followed_hear_a_signal_while_they_print_what_there_is() {
    let yard = Yard::new();
    let lines = "1\n".repeat(3000);
    yard.ok("push --store STORE --backend journal", lines.as_bytes());
    let drain = "dispatch --store STORE --plain --drain -- cat";
    yard.ok(drain, b"");
    let mut follow = yard.start("results --follow --json --store STORE");
    follow.line();
    follow.kill("INT");
    let ran = follow.end();
    assert_eq!((ran.code, &*ran.err), (Some(130), ""));
    // The rest of the page that was being printed, and at most one that was being read.
    let lines = 1 + ran.out.lines().count();
    assert!(lines == 1000 || lines == 2000, "{lines}");
}

#[test]
fn dispatch_drains_a_queue_and_tells_of_new_dead_letters() {
    let yard = Yard::new();
    yard.ok("push --store STORE", b"1\n2\n1\n");
    let ran = yard.settle();
    assert_eq!(ran.code, Some(5), "{}", ran.err);
    assert!(ran.err.contains("2 done, 1 dead-lettered"), "{}", ran.err);
    assert!(ran.err.contains("batch claimed"), "{}", ran.err);
    assert_eq!(ran.out, "");
    let export = requests(&yard.ok("export --store STORE", b""));
    let states: Vec<_> = export.iter().map(|request| &request["state"]).collect();
    assert_eq!(states, ["done", "dead", "done"]);
    assert_eq!(export[0]["result"][0], "one");
    assert_eq!(export[0].get("payload"), None);
    let dead = &export[1];
    assert_eq!(
        (&dead["reason"], &dead["payload"]),
        (&"rejected".into(), &2.into())
    );
    assert_eq!(
        (&dead["error"], &dead["attempts"]),
        (&"not\n one".into(), &1.into())
    );
    assert_eq!(dead["batch"], export[0]["batch"]);
    // The dead letter of before is not a new one.
    yard.ok("push --store STORE", b"1\n");
    let ran = yard.settle();
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("1 done, 0 dead-lettered"), "{}", ran.err);
}

#[test]
fn dispatch_serves_every_queue_of_a_prefix_and_no_other() {
    let yard = Yard::new();
    for queue in ["tenant-1", "tenant-2", "other"] {
        yard.ok(&format!("push --store STORE --queue {queue}"), b"1\n");
    }
    let dispatch = "dispatch --store STORE --prefix tenant- --drain --json --plain -- cat";
    let events = values(&yard.ok(dispatch, b""));
    let of = |name: &str| {
        let events = events.iter().filter(|event| event["event"] == name);
        let mut queues: Vec<_> = events
            .map(|event| event["queue"].as_str().unwrap())
            .collect();
        queues.sort_unstable();
        queues
    };
    for name in ["serving", "claimed", "finished"] {
        assert_eq!(of(name), ["tenant-1", "tenant-2"], "{name}");
    }
    let stats = values(&yard.ok("stats --json --store STORE", b""));
    let done: Vec<_> = stats
        .iter()
        .map(|stats| stats["done"].as_u64().unwrap())
        .collect();
    assert_eq!(done, [0, 1, 1]);
}

#[cfg(feature = "http")]
#[test]
fn dispatch_sends_batches_to_a_url() {
    let yard = Yard::new();
    yard.ok("push --store STORE --queue hooks", b"1\n\"two\"\n");
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let (mut request, mut part) = (Vec::new(), [0; 4096]);
        while !request.ends_with(b"\"payload\":\"two\"}\n") {
            let length = stream.read(&mut part).unwrap();
            assert!(length > 0, "it was cut off");
            request.extend_from_slice(&part[..length]);
        }
        let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
        stream.write_all(answer).unwrap();
        String::from_utf8(request).unwrap()
    });
    let dispatch =
        format!("dispatch --store STORE --queue hooks --drain --handler http:http://{address}/in");
    yard.ok(&dispatch, b"");
    let request = serving.join().unwrap();
    assert!(request.starts_with("POST /in HTTP/1.1"), "{request}");
    assert!(request.contains("\"payload\":\"two\"}"), "{request}");
    assert_eq!(yard.stats()["done"], 2);
}

/// A dispatcher whose command waits until something is written to the pipe `go`.
fn held_up(yard: &Yard) -> Running {
    yard.ok("push --store STORE", b"1\n");
    let made = Command::new("mkfifo").arg(yard.path("go")).status();
    assert!(made.unwrap().success());
    let mut command =
        yard.command("dispatch --store STORE --json --plain --queue-threshold 1 -- sh -c");
    command.arg("in=$(cat); read -r go < go; echo \"$in\"");
    let mut dispatch = start(&mut command);
    dispatch.event("claimed");
    dispatch
}

#[test]
fn the_first_signal_lets_batches_finish() {
    let yard = Yard::new();
    let mut dispatch = held_up(&yard);
    dispatch.kill("INT");
    dispatch.event("shutting_down");
    fs::write(yard.path("go"), "go\n").unwrap();
    dispatch.event("finished");
    let ran = dispatch.end();
    assert_eq!(ran.code, Some(130), "{}", ran.err);
    assert!(ran.err.contains("stopping"), "{}", ran.err);
    assert_eq!(yard.stats()["done"], 1);
}

#[test]
fn the_second_signal_gives_batches_back() {
    let yard = Yard::new();
    let mut dispatch = held_up(&yard);
    dispatch.kill("TERM");
    dispatch.event("shutting_down");
    dispatch.kill("INT");
    dispatch.event("released");
    let ran = dispatch.end();
    assert_eq!(ran.code, Some(143), "{}", ran.err);
    let stats = yard.stats();
    assert_eq!(
        (&stats["in_flight"], &stats["offered"]),
        (&1.into(), &1.into())
    );
}

#[test]
fn dispatch_says_that_it_stops_when_nobody_reads_its_events_any_more() {
    let yard = Yard::new();
    let Running {
        mut child,
        stdin,
        stdout,
    } = held_up(&yard);
    drop((stdin, stdout));
    fs::write(yard.path("go"), "go\n").unwrap();
    let (code, err) = ended(&mut child);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("the dispatcher was stopped"), "{err}");
    assert_eq!(yard.stats()["done"], 1);
}

#[test]
fn stats_are_a_table_for_people() {
    let yard = Yard::new();
    yard.ok("push --store STORE --queue a", b"1\n2\n");
    yard.ok("push --store STORE --queue much-longer", b"1\n");
    let table = yard.ok("stats --store STORE", b"");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|row| row.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0][..4], ["queue", "pushed", "delayed", "ready"]);
    assert_eq!(rows[1][..4], ["a", "2", "0", "2"]);
    assert_eq!(rows[2][..4], ["much-longer", "1", "0", "1"]);
    assert_eq!(rows.len(), 3);
    let one = yard.ok("stats --store STORE --queue a", b"");
    assert_eq!(one.lines().count(), 2);
}

#[test]
fn dead_letters_are_listed_and_shown() {
    let yard = Yard::new();
    yard.ok(
        "push --store STORE --attribute tenant=7",
        b"1\n{\"to\":2}\n",
    );
    yard.settle();
    let listed = values(&yard.ok("dead ls --json --store STORE", b""));
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].get("payload"), None);
    let id = listed[0]["id"].as_str().unwrap();

    let table = yard.ok("dead ls --store STORE", b"");
    assert_eq!(table.lines().count(), 2);
    for text in [id, "rejected", "not  one"] {
        assert!(table.contains(text), "{table}");
    }
    let none = yard.ok("dead ls --json --reason exhausted --store STORE", b"");
    assert_eq!(none, "");

    let shown = values(&yard.ok(&format!("dead show {id} --json --store STORE"), b""));
    assert_eq!(shown[0]["payload"]["to"], 2);
    assert_eq!(shown[0]["attributes"]["tenant"], "7");
    let shown = yard.ok(&format!("dead show {id} --store STORE"), b"");
    for text in ["tenant=7", "rejected", "payload     {\"to\":2}"] {
        assert!(shown.contains(text), "{shown}");
    }
    yard.fails("dead show 000000000000002a --store STORE", 3, &["dead ls"]);
}

#[test]
fn dead_letters_are_redriven_and_purged_but_not_by_a_dry_run() {
    let yard = Yard::new();
    yard.ok("push --store STORE --queue a", b"2\n3\n4\n");
    let script = "dispatch --store STORE --prefix a --drain -- sh -c";
    let reject = |yard: &Yard| {
        let echo = r#"sed 's/"attempt.*/"error":"no"}/'"#;
        assert_eq!(run(yard.command(script).arg(echo), b"").code, Some(5));
    };
    reject(&yard);
    let listed = values(&yard.ok("dead ls --json --store STORE", b""));
    let ids: Vec<&str> = listed
        .iter()
        .map(|dead| dead["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), 3);
    let dead = || yard.stats()["dead"].as_u64().unwrap();

    for verb in ["redrive", "purge"] {
        let printed = yard.ok(&format!("dead {verb} --all --dry-run --store STORE"), b"");
        assert_eq!(printed.lines().collect::<Vec<_>>(), ids);
        let other = yard.ok(
            &format!("dead {verb} --all --reason exhausted --store STORE"),
            b"",
        );
        assert_eq!(other, "");
        assert_eq!(dead(), 3, "{verb}");
    }
    let some = format!(
        "dead purge {} {} 000000000000002a --json --store STORE",
        ids[1], ids[1]
    );
    let ran = yard.run(&some, b"");
    assert_eq!(ran.code, Some(5), "{}", ran.err);
    assert!(
        ran.err.contains("000000000000002a is no dead letter"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("1 purged"), "{}", ran.err);
    let printed = values(&ran.out);
    assert_eq!(
        (printed.len(), &printed[0]["id"], &printed[0]["queue"]),
        (1, &ids[1].into(), &"a".into())
    );
    yard.fails(
        &format!("dead redrive {} --store STORE", ids[1]),
        3,
        &["no dead letter"],
    );

    yard.ok("dead redrive --all --reason rejected --store STORE", b"");
    let stats = yard.stats();
    assert_eq!(
        (&stats["dead"], &stats["ready"], &stats["purged"]),
        (&0.into(), &2.into(), &1.into())
    );
    reject(&yard);
    assert_eq!(dead(), 2);
    yard.ok("dead purge --all --store STORE", b"");
    assert_eq!(requests(&yard.ok("export --store STORE", b"")).len(), 0);
}

#[test]
fn the_exit_codes_are_in_the_help_and_on_the_page() {
    let yard = Yard::new();
    let help = yard.ok("--help", b"");
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let codes = "0 ok, 1 failure, 2 usage, 3 not found, 4 conflict (store in use, changed input), \
5 partial success, 6 timeout, 7 remote error, 8 store damaged, 129 hung up, 130 interrupted, 143 terminated";
    assert!(help.contains(codes), "{help}");
    let page = include_str!("../src/_documentation/command_line.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    let rows: Vec<i32> = rows
        .filter_map(|row| row.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(rows, CODES);
    // Where users look, an example follows.
    for verb in [
        "push",
        "dispatch",
        "dead",
        "dead redrive",
        "config",
        "config show",
    ] {
        let help = yard.ok(&format!("{verb} --help"), b"");
        assert!(
            help.contains(&format!("Example: batchyard {verb} ")),
            "{help}"
        );
    }
}

/// All exit codes there are.
const CODES: [i32; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 129, 130, 143];

/// Each of them by a call that a user could make.
#[test]
fn every_exit_code_is_met() {
    let yard = Yard::new();
    let mut met = Vec::new();
    let mut meets = |ran: Ran, code: i32| {
        assert_eq!(ran.code, Some(code), "{}", ran.err);
        met.push(code);
    };
    meets(yard.run("push --store STORE", b"1\n2\n"), 0);
    meets(yard.run("push --store STORE --max-requests 2", b"3\n"), 1);
    meets(yard.run("push --store STORE --colour red", b""), 2);
    meets(yard.run("stats --store nowhere", b""), 3);
    let mut dispatch = yard.start("dispatch --store STORE --json -- cat");
    dispatch.event("serving");
    meets(yard.run("dispatch --store STORE -- cat", b""), 4);
    dispatch.kill("HUP");
    meets(dispatch.end(), 129);
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut dispatch = yard.start("dispatch --store STORE --json -- cat");
        dispatch.event("serving");
        dispatch.kill(signal);
        meets(dispatch.end(), code);
    }
    meets(yard.settle(), 5);
    yard.ok("pause --store STORE", b"");
    yard.ok("push --store STORE", b"1\n");
    let late = "dispatch --store STORE --drain --timeout 50ms -- cat";
    meets(yard.run(late, b""), 6);
    #[cfg(feature = "redis")]
    {
        let mut stats = yard.command("stats");
        let stats = stats.env("BATCHYARD_REDIS_URL", "redis://127.0.0.1:1/");
        meets(run(stats, b""), 7);
    }
    fs::remove_dir_all(yard.path("store/sled")).unwrap();
    meets(yard.run("stats --store STORE", b""), 8);
    met.sort_unstable();
    let possible = CODES
        .into_iter()
        .filter(|code| cfg!(feature = "redis") || *code != 7);
    assert_eq!(met, possible.collect::<Vec<_>>());
}

#[test]
fn what_is_mistyped_is_refused_with_what_was_meant() {
    let yard = Yard::new();
    for queue in ["orders", "emails"] {
        yard.ok(&format!("push --store STORE --queue {queue}"), b"1\n");
    }
    for (line, code, with) in [
        ("dispach --store STORE -- cat", 2, "'dispatch'"),
        ("dead redrve --store STORE --all", 2, "'redrive'"),
        ("stats --stor STORE", 2, "'--store'"),
        (
            "dispatch --store STORE --time-treshold 1s -- cat",
            2,
            "'--time-threshold'",
        ),
        ("push --store STORE --backend jornal", 2, "'journal'"),
        ("dead ls --store STORE --reason exausted", 2, "'exhausted'"),
        (
            "stats --store STORE --queue ordres",
            3,
            "did you mean \"orders\"?",
        ),
        (
            "export --store STORE --queue Orders",
            3,
            "did you mean \"orders\"?",
        ),
        ("explain --store STORE email", 3, "did you mean \"emails\"?"),
        (
            "pause --store STORE --queue ordres",
            3,
            "did you mean \"orders\"?",
        ),
        (
            "stats --store STORE --queue xyzzy",
            3,
            "stats lists those it has",
        ),
    ] {
        yard.fails(line, code, &[with]);
    }
}

#[test]
fn a_paused_queue_that_is_drained_says_what_it_waits_for() {
    let yard = Yard::new();
    yard.ok("push --store STORE", b"1\n");
    yard.ok("pause --store STORE", b"");
    let mut dispatch =
        yard.start("dispatch --store STORE --drain --timeout 2m --json --plain -- cat");
    let mut err = BufReader::new(dispatch.child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("paused") {
        assert_ne!(
            err.read_line(&mut said).unwrap(),
            0,
            "it said nothing: {said}"
        );
    }
    let with = "queue \"default\" has been paused since";
    assert!(
        said.contains(with) && said.contains("batchyard resume"),
        "{said}"
    );
    yard.ok("resume --store STORE", b"");
    err.read_to_string(&mut said).unwrap();
    assert_eq!(dispatch.end().code, Some(0), "{said}");
    assert_eq!(said.matches("has been paused").count(), 1, "{said}");
    // Nothing is said of a queue that holds nothing.
    yard.ok("pause --store STORE", b"");
    let ran = yard.run("dispatch --store STORE --drain --plain -- cat", b"");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(!ran.err.contains("has been paused"), "{}", ran.err);
}

#[cfg(target_os = "linux")]
#[test]
fn a_push_whose_ids_can_not_be_printed_says_up_to_which_line_it_pushed() {
    let yard = Yard::new();
    fs::write(yard.path("lines"), "1\n2\n3\n").unwrap();
    let mut command = yard.command("push --store STORE");
    command.stdin(fs::File::open(yard.path("lines")).unwrap());
    command.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("3 pushed, up to line 3;"), "{said}");
    assert_eq!(yard.stats()["pushed"], 3);
    // Who reads no ids lets all lines be pushed, if there are no more behind them.
    let ran = unread(&mut yard.command("push --store STORE"), b"1\n2\n");
    assert_eq!((ran.code, &*ran.err), (Some(0), ""));
    assert_eq!(yard.stats()["pushed"], 5);
}
