//! What goes through the socket: calls, and the result of each.
//!
//! ```text
//!   frame    length: u32, little-endian | that many bytes of postcard
//!   client   Hello ─▶          call ─▶           call ─▶
//!   server          ◀─ Welcome        ◀─ result         ◀─ result      in order, one at a time
//!                                                              ◀─ bye  an empty frame
//! ```
//! After its bye a server reads nothing: a call that crossed it had no effect, and is made again elsewhere.
//!
//! The type of a result is that of its call, see [`Call`]. Calls at the same time go through several connections.

use std::{io, num::NonZeroU32, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use crate::{
    batch::{BatchId, Claim, Lease, Page, Update},
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    queue::{
        Capabilities, List, ResultCursor, Verified, VerifyProgress,
        transfer::{DumpFrom, Record},
    },
    request::{Bookmark, NewRequest, QueueName, RequestId},
};

/// The version of what is here. It rises with every change of a type that goes through.
pub(super) const PROTOCOL: u32 = 5;

/// What a client asks for.
#[derive(Debug, Serialize, Deserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are the large one, and none is kept"
)]
pub(super) enum Call {
    /// First of all: [`Welcome`].
    Hello { protocol: u32 },
    /// `Vec<QueueName>`
    Queues(String),
    /// [`Opened`]
    Open(QueueName),
    /// [`Told`], as long as it is being verified.
    Verify,
    /// `bool`: whether the server lets go of the store; once it has, the connection ends.
    HandOver,
    /// To a queue.
    To(QueueName, Verb),
    /// `Option<Vec<QueueName>>`: the queues of a moment, if there are such; from then on this connection is asked for nothing but
    /// [`Page`](Self::Page), and the moment ends with it.
    Moment(Timestamp),
    /// `DumpPage`
    Page(QueueName, DumpFrom),
    /// `u64`
    Damages,
}

/// What is asked of a queue.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Verb {
    /// `Vec<Pushed>`
    Push(Timestamp, Vec<NewRequest>),
    /// `Vec<Pushed>`
    PushFrom(Timestamp, Vec<NewRequest>, Bookmark),
    /// `Option<Bytes>`
    Bookmark(String),
    /// `Stats`
    Stats(Timestamp),
    /// `Option<Lease>`
    Claim(Timestamp, Claim),
    /// `Vec<Member>`
    Read(Lease, Page),
    /// `()`
    Update(Timestamp, Lease, Update),
    /// `Option<Entry>`
    Status(Timestamp, RequestId),
    /// `Vec<Entry>`
    List(Timestamp, List),
    /// `SettledPage`
    Results(Timestamp, Option<ResultCursor>, NonZeroU32),
    /// `Vec<Cancelled>`
    Cancel(Timestamp, Vec<RequestId>),
    /// `u64`
    Redrive(Timestamp, Vec<RequestId>),
    /// `u64`
    Purge(Timestamp, Vec<RequestId>),
    /// `Option<BatchEntry>`
    Batch(Timestamp, BatchId),
    /// `Vec<BatchEntry>`
    Batches(Timestamp, Option<BatchId>, NonZeroU32),
    /// `Vec<BatchId>`
    Release(Timestamp, Vec<BatchId>),
    /// `DumpPage`
    Dump(Timestamp, DumpFrom),
    /// `()`; from then on this connection is asked for nothing but [`Add`](Self::Add).
    Restore,
    /// `()`
    Add(Vec<Record>),
    /// `u64`: the counter of changes, as soon as it is another.
    Changed(u64),
    /// `Explanation`
    Explain,
}

/// The answer to [`Call::Hello`]: who serves.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub(super) protocol: u32,
    pub(super) version: String,
    pub(super) pid: u32,
    /// Whether it keeps the store, whoever wants it.
    pub(super) stays: bool,
}

/// The answer to [`Call::Open`]: what the queue can do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Opened {
    pub(super) capabilities: Capabilities,
    pub(super) has_transfer: bool,
    /// Its counter of changes, if it has one.
    pub(super) changes: Option<u64>,
}

/// How far the owner is with a verification, and at last what it came to.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Told {
    Progress(VerifyProgress),
    Ended(Verified),
}

/// An [`Error`] on its way.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failed {
    kind: ErrorKind,
    message: String,
    causes: Vec<String>,
}

impl Failed {
    /// What is told of an error.
    pub(super) fn new(error: &Error) -> Self {
        let mut causes = Vec::new();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        Self {
            kind: error.kind(),
            message: error.to_string(),
            causes,
        }
    }

    /// The error that it was.
    pub(super) fn into_error(self) -> Error {
        let error = Error::new(self.kind, self.message);
        if self.causes.is_empty() {
            error
        } else {
            error.with_source(self.causes.join(": "))
        }
    }
}

/// The frame of a value.
///
/// # Errors
/// If it is too large for one.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut frame = postcard::to_extend(value, vec![0; LENGTH_BYTES])
        .map_err(|error| Error::internal("a call can't be written").with_source(error))?;
    let length = frame.len() - LENGTH_BYTES;
    if length > MAX_FRAME_BYTES {
        return Err(Error::invalid(format!(
            "a call of {length} bytes is too large for the control socket, which takes {MAX_FRAME_BYTES}; use smaller pieces"
        )));
    }
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// The value in a frame's body.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "bytes are left over",
        )),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

/// What a server says that will not read on.
pub(super) const BYE: [u8; LENGTH_BYTES] = [0; LENGTH_BYTES];

/// Waits for the next frame, for however long; its first byte, or `None` at the end of the stream. Cancel safe.
pub(super) async fn read_first(stream: &mut UnixStream) -> io::Result<Option<u8>> {
    // That it is readable would not do: it may be said of a stream that is not.
    let mut first = [0];
    let read = stream.read(&mut first).await?;
    Ok((read > 0).then_some(first[0]))
}

/// How many bytes the frame has that begins so.
pub(super) async fn read_length(stream: &mut UnixStream, first: u8) -> io::Result<usize> {
    let mut length = [first, 0, 0, 0];
    in_time(stream.read_exact(&mut length[1..])).await?;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_FRAME_BYTES {
        let text = format!("a frame of {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(length)
}

/// The body of a frame. Memory is taken as bytes come, whatever the length says.
pub(super) async fn read_body(stream: &mut UnixStream, length: usize) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    while body.len() < length {
        let most = (length - body.len()).min(CHUNK_BYTES);
        let mut part = (&mut *stream).take(most as u64);
        if in_time(part.read_buf(&mut body)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(body)
}

/// Writes a frame, as long as the other side takes some of it now and then.
pub(super) async fn write(stream: &mut UnixStream, frame: &[u8]) -> io::Result<()> {
    for part in frame.chunks(CHUNK_BYTES) {
        in_time(stream.write_all(part)).await?;
    }
    Ok(())
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(STALLED, step)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

const LENGTH_BYTES: usize = 4;
/// A payload of the largest size and a result as large, and room for what is beside them.
pub(super) const MAX_FRAME_BYTES: usize = 160 << 20;
const CHUNK_BYTES: usize = 256 << 10;
/// For how long nothing may come of a frame that has begun, or be taken of one that is written.
const STALLED: Duration = Duration::from_secs(30);
