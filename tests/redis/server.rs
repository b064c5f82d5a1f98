//! A `redis-server` of its own for each test, in a directory of its own, gone when the test is.

use std::{
    env,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
};

use batchyard::{QueueName, QueueOptions, RedisQueue, Result};
use tempfile::TempDir;

/// A running server.
pub(crate) struct Server {
    directory: TempDir,
    settings: Vec<String>,
    running: Running,
}

struct Running {
    child: Child,
    /// Held so that the server can write to its log.
    _log: BufReader<ChildStdout>,
}

impl Server {
    /// A server that syncs before it answers, or `None` (said, and a failure with `BATCHYARD_REQUIRE=redis`)
    /// where none is installed.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// A server with these settings.
    pub(crate) fn start_with(settings: &[&str]) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let Some(running) = Running::start(&directory, &settings) else {
            let required = env::var("BATCHYARD_REQUIRE").is_ok_and(|what| what.contains("redis"));
            assert!(!required, "redis-server is not installed");
            println!("skipped: redis-server is not installed");
            return None;
        };
        Some(Self {
            directory,
            settings,
            running,
        })
    }

    /// Kills it as the power would, and starts it again on what it left.
    pub(crate) fn kill_and_start(&mut self) {
        self.running.kill();
        self.running = Running::start(&self.directory, &self.settings).unwrap();
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.running.kill();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub(crate) fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// A queue, as a process of its own would open it.
    pub(crate) async fn queue(&self, name: &str) -> RedisQueue {
        self.queue_with(name, QueueOptions::default())
            .await
            .unwrap()
    }

    pub(crate) async fn queue_with(&self, name: &str, options: QueueOptions) -> Result<RedisQueue> {
        let name: QueueName = name.parse().unwrap();
        RedisQueue::connect_with(&self.url(), &name, options).await
    }

    /// What a command answers, for tests that look behind the queue or get in its way.
    pub(crate) async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        command
            .arg(&words[1..])
            .query_async(&mut connection)
            .await
            .unwrap()
    }
}

impl Running {
    fn start(directory: &TempDir, settings: &[String]) -> Option<Self> {
        let mut child = Command::new("redis-server")
            .args(["--port", "0", "--unixsocket", "socket", "--save", ""])
            .arg("--dir")
            .arg(directory.path())
            .args(settings)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut log = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains("eady to accept connections") {
            let length = log.read_line(&mut said).unwrap();
            assert!(length > 0, "redis-server did not start: {said}");
        }
        Some(Self { child, _log: log })
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
