//! The body of the request: a line for each member without an outcome, never all in memory.
//!
//! A small batch goes whole, with its length. A large one is read from the queue while it is sent;
//! if it is to be signed, it goes through a temporary file, because the signature precedes it.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, Stream},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
};

use super::signature::Signing;
use crate::{
    error::{Error, Result},
    format::json_lines::encode_request_line,
    handler::{Batch, HandlerError},
    request::RequestId,
};

/// A body that is ready to go.
pub(super) struct Upload {
    pub(super) body: reqwest::Body,
    pub(super) signature: Option<String>,
    pub(super) progress: Arc<Progress>,
}

impl Upload {
    /// The body for this batch; `None` if no member is left to be sent.
    pub(super) async fn of(
        batch: &Batch,
        signing: Option<Signing>,
    ) -> Result<Option<Self>, HandlerError> {
        let progress = Arc::new(Progress::default());
        let mut chunks = Box::pin(lines(batch, Arc::clone(&progress)));
        let mut head = BytesMut::new();
        let mut whole = false;
        while !whole && head.len() < WHOLE_BYTES {
            match chunks.try_next().await? {
                Some(chunk) => head.extend_from_slice(&chunk),
                None => whole = true,
            }
        }
        if head.is_empty() {
            return Ok(None);
        }
        let head = head.freeze();
        let (body, signature) = match signing {
            _ if whole => {
                progress.all_read.store(true, Ordering::Release);
                let signature = signing.map(|mut signing| {
                    signing.update(&head);
                    signing.finish()
                });
                (head.into(), signature)
            }
            None => {
                let chunks = stream::once(async { Ok(head) }).chain(chunks);
                (watched(chunks, &progress), None)
            }
            Some(mut signing) => {
                let chunks = stream::once(async { Ok(head) }).chain(chunks);
                let file = spool(Box::pin(chunks), &mut signing).await?;
                (watched(contents(file), &progress), Some(signing.finish()))
            }
        };
        Ok(Some(Self {
            body,
            signature,
            progress,
        }))
    }
}

/// How an upload comes along, shared with whoever sends it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    chunks: AtomicU64,
    all_read: AtomicBool,
    failure: Mutex<Option<Error>>,
    sent: Mutex<HashSet<RequestId>>,
}

impl Progress {
    /// How many chunks the connection has taken.
    pub(super) fn chunks(&self) -> u64 {
        self.chunks.load(Ordering::Acquire)
    }

    /// Whether the connection has taken all of the body.
    pub(super) fn all_read(&self) -> bool {
        self.all_read.load(Ordering::Acquire)
    }

    /// Why the batch could not be read, if that is what broke the upload.
    pub(super) fn take_failure(&self) -> Option<Error> {
        locked(&self.failure).take()
    }

    /// Whether this member is in the body, as far as it has been read.
    pub(super) fn has_sent(&self, id: RequestId) -> bool {
        locked(&self.sent).contains(&id)
    }
}

/// The lines of the members, a chunk of whole lines at a time.
fn lines(
    batch: &Batch,
    progress: Arc<Progress>,
) -> impl Stream<Item = Result<Bytes>> + Send + use<> {
    let start = (batch.members(), progress);
    stream::try_unfold(start, |(mut members, progress)| async move {
        let mut chunk = Vec::new();
        let mut ids = Vec::new();
        while chunk.len() < CHUNK_BYTES {
            let Some(member) = members.try_next().await? else {
                break;
            };
            encode_request_line(&member, &mut chunk);
            ids.push(member.id);
        }
        locked(&progress.sent).extend(ids);
        Ok((!chunk.is_empty()).then(|| (Bytes::from(chunk), (members, progress))))
    })
}

/// A body that notes what the connection takes of it, and what made it fail.
fn watched<E: Into<Error> + Send>(
    chunks: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    progress: &Arc<Progress>,
) -> reqwest::Body {
    let start = (Box::pin(chunks), Arc::clone(progress));
    let body = stream::unfold(start, |(mut chunks, progress)| async move {
        let item = match chunks.next().await {
            None => {
                progress.all_read.store(true, Ordering::Release);
                return None;
            }
            Some(Ok(chunk)) => {
                progress.chunks.fetch_add(1, Ordering::AcqRel);
                Ok(chunk)
            }
            Some(Err(error)) => {
                *locked(&progress.failure) = Some(error.into());
                Err(io::Error::other("the batch can't be read"))
            }
        };
        Some((item, (chunks, progress)))
    });
    reqwest::Body::wrap_stream(body)
}

/// Writes and signs a body in one pass; the file has no name and goes with its handle.
async fn spool(
    mut chunks: impl Stream<Item = Result<Bytes>> + Unpin,
    signing: &mut Signing,
) -> Result<File, HandlerError> {
    let file = tokio::task::spawn_blocking(tempfile::tempfile).await?;
    let mut file = File::from_std(file.map_err(spooling)?);
    while let Some(chunk) = chunks.try_next().await? {
        signing.update(&chunk);
        file.write_all(&chunk).await.map_err(spooling)?;
    }
    file.flush().await.map_err(spooling)?;
    file.rewind().await.map_err(spooling)?;
    Ok(file)
}

fn contents(file: File) -> impl Stream<Item = Result<Bytes>> + Send {
    stream::try_unfold(file, |mut file| async move {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let read = file.read_buf(&mut chunk).await;
        let read = read.map_err(|error| Error::unavailable(SPOOL).with_source(error))?;
        Ok((read > 0).then(|| (chunk.freeze(), file)))
    })
}

fn spooling(error: io::Error) -> HandlerError {
    // A full disk of ours is no request's fault.
    HandlerError::outage(SPOOL).with_source(error)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const SPOOL: &str = "the temporary file of a signed batch can't be used";
/// Lines are gathered up to about this much.
const CHUNK_BYTES: usize = 64 << 10;
/// A body up to about this size goes whole.
const WHOLE_BYTES: usize = 1 << 20;
