//! What takes a connection for itself, for longer than one call: dumps in and out, and a store that is handed over.

use std::{io, time::Duration};

use tokio::{
    net::UnixStream,
    sync::watch,
    time::{interval, timeout},
};

use super::{
    Served,
    calls::{out_of_place, transfer},
    exchange::Asked,
    gone,
};
use crate::{
    clock::Timestamp,
    control::wire::{Call, Told, Verb},
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
                    return self.reply(stream, ended.map(Told::Ended)).await;
                }
                _ = ticks.tick() => {
                    let now = *progress.borrow_and_update();
                    if let Some(now) = now {
                        self.reply(stream, Ok(Told::Progress(now))).await?;
                    }
                }
                () = gone(stream) => return Ok(()),
            }
        }
    }

    /// Has the store let go of, if its owner is for that and no dump is half in or out; then this connection lasts as long as it has it.
    pub(super) async fn hand_over(&self, stream: &mut UnixStream) -> io::Result<()> {
        let Some(wanted) = &self.wanted else {
            return self.reply(stream, Ok(false)).await;
        };
        let ended = tokio::select! {
            ended = self.dumping.write() => ended,
            () = gone(stream) => return Ok(()),
        };
        wanted.cancel();
        drop(ended);
        self.reply(stream, Ok(true)).await?;
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
                return self.reply(stream, none).await;
            }
            Err(error) => return self.reply::<()>(stream, Err(error)).await,
        };
        self.reply(stream, Ok(Some(moment.queues()))).await?;
        // It keeps from being freed what it holds: who does not want it any more must not keep it.
        while let Ok(asked) = timeout(ABANDONED, self.next_part(stream)).await {
            let Some(Asked { call, room }) = asked? else {
                return Ok(());
            };
            let page = async {
                let _turn = self.budget.page().await;
                let page = match call {
                    Ok(Call::Page(queue, from)) => moment.dump(&queue, from).await,
                    Ok(_) => Err(out_of_place()),
                    Err(error) => Err(error),
                };
                self.answer(page).await
            };
            let answer = tokio::select! {
                page = page => page,
                () = gone(stream) => return Ok(()),
            };
            drop(room);
            self.send(stream, answer).await?;
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
            Err(refused) => self.reply::<()>(stream, Err(refused)).await,
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
        self.reply(stream, Ok(())).await?;
        while let Some(Asked { call, room }) = self.next_part(stream).await? {
            let added = match call {
                Ok(Call::To(queue, Verb::Add(records))) if queue == *name => {
                    restore.add(records).await
                }
                Ok(_) => Err(out_of_place()),
                Err(error) => Err(error),
            };
            drop(room);
            self.reply(stream, added).await?;
        }
        Ok(())
    }
}

/// How often a client is told how far a verification is.
const TELL_AGAIN: Duration = Duration::from_millis(200);
/// Of a moment nobody may ask for nothing for so long.
const ABANDONED: Duration = Duration::from_mins(10);
