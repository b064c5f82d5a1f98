//! The operations guide shows what really happens: each of its commands is run, and what it prints is
//! compared with what the guide says that it prints, but for ids, times, durations, sizes on disk and pids.
//!
//! A section of the guide is one shell in a folder of its own, with the handler of the guide's first block.
//! - A line `...` in the guide stands for any lines, and at the end of a line for the rest of it.
//! - `<!-- until COMMAND -->` before a block: what it shows is so once this command succeeds.
//! - A command that ends with `&` goes on beside the others, which wait until it serves the store.
//! - ```` ```console redis ````: with a Redis server of its own, and skipped without `redis-server`.
//! - ```` ```console disk ````: with a file system of 80 MiB at `./disk`, and skipped where nobody may mount one.
//!
//! `BATCHYARD_GUIDE=write` puts what was printed into the guide in place of what differs.
//! `BATCHYARD_GUIDE=FOLDER` records each section with its times in that folder instead of comparing, with
//! `BATCHYARD_GUIDE_STORE` (a folder with a store) as what is there before the section begins.
#![cfg(feature = "cli")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{
    env,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::LazyLock,
    thread,
};

use regex::Regex;
use tempfile::TempDir;
use tokio::time::Instant;

const GUIDE: &str = "src/_documentation/operations.md";

/// A `##` of the guide.
#[derive(Debug, Default)]
struct Section {
    title: String,
    steps: Vec<Step>,
}

/// A command of the guide, and the lines that it prints there.
#[derive(Debug)]
struct Step {
    command: String,
    shown: Vec<String>,
    /// The lines of the guide that show it.
    lines: std::ops::Range<usize>,
    until: Option<String>,
    redis: bool,
    disk: bool,
}

/// The guide's sections, and the handler that they use.
fn guide(text: &str) -> (Vec<Section>, String) {
    let (mut sections, mut handler) = (Vec::<Section>::new(), String::new());
    let (mut fence, mut until): (Option<String>, _) = (None, None);
    for (number, line) in text.lines().enumerate() {
        if let Some(info) = line.strip_prefix("```") {
            fence = fence.is_none().then(|| info.to_owned());
            continue;
        }
        match fence.as_deref() {
            None => {
                if let Some(title) = line.strip_prefix("## ") {
                    let title = title.to_owned();
                    sections.push(Section {
                        title,
                        steps: Vec::new(),
                    });
                }
                if let Some(command) = line.strip_prefix("<!-- until ") {
                    until = Some(command.strip_suffix(" -->").unwrap().to_owned());
                }
            }
            Some("sh") if sections.is_empty() => writeln!(handler, "{line}").unwrap(),
            Some(info) if info.starts_with("console") => {
                let steps = &mut sections.last_mut().unwrap().steps;
                if let Some(command) = line.strip_prefix("$ ") {
                    steps.push(Step {
                        command: command.to_owned(),
                        shown: Vec::new(),
                        lines: number + 1..number + 1,
                        until: until.take(),
                        redis: info.contains("redis"),
                        disk: info.contains("disk"),
                    });
                } else {
                    let step = steps.last_mut().unwrap();
                    step.shown.push(line.to_owned());
                    step.lines.end = number + 1;
                }
            }
            Some(_) => {}
        }
    }
    assert!(
        sections.len() > 5 && handler.starts_with("#!"),
        "{sections:?}"
    );
    (sections, handler)
}

/// A shell at work in a folder of its own.
struct Shell {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    folder: TempDir,
}

impl Shell {
    fn start(handler: &str, with_disk: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("send");
        fs::write(&path, handler).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        if let Some(store) = env::var_os("BATCHYARD_GUIDE_STORE") {
            let mut copy = Command::new("cp");
            let copied = copy.arg("-a").arg(store).arg("store");
            assert!(
                copied
                    .current_dir(folder.path())
                    .status()
                    .unwrap()
                    .success()
            );
        }
        let program = Path::new(env!("CARGO_BIN_EXE_batchyard")).parent().unwrap();
        let paths = env::var("PATH").unwrap();
        let mut command = Command::new(if with_disk { "unshare" } else { "bash" });
        if with_disk {
            // In a name space of its own, which ends with it.
            let mount = "mkdir disk && mount -t tmpfs -o size=80m none disk && exec bash";
            command.args(["--user", "--map-root-user", "--mount", "bash", "-c", mount]);
        }
        for (name, _) in env::vars().filter(|(name, _)| name.starts_with("BATCHYARD_")) {
            command.env_remove(name);
        }
        let mut child = command
            .current_dir(folder.path())
            .env("PATH", format!("{}:{paths}", program.display()))
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        writeln!(stdin, "exec 2>&1").unwrap();
        let stdout = BufReader::new(stdout);
        Self {
            child,
            stdin,
            stdout,
            folder,
        }
    }

