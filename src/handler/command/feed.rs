//! Requests to lines: what the command reads.

use futures_util::StreamExt;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::LineFormat;
use crate::{
    batch::{Member, Outcome},
    format::json_lines::encode_request_line,
    handler::{Batch, HandlerError},
    request::{DeadReason, RequestId},
};

/// The requests that a command was given, in order.
#[derive(Debug, Default)]
pub(super) struct Fed(pub(super) Vec<RequestId>);

impl Fed {
    /// What a command would be given of this batch.
    pub(super) async fn of(batch: &Batch, format: LineFormat) -> Result<Self, HandlerError> {
        let mut fed = Self::default();
        fed.feed(batch, format, tokio::io::sink()).await?;
        Ok(fed)
    }

    /// Writes a line per request, page by page. A command that closes its stdin early is free to do
    /// so; it is its answers that count.
    pub(super) async fn feed(
        &mut self,
        batch: &Batch,
        format: LineFormat,
        stdin: impl AsyncWrite + Unpin,
    ) -> Result<(), HandlerError> {
        let mut stdin = Some(stdin);
        let mut members = batch.members();
        let mut lines = Vec::with_capacity(CHUNK_BYTES);
        let mut unfit = Vec::new();
        while let Some(member) = members.next().await.transpose()? {
            if !write_line(&mut lines, &member, format) {
                unfit.push((member.id, newline()));
                continue;
            }
            self.0.push(member.id);
            if lines.len() >= CHUNK_BYTES {
                write(&mut stdin, &mut lines).await;
            }
            if unfit.len() >= RECORD_PAGE {
                batch.record(std::mem::take(&mut unfit)).await?;
            }
        }
        write(&mut stdin, &mut lines).await;
        drop(stdin);
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

async fn write(stdin: &mut Option<impl AsyncWrite + Unpin>, lines: &mut Vec<u8>) {
    if let Some(pipe) = stdin
        && (pipe.write_all(lines).await.is_err() || pipe.flush().await.is_err())
    {
        *stdin = None;
    }
    lines.clear();
    lines.shrink_to(CHUNK_BYTES * 2);
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
/// The most outcomes recorded in one step.
pub(super) const RECORD_PAGE: usize = 1000;
