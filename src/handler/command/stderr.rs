//! What the command says on stderr: to the log line by line, and its last lines into errors.

use std::{collections::VecDeque, fmt, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::Instant,
};

use crate::{batch::BatchId, handler::HandlerError};

/// The last lines of a command's stderr.
#[derive(Debug, Default)]
pub(super) struct Tail {
    lines: VecDeque<String>,
}

impl Tail {
    /// Passes every line to the log, up to a bounded rate, and remembers the last ones.
    pub(super) async fn follow(
        &mut self,
        mut stderr: impl AsyncRead + Unpin,
        batch: BatchId,
    ) -> Result<(), HandlerError> {
        let mut log = Log::new(batch);
        let mut line = Vec::new();
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        loop {
            chunk.clear();
            if stderr.read_buf(&mut chunk).await? == 0 {
                break;
            }
            for part in chunk.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(part);
                if line.ends_with(b"\n") || line.len() >= MAX_LINE_BYTES {
                    self.push(&mut log, &line);
                    line.clear();
                }
            }
        }
        if !line.is_empty() {
            self.push(&mut log, &line);
        }
        log.end_second();
        Ok(())
    }

    fn push(&mut self, log: &mut Log, line: &[u8]) {
        let line = String::from_utf8_lossy(line).trim_end().to_owned();
        log.line(&line);
        if line.is_empty() {
            return;
        }
        if self.lines.len() == TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines
            .push_back(line.chars().take(TAIL_LINE_CHARS).collect());
    }
}

impl fmt::Display for Tail {
    /// Nothing, or a colon and the last lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<&str> = self.lines.iter().map(String::as_str).collect();
        if lines.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", lines.join(" | "))
    }
}

/// The log, at most [`LINES_PER_SECOND`].
struct Log {
    batch: BatchId,
    second: Instant,
    lines: u32,
}

impl Log {
    fn new(batch: BatchId) -> Self {
        let second = Instant::now();
        Self {
            batch,
            second,
            lines: 0,
        }
    }

    fn line(&mut self, line: &str) {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.end_second();
            self.second = Instant::now();
            self.lines = 0;
        }
        self.lines += 1;
        if self.lines <= LINES_PER_SECOND {
            tracing::info!(target: "batchyard::command", batch = %self.batch, "{line}");
        }
    }

    fn end_second(&self) {
        let left_out = self.lines.saturating_sub(LINES_PER_SECOND);
        if left_out > 0 {
            tracing::info!(target: "batchyard::command", batch = %self.batch, "… {left_out} lines left out");
        }
    }
}

const CHUNK_BYTES: usize = 16 << 10;
const MAX_LINE_BYTES: usize = 8 << 10;
const TAIL_LINES: usize = 5;
const TAIL_LINE_CHARS: usize = 300;
const LINES_PER_SECOND: u32 = 200;
