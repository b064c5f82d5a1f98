//! Pushes that go to the server together.
//!
//! A call of a script costs many times what one more request in it does, and the server syncs once for each. So pushes
//! that come while a call is under way wait for it to end, and all that wait then go with the next. Each is still all or
//! none by itself, with an answer of its own.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::{sync::oneshot, time::timeout};

use super::{
    calls::Calls,
    codec::{damaged, decimal},
    connection::LONGEST_CALL,
    push::MAX_INLINE_BYTES,
    script::SCRIPTS,
};
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    fault::point,
    queue::QueueOptions,
};

/// A push as `push.lua` takes it.
#[derive(Debug)]
pub(super) struct Push {
    pub(super) now: Timestamp,
    pub(super) args: Vec<Bytes>,
    pub(super) requests: usize,
}

/// Gathers the pushes of a queue.
#[derive(Debug)]
pub(super) struct Gather {
    calls: Arc<Calls>,
    options: QueueOptions,
    waiting: Arc<Waiting>,
}

impl Gather {
    pub(super) fn new(calls: Arc<Calls>, options: QueueOptions) -> Self {
        Self {
            calls,
            options,
            waiting: Arc::default(),
        }
    }

    /// What the script answers to this push, which is made or not if this is cancelled.
    ///
    /// Whoever sends it may belong to another runtime, which need not run: so it is not waited for without end.
    pub(super) async fn push(&self, push: Push) -> Result<Bytes> {
        let (answer, mut answered) = oneshot::channel();
        let begins = {
            let mut state = self.waiting.lock();
            state.pushes.push_back((push, answer));
            !std::mem::replace(&mut state.is_served, true)
        };
        if begins {
            let serving = Serving {
                waiting: self.waiting.clone(),
                is_over: false,
            };
            tokio::spawn(serve(self.calls.clone(), self.options, serving));
        }
        match timeout(LONGEST_CALL, &mut answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::unavailable(
                "the push was cut off on its way; it may have been made",
            )),
            Err(_) => {
                // If it was not sent yet, it never is.
                answered.close();
                self.waiting.lock().forget_closed();
                Err(Error::unavailable(
                    "the push was not answered in time; it may have been made",
                ))
            }
        }
    }
}

#[derive(Debug, Default)]
struct Waiting(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    pushes: VecDeque<(Push, Answer)>,
    /// Whether somebody sends them.
    is_served: bool,
}

type Answer = oneshot::Sender<Result<Bytes>>;

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets go of the pushes that nobody waits for any more.
    fn forget_closed(&mut self) {
        self.pushes.retain(|(_, answer)| !answer.is_closed());
    }

    /// As many as go together, but for those that nobody waits for any more; none: it is no longer served.
    fn next_group(&mut self) -> Vec<(Push, Answer)> {
        let mut group = Vec::new();
        let (mut requests, mut bytes) = (0, 0);
        while let Some((push, answer)) = self.pushes.pop_front() {
            if answer.is_closed() {
                continue;
            }
            requests += push.requests;
            bytes += push.bytes();
            let is_full = requests > MOST_REQUESTS || bytes > MAX_INLINE_BYTES;
            if is_full && !group.is_empty() {
                self.pushes.push_front((push, answer));
                break;
            }
            group.push((push, answer));
            if group.len() == MOST_PUSHES {
                break;
            }
        }
        self.is_served = !group.is_empty();
        group
    }
}

impl Push {
    fn bytes(&self) -> u64 {
        self.args.iter().map(|arg| arg.len() as u64).sum()
    }
}

/// Whoever sends what waits. If it is ended before that is done, those who wait are told.
struct Serving {
    waiting: Arc<Waiting>,
    is_over: bool,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if !self.is_over {
            let unsent = std::mem::take(&mut *self.waiting.lock());
            for (_, answer) in unsent.pushes {
                let error = Error::unavailable("the push was not sent; it was not made");
                drop(answer.send(Err(error)));
            }
        }
    }
}

/// Sends what waits until nothing does.
async fn serve(calls: Arc<Calls>, options: QueueOptions, mut serving: Serving) {
    loop {
        let group = serving.waiting.lock().next_group();
        let Some(now) = group.iter().map(|(push, _)| push.now).max() else {
            // Who comes now begins another one.
            serving.is_over = true;
            return;
        };
        let mut args = vec![decimal(&options.max_requests), decimal(&options.max_bytes)];
        args.extend(group.iter().flat_map(|(push, _)| push.args.iter().cloned()));
        point("redis.push");
        let reply = calls.change(&SCRIPTS.push, now, &args).await;
        point("redis.pushed");
        let replies = reply.and_then(|reply| match &reply[..] {
            [status, replies @ ..] if status == "ok" && replies.len() == group.len() => {
                Ok(replies.to_vec())
            }
            _ => Err(damaged("a reply")),
        });
        let answers = group.into_iter().map(|(_, answer)| answer);
        // Any of those who waited may have gone.
        match replies {
            Ok(replies) => {
                answers
                    .zip(replies)
                    .for_each(|(answer, reply)| drop(answer.send(Ok(reply))));
            }
            Err(error) => {
                let errors = error.copies(answers.len());
                answers
                    .zip(errors)
                    .for_each(|(answer, error)| drop(answer.send(Err(error))));
            }
        }
    }
}

/// The most pushes and requests that go together, or the server would be busy with them for too long.
const MOST_PUSHES: usize = 500;
const MOST_REQUESTS: usize = 10_000;
