//! Children, one after another, each killed where it is said, the last one not at all.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use batchyard::QueueName;
use tempfile::TempDir;

use crate::{
    books::Books,
    life::{LEASE, Length, Place},
    told::hear,
};

/// A life, its books, and what its children passed.
pub(crate) struct Chain {
    pub(crate) place: Place,
    pub(crate) books: Books,
    /// The points that the last child passed, in order.
    pub(crate) passed: Vec<String>,
    pub(crate) plant: &'static str,
    started: u32,
    folder: TempDir,
}

impl Chain {
    /// A life in a store of its own, or in a queue of its own on this server.
    pub(crate) fn new(backend: &'static str, server: Option<&str>, length: Length) -> Self {
        let folder = TempDir::new().unwrap();
        let store = server.map_or_else(|| folder.path().join("store"), PathBuf::from);
        let queue = folder.path().file_name().unwrap().to_string_lossy();
        let queue: QueueName = queue.trim_start_matches('.').parse().unwrap();
        Self {
            place: Place {
                backend,
                store,
                queue: queue.to_string(),
                length,
            },
            books: Books::default(),
            passed: Vec::new(),
            plant: "",
            started: 0,
            folder,
        }
    }

    /// Starts a child with these points set.
    pub(crate) fn start(&mut self, points: &str) -> Running<'_> {
        let passed = self.folder.path().join("passed");
        let _ = fs::remove_file(&passed);
        let program = std::env::current_exe().unwrap();
        let place = &self.place;
        let ahead = LEASE * 2 * self.started;
        self.started += 1;
        let mut child = Command::new(program)
            .args([
                "--exact",
                "child_that_leads_a_life",
                "--ignored",
                "--nocapture",
            ])
            .env("FAILPOINTS", points)
            .env("BATCHYARD_PASSED", &passed)
            .env("POINTS_BACKEND", place.backend)
            .env("POINTS_STORE", &place.store)
            .env("POINTS_QUEUE", &place.queue)
            .env(
                "POINTS_LENGTH",
                serde_json::to_string(&place.length).unwrap(),
            )
            .env("POINTS_AHEAD", ahead.as_secs().to_string())
            .env("POINTS_PLANT", self.plant)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(self.folder.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Running {
            chain: self,
            child: Some(child),
            output,
        }
    }

    /// Runs a child; whether it was killed.
    pub(crate) fn run(&mut self, points: &str) -> bool {
        self.start(points).end().signal() == Some(9)
    }

    /// Runs the last child, and closes the books.
    pub(crate) fn finish(&mut self) {
        let status = self.start("").end();
        if !status.success() {
            let said = fs::read_to_string(self.folder.path().join("stderr")).unwrap();
            let said: Vec<_> = said.lines().filter(|line| !line.contains("   ")).collect();
            self.books.wrong.push(format!(
                "the last child ended with {status}: {}",
                said.join(" ")
            ));
        }
        self.books.close(self.place.length);
    }

    /// Fails with what was wrong, if anything was.
    pub(crate) fn check(&self, killed_at: &str) {
        let wrong = &self.books.wrong;
        let backend = self.place.backend;
        assert!(
            wrong.is_empty(),
            "{backend}, killed at {killed_at}:\n{}",
            wrong.join("\n")
        );
    }
}

/// A child at work.
pub(crate) struct Running<'a> {
    chain: &'a mut Chain,
    child: Option<Child>,
    output: BufReader<std::process::ChildStdout>,
}

impl Running<'_> {
    /// Hears what it tells next; false once it has ended.
    pub(crate) fn hear(&mut self) -> bool {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                return false;
            }
            if let Some(told) = hear(&line) {
                self.chain.books.hear(told);
                return true;
            }
        }
    }

    pub(crate) fn kill(&mut self) {
        let child = self.child.as_mut().unwrap();
        child.kill().unwrap();
    }

    /// Hears it to its end.
    pub(crate) fn end(mut self) -> ExitStatus {
        while self.hear() {}
        let status = self.child.take().unwrap().wait().unwrap();
        let passed = fs::read_to_string(self.chain.folder.path().join("passed"));
        let passed = passed.unwrap_or_default();
        self.chain.passed = passed.lines().map(str::to_owned).collect();
        self.chain.books.kills += u32::from(status.signal() == Some(9));
        status
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Kills at a point, at a certain passage of it.
pub(crate) fn kill_at(point: &str, passage: usize) -> String {
    format!("{point}={}*off->1*return(kill)", passage - 1)
}