    /// Runs a command line, and answers what it printed.
    fn run(&mut self, command: &str) -> Vec<String> {
        // What a shell says of those that it started is no output of theirs.
        writeln!(
            self.stdin,
            "{{ {command}\n}} </dev/null\n{{ code=$?; echo; echo {END}; }} 2>/dev/null; (exit $code)"
        )
        .unwrap();
        let mut printed = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "the shell ended in: {command}");
            if line.trim_end() == END {
                break;
            }
            printed.push(line.trim_end().to_owned());
        }
        while printed.last().is_some_and(String::is_empty) {
            printed.pop();
        }
        printed.retain(|line| !line.contains("Killed ") && !line.contains("Terminated "));
        printed
    }

    /// Waits until this command succeeds; what it prints is of no interest.
    fn until(&mut self, command: &str) {
        let looped = format!(
            "for i in $(seq 1200); do {{ {command}; }} >/dev/null 2>&1 && break; sleep 0.05; done; [ $i -lt 1200 ] || echo never"
        );
        let printed = self.run(&format!("code=$?; {looped}; (exit $code)"));
        assert!(printed.is_empty(), "never: {command}");
    }

    /// Waits until it is time, runs a command line, and answers what it printed.
    fn step(&mut self, command: &str, until: Option<&str>) -> Vec<String> {
        if let Some(until) = until {
            self.until(until);
        }
        let printed = self.run(command);
        if command.ends_with('&') {
            self.until("batchyard health --store ./store | grep \"pid $!\"");
        }
        printed
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-9", "--", &group]).status();
        let _ = self.child.wait();
    }
}

/// A line without what is another one each time.
fn plain(line: &str) -> String {
    static CHANGING: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        let table = [
            (r"\b[0-9a-f]{32}\b", "BATCH"),
            (r"\b[0-9a-f]{16}\b", "ID"),
            (r"\b\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME"),
            (r"\bpid \d+", "pid N"),
            (
                r"\b\d+(\.\d+)?(ns|us|ms|s|m|h|d)\b( \d+(ms|s|m|h)\b)*",
                "SPAN",
            ),
            (r"\b\d+(\.\d+)? ([KMG]i?B)", "SIZE"),
            (r"\b\d{7,}\b", "NUMBER"),
            (r"--+", "--"),
            (r"\s+", " "),
        ];
        table
            .map(|(pattern, name)| (Regex::new(pattern).unwrap(), name))
            .into()
    });
    let mut line = line.trim().to_owned();
    for (pattern, name) in &*CHANGING {
        line = pattern.replace_all(&line, *name).into_owned();
    }
    line
}

/// Whether what is shown stands for what was printed.
fn fits(shown: &[String], printed: &[String]) -> bool {
    let Some((first, rest)) = shown.split_first() else {
        return printed.is_empty();
    };
    if first == "..." {
        return (0..=printed.len()).any(|skipped| fits(rest, &printed[skipped..]));
    }
    let Some((line, others)) = printed.split_first() else {
        return false;
    };
    let same = match first.strip_suffix("...") {
        Some(start) => plain(line).starts_with(&plain(start)),
        None => plain(line) == plain(first),
    };
    same && fits(rest, others)
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(GUIDE)
}

/// A `redis-server` at a socket in the folder of a shell; `None`, said, if there is none to be had.
struct Redis(Child);

