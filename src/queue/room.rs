//! Waiting for room in a full queue, the same on every backend.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    queue::{QueueOptions, WhenFull},
    request::NewRequest,
};

/// A push that may have to wait: mark the queue's changes seen, try, then wait for one.
#[derive(Debug)]
pub(crate) struct Room {
    asked: Timestamp,
    now: Timestamp,
    start: Instant,
    changes: watch::Receiver<u64>,
    requests: u64,
    bytes: u64,
}

impl Room {
    pub(crate) fn new(
        asked: Timestamp,
        requests: &[NewRequest],
        changes: watch::Receiver<u64>,
    ) -> Self {
        let bytes = requests.iter().map(|request| request.payload.len() as u64);
        Self {
            asked,
            now: asked,
            start: Instant::now(),
            changes,
            requests: requests.len() as u64,
            bytes: bytes.sum(),
        }
    }

    /// The time to try at; what changes from here on ends the next wait.
    pub(crate) fn now(&mut self) -> Timestamp {
        self.changes.mark_unchanged();
        self.now
    }

    /// Answers when it is worth trying again.
    ///
    /// # Errors
    /// Why the push failed, if waiting can't help, or has not in time.
    pub(crate) async fn wait(&mut self, failed: Error, options: &QueueOptions) -> Result<()> {
        let fits = self.requests <= options.max_requests && self.bytes <= options.max_bytes;
        let timeout: Duration = match options.when_full {
            WhenFull::Block { timeout } if fits && failed.kind() == ErrorKind::QueueFull => timeout,
            _ => return Err(failed),
        };
        match timeout_at(self.start + timeout, self.changes.changed()).await {
            Ok(Ok(())) => {
                self.now = self.asked.after(self.start.elapsed());
                Ok(())
            }
            _ => Err(failed.context(format!("no room within {timeout:?}"))),
        }
    }
}
