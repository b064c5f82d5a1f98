//! The callers' end: commands to the writer, and readings beside it.

use std::{
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::{
    apply::Step,
    db::{self, Db},
    moment::{Past, Saved, Sight},
    reader::View,
    state::{Live, QueueState},
};
use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    queue::{QueueOptions, transfer::Turns},
    request::QueueName,
};

/// Tells a caller what became of its command, once that is durable or known to have failed.
pub(super) type Answer = Box<dyn FnOnce(Result<()>) + Send>;
/// A verb, to be run on the writer's thread; also how it failed, if it did.
pub(super) type Run = Box<dyn FnOnce(&mut Step<'_>) -> (Answer, Option<ErrorKind>) + Send>;

pub(super) enum Command {
    /// A verb of a queue; pushes may share a transaction with their neighbours.
    Queue {
        id: u32,
        push: Option<usize>,
        run: Run,
    },
    /// Keeps what all queues hold as of a time.
    Hold {
        now: Timestamp,
        saved: Saved,
        reply: oneshot::Sender<Result<Arc<Past>>>,
    },
    /// A moment has ended.
    Forget,
    /// Gives the lock of the store to somebody else as well.
    Lock {
        reply: oneshot::Sender<std::io::Result<std::fs::File>>,
    },
    /// Makes a queue, or gives it other options.
    Open {
        name: QueueName,
        options: Option<QueueOptions>,
        reply: oneshot::Sender<Result<Arc<Live>>>,
    },
    Close {
        reply: oneshot::Sender<Result<()>>,
    },
}

/// What the writer and all handles share.
pub(super) struct Core {
    pub(super) path: PathBuf,
    pub(super) gate: RwLock<Gate>,
    /// The last group that is durable.
    pub(super) synced: watch::Sender<u64>,
    pub(super) lives: Mutex<BTreeMap<QueueName, Arc<Live>>>,
    pub(super) created: watch::Sender<u64>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) turns: Turns,
    pub(super) low_space_mark: u64,
    pub(super) defaults: QueueOptions,
    /// Why the store stopped, if it did.
    pub(super) health: Arc<OnceLock<String>>,
}

pub(super) struct Gate {
    /// `None` once the store is closed.
    pub(super) db: Option<Db>,
    pub(super) queues: BTreeMap<u32, QueueState>,
    /// The last group that was applied.
    pub(super) group: u64,
}

/// A caller's end: commands go through here. The writer ends when the last one is dropped.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) core: Arc<Core>,
    pub(super) commands: mpsc::Sender<Command>,
}

/// Shows where the store is, and nothing of what is in it: sled would print every entry.
impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.core.path, f)
    }
}

impl Core {
    pub(super) fn read_gate(&self) -> RwLockReadGuard<'_, Gate> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_gate(&self) -> RwLockWriteGuard<'_, Gate> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn closed(&self) -> Error {
        Error::closed(format!("the store {} was closed", self.path.display()))
    }
}

impl Handle {
    /// Runs a verb on the writer's thread; answers once what it did is durable.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        id: u32,
        verb: impl FnOnce(&mut Step<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.send(id, None, verb).await
    }

