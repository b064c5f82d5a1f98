//! Sugar on every queue.

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tracing::Instrument;

use crate::{
    clock::Timestamp,
    error::{Error, Result},
    queue::{Entry, Queue, directive},
    request::{Bookmark, NewRequest, Pushed, RequestId, State},
    trace,
};

/// Shorthands for every [`Queue`], with the queue's own clock.
#[async_trait]
pub trait QueueExt: Queue {
    /// Pushes one request.
    ///
    /// # Errors
    /// As [`Queue::push`].
    async fn push_one(&self, request: NewRequest) -> Result<Pushed> {
        let span = trace::send(&self.name(), 1);
        let pushing = self.push(self.now(), vec![request]);
        let pushed = pushing.instrument(span).await?;
        pushed
            .first()
            .copied()
            .ok_or_else(|| Error::internal("a push of one request answered none"))
    }

    /// Pushes one request with `value` as its JSON payload.
    ///
    /// # Errors
    /// As [`Queue::push`], and `Invalid` if it can't be written as JSON.
    async fn push_json<T: Serialize + Sync + ?Sized>(&self, value: &T) -> Result<Pushed>
    where
        Self: Sized,
    {
        self.push_one(NewRequest::json(value)?).await
    }

    /// Has every dispatcher claim nothing from the queue until it is [resumed](Self::resume), restarts included; what is
    /// in handlers goes on, and pushes are taken. Paused again it stays paused since when it was.
    ///
    /// # Errors
    /// As [`Queue::push_from`]; [`Invalid`](crate::ErrorKind::Invalid) on a backend without bookmarks.
    async fn pause(&self) -> Result<()> {
        let now = self.now();
        let since = self.stats(now).await?.paused_at;
        direct(self, directive::PAUSED, Some(since.unwrap_or(now)), now).await
    }

    /// Lets dispatchers go on after [`pause`](Self::pause).
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    async fn resume(&self) -> Result<()> {
        direct(self, directive::PAUSED, None, self.now()).await
    }

    /// Lets leave what is ready now, whatever the policy of its dispatcher waits for: at once, or as soon as one serves it.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    async fn flush(&self) -> Result<()> {
        let now = self.now();
        direct(self, directive::FLUSHED, Some(now), now).await
    }

    /// Waits until a request is done or dead, and answers with what became of it.
    ///
    /// Cancel safe. Looks again at every change, and every second where the backend tells none.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): it was never pushed, is past its retention, or was
    /// cancelled, has expired or was purged. [`Invalid`](crate::ErrorKind::Invalid): the backend has
    /// no administration.
    async fn wait(&self, id: RequestId) -> Result<Entry> {
        let admin = self.admin().ok_or_else(|| {
            Error::invalid(
                "this backend has no administration, so it can't tell one request's state",
            )
        })?;
        let mut changes = self.pushed();
        loop {
            if let Some(changes) = &mut changes {
                changes.mark_unchanged();
            }
            match admin.status(self.now(), id).await? {
                None => return Err(Error::not_found(format!("no request {id} is known"))),
                Some(entry) if matches!(entry.state, State::Done | State::Dead) => {
                    return Ok(entry);
                }
                Some(_) => {}
            }
            match &mut changes {
                Some(changes) => changes
                    .changed()
                    .await
                    .map_err(|_| Error::closed("the queue was closed"))?,
                None => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }
}

impl<Q: Queue + ?Sized> QueueExt for Q {}

/// Gives a directive, or takes it back.
async fn direct<Q: Queue + ?Sized>(
    queue: &Q,
    source: &str,
    at: Option<Timestamp>,
    now: Timestamp,
) -> Result<()> {
    let bookmark = Bookmark {
        source: source.to_owned(),
        value: directive::value(at),
    };
    queue.push_from(now, Vec::new(), bookmark).await.map(drop)
}
