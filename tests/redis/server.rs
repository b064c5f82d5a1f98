//! A `redis-server` of its own for each test, in a directory of its own, gone when the test is.

use std::{
    env,
    io::{self, BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
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
        match Self::try_start(settings) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let required = env::var("BATCHYARD_REQUIRE");
                let required = required.is_ok_and(|what| what.contains("redis"));
                assert!(!required, "redis-server is not installed");
                println!("skipped: redis-server is not installed");
                None
            }
            started => Some(started.unwrap()),
        }
    }

    /// A server that listens on a loopback port as well, for other servers.
    pub(crate) fn start_on_a_port(settings: &[&str]) -> Option<Self> {
        for _ in 0..20 {
            // They were free a moment ago; if somebody took one meanwhile, the server does not start.
            let [port, bus_port] = free_ports();
            let ports = ["--port", &port, "--cluster-port", &bus_port];
            let all = [&ports[..], &["--bind", "127.0.0.1"], settings].concat();
            match Self::try_start(&all) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Self::start_with(settings);
                }
                Err(_) => {}
                Ok(started) => return Some(started),
            }
        }
        panic!("no port stays free");
    }

    /// A node of a cluster; it knows no other, and has no slots.
    pub(crate) fn start_node() -> Option<Self> {
        Self::start_on_a_port(&["--appendonly", "no", "--cluster-enabled", "yes"])
    }

    fn try_start(settings: &[&str]) -> io::Result<Self> {
        let directory = TempDir::new().unwrap();
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let running = Running::start(&directory, &settings)?;
        Ok(Self {
            directory,
            settings,
            running,
        })
    }

    /// Its loopback port.
    pub(crate) fn port(&self) -> &str {
        &self.settings[1]
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

    /// The port on which nodes of a cluster talk to each other.
    pub(crate) fn bus_port(&self) -> &str {
        &self.settings[3]
    }

    /// Starts it again on what it left, and does not wait until it has loaded that.
    pub(crate) fn start_again(&mut self) {
        self.running =
            Running::spawn(&self.directory, &self.settings, "erver initialized").unwrap();
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
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

    pub(crate) async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        // Some commands wait for a while.
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let connected = client.get_multiplexed_async_connection_with_config(&config);
        connected.await.unwrap()
    }

    /// What a command answers, for tests that look behind the queue or get in its way.
    pub(crate) async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command
            .arg(&words[1..])
            .query_async(&mut self.connection().await)
            .await
            .unwrap()
    }
}

fn free_ports() -> [String; 2] {
    let listeners = [0, 0].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port().to_string())
}

impl Running {
    fn start(directory: &TempDir, settings: &[String]) -> io::Result<Self> {
        Self::spawn(directory, settings, "eady to accept connections")
    }

    /// Starts a server, and waits until it says this.
    fn spawn(directory: &TempDir, settings: &[String], ready: &str) -> io::Result<Self> {
        let mut child = Command::new("redis-server")
            .args(["--port", "0", "--unixsocket", "socket", "--save", ""])
            .arg("--dir")
            .arg(directory.path())
            .args(settings)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains(ready) {
            let length = log.read_line(&mut said).unwrap();
            if length == 0 {
                child.wait()?;
                return Err(io::Error::other(format!(
                    "redis-server did not start: {said}"
                )));
            }
        }
        Ok(Self { child, _log: log })
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
