//! What takes a connection for itself, for longer than one call: dumps in and out, and a store that is handed over.

use std::{io, time::Duration};

use tokio::{
    net::UnixStream,
    sync::watch,
    time::{interval, timeout},
};

use super::{Served, answer, gone, out_of_place, transfer};
use crate::{
    clock::Timestamp,
    control::wire::{self, Call, Told, Verb},
    error::Result,
    queue::transfer::Restore,
    request::QueueName,
};

impl Served {
    /// Has the store verified, as long as the client waits for it.
    pub(super) async fn verify(&self, stream: &mut UnixStream) -> io::Result<()> {
        let (told, mut progress) = watch::channel(None);
        let mut tell = |progress| {
            told.send_replace(Some(progress));
        };
        let mut verify = self.store.verify(&mut tell);
        let mut ticks = interval(TELL_AGAIN);
        loop {
            tokio::select! {
                ended = &mut verify => {
                    return wire::write(stream, &answer(ended.map(Told::Ended))).await;
                }
                _ = ticks.tick() => {
                    let now = *progress.borrow_and_update();
                    if let Some(now) = now {
                        wire::write(stream, &answer(Ok(Told::Progress(now)))).await?;
                    }
                }
                () = gone(stream) => return Ok(()),
            }
        }
    }

    /// Has the store let go of, if its owner is for that and no dump is half in or out; then this connection lasts as long as it has it.
    pub(super) async fn hand_over(&self, stream: &mut UnixStream) -> io::Result<()> {
        let Some(wanted) = &self.wanted else {
            return wire::write(stream, &answer(Ok(false))).await;
        };
        let ended = tokio::select! {
            ended = self.dumping.write() => ended,
            () = gone(stream) => return Ok(()),
        };
        wanted.cancel();
        drop(ended);
        wire::write(stream, &answer(Ok(true))).await?;
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = gone(stream) => {}
        }
        Ok(())
    }

    /// Keeps a moment for as long as its pages are asked for.
    pub(super) async fn hold_still(
        &self,
        now: Timestamp,
        stream: &mut UnixStream,
    ) -> io::Result<()> {
        let begun = tokio::select! {
            begun = self.store.moment(now) => begun,
            () = gone(stream) => return Ok(()),
        };
        let moment = match begun {
            Ok(Some(moment)) => moment,
            Ok(None) => {
                let none: Result<Option<Vec<QueueName>>> = Ok(None);
                return wire::write(stream, &answer(none)).await;
            }
            Err(error) => return wire::write(stream, &answer::<()>(Err(error))).await,
        };
        wire::write(stream, &answer(Ok(Some(moment.queues())))).await?;
        // It keeps from being freed what it holds: who does not want it any more must not keep it.
        while let Ok(call) = timeout(ABANDONED, self.next_part(stream)).await {
            let Some(call) = call? else { return Ok(()) };
            let frame = match call {
                Call::Page(queue, from) => tokio::select! {
                    page = moment.dump(&queue, from) => answer(page),
                    () = gone(stream) => return Ok(()),
                },
                _ => answer::<()>(Err(out_of_place())),
            };
            wire::write(stream, &frame).await?;
        }
        self.say_bye(stream).await.map(drop)
    }

    /// Takes in a dump, as long as its parts come.
    pub(super) async fn restore(
        &self,
        name: &QueueName,
        stream: &mut UnixStream,
    ) -> io::Result<()> {
        match self.take_in(name, stream).await {
            Ok(ended) => ended,
            Err(refused) => wire::write(stream, &answer::<()>(Err(refused))).await,
        }
    }

    /// How the connection ended; an error if nothing was begun.
    async fn take_in(&self, name: &QueueName, stream: &mut UnixStream) -> Result<io::Result<()>> {
        let queue = self.store.queue(name).await?;
        let mut restore = transfer(&*queue)?.restore().await?;
        Ok(self.take_parts(name, &mut *restore, stream).await)
    }

    async fn take_parts(
        &self,
        name: &QueueName,
        restore: &mut dyn Restore,
        stream: &mut UnixStream,
    ) -> io::Result<()> {
        wire::write(stream, &answer(Ok(()))).await?;
        while let Some(call) = self.next_part(stream).await? {
            let added = match call {
                Call::To(queue, Verb::Add(records)) if queue == *name => restore.add(records).await,
                _ => Err(out_of_place()),
            };
            wire::write(stream, &answer(added)).await?;
        }
        Ok(())
    }
}

/// How often a client is told how far a verification is.
const TELL_AGAIN: Duration = Duration::from_millis(200);
/// Of a moment nobody may ask for nothing for so long.
const ABANDONED: Duration = Duration::from_mins(10);
