//! Calls on their way in, and answers on their way out, each within the [`Budget`](super::budget::Budget).

use std::{io, time::Duration};

use serde::Serialize;
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{
    IDLE, Served,
    budget::{Taken, slower_than_pace},
};
use crate::{
    control::wire::{self, Call, Failed},
    error::{Error, Result},
};

/// A call, and what it takes of the budget until it is done; an error is answered in its place.
pub(super) struct Asked {
    pub(super) call: Result<Call>,
    pub(super) room: Taken,
}

/// A result as it is sent, and what it takes of the budget until it is.
pub(super) struct Answer {
    pub(super) frame: Vec<u8>,
    _room: Taken,
}

impl Served {
    /// The next call; `None` if there is none, or this client is not waited for any longer.
    pub(super) async fn next_call(&self, stream: &mut UnixStream) -> io::Result<Option<Asked>> {
        let first = tokio::select! {
            first = wire::read_first(stream) => first?,
            () = self.stop.cancelled() => self.say_bye(stream).await?,
            () = self.crowded.notified() => self.say_bye(stream).await?,
            () = sleep(IDLE) => self.say_bye(stream).await?,
        };
        match first {
            Some(first) => self.rest_of(stream, first).await,
            None => Ok(None),
        }
    }

    /// The next part of a dump, for however long it takes to come.
    pub(super) async fn next_part(&self, stream: &mut UnixStream) -> io::Result<Option<Asked>> {
        let first = tokio::select! {
            first = wire::read_first(stream) => first?,
            () = self.stop.cancelled() => self.say_bye(stream).await?,
        };
        match first {
            Some(first) => self.rest_of(stream, first).await,
            None => Ok(None),
        }
    }

    /// The call that begins so; it comes soon, and makes way as long as it is not whole.
    async fn rest_of(&self, stream: &mut UnixStream, first: u8) -> io::Result<Option<Asked>> {
        let asked = tokio::select! {
            asked = self.whole(stream, first) => asked?,
            () = self.crowded.notified() => None,
        };
        match asked {
            Some(asked) => Ok(Some(asked)),
            None => self.say_bye(stream).await.map(|_| None),
        }
    }

    /// The same; `None` if it is too slow for those who wait.
    async fn whole(&self, stream: &mut UnixStream, first: u8) -> io::Result<Option<Asked>> {
        let length = wire::read_length(stream, first).await?;
        let frames = &self.budget.frames;
        let _room = frames.take(length).await;
        let body = tokio::select! {
            biased;
            body = timeout(FRAME, wire::read_body(stream, length)) => body??,
            () = frames.overdue(length) => return Ok(None),
        };
        self.decoded(&body).await.map(Some)
    }

    /// The call in a frame. What it takes in memory shows as it is decoded, so one at a time is, and waits for its room then.
    pub(super) async fn decoded(&self, body: &[u8]) -> io::Result<Asked> {
        let calls = &self.budget.calls;
        let own = wire::weigh(body, calls.own_bytes())?;
        let _turn = match own {
            Some(_) => None,
            None => self.budget.call().await,
        };
        let found = match own {
            Some(own) => Some(own),
            None => wire::weigh(body, calls.most_bytes())?,
        };
        if let Some((call, bytes)) = found
            && let Some(room) = calls.take(bytes).await
        {
            let call = Ok(call);
            return Ok(Asked { call, room });
        }
        let text = format!(
            "this call takes more than the {} bytes that the process which has the store open has for one; use smaller pieces",
            calls.most_bytes()
        );
        Ok(Asked {
            call: Err(Error::invalid(text)),
            room: Taken::nothing(),
        })
    }

    /// A result as it is sent, as soon as there is room for it. Cancel safe.
    pub(super) async fn answer<T: Serialize + Send>(&self, result: Result<T>) -> Answer {
        let result = result.map_err(|error| Failed::new(&error));
        let sent = match wire::frame_bytes(&result) {
            Ok(bytes) => {
                let room = self.budget.answers.take(bytes).await;
                wire::encode(&result).map(|frame| (frame, room))
            }
            Err(error) => Err(error),
        };
        let (frame, room) = sent.unwrap_or_else(|error| {
            // It says that it is too large, and is small itself.
            let failed: std::result::Result<(), Failed> = Err(Failed::new(&error));
            (wire::encode(&failed).unwrap_or_default(), None)
        });
        Answer {
            frame,
            _room: room.unwrap_or_else(Taken::nothing),
        }
    }

    /// Sends it; a client that does not take it makes way for those who wait.
    pub(super) async fn send(&self, stream: &mut UnixStream, answer: Answer) -> io::Result<()> {
        let bytes = answer.frame.len();
        let crowded = async {
            slower_than_pace(bytes).await;
            self.crowded.notified().await;
        };
        tokio::select! {
            biased;
            written = wire::write(stream, &answer.frame) => written,
            () = self.budget.answers.overdue(bytes) => Err(io::ErrorKind::TimedOut.into()),
            () = crowded => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Answers at once.
    pub(super) async fn reply<T: Serialize + Send>(
        &self,
        stream: &mut UnixStream,
        result: Result<T>,
    ) -> io::Result<()> {
        let answer = self.answer(result).await;
        self.send(stream, answer).await
    }

    /// Tells a client that nothing more is read.
    pub(super) async fn say_bye(&self, stream: &mut UnixStream) -> io::Result<Option<u8>> {
        wire::write(stream, &wire::BYE).await.map(|()| None)
    }
}

/// How long a frame may take from its first byte to its last, once there is room for it.
const FRAME: Duration = Duration::from_secs(30);
