//! The configuration as a user has it: flags, the environment, a file, and what is said of all three.
#![cfg(feature = "cli")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use batchyard::configuration::{Kind, SETTINGS, Setting, Value};
use serde_json::Value as Json;
use tempfile::TempDir;

/// A folder that the program is started in.
struct Desk(TempDir);

/// How a program ended.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Desk {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// With this in its `batchyard.toml`.
    fn with(text: &str) -> Self {
        let desk = Self::new();
        desk.write("batchyard.toml", text);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_batchyard"));
        command.current_dir(self.0.path());
        command.args(line.split_whitespace());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BATCHYARD_")) {
            command.env_remove(name);
        }
        command.env_remove("RUST_LOG");
        command
    }

    fn run(&self, line: &str) -> Ran {
        run(&mut self.command(line), "")
    }

    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, Some(0), "{line}: {ran:?}");
        ran.out
    }

    #[track_caller]
    fn fails(&self, line: &str, code: i32, with: &[&str]) -> Ran {
        let ran = self.run(line);
        ran.with(code, with);
        ran
    }
}

impl Ran {
    #[track_caller]
    fn with(&self, code: i32, with: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for text in with {
            assert!(self.err.contains(text), "{text:?} is not in {}", self.err);
        }
    }
}

fn run(command: &mut Command, input: &str) -> Ran {
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What `config show --json` says of a setting: its value and its origin.
fn shown(command: &mut Command, key: &str) -> (Json, String) {
    let ran = run(command.arg("--json"), "");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines = ran
        .out
        .lines()
        .map(|line| serde_json::from_str::<Json>(line).unwrap());
    let line = lines.into_iter().find(|line| line["key"] == key).unwrap();
    (
        line["value"].clone(),
        line["origin"].as_str().unwrap().to_owned(),
    )
}

/// Four values of a setting that differ from each other and from its default: as JSON has them when they are shown,
/// as they are written on a command line, and in a file.
fn values(desk: &Desk, setting: &Setting) -> Vec<(Json, String, String)> {
    let quote = |text: String| format!("{text:?}");
    let value = |n: usize| -> (String, String) {
        match setting.kind {
            Kind::Count => (format!("{}", n + 20), format!("{}", n + 20)),
            Kind::Size => (format!("{}KiB", n + 3), quote(format!("{}KiB", n + 3))),
            // In order of the knobs that have to fit together.
            Kind::Duration => {
                let seconds = match setting.key {
                    "heartbeat_interval" | "initial_backoff" => n + 2,
                    _ => n + 100,
                };
                (format!("{seconds}s"), quote(format!("{seconds}s")))
            }
            Kind::Switch => {
                let on = ["true", "false"][n % 2];
                (on.into(), on.into())
            }
            Kind::Choice(words) => (words[n % 2].into(), quote(words[n % 2].into())),
            Kind::Folder | Kind::File => {
                let path = desk.path(&format!("place-{n}")).display().to_string();
                (path.clone(), quote(path))
            }
            Kind::Address => (
                format!("127.0.0.1:{}", n + 7000),
                quote(format!("127.0.0.1:{}", n + 7000)),
            ),
            Kind::Secret => (format!("redis://h{n}/"), quote(format!("redis://h{n}/"))),
            Kind::Text => (
                format!("http:http://h{n}/"),
                quote(format!("http:http://h{n}/")),
            ),
            Kind::Words => {
                let words = format!("[\"cat\", \"{n}\"]");
                (words.clone(), words)
            }
        }
    };
    let as_json = |text: &str| -> Json {
        let parsed = setting.kind.parse(text.as_ref()).unwrap();
        serde_json::from_str(&parsed.to_string()).unwrap()
    };
    let all = (0..3).map(value);
    all.map(|(line, file)| (as_json(&line), line, file))
        .collect()
}

/// Every setting, through each of the four levels, so that a new row of the table can't be forgotten.
#[test]
fn each_setting_is_taken_from_a_flag_a_variable_a_file_or_its_default_in_this_order() {
    for setting in SETTINGS {
        let desk = Desk::new();
        let (key, variable) = (setting.key, setting.variable());
        let [file, environment, flag] = values(&desk, setting).try_into().unwrap();
        let default = setting.default_value().map(|value| value.to_string());
        let default = default.map_or(Json::Null, |text| serde_json::from_str(&text).unwrap());
        assert_eq!(
            shown(&mut desk.command("config show"), key),
            (default, "default".into()),
            "{key}"
        );
        // Not in the first line, so that a line is told and not merely 1.
        desk.write(
            "batchyard.toml",
            &format!("# of the test\n\n{key} = {}\n", file.2),
        );
        let at = (file.0.clone(), "batchyard.toml:3".to_owned());
        assert_eq!(shown(&mut desk.command("config show"), key), at, "{key}");
        let mut command = desk.command("config show");
        command.env(&variable, "");
        assert_eq!(
            shown(&mut command, key),
            at,
            "{key}: an empty variable is none"
        );
        let mut command = desk.command("config show");
        command.env(&variable, &environment.1);
        assert_eq!(
            shown(&mut command, key),
            (environment.0, variable.clone()),
            "{key}"
        );
        let mut command = desk.command("config show --json");
        command.env(&variable, &environment.1);
        match setting.flag {
            Some(name) => {
                command.arg(format!("--{name}={}", flag.1));
            }
            None if setting.kind == Kind::Words => {
                let Ok(Value::Words(words)) = setting.kind.parse(flag.1.as_ref()) else {
                    panic!("{flag:?}")
                };
                command.arg("--").args(words);
            }
            // What may hold a password is on no command line.
            None => continue,
        }
        let ran = run(&mut command, "");
        assert_eq!(ran.code, Some(0), "{key}: {ran:?}");
        let line = ran
            .out
            .lines()
            .find(|line| line.contains(&format!("{key:?}")))
            .unwrap();
        let line: Json = serde_json::from_str(line).unwrap();
        assert_eq!(
            (&line["value"], &line["origin"]),
            (&flag.0, &"flag".into()),
            "{key}"
        );
    }
}

#[test]
fn each_knob_of_a_queue_is_its_own_or_that_of_its_longest_prefix() {
    let knobs = SETTINGS.iter().filter(|setting| setting.per_queue);
    let mut seen = 0;
    for setting in knobs {
        seen += 1;
        let desk = Desk::new();
        let [general, prefix, queue] = values(&desk, setting).try_into().unwrap();
        let key = setting.key;
        desk.write(
            "batchyard.toml",
            &format!(
                "{key} = {}\n[prefix.tenant-]\n{key} = {}\n[queue.tenant-7]\n{key} = {}\n",
                general.2, prefix.2, queue.2
            ),
        );
        for (name, value, line) in [
            ("other", &general.0, 1),
            ("tenant-8", &prefix.0, 3),
            ("tenant-7", &queue.0, 5),
        ] {
            let found = shown(
                &mut desk.command(&format!("config show --queue {name}")),
                key,
            );
            assert_eq!(
                found,
                (value.clone(), format!("batchyard.toml:{line}")),
                "{key} {name}"
            );
        }
        // A variable counts for every queue.
        let mut command = desk.command("config show --queue tenant-7");
        let found = shown(command.env(setting.variable(), &general.1), key);
        assert_eq!(found, (general.0, setting.variable()), "{key}");
    }
    assert_eq!(
        seen, 12,
        "the knobs of the policy that are not of the whole program"
    );
}

#[test]
fn a_dispatcher_does_what_the_file_says_of_each_queue() {
    let desk = Desk::with(
        "store = \"store\"\nbackend = \"journal\"\nplain = true\ncommand = [\"cat\"]\nqueue_threshold = 2\n\
[prefix.tenant-]\nqueue_threshold = 3\n[queue.tenant-big]\nqueue_threshold = 4\n",
    );
    for queue in ["other", "tenant-1", "tenant-big"] {
        let ran = run(
            &mut desk.command(&format!("push --queue {queue}")),
            &"1\n".repeat(12),
        );
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    assert!(desk.path("store/log").is_dir(), "it is a journal");
    let events = desk.ok("dispatch --prefix= --drain --json");
    let sizes = |queue: &str| -> Vec<u64> {
        let events = events
            .lines()
            .map(|line| serde_json::from_str::<Json>(line).unwrap());
        let claimed = events.filter(|event| event["event"] == "claimed" && event["queue"] == queue);
        claimed
            .map(|event| event["requests"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(sizes("other"), [2; 6]);
    assert_eq!(sizes("tenant-1"), [3; 4]);
    assert_eq!(sizes("tenant-big"), [4; 3]);
    // Every other verb finds the same store.
    assert!(desk.ok("queues").contains("tenant-big"));
    assert!(desk.ok("verify").contains("3 queues") || desk.run("verify").code == Some(0));
}

#[test]
fn a_run_does_what_the_file_says_and_keeps_a_store_of_its_own() {
    let desk = Desk::with(
        "store = \"elsewhere\"\nplain = true\nqueue_threshold = 2\ncommand = [\"./count\"]\n",
    );
    desk.write("count", "#!/bin/sh\necho call >> calls\nexec cat\n");
    let executable = Command::new("chmod")
        .arg("+x")
        .arg(desk.path("count"))
        .status();
    assert!(executable.unwrap().success());
    desk.write("in", "1\n2\n3\n4\n");
    desk.ok("run in --out out");
    assert_eq!(
        fs::read_to_string(desk.path("out")).unwrap(),
        "1\n2\n3\n4\n"
    );
    assert_eq!(
        fs::read_to_string(desk.path("calls"))
            .unwrap()
            .lines()
            .count(),
        2
    );
    assert!(!desk.path("elsewhere").exists());
    // A command on the command line takes the place of the other.
    desk.ok("run in --out out -- tr 1-4 a-d");
    assert_eq!(
        fs::read_to_string(desk.path("out")).unwrap(),
        "a\nb\nc\nd\n"
    );
}

#[test]
fn all_mistakes_of_a_file_are_told_with_their_lines_and_what_was_meant() {
    let desk = Desk::with(
        "\
stoer = \"store\"
time_threshold = 90
queue_threshold = \"many\"
max_batch_bytes = 1.5
plain = \"yes\"
command = [\"cat\", 7]
backend = \"postgres\"
redis_url = \"redis://me:secret@host/\"
queue-threshold = 5
xyzzy = 1

[queue.orders]
max_inflight = 3
retention = \"1h\"
time_threshold = \"soon\"

[queue.eu.orders]
max_in_flight = 3

[prefix.\"a/b\"]
max_in_flight = 3

[queues.orders]
max_in_flight = 3
",
    );
    let ran = desk.fails("config check", 2, &[]);
    for (line, with) in [
        (1, "stoer: there is no such setting; did you mean store?"),
        (
            2,
            "time_threshold: it is the number 90, and text is needed (time_threshold = \"30s\")",
        ),
        (
            3,
            "queue_threshold: \"many\" is not possible: a whole number from 1",
        ),
        (4, "max_batch_bytes: it is the number 1.5"),
        (5, "plain: it is the text \"yes\" (plain = true)"),
        (6, "command: not all of it is text"),
        (
            7,
            "backend: \"postgres\" is not possible: it may be sled or journal",
        ),
        (8, "redis_url: it may hold a password"),
        (9, "did you mean queue_threshold?"),
        (
            10,
            "xyzzy: there is no such setting; batchyard config show lists",
        ),
        (
            13,
            "max_inflight: there is no such setting; did you mean max_in_flight?",
        ),
        (14, "retention: it is no setting of single queues"),
        (
            15,
            "time_threshold: \"soon\" is not possible: write a number with its unit",
        ),
        (17, "needs quotes"),
        (20, "prefix.a/b: "),
        (23, "queues: there is no such setting; did you mean queue?"),
    ] {
        let start = format!("error: batchyard.toml:{line}: ");
        let told = ran.err.lines().find(|told| told.starts_with(&start));
        let told = told.unwrap_or_else(|| panic!("nothing is told of line {line}: {}", ran.err));
        assert!(told.contains(with), "{told}");
    }
    assert_eq!(ran.err.lines().count(), 16, "{}", ran.err);
    assert!(!ran.err.contains("secret"), "{}", ran.err);
    let json = desk.run("config check --json");
    let first: Json = serde_json::from_str(json.out.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["line"], &first["key"]),
        (&1.into(), &"stoer".into())
    );
    // Any other verb tells the first, and where all of them are.
    let more = ["batchyard.toml:1: stoer", "15 more", "config check"];
    desk.fails("stats", 2, &more);
    desk.write("batchyard.toml", "store = \"a\n[queue\nx = = 2\n");
    desk.fails("config check", 2, &["batchyard.toml:1: "]);
}

#[test]
fn what_does_not_fit_together_or_is_not_there_is_found_by_a_check() {
    let desk = Desk::new();
    desk.write("file", "");
    desk.write("empty", "\n");
    for (text, with) in [
        (
            "heartbeat_interval = \"50s\"",
            "batchyard.toml:1: heartbeat_interval (50s) must be above zero and at most half of lease_duration",
        ),
        (
            "\n[queue.orders]\nmax_backoff = \"1ms\"",
            "batchyard.toml:2: [queue.\"orders\"]: initial_backoff (1s) must not be above max_backoff",
        ),
        (
            "command = [\"no-such-command\"]",
            "batchyard.toml:1: command: ",
        ),
        (
            "command = []",
            "batchyard.toml:1: command: there is no program in it",
        ),
        (
            "handler = \"pigeon:home\"",
            "batchyard.toml:1: handler: no handler",
        ),
        ("store = \"file\"", "batchyard.toml:1: store: "),
        ("store = \"redis://host\"", "batchyard.toml:1: store: "),
        (
            "store = \"s\"\nredis_url_file = \"u\"",
            "batchyard.toml:2: redis_url_file: store says something else",
        ),
        (
            "redis_url_file = \"nowhere\"",
            "batchyard.toml:1: redis_url_file: ",
        ),
        (
            "redis_url_file = \"empty\"",
            "there has to be one URL in it",
        ),
        (
            "handler = \"http:http://h/\"\nplain = true",
            "batchyard.toml:2: plain: it is about a command",
        ),
        (
            "handler = \"http:http://h/\"\ncommand = [\"cat\"]",
            "command: handler says something else",
        ),
    ] {
        desk.write("batchyard.toml", text);
        desk.fails("config check", 2, &[with]);
    }
    desk.write(
        "batchyard.toml",
        "store = \"deep/down/store\"\ncommand = [\"cat\"]",
    );
    desk.fails("config check", 0, &["batchyard.toml is fine"]);
    assert!(!desk.path("deep").exists(), "nothing is made");
}

#[test]
fn a_file_that_is_named_has_to_be_there_and_paths_in_it_are_beside_it() {
    let desk = Desk::with("queue_threshold = 1");
    desk.write("conf/other.toml", "store = \"store\"\nqueue_threshold = 2");
    desk.fails(
        "stats --config nowhere.toml",
        3,
        &["nowhere.toml", "--config"],
    );
    desk.fails("config check nowhere.toml", 3, &["nowhere.toml"]);
    let mut command = desk.command("stats");
    run(command.env("BATCHYARD_CONFIG", "gone.toml"), "").with(3, &["gone.toml"]);
    // A flag before the variable, that before what is in the folder.
    let mut command = desk.command("config show");
    command.env("BATCHYARD_CONFIG", "conf/other.toml");
    let (value, origin) = shown(&mut command, "queue_threshold");
    assert_eq!((value, &*origin), (2.into(), "conf/other.toml:2"));
    let mut command = desk.command("config show --config batchyard.toml");
    command.env("BATCHYARD_CONFIG", "gone.toml");
    assert_eq!(shown(&mut command, "queue_threshold").0, 1);
    let (store, _) = shown(
        &mut desk.command("config show --config conf/other.toml"),
        "store",
    );
    assert_eq!(store, desk.path("conf/store").display().to_string());
    let ran = run(&mut desk.command("push --config conf/other.toml"), "1\n");
    ran.with(0, &[]);
    assert!(desk.path("conf/store/FORMAT").exists());
}

#[test]
fn what_is_shown_is_a_file_that_says_the_same() {
    let desk = Desk::with(
        "store = \"s t\"\nretention = \"90m\"\nmax_batch_bytes = 4097\ncommand = [\"sh\", \"-c\", \"echo \\\"a\\\\b\\\"\"]\n\
[prefix.\"\"]\nmax_in_flight = 2\n[queue.\"a.b\"]\ntime_threshold = \"250ms\"\nhandler_timeout = \"1h\"\n",
    );
    let shown = desk.ok("config show");
    desk.write("again/batchyard.toml", &shown);
    desk.fails("config check again/batchyard.toml", 0, &["is fine"]);
    assert_eq!(desk.ok("config show --config again/batchyard.toml"), shown);
    for line in [
        "retention = \"1h 30m\"",
        "max_batch_bytes = 4097",
        "# max_requests: no bound",
        "[prefix.\"\"]",
        "[queue.\"a.b\"]",
        "time_threshold = \"250ms\"",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    let origins = desk.ok("config show --origin --max-in-flight 9");
    desk.write("again/batchyard.toml", &origins);
    desk.fails("config check again/batchyard.toml", 0, &["is fine"]);
    for line in [
        "retention = \"1h 30m\"  # batchyard.toml:2",
        "max_in_flight = 9  # flag",
        "max_attempts = 5  # default",
    ] {
        assert!(
            origins.lines().any(|shown| shown == line),
            "{line}: {origins}"
        );
    }
    // The flag counts for the queues of the prefix as well.
    assert_eq!(origins.matches("max_in_flight = ").count(), 1, "{origins}");
}

#[test]
fn a_password_is_taken_from_a_file_or_a_variable_and_printed_nowhere() {
    let desk = Desk::new();
    let url = "redis://me:s3cret@127.0.0.1:1/";
    desk.write("url", &format!("{url}\n"));
    let mut command = desk.command("config show --origin");
    let ran = run(command.env("BATCHYARD_REDIS_URL", url), "");
    ran.with(0, &[]);
    let line = "# redis_url = \"redis://me:***@127.0.0.1:1/\"  # BATCHYARD_REDIS_URL";
    assert!(ran.out.lines().any(|shown| shown == line), "{}", ran.out);
    let mut outputs = vec![format!("{ran:?}")];
    for line in ["config show --json", "config check", "stats"] {
        let mut command = desk.command(line);
        outputs.push(format!(
            "{:?}",
            run(command.env("BATCHYARD_REDIS_URL", url), "")
        ));
        let mut command = desk.command(line);
        command.args(["--redis-url-file", "url"]);
        outputs.push(format!("{:?}", run(&mut command, "")));
    }
    for output in &outputs {
        assert!(!output.contains("s3cret"), "{output}");
    }
    if cfg!(feature = "redis") {
        // It was that server that was asked for.
        desk.fails("stats --redis-url-file url", 7, &["127.0.0.1"]);
        desk.write("batchyard.toml", "redis_url_file = \"url\"\n");
        desk.fails("stats", 7, &["127.0.0.1"]);
    }
    // What is closer to whoever started the program counts.
    let mut command = desk.command("push --store here");
    run(command.env("BATCHYARD_REDIS_URL", url), "1\n").with(0, &[]);
    let mut command = desk.command("stats");
    command
        .env("BATCHYARD_REDIS_URL", url)
        .env("BATCHYARD_STORE", "here");
    run(&mut command, "").with(
        2,
        &["BATCHYARD_REDIS_URL: BATCHYARD_STORE says something else"],
    );
}

#[test]
fn a_variable_is_told_by_its_name() {
    let desk = Desk::new();
    let mut command = desk.command("dispatch --store s -- cat");
    command.env("BATCHYARD_TIME_THRESHOLD", "90");
    run(&mut command, "").with(
        2,
        &["BATCHYARD_TIME_THRESHOLD: \"90\" is not possible", "90s"],
    );
    // It is nothing to a verb that has no such setting.
    let mut command = desk.command("push --store s");
    command.env("BATCHYARD_TIME_THRESHOLD", "90");
    run(&mut command, "1\n").with(0, &[]);
    let mut command = desk.command("config check");
    command.env("BATCHYARD_TIME_TRESHOLD", "90s");
    let ran = run(&mut command, "");
    ran.with(
        0,
        &["BATCHYARD_TIME_TRESHOLD is no setting; did you mean BATCHYARD_TIME_THRESHOLD?"],
    );
}

#[test]
fn bounds_of_queues_hold_for_a_push() {
    let desk = Desk::with("store = \"store\"\nmax_requests = 2\n");
    run(&mut desk.command("push"), "1\n2\n").with(0, &[]);
    let ran = run(&mut desk.command("push"), "3\n");
    assert_ne!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("2 requests"), "{ran:?}");
    run(&mut desk.command("push --max-requests 3"), "3\n").with(0, &[]);
}

/// The documentation lists each setting as it is.
#[test]
fn every_setting_is_documented() {
    let page = include_str!("../src/_documentation/configuration.md");
    for setting in SETTINGS {
        let row = format!("| `{}` | ", setting.key);
        let row = page.lines().find(|line| line.starts_with(&row));
        let row = row.unwrap_or_else(|| panic!("configuration.md lacks {}", setting.key));
        assert!(
            row.contains(&format!("`{}`", setting.example)),
            "{row}: {}",
            setting.example
        );
        if let Some(default) = setting.default_value() {
            let default = default.to_string();
            assert!(
                row.contains(&format!("| `{default}` |")),
                "{row}: {default}"
            );
        }
    }
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, SETTINGS.len(), "rows of settings that are gone");
}

/// The file that users start from.
#[test]
fn the_example_is_fine_and_has_every_setting() {
    let desk = Desk::new();
    let text = include_str!("../examples/batchyard.toml");
    for setting in SETTINGS {
        let is_there = text.lines().any(|line| {
            line.trim_start_matches("# ")
                .starts_with(&format!("{} = ", setting.key))
        });
        assert!(is_there, "examples/batchyard.toml lacks {}", setting.key);
    }
    // As it is, and with all that is commented out.
    desk.write("plain.toml", text);
    desk.fails("config check plain.toml", 0, &["is fine"]);
}
