//! A `redis-server` of our own: on a Unix socket in a folder, gone when it is dropped.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use crate::error::{Error, Result};

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    socket: PathBuf,
    /// Held so that the server can write to its log.
    _log: BufReader<ChildStdout>,
}

impl Server {
    /// Whether the program is there at all.
    pub(super) fn is_installed() -> bool {
        let version = Command::new(PROGRAM)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        version.is_ok_and(|status| status.success())
    }

    /// Starts one whose files lie in this folder, with these settings.
    ///
    /// # Errors
    /// If there is no such program, or it does not start.
    pub(super) fn start(folder: &Path, settings: &[&str]) -> Result<Self> {
        let failed = |error| Error::unavailable("redis-server does not start").with_source(error);
        let mut child = Command::new(PROGRAM)
            .args(["--port", "0", "--unixsocket", SOCKET])
            .arg("--dir")
            .arg(folder)
            .args(settings)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let stdout = child.stdout.take();
        let stdout = stdout.ok_or_else(|| Error::internal("redis-server has no output"))?;
        let mut log = BufReader::new(stdout);
        let mut said = String::new();
        while !said.contains("eady to accept connections") {
            if log.read_line(&mut said).map_err(failed)? == 0 {
                let text = format!("redis-server did not start: {}", said.trim());
                return Err(Error::unavailable(text));
            }
        }
        Ok(Self {
            child,
            socket: folder.join(SOCKET),
            _log: log,
        })
    }

    /// Where to connect.
    pub(super) fn url(&self) -> String {
        format!("redis+unix://{}", self.socket.display())
    }

    /// Its process.
    pub(super) fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Syncs before it answers.
pub(super) const DURABLE: &[&str] = &[
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
    "--save",
    "",
];
/// As it comes: snapshots now and then.
pub(super) const DEFAULT: &[&str] = &[];
const PROGRAM: &str = "redis-server";
const SOCKET: &str = "socket";