impl Redis {
    fn start(folder: &Path) -> Option<Self> {
        let started = Command::new("redis-server")
            .args(["--port", "0", "--unixsocket", "redis.sock", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always"])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = started else {
            let required = env::var("BATCHYARD_REQUIRE").is_ok_and(|what| what.contains("redis"));
            assert!(!required, "redis-server is not installed");
            return None;
        };
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let is_ready = |line: &str| line.contains("eady to accept connections");
        assert!(said.any(|line| is_ready(&line.unwrap())));
        // What else it says is read, lest it waits for a reader.
        thread::spawn(move || said.for_each(drop));
        Some(Self(child))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether this user may mount something for itself alone.
fn can_mount() -> bool {
    let mut command = Command::new("unshare");
    let mount = "mount -t tmpfs none /mnt";
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", mount]);
    command.output().is_ok_and(|output| output.status.success())
}

/// What differs between the guide and what happens: the lines of the guide, and what is right.
type Differing = Vec<(std::ops::Range<usize>, Vec<String>)>;

/// Does what a section shows.
fn walk(section: &Section, handler: &str, mut record: Option<&mut String>) -> Differing {
    println!("## {}", section.title);
    let with_disk = section.steps.iter().any(|step| step.disk) && can_mount();
    let mut shell = Shell::start(handler, with_disk);
    let has_redis = cfg!(feature = "redis") && section.steps.iter().any(|step| step.redis);
    let redis = has_redis
        .then(|| Redis::start(shell.folder.path()))
        .flatten();
    let url = format!(
        "redis+unix://{}",
        shell.folder.path().join("redis.sock").display()
    );
    let mut differing = Vec::new();
    for step in &section.steps {
        if step.redis && redis.is_none() {
            println!(
                "skipped, for want of redis-server or the feature redis: {}",
                step.command
            );
            continue;
        }
        if step.disk && !with_disk {
            println!("skipped, since nobody may mount here: {}", step.command);
            continue;
        }
        let command = step.command.replace(REDIS_URL, &url);
        let began = Instant::now();
        let printed = shell.step(&command, step.until.as_deref());
        let printed: Vec<String> = printed
            .iter()
            .map(|line| line.replace(&url, REDIS_URL))
            .collect();
        if let Some(record) = record.as_deref_mut() {
            let took = began.elapsed().as_secs_f64();
            writeln!(
                record,
                "$ {}   # {took:.2} s\n{}",
                step.command,
                printed.join("\n")
            )
            .unwrap();
        } else if !fits(&step.shown, &printed) {
            println!(
                "$ {}\nshown:\n{}\nprinted:\n{}",
                step.command,
                step.shown.join("\n"),
                printed.join("\n")
            );
            differing.push((step.lines.clone(), printed));
        }
    }
    differing
}

#[test]
fn every_answer_of_the_guide_is_what_happens() {
    let text = fs::read_to_string(path()).unwrap();
    let (sections, handler) = guide(&text);
    let asked = env::var("BATCHYARD_GUIDE").unwrap_or_default();
    if asked.contains('/') {
        for (number, section) in sections.iter().enumerate() {
            let mut record = format!("## {}\n", section.title);
            walk(section, &handler, Some(&mut record));
            fs::write(Path::new(&asked).join(format!("{number:02}.txt")), record).unwrap();
        }
        return;
    }
    let differing: Differing = sections
        .iter()
        .flat_map(|section| walk(section, &handler, None))
        .collect();
    if asked == "write" {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for (shown, printed) in differing.into_iter().rev() {
            lines.splice(shown, printed);
        }
        fs::write(path(), lines.join("\n") + "\n").unwrap();
        return;
    }
    assert!(
        differing.is_empty(),
        "{GUIDE} shows something else than what happens, see above; BATCHYARD_GUIDE=write puts what happens into it"
    );
}

#[test]
fn what_is_shown_is_compared_without_what_changes_each_time() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let printed = lines("id 18eb8dea965c5d8c\npid 77: 3 done in 1h 59m 2s\n8.0 MiB");
    assert!(fits(
        &lines("id 0000000000000000\npid 1: 3 done in 5ms\n1.5 KiB"),
        &printed
    ));
    assert!(fits(&lines("...\n1 GiB"), &printed) && fits(&lines("id ...\n..."), &printed));
    for other in [
        "",
        "id 0000000000000000",
        "id 00\n...",
        "...\npid 1: 4 done in 5ms\n1 KiB",
    ] {
        assert!(!fits(&lines(other), &printed), "{other}");
    }
}

const REDIS_URL: &str = "redis://127.0.0.1/";
const END: &str = "=== end of step ===";
