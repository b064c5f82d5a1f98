//! The command handler against real processes, with a supervisor and without one.
#![cfg(feature = "cli")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    num::NonZeroU64,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use batchyard::{
    Batch, BatchHandler, BatchOptions, Claim, CommandHandler, DeadReason, FailureKind,
    HandlerError, MemoryQueue, NewRequest, Outcome, Page, Queue, QueueOptions, Report, RequestId,
};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

const BINARY: &str = env!("CARGO_BIN_EXE_batchyard");

/// A batch of these payloads, in a queue of its own.
struct Fixture {
    batch: Batch,
    stop: CancellationToken,
    ids: Vec<RequestId>,
    directory: TempDir,
}

impl Fixture {
    async fn new<P: AsRef<[u8]>>(payloads: &[P]) -> Self {
        let queue: Arc<dyn Queue> = Arc::new(MemoryQueue::new(QueueOptions::default()));
        let requests = payloads
            .iter()
            .map(|payload| NewRequest::new(payload.as_ref().to_vec()));
        let pushed = queue.push(queue.now(), requests.collect()).await.unwrap();
        let lease = queue
            .claim(queue.now(), &Claim::new())
            .await
            .unwrap()
            .unwrap();
        let stop = CancellationToken::new();
        let options = BatchOptions {
            stop: stop.clone(),
            ..BatchOptions::default()
        };
        Self {
            batch: Batch::new(queue, lease, options).unwrap(),
            stop,
            ids: pushed.iter().map(|pushed| pushed.id).collect(),
            directory: TempDir::new().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn supervised(&self, handler: CommandHandler) -> CommandHandler {
        handler.supervised_by(BINARY, self.path("commands"))
    }

    async fn outcomes(&self) -> Vec<Option<Outcome>> {
        let page = Page {
            max_bytes: NonZeroU64::MAX,
            ..Page::first()
        };
        let members = self.batch.page(page).await.unwrap();
        members.into_iter().map(|member| member.outcome).collect()
    }
}

fn sh(script: &str) -> CommandHandler {
    CommandHandler::new("sh", ["-c", script]).grace(Duration::from_millis(200))
}

/// Hands the payloads to a script twice, supervised and not: what it reported, and what was recorded.
async fn both<P: AsRef<[u8]>>(
    payloads: &[P],
    handler: CommandHandler,
    check: impl Fn(Result<Report, HandlerError>, Vec<Option<Outcome>>, &Fixture),
) {
    let fixture = Fixture::new(payloads).await;
    let report = handler.handle(fixture.batch.clone()).await;
    check(report, fixture.outcomes().await, &fixture);
    let fixture = Fixture::new(payloads).await;
    let report = fixture
        .supervised(handler)
        .handle(fixture.batch.clone())
        .await;
    check(report, fixture.outcomes().await, &fixture);
    let left: Vec<_> = fs::read_dir(fixture.path("commands")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn failed(report: Result<Report, HandlerError>, kind: FailureKind, with: &[&str]) {
    let error = report.expect_err("the batch failed");
    assert_eq!(error.kind(), kind, "{error}");
    for text in with {
        assert!(error.to_string().contains(text), "{error} lacks {text:?}");
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "compared with outcomes that may be missing"
)]
fn done(result: &str) -> Option<Outcome> {
    Some(Outcome::result(result.to_owned()))
}

/// Answers each line with the line itself as its result.
const ECHO: &str = r#"sed -E 's/^\{("id":"[0-9a-f]*").*$/{\1,"result":&}/'"#;

#[tokio::test]
async fn a_command_gets_each_request_as_a_json_line_and_its_result_is_kept_as_written() {
    let payloads: [&[u8]; 4] = [b"{\"a\": 1.50}", b"", b"hello\nyou", b"\xff"];
    both(&payloads, sh(ECHO), |report, outcomes, fixture| {
        assert_eq!(report.unwrap(), Report::recorded());
        let fields = [
            r#""payload":{"a": 1.50}"#,
            r#""payload_text":"""#,
            r#""payload_text":"hello\nyou""#,
            r#""payload_base64":"/w==""#,
        ];
        for ((id, field), outcome) in fixture.ids.iter().zip(fields).zip(outcomes) {
            let line = format!(r#"{{"id":"{id}","attempt":1,{field}}}"#);
            assert_eq!(outcome, done(&line));
        }
    })
    .await;
}

#[tokio::test]
async fn a_command_is_told_its_batch_attempt_and_queue() {
    let script =
        r#"cat >/dev/null; echo "$BATCHYARD_BATCH_ID $BATCHYARD_ATTEMPT $BATCHYARD_QUEUE""#;
    both(&["x"], sh(script).plain(), |report, outcomes, fixture| {
        report.unwrap();
        assert_eq!(
            outcomes,
            [done(&format!("{} 1 default", fixture.batch.id()))]
        );
    })
    .await;
}

#[tokio::test]
async fn plain_lines_go_in_and_come_out_one_to_one() {
    let handler = sh("tr a-z A-Z").plain();
    both(&["one", "", "three"], handler, |report, outcomes, _| {
        assert_eq!(report.unwrap(), Report::recorded());
        assert_eq!(outcomes, [done("ONE"), done(""), done("THREE")]);
    })
    .await;
}

#[tokio::test]
async fn a_payload_with_a_newline_is_rejected_alone_under_plain() {
    both(
        &["a", "b\nc", "d"],
        sh("cat").plain(),
        |report, outcomes, _| {
            report.unwrap();
            assert_eq!([&outcomes[0], &outcomes[2]], [&done("a"), &done("d")]);
            let Some(Outcome::Reject { reason, error }) = &outcomes[1] else {
                panic!("{outcomes:?}");
            };
            assert_eq!(*reason, DeadReason::Undecodable);
            assert!(error.contains("newline"), "{error}");
        },
    )
    .await;
}

#[tokio::test]
async fn another_number_of_plain_lines_records_nothing() {
    for (script, what) in [
        ("head -n 2", "2 lines for 3 requests"),
        ("cat; echo more", "more than"),
        ("cat >/dev/null", "0 lines for 3 requests"),
    ] {
        both(
            &["a", "b", "c"],
            sh(script).plain(),
            |report, outcomes, _| {
                failed(report, FailureKind::Transient, &[what]);
                assert_eq!(outcomes, [None, None, None], "{script}");
            },
        )
        .await;
    }
}

#[tokio::test]
async fn errors_reject_or_retry_the_one_request() {
    let script = r#"
        read -r a; read -r b; read -r c
        id() { echo "$1" | cut -d'"' -f4; }
        echo "{\"id\":\"$(id "$c")\",\"result\":[1, 2]}"
        echo "{\"id\":\"$(id "$a")\",\"error\":\"no such address\"}"
        echo "{\"id\":\"$(id "$b")\",\"error\":\"busy\",\"retry\":true}"
        echo "{\"id\":\"$(id "$b")\",\"result\":\"a second answer\"}"
    "#;
    both(&["1", "2", "3"], sh(script), |report, outcomes, _| {
        assert_eq!(report.unwrap(), Report::recorded());
        let want = [
            Some(Outcome::reject("no such address")),
            Some(Outcome::retry("busy")),
            done("[1, 2]"),
        ];
        assert_eq!(outcomes, want);
    })
    .await;
}

#[tokio::test]
async fn garbage_and_unknown_ids_fail_the_batch_after_the_valid_answers_are_recorded() {
    for (extra, what) in [
        (
            "Loading model...",
            "line 1 of the command's output: not an answer",
        ),
        (
            r#"{"id":"00000000000000ff","result":1}"#,
            "no request of this batch",
        ),
        (r#"{"id":7,"result":1}"#, "line 1"),
    ] {
        let script = format!("echo '{extra}'; {ECHO}");
        both(&["1", "2"], sh(&script), |report, outcomes, _| {
            failed(report, FailureKind::Transient, &[what]);
            assert!(outcomes.iter().all(Option::is_some), "{outcomes:?}");
        })
        .await;
    }
}

#[tokio::test]
async fn one_answer_too_few_is_told_and_the_others_are_recorded() {
    let script = format!("{ECHO} | head -n 1");
    both(&["1", "2"], sh(&script), |report, outcomes, _| {
        failed(
            report,
            FailureKind::Transient,
            &["1 of 2 requests without an answer"],
        );
        assert!(outcomes[0].is_some() && outcomes[1].is_none());
    })
    .await;
}

#[tokio::test]
async fn a_failed_command_records_nothing_and_its_last_words_are_in_the_error() {
    let script = format!("{ECHO}; echo 'disk on fire' >&2; exit 3");
    both(&["1"], sh(&script), |report, outcomes, _| {
        failed(
            report,
            FailureKind::Transient,
            &["exited with 3", "disk on fire"],
        );
        assert_eq!(outcomes, [None]);
    })
    .await;
}

#[tokio::test]
async fn exit_code_75_is_an_outage_and_a_signal_is_named() {
    both(&["1"], sh("exit 75"), |report, _, _| {
        failed(report, FailureKind::Outage, &["exited with 75"]);
    })
    .await;
    both(&["1"], sh("kill -9 $$"), |report, _, _| {
        failed(report, FailureKind::Transient, &["killed by signal 9"]);
    })
    .await;
}

#[tokio::test]
async fn a_command_that_is_not_there_is_found_by_check_and_is_an_outage() {
    let fixture = Fixture::new(&["1"]).await;
    let plain_file = fixture.path("file");
    fs::write(&plain_file, "#!/bin/sh\n").unwrap();
    for program in [
        PathBuf::from("no-such-command-here"),
        fixture.path("no"),
        plain_file,
    ] {
        let handler = CommandHandler::new(&program, [""; 0]);
        let error = handler.check().unwrap_err().to_string();
        assert!(
            error.contains(program.file_name().unwrap().to_str().unwrap()),
            "{error}"
        );
        both(&["1"], handler, |report, _, _| {
            failed(report, FailureKind::Outage, &["started"]);
        })
        .await;
    }
    assert!(sh("").check().is_ok());
    assert!(CommandHandler::new("/bin/sh", [""; 0]).check().is_ok());
}

#[tokio::test]
async fn a_command_that_writes_before_it_reads_and_one_that_never_reads_block_nothing() {
    let big = vec![vec![b'x'; 1 << 20]; 8];
    let script = "head -c 3000000 /dev/zero | tr '\\0' ' '; echo; cat | cut -c1";
    both(&big, sh(script), |report, _, _| {
        failed(report, FailureKind::Transient, &["not an answer"]);
    })
    .await;
    both(&big, sh("exit 0"), |report, outcomes, _| {
        failed(
            report,
            FailureKind::Transient,
            &["8 of 8 requests without an answer"],
        );
        assert_eq!(outcomes, vec![None; 8]);
    })
    .await;
}

#[tokio::test]
async fn a_flood_is_stopped() {
    for handler in [
        sh("yes").plain(),
        sh("yes"),
        sh("tr '\\0' x </dev/zero"),
        sh("head -c 100000 /dev/zero; exec sleep 1000").max_output_bytes(99_999),
    ] {
        both(&["1"], handler, |report, outcomes, _| {
            failed(report, FailureKind::Transient, &["and was stopped"]);
            assert_eq!(outcomes, [None]);
        })
        .await;
    }
}

/// Tells, by its end, that every process that had it open is gone.
struct Witness(PathBuf);

impl Witness {
    fn new(fixture: &Path) -> Self {
        let path = fixture.join("witness");
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        Self(path)
    }

    /// A script whose processes all hold it open, and that says so in it once its traps are set.
    fn script(&self, traps: &str, rest: &str) -> String {
        let path = self.0.display();
        format!("exec 9>{path}; {traps} echo started >&9; {rest}")
    }

    /// Answers once the script has started, with what answers once it has ended.
    async fn started(&self) -> impl Future<Output = String> + use<> {
        let path = self.0.clone();
        let (started, is_started) = oneshot::channel();
        let (ended, is_ended) = oneshot::channel();
        // A thread of its own: a test that fails does not wait for it.
        std::thread::spawn(move || {
            let mut reader = BufReader::new(fs::File::open(path).unwrap());
            let (mut line, mut rest) = (String::new(), String::new());
            reader.read_line(&mut line).unwrap();
            started.send(line).unwrap();
            reader.read_to_string(&mut rest).unwrap();
            // Nobody waits any more if the test has failed.
            let _ = ended.send(rest);
        });
        assert_eq!(is_started.await.unwrap(), "started\n");
        async move { is_ended.await.unwrap() }
    }
}

/// Ignores `SIGTERM`, as do its children, one of them in the background.
const STUBBORN: (&str, &str) = ("trap '' TERM;", "sleep 1000 & sleep 1000; sleep 1000");

#[tokio::test]
async fn a_dropped_handler_ends_its_command_with_all_children() {
    for supervised in [false, true] {
        let fixture = Fixture::new(&["1"]).await;
        let witness = Witness::new(fixture.directory.path());
        let mut handler = sh(&witness.script(STUBBORN.0, STUBBORN.1));
        if supervised {
            handler = fixture.supervised(handler);
        }
        let batch = fixture.batch.clone();
        let handling = tokio::spawn(async move { handler.handle(batch).await });
        let ended = witness.started().await;
        handling.abort();
        ended.await;
    }
}

#[tokio::test]
async fn a_stopped_command_is_told_with_sigterm_first() {
    for supervised in [false, true] {
        let fixture = Fixture::new(&["1"]).await;
        let witness = Witness::new(fixture.directory.path());
        let polite = witness.script("trap 'echo goodbye >&9; exit' TERM;", "sleep 1000 & wait");
        let mut handler = sh(&polite).grace(Duration::from_mins(10));
        if supervised {
            handler = fixture.supervised(handler);
        }
        let batch = fixture.batch.clone();
        let handling = tokio::spawn(async move { handler.handle(batch).await });
        let ended = witness.started().await;
        fixture.stop.cancel();
        assert_eq!(ended.await, "goodbye\n");
        failed(
            handling.await.unwrap(),
            FailureKind::Transient,
            &["stopped"],
        );
    }
}

#[tokio::test]
async fn what_a_command_leaves_in_the_background_ends_with_it() {
    let witness_directory = TempDir::new().unwrap();
    let witness = Witness::new(witness_directory.path());
    let script = witness.script("", "sleep 1000 & cat");
    for supervised in [false, true] {
        let fixture = Fixture::new(&["1"]).await;
        let mut handler = sh(&script).plain();
        if supervised {
            handler = fixture.supervised(handler);
        }
        let batch = fixture.batch.clone();
        let handling = tokio::spawn(async move { handler.handle(batch).await });
        witness.started().await.await;
        handling.await.unwrap().unwrap();
    }
}

/// A supervisor, as a holder would start it.
fn supervisor(lock: &Path, script: &str) -> Child {
    Command::new(BINARY)
        .args(["__supervise", "100"])
        .arg(lock)
        .args(["sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_supervisor_whose_holder_is_gone_ends_the_command() {
    let directory = TempDir::new().unwrap();
    let witness = Witness::new(directory.path());
    let mut holderless = supervisor(
        &directory.path().join("lock"),
        &witness.script(STUBBORN.0, STUBBORN.1),
    );
    let ended = witness.started().await;
    // What the kernel does when the holder is killed.
    drop(holderless.stderr.take());
    ended.await;
    assert_eq!(holderless.wait().unwrap().code(), Some(128 + 9));
    assert!(!directory.path().join("lock").exists());
}

#[tokio::test]
async fn the_end_of_the_holder_is_not_the_end_of_the_input() {
    let directory = TempDir::new().unwrap();
    let witness = Witness::new(directory.path());
    let script = witness.script("trap '' TERM;", "cat >&9; echo end of input >&9");
    let mut holderless = supervisor(&directory.path().join("lock"), &script);
    let ended = witness.started().await;
    let mut stdin = holderless.stdin.take().unwrap();
    stdin.write_all(b"\x04\0\0\0one\n\x09\0\0\0two").unwrap();
    drop(stdin);
    assert_eq!(ended.await, "one\ntwo");
    holderless.wait().unwrap();
}

#[tokio::test]
async fn a_second_copy_waits_until_the_last_child_of_the_first_is_gone() {
    let directory = TempDir::new().unwrap();
    let lock = directory.path().join("lock");
    let witness = Witness::new(directory.path());
    let busy = format!("exec 8> {};", directory.path().join("busy").display());
    let script = format!("{busy} flock 8; trap '' TERM; sleep 1000 &");
    let script = witness.script(&script, "sleep 1000");
    let mut first = supervisor(&lock, &script);
    let ended = witness.started().await;
    let mut second = supervisor(&lock, &format!("{busy} flock -n 8 && echo alone"));
    // The worst case: nobody is left to end the first command's children, so the second must.
    first.kill().unwrap();
    first.wait().unwrap();
    let mut says = String::new();
    second
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut says)
        .unwrap();
    assert_eq!(says, "alone\n");
    assert_eq!(ended.await, "");
    assert!(second.wait().unwrap().success());
}

#[tokio::test]
async fn answers_of_a_command_that_exited_are_recorded_without_running_it_again() {
    for plain in [false, true] {
        let fixture = Fixture::new(&["a", "b"]).await;
        let directory = fixture.path("commands");
        fs::create_dir(&directory).unwrap();
        let kept = directory.join(format!("{}.answers", fixture.batch.id()));
        let abandoned = directory.join(format!("{}.x.spool", fixture.batch.id()));
        fs::write(&abandoned, "half").unwrap();
        let answer = |index: usize, result: &str| {
            let id = fixture.ids[index];
            if plain {
                return format!("{result}\n");
            }
            format!("{{\"id\":\"{id}\",\"result\":{result}}}\n")
        };
        fs::write(&kept, answer(0, "1") + &answer(1, "2")).unwrap();
        // Its holder had recorded the first when it died.
        let recorded = (fixture.ids[0], Outcome::result("1"));
        fixture.batch.record(vec![recorded]).await.unwrap();
        let mut handler = sh("exit 1");
        if plain {
            handler = handler.plain();
        }
        let handler = fixture.supervised(handler);
        handler.handle(fixture.batch.clone()).await.unwrap();
        assert_eq!(fixture.outcomes().await, [done("1"), done("2")]);
        assert!(!kept.exists());
    }
}
