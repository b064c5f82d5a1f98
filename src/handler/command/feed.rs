//! Requests to lines: what the command reads.

use futures_util::StreamExt;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::LineFormat;
use crate::{
    batch::{Member, Outcome, Page},
    format::json_lines::encode_request_line,
    handler::{Batch, HandlerError},
    request::{DeadReason, RequestId},
};

/// The requests that a command was given.
#[derive(Debug, Default)]
pub(super) struct Fed {
    /// In the order of their lines.
    pub(super) ids: Vec<RequestId>,
    /// Members that had an outcome; an answer to one of them is neither needed nor wrong.
    pub(super) settled: Vec<RequestId>,
}

impl Fed {
    /// What the command was given whose answers were kept; some of them may be recorded already.
    pub(super) async fn before(batch: &Batch, format: LineFormat) -> Result<Self, HandlerError> {
        let mut fed = Self::default();
        let mut page = Page::first();
        loop {
            let members = batch.page(page).await?;
            let Some(last) = members.last() else {
                return Ok(fed);
            };
            page = page.after(last.position);
            for member in members {
                match (format, member.outcome) {
                    // Plain answers are all results, so these are among them, and each has its line.
                    (LineFormat::Plain, None | Some(Outcome::Done { .. }))
                    | (LineFormat::Json, None) => fed.ids.push(member.id),
                    (_, Some(_)) => fed.settled.push(member.id),
                }
            }
        }
    }

    /// Writes a line per request, page by page. A command that closes its stdin early is free to do
    /// so; it is its answers that count. If this fails, or is dropped, stdin stays open: its end would
    /// make half of a batch look like all of it.
    pub(super) async fn feed(
        &mut self,
        batch: &Batch,
        format: LineFormat,
        stdin: &mut Option<Stdin<impl AsyncWrite + Unpin>>,
    ) -> Result<(), HandlerError> {
        let mut members = batch.members();
        let mut lines = Vec::with_capacity(CHUNK_BYTES);
        let mut unfit = Vec::new();
        while let Some(member) = members.next().await.transpose()? {
            if !write_line(&mut lines, &member, format) {
                unfit.push((member.id, newline()));
                continue;
            }
            self.ids.push(member.id);
            if lines.len() >= CHUNK_BYTES {
                write(stdin, &mut lines).await;
            }
            if unfit.len() >= RECORD_PAGE {
                batch.record(std::mem::take(&mut unfit)).await?;
            }
        }
        write(stdin, &mut lines).await;
        finish(stdin).await;
        if !unfit.is_empty() {
            batch.record(unfit).await?;
        }
        Ok(())
    }
}

/// Appends the member's line; false if its payload can't be one.
fn write_line(lines: &mut Vec<u8>, member: &Member, format: LineFormat) -> bool {
    match format {
        LineFormat::Plain if member.payload.contains(&b'\n') => return false,
        LineFormat::Plain => lines.extend_from_slice(&member.payload),
        LineFormat::Json => {
            encode_request_line(member, lines);
            return true;
        }
    }
    lines.push(b'\n');
    true
}

/// The command's stdin, or its supervisor's, which takes frames: a length and as many bytes.
pub(super) struct Stdin<W> {
    pipe: W,
    framed: bool,
}

impl<W: AsyncWrite + Unpin> Stdin<W> {
    pub(super) fn new(pipe: W, framed: bool) -> Self {
        Self { pipe, framed }
    }

    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        for chunk in bytes.chunks(MAX_FRAME_BYTES) {
            self.write_length(chunk.len()).await?;
            self.pipe.write_all(chunk).await?;
        }
        self.pipe.flush().await
    }

    async fn write_length(&mut self, bytes: usize) -> std::io::Result<()> {
        let length = u32::try_from(bytes).unwrap_or(u32::MAX);
        if self.framed {
            self.pipe.write_all(&length.to_le_bytes()).await?;
        }
        Ok(())
    }
}

async fn write(stdin: &mut Option<Stdin<impl AsyncWrite + Unpin>>, lines: &mut Vec<u8>) {
    if let Some(pipe) = stdin
        && pipe.write(lines).await.is_err()
    {
        *stdin = None;
    }
    lines.clear();
    lines.shrink_to(CHUNK_BYTES * 2);
}

/// Closes stdin: these were all requests.
async fn finish(stdin: &mut Option<Stdin<impl AsyncWrite + Unpin>>) {
    if let Some(pipe) = stdin {
        // If nobody reads any more, nobody misses it.
        let _ = pipe.write_length(0).await;
        let _ = pipe.pipe.flush().await;
    }
    *stdin = None;
}

fn newline() -> Outcome {
    Outcome::Reject {
        reason: DeadReason::Undecodable,
        error: "the payload has a newline, which --plain can't pass on one line; leave out --plain"
            .into(),
    }
}

/// As large as a pipe, so that a wake-up moves a whole pipe's worth.
const CHUNK_BYTES: usize = 64 << 10;
const MAX_FRAME_BYTES: usize = 1 << 30;
/// The most outcomes recorded in one step.
pub(super) const RECORD_PAGE: usize = 1000;
