//! `--metrics` of the program, and clients that are slow, silent and many.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::exposition::Page;

fn program(folder: &Path, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_batchyard"));
    command.current_dir(folder).args(words.split_whitespace());
    for name in ["RUST_LOG", "BATCHYARD_REDIS_URL", "BATCHYARD_BACKEND"] {
        command.env_remove(name);
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A dispatcher at work, and where its metrics are.
struct Dispatching {
    child: Child,
    address: SocketAddr,
    stdout: mpsc::Receiver<String>,
}

impl Dispatching {
    fn start(folder: &Path, words: &str) -> Self {
        let mut child = program(folder, words).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it ended");
            if let Some((_, rest)) = line.split_once("http://") {
                break rest
                    .trim()
                    .strip_suffix("/metrics")
                    .unwrap()
                    .parse()
                    .unwrap();
            }
        };
        thread::spawn(move || stderr.read_to_end(&mut Vec::new()));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, stdout) = mpsc::channel();
        thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Self {
            child,
            address,
            stdout,
        }
    }

    /// Waits for an event of this name.
    fn event(&self, name: &str) {
        let name = format!("{{\"event\":\"{name}\"");
        while !self.stdout.recv().unwrap().starts_with(&name) {}
    }

    fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }

    /// The whole answer to these bytes.
    fn ask(&self, bytes: &str) -> String {
        let mut stream = self.dial();
        stream.write_all(bytes.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn page(&self) -> Page {
        let answer = self.ask("GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains("Content-Type: text/plain; version=0.0.4"),
            "{head}"
        );
        assert!(
            head.contains(&format!("Content-Length: {}\r\n", body.len())),
            "{head}"
        );
        Page::parse(body)
    }

    fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.child.wait().unwrap().code()
    }
}

fn push(folder: &Path, requests: usize) {
    let mut child = program(folder, "push --store store").spawn().unwrap();
    let lines = "1\n".repeat(requests);
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
}

const DISPATCH: &str = "dispatch --store store --json --metrics 0 --queue-threshold 2 --shutdown-timeout 1s --plain --";

#[test]
fn a_dispatcher_serves_its_metrics_and_counters_begin_anew_with_the_process() {
    let folder = TempDir::new().unwrap();
    push(folder.path(), 2);
    let words = format!("{DISPATCH} cat");
    let running = Dispatching::start(folder.path(), &words);
    running.event("attempt_ended");
    let page = running.page();
    assert_eq!(
        page.value("batchyard_requests_done_total{queue=\"default\"}"),
        2.
    );
    assert_eq!(
        page.value("batchyard_outcomes_total{queue=\"default\",outcome=\"done\"}"),
        2.
    );
    assert!(page.value("batchyard_store_disk_bytes") > 0.);
    // A push of another process comes through the socket, and is seen.
    push(folder.path(), 1);
    let page = running.page();
    assert_eq!(page.value("batchyard_push_duration_seconds_count"), 1.);
    assert_eq!(
        page.value("batchyard_requests{queue=\"default\",state=\"ready\"}"),
        1.
    );
    assert_eq!(running.terminate(), Some(143));

    let running = Dispatching::start(folder.path(), &words);
    running.event("serving");
    let page = running.page();
    assert_eq!(
        page.value("batchyard_requests_done_total{queue=\"default\"}"),
        2.
    );
    assert_eq!(
        page.value("batchyard_outcomes_total{queue=\"default\",outcome=\"done\"}"),
        0.
    );
    assert_eq!(running.terminate(), Some(143));
}

#[test]
fn what_is_no_get_of_the_page_is_refused() {
    let folder = TempDir::new().unwrap();
    let running = Dispatching::start(folder.path(), &format!("{DISPATCH} cat"));
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405"),
        ("HELLO\r\n\r\n", "400"),
    ] {
        let answer = running.ask(bytes);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    let answer = running.ask("HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
    let mut stream = running.dial();
    // Whether all of it is taken, or it is cut off on the way: it ends.
    let _ = stream.write_all("GET /metrics HTTP/1.1\r\nX: ".as_bytes());
    let _ = stream.write_all("x".repeat(1 << 20).as_bytes());
    let _ = stream.read_to_end(&mut Vec::new());
    running.page();
    assert_eq!(running.terminate(), Some(143));
}

#[test]
fn clients_that_are_silent_and_many_hold_up_neither_the_dispatcher_nor_its_end() {
    let folder = TempDir::new().unwrap();
    push(folder.path(), 2);
    let running = Dispatching::start(folder.path(), &format!("{DISPATCH} cat"));
    running.event("attempt_ended");
    let silent: Vec<TcpStream> = (0..100).map(|_| running.dial()).collect();
    let greedy: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = running.dial();
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
            stream
        })
        .collect();
    let control = UnixStream::connect(folder.path().join("store/control.sock")).unwrap();
    push(folder.path(), 2);
    running.event("attempt_ended");
    // They are still there when it is asked to stop.
    assert_eq!(running.terminate(), Some(143));
    drop((silent, greedy, control));
}

#[test]
fn nothing_is_started_if_the_address_is_taken() {
    let folder = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for words in [
        format!("dispatch --store store --metrics {address} -- cat"),
        format!("dispatch --store store --metrics {} -- cat", address.port()),
        format!("run in --out out --lines --metrics {address} -- cat"),
    ] {
        std::fs::write(folder.path().join("in"), "a\n").unwrap();
        let ran = program(folder.path(), &words).output().unwrap();
        let error = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(4), "{error}");
        let text = format!("metrics can't be served at {address}");
        assert!(
            error.contains(&text) && error.contains("another port"),
            "{error}"
        );
        assert!(
            !folder.path().join("store").exists() && !folder.path().join("out.batchyard").exists()
        );
    }
}

#[test]
fn a_run_serves_its_metrics_too() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("in"), "a\nb\n").unwrap();
    let words = "run in --out out --lines --plain --queue-threshold 2 --metrics 0 -- sh -c";
    let mut command = program(folder.path(), words);
    // It has the page read while it is at work.
    command.arg("cat; echo held >&2; read _ < fifo");
    assert!(
        Command::new("mkfifo")
            .arg(folder.path().join("fifo"))
            .status()
            .unwrap()
            .success()
    );
    let mut child = command.spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let (mut address, mut line) = (None, String::new());
    while !line.contains("held") {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it ended");
        if let Some((_, rest)) = line.split_once("http://") {
            address = Some(rest.trim().strip_suffix("/metrics").unwrap().to_owned());
        }
    }
    let mut stream = TcpStream::connect(address.unwrap()).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    std::fs::write(folder.path().join("fifo"), "go\n").unwrap();
    let page = Page::parse(answer.split_once("\r\n\r\n").unwrap().1);
    assert_eq!(page.value("batchyard_slots_used{queue=\"run\"}"), 1.);
    assert_eq!(
        page.value("batchyard_requests{queue=\"run\",state=\"in_flight\"}"),
        2.
    );
    thread::spawn(move || stderr.read_to_end(&mut Vec::new()));
    assert!(child.wait().unwrap().success());
}
