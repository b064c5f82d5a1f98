//! Dumps on their way out and in; what goes on by a connection of its own ends with it.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::{Connection, ControlQueue, Owner, OwnerGone, held};
use crate::{
    clock::Timestamp,
    control::wire::{self, Call, Verb},
    error::{Error, Result},
    queue::{
        Moment, Transfer,
        transfer::{DumpFrom, DumpPage, Record, Restore},
    },
    request::QueueName,
};

#[async_trait]
impl Transfer for ControlQueue {
    async fn dump(&self, now: Timestamp, from: DumpFrom) -> Result<DumpPage> {
        self.ask(Verb::Dump(now, from)).await
    }

    async fn restore(&self) -> Result<Box<dyn Restore + '_>> {
        let mut connection = self.owner.dial_again().await?;
        let call = wire::encode(&Call::To(self.name.clone(), Verb::Restore))?;
        self.owner.check_open()?;
        self.owner.wait_for_those_that_end().await;
        let begun = self.owner.ask(&mut connection, &call).await?;
        let () = begun.ok_or_else(|| self.owner.said_bye())??;
        Ok(Box::new(Restoring {
            queue: self,
            connection: Some(connection),
        }))
    }
}

/// A moment of the owner's store, by a connection of its own: when that ends, so does the moment.
#[derive(Debug)]
pub(super) struct ControlMoment {
    owner: Arc<Owner>,
    queues: Vec<QueueName>,
    /// Unless it is in use just now, or was given up in the middle of a call.
    connection: Mutex<Option<Connection>>,
}

impl ControlMoment {
    /// A moment, if the owner's store has such.
    pub(super) async fn begin(owner: &Arc<Owner>, now: Timestamp) -> Result<Option<Self>> {
        let mut connection = owner.dial_again().await?;
        owner.check_open()?;
        owner.wait_for_those_that_end().await;
        let call = wire::encode(&Call::Moment(now))?;
        let begun: Option<Result<_>> = owner.ask(&mut connection, &call).await?;
        let queues: Option<Vec<QueueName>> = begun.ok_or_else(|| owner.said_bye())??;
        Ok(queues.map(|queues| Self {
            owner: Arc::clone(owner),
            queues,
            connection: Mutex::new(Some(connection)),
        }))
    }
}

#[async_trait]
impl Moment for ControlMoment {
    fn queues(&self) -> Vec<QueueName> {
        self.queues.clone()
    }

    async fn dump(&self, queue: &QueueName, from: DumpFrom) -> Result<DumpPage> {
        self.owner.check_open()?;
        let call = wire::encode(&Call::Page(queue.clone(), from))?;
        let connection = held(&self.connection).take();
        let mut connection = connection.ok_or_else(|| {
            Error::unavailable("this dump was cut off in the middle of a page; begin another one")
        })?;
        let page = self.owner.ask(&mut connection, &call).await;
        let page = page.map_err(|error| match OwnerGone::of(&error) {
            Some(_) => Error::unavailable(
                "the process that has the store open is gone, and this dump with it: what came of it is not whole; begin another one",
            ),
            None => error,
        })?;
        *held(&self.connection) = Some(connection);
        page.ok_or_else(|| {
            Error::unavailable(
                "the process that has the store open has given this dump up: it is closing the store, or was asked for no page for too long",
            )
        })?
    }
}

impl Drop for ControlMoment {
    fn drop(&mut self) {
        self.owner.end(held(&self.connection).take());
    }
}

/// A dump on its way in, by a connection of its own: when that ends, so does what is not whole.
struct Restoring<'a> {
    queue: &'a ControlQueue,
    /// Until it is dropped.
    connection: Option<Connection>,
}

impl Drop for Restoring<'_> {
    fn drop(&mut self) {
        self.queue.owner.end(self.connection.take());
    }
}

#[async_trait]
impl Restore for Restoring<'_> {
    async fn add(&mut self, records: Vec<Record>) -> Result<()> {
        let call = Call::To(self.queue.name.clone(), Verb::Add(records));
        let owner = &self.queue.owner;
        let ended = || Error::closed("this restore has ended");
        let connection = self.connection.as_mut().ok_or_else(ended)?;
        let added = owner.ask(connection, &wire::encode(&call)?).await?;
        added.ok_or_else(|| owner.said_bye())?
    }
}