    /// Runs a push, once there is room for its bytes on the way to the writer.
    pub(super) async fn push<T: Send + 'static>(
        &self,
        id: u32,
        bytes: usize,
        verb: impl FnOnce(&mut Step<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permits = u32::try_from(bytes.div_ceil(1024)).map_or(PERMITS, |kib| kib.min(PERMITS));
        let permit = self.core.permits.clone().acquire_many_owned(permits).await;
        let permit = permit.map_err(|_| self.core.closed())?;
        let verb = move |step: &mut Step<'_>| {
            let _permit = permit;
            verb(step)
        };
        self.send(id, Some(bytes), verb).await
    }

    async fn send<T: Send + 'static>(
        &self,
        id: u32,
        push: Option<usize>,
        verb: impl FnOnce(&mut Step<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let run: Run = Box::new(move |step| {
            let value = verb(step);
            let failed = value.as_ref().err().map(Error::kind);
            let answer: Answer = Box::new(move |durable| {
                let _ = reply.send(value.and_then(|value| durable.map(|()| value)));
            });
            (answer, failed)
        });
        let command = Command::Queue { id, push, run };
        self.commands
            .send(command)
            .await
            .map_err(|_| self.core.closed())?;
        answer.await.map_err(|_| self.core.closed())?
    }

    /// The queue of this name, made if need be.
    pub(super) async fn open(
        &self,
        name: QueueName,
        options: Option<QueueOptions>,
    ) -> Result<Arc<Live>> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Open {
            name,
            options,
            reply,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| self.core.closed())?;
        answer.await.map_err(|_| self.core.closed())?
    }

    /// What all queues hold as of `now`, once that is durable.
    pub(super) async fn hold(&self, now: Timestamp, saved: Saved) -> Result<Arc<Past>> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Hold { now, saved, reply };
        let sent = self.commands.send(command).await;
        sent.map_err(|_| self.core.closed())?;
        answer.await.map_err(|_| self.core.closed())?
    }

    /// The lock of the store, which keeps others from opening it for as long as it is held.
    pub(super) async fn lock(&self) -> Result<std::fs::File> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Lock { reply }).await;
        sent.map_err(|_| self.core.closed())?;
        let lock = answer.await.map_err(|_| self.core.closed())?;
        lock.map_err(|error| {
            Error::unavailable("the lock of the store can't be held on to").with_source(error)
        })
    }

    /// Closes the store; answers when it may be opened again.
    pub(super) async fn close(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Close { reply }).await.is_err() {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }

    /// Reads beside the writer; answers once what was seen is durable. `None`: there are ended batches to be settled
    /// first, or the queue is to be brought to `now`. What is settled in the background may be over at once.
    pub(super) async fn view<T: Send + 'static>(
        &self,
        id: u32,
        now: Option<Timestamp>,
        read: impl FnOnce(View<'_>) -> Result<T> + Send + 'static,
    ) -> Result<Option<T>> {
        let core = self.core.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let gate = core.read_gate();
            let db = gate.db.as_ref().ok_or_else(|| core.closed())?;
            db.check()?;
            let queue = gate
                .queues
                .get(&id)
                .ok_or_else(|| Error::internal("no such queue"))?;
            let is_behind =
                |now: Timestamp| !queue.ending.is_empty() || queue.next.first() <= now.as_nanos();
            if now.is_some_and(is_behind) {
                return Ok(None);
            }
            let read = catch_unwind(AssertUnwindSafe(|| {
                let db = Sight::of(db);
                read(View { db, queue })
            }));
            let value = read.unwrap_or_else(|panic| Err(bug(&*panic)))?;
            Ok(Some((gate.group, value)))
        });
        let read = reading
            .await
            .map_err(|error| Error::internal("a reading was cut off").with_source(error))?;
        let Some((group, value)) = read? else {
            return Ok(None);
        };
        let mut synced = self.core.synced.subscribe();
        let durable = synced.wait_for(|synced| *synced >= group).await;
        durable.map_err(|_| self.core.closed())?;
        self.sound()?;
        Ok(Some(value))
    }

    /// Fails if the store is closed or poisoned.
    pub(super) fn sound(&self) -> Result<()> {
        self.core
            .health
            .get()
            .map_or(Ok(()), |why| Err(db::poisoned(why)))?;
        self.check()
    }

    /// Fails if the store is closed.
    pub(super) fn check(&self) -> Result<()> {
        if self.commands.is_closed() {
            return Err(self.core.closed());
        }
        Ok(())
    }

    pub(super) fn syncs(&self) -> u64 {
        self.core.read_gate().db.as_ref().map_or(0, Db::syncs)
    }
}

pub(super) fn bug(panic: &(dyn std::any::Any + Send)) -> Error {
    Error::internal(format!(
        "a verb of the sled backend panicked: {}",
        db::panic_text(panic)
    ))
}

/// The most commands of one group.
pub(super) const MAX_GROUP_COMMANDS: usize = 4096;
/// Payload bytes, in KiB, that callers may have on their way to the writer at a time.
pub(super) const PERMITS: u32 = 64 << 10;
