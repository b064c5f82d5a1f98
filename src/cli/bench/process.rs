//! Each measurement in a process of its own: this program, started again.

use std::{
    path::PathBuf,
    process::{Output, Stdio},
};

use batchyard::{
    Error, Result,
    bench::workload::{Part, Point},
};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;

use crate::cli::{
    args::own_program,
    exit::{Exit, Failure},
};

/// Starts them, one after the other.
pub(super) struct Processes {
    program: PathBuf,
}

impl Processes {
    pub(super) fn new() -> Result<Self, Failure> {
        let program = own_program()?;
        Ok(Self { program })
    }

    /// Has a process run a part; what it started ends with it.
    pub(super) async fn run(&self, part: &Part) -> Result<Vec<Point>> {
        let failed = |error| Error::internal("a process to measure in").with_source(error);
        let text = serde_json::to_string(part)
            .map_err(|error| Error::internal("a part").with_source(error))?;
        let child = Command::new(&self.program)
            .args(["bench", "--part", &text])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let _group = Group::of(child.id());
        let Output {
            status,
            stdout,
            stderr,
        } = child.wait_with_output().await.map_err(failed)?;
        if !status.success() {
            let said = String::from_utf8_lossy(&stderr);
            let last = said.lines().last().unwrap_or_default();
            let why = last.strip_prefix("error: ").unwrap_or(last);
            return Err(Error::internal(format!("{why} ({status})")));
        }
        serde_json::from_slice(&stdout)
            .map_err(|error| Error::internal("its figures can't be read").with_source(error))
    }
}

/// A process and all that it started; killed when this is dropped, whatever is left of them.
struct Group(Option<Pid>);

impl Group {
    fn of(process: Option<u32>) -> Self {
        let process = process.and_then(|process| i32::try_from(process).ok());
        Self(process.and_then(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // They have ended by themselves.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// What is asked of a process that was started again.
pub(super) fn parse(part: &str) -> Result<Part, Failure> {
    serde_json::from_str(part).map_err(|error| {
        Failure::new(
            Exit::Usage,
            format!("--part and --fill are for this program itself: {error}"),
        )
    })
}
