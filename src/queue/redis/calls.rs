//! Calls of the scripts of a queue, and what a queue answers to any of them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use tokio::sync::{RwLock, RwLockReadGuard};

use super::{
    Shared,
    codec::{damaged, hex, parse_hex, time},
    keys::Keys,
    script::Script,
};
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    fault::point,
    request::QueueName,
};

/// What is needed to call the scripts of a queue.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) name: QueueName,
    pub(super) keys: Keys,
    pub(super) shared: Arc<Shared>,
    /// The lower half of every batch id; a restore changes it.
    salt: AtomicU64,
    /// Whether the queue is closed; read-locked by each call under way.
    closed: RwLock<bool>,
}

impl Calls {
    pub(super) fn new(name: QueueName, keys: Keys, salt: u64, shared: Arc<Shared>) -> Self {
        Self {
            name,
            keys,
            shared,
            salt: AtomicU64::new(salt),
            closed: RwLock::new(false),
        }
    }

    /// Refuses later calls, and waits for those under way.
    pub(super) async fn close(&self) {
        *self.closed.write().await = true;
    }

    /// Runs the script of a verb that changes something, once.
    pub(super) async fn change(
        &self,
        script: &Script,
        now: Timestamp,
        args: &[Bytes],
    ) -> Result<Vec<Bytes>> {
        self.run(script, now, args, true).await
    }

    /// Runs the script of a verb that only looks.
    pub(super) async fn ask(
        &self,
        script: &Script,
        now: Timestamp,
        args: &[Bytes],
    ) -> Result<Vec<Bytes>> {
        self.run(script, now, args, false).await
    }

    /// Runs a script, and again if the queue has got another salt.
    async fn run(
        &self,
        script: &Script,
        now: Timestamp,
        args: &[Bytes],
        only_once: bool,
    ) -> Result<Vec<Bytes>> {
        let _open = self.check_open().await?;
        let (link, key) = (&self.shared.link, self.keys.state());
        loop {
            let head = self.head(now);
            let reply = if only_once {
                point("redis.call");
                let reply = link.eval_once(script, &key, head, args).await?;
                point("redis.called");
                reply
            } else {
                link.eval(script, &key, head, args).await?
            };
            if !self.learn(&reply)? {
                return self.check_present(reply);
            }
        }
    }

    pub(super) fn salt(&self) -> u64 {
        self.salt.load(Ordering::Relaxed)
    }

    /// The time of a call, and the salt that it goes by.
    fn head(&self, now: Timestamp) -> Bytes {
        [time(now), hex(self.salt())].concat().into()
    }

    /// Whether the reply is that the queue has another salt: it was restored after it was opened here.
    fn learn(&self, reply: &[Bytes]) -> Result<bool> {
        let [status, salt] = reply else {
            return Ok(false);
        };
        if status != "salt" {
            return Ok(false);
        }
        self.salt.store(parse_hex(salt)?, Ordering::Relaxed);
        Ok(true)
    }

    pub(super) async fn check_open(&self) -> Result<RwLockReadGuard<'_, bool>> {
        let closed = self.closed.read().await;
        if *closed {
            return Err(Error::closed(format!("queue {:?} was closed", self.name)));
        }
        Ok(closed)
    }

    fn check_present(&self, reply: Vec<Bytes>) -> Result<Vec<Bytes>> {
        match reply.first() {
            None => Err(damaged("a reply")),
            Some(status) if status == "gone" => Err(Error::corrupt(format!(
                "queue {} is no longer on the Redis server, which was flushed or lost its data; connect again to begin anew",
                self.name
            ))),
            Some(_) => Ok(reply),
        }
    }
}
