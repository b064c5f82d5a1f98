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

use std::{cell::Cell, io, num::NonZeroU32, time::Duration};

use postcard::{de_flavors::Flavor, ser_flavors::Size};
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

/// How many bytes the frame of a value has.
///
/// # Errors
/// If it is too large for one.
pub(super) fn frame_bytes<T: Serialize>(value: &T) -> Result<usize> {
    let length = postcard::serialize_with_flavor(value, Size::default()).map_err(not_written)?;
    if length > MAX_FRAME_BYTES {
        return Err(Error::invalid(format!(
            "{length} bytes are too many to go through the control socket at once, which takes {MAX_FRAME_BYTES}; use smaller pieces"
        )));
    }
    Ok(LENGTH_BYTES + length)
}

/// The frame of a value, in as much memory as it needs.
///
/// # Errors
/// If it is too large for one.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let bytes = frame_bytes(value)?;
    let mut frame = Vec::with_capacity(bytes);
    let length = u32::try_from(bytes - LENGTH_BYTES).unwrap_or(u32::MAX);
    frame.extend_from_slice(&length.to_le_bytes());
    postcard::to_extend(value, frame).map_err(not_written)
}

fn not_written(error: postcard::Error) -> Error {
    Error::internal("a call can't be written").with_source(error)
}

/// The value in a frame's body.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    let whole = |(value, _)| value;
    weigh(body, usize::MAX).and_then(|found| found.map(whole).ok_or_else(|| nonsense("too much")))
}

/// The value in a frame's body and no less than the bytes of memory that it takes; `None` if that is more than `most`, which were
/// not exceeded to find out.
pub(super) fn weigh<T: DeserializeOwned>(
    body: &[u8],
    most: usize,
) -> io::Result<Option<(T, usize)>> {
    let taken = Cell::new(0);
    let mut decoder = postcard::Deserializer::from_flavor(Weighed {
        rest: body,
        taken: &taken,
        most,
    });
    match T::deserialize(&mut decoder) {
        _ if taken.get() > most => Ok(None),
        Err(error) => Err(nonsense(error)),
        Ok(value) => match decoder.finalize() {
            Ok([]) => Ok(Some((value, taken.get()))),
            Ok(_) => Err(nonsense("bytes are left over")),
            Err(error) => Err(nonsense(error)),
        },
    }
}

/// Bytes to decode, and what has been made of them so far: a call of many small things takes far more memory than its frame.
struct Weighed<'de> {
    rest: &'de [u8],
    taken: &'de Cell<usize>,
    most: usize,
}

impl<'de> Weighed<'de> {
    fn take(&mut self, count: usize, weight: usize) -> postcard::Result<&'de [u8]> {
        let taken = self.taken.get().saturating_add(weight);
        self.taken.set(taken);
        let split = self.rest.split_at_checked(count);
        let (part, rest) = split
            .filter(|_| taken <= self.most)
            .ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
        self.rest = rest;
        Ok(part)
    }
}

impl<'de> Flavor<'de> for Weighed<'de> {
    type Remainder = &'de [u8];
    type Source = &'de [u8];

    fn pop(&mut self) -> postcard::Result<u8> {
        self.take(1, BYTE_WEIGHT).map(|byte| byte[0])
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }

    fn try_take_n(&mut self, count: usize) -> postcard::Result<&'de [u8]> {
        self.take(count, count.saturating_add(ALLOCATION_BYTES))
    }

    fn finalize(self) -> postcard::Result<&'de [u8]> {
        Ok(self.rest)
    }
}

fn nonsense(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
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
        return Err(nonsense(format!("a frame of {length} bytes")));
    }
    Ok(length)
}

/// The body of a frame, in as much memory as it needs: room is made once for what is to come, and taken as it comes.
pub(super) async fn read_body(stream: &mut UnixStream, length: usize) -> io::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(length);
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
/// The most entries of a page that goes through, whatever is asked for: the client asks again for those behind it.
pub(super) const PAGE_ENTRIES: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");
/// A payload of the largest size and a result as large, and room for what is beside them.
pub(super) const MAX_FRAME_BYTES: usize = 160 << 20;
const CHUNK_BYTES: usize = 256 << 10;
/// What a byte of a frame that is no part of a text or payload may become in memory: the most is an entry of a vector that has grown to
/// twice its length, see the test.
const BYTE_WEIGHT: usize = 144;
/// What a text or payload takes beside its bytes.
const ALLOCATION_BYTES: usize = 32;
/// For how long nothing may come of a frame that has begun, or be taken of one that is written.
const STALLED: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use super::*;
    use crate::batch::Outcome;

    /// Entries of vectors that clients send, with the fewest bytes that one of them can be.
    #[test]
    fn a_weight_is_no_less_than_what_is_taken() {
        let entries = [
            ("request", size_of::<NewRequest>(), 5),
            ("record", size_of::<Record>(), 2),
            ("outcome", size_of::<(RequestId, Outcome)>(), 3),
            // With what a map has for each of its entries.
            ("attribute", 2 * size_of::<(String, String)>(), 2),
        ];
        for (what, bytes, fewest) in entries {
            assert!(
                2 * bytes <= fewest * BYTE_WEIGHT,
                "{what}: {bytes} bytes of {fewest}"
            );
        }
    }
}
