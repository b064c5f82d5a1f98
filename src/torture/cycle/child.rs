//! One child: this program, started again to work on a store.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::{
    error::{Error, Result},
    torture::{Life, event::Event},
};

/// A running child; killed when this is dropped.
pub(super) struct Running {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    line: Vec<u8>,
    said: PathBuf,
}

impl Running {
    /// Starts it; what it says beside its lines goes to a file.
    pub(super) fn start(program: &Path, life: &Life, said: &Path) -> Result<Self> {
        let failed = |error| Error::internal("a child can't be started").with_source(error);
        let life = serde_json::to_string(life)
            .map_err(|error| Error::internal("a life").with_source(error))?;
        let stderr = File::create(said).map_err(failed)?;
        let mut child = Command::new(program)
            .args(["torture", "--child", &life])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            // What a terminal sends to all that it runs is for the parent alone.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let output = child.stdout.take();
        let output = output.ok_or_else(|| Error::internal("a child without an output"))?;
        Ok(Self {
            input: child.stdin.take(),
            output: BufReader::with_capacity(1 << 18, output),
            child,
            line: Vec::new(),
            said: said.to_owned(),
        })
    }

    /// Its process.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// What it tells next; `None` once it is gone. A line that was cut off was never said. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Event>> {
        let failed = |error| Error::internal("the lines of a child").with_source(error);
        // Goes on with what an earlier call that was dropped had read.
        self.output
            .read_until(b'\n', &mut self.line)
            .await
            .map_err(failed)?;
        if self.line.last() != Some(&b'\n') {
            return Ok(None);
        }
        let event = serde_json::from_slice(&self.line).map_err(|error| {
            let line = String::from_utf8_lossy(&self.line);
            Error::internal(format!("a child said {line:?}")).with_source(error)
        });
        self.line.clear();
        event.map(Some)
    }

    /// Says a line to it.
    pub(super) async fn say<T: Serialize>(&mut self, what: &T) {
        let mut line = serde_json::to_vec(what).unwrap_or_default();
        line.push(b'\n');
        if let Some(input) = &mut self.input {
            // One that is gone hears nothing, and is found to be gone.
            let _ = input.write_all(&line).await;
        }
    }

    /// Asks it to close the store and to end.
    pub(super) fn close(&mut self) {
        self.input = None;
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        // It may be gone already.
        let _ = self.child.start_kill();
    }

    /// Waits until it is gone; how it ended, and the last of what it said.
    pub(super) async fn ended(mut self) -> Result<(ExitStatus, String)> {
        let failed = |error| Error::internal("a child does not end").with_source(error);
        let status = self.child.wait().await.map_err(failed)?;
        let said = fs::read(&self.said).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let last: Vec<_> = said.lines().rev().take(SAID_LINES).collect();
        let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
        Ok((status, last))
    }
}

const SAID_LINES: usize = 8;
