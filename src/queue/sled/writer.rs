//! The writer: one thread that owns every change, and makes them durable in groups.
//!
//! ```text
//! callers ──▶ channel ──▶ group: what waits ──▶ apply each, commit ──▶ flush, fdatasync ──▶ publish ──▶ answer all
//!                            ▲                                                                      │
//!                            └───────── one slice of settling an ended batch ◀──────────────────────┘
//! ```
//! Pushes that follow one another are collected into one transaction. Nothing is answered, and no
//! counter is shown, before the sync that covers it. Readers share the gate with the writer: it is
//! closed to them while a group is applied and open while it is synced; a reading that saw a group
//! waits for its sync before it is answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::{
    apply::Step,
    db::{self, Db, Write},
    keys::{self, Tree},
    open::Opened,
    reader::View,
    record::QueueV1,
    state::{Live, QueueState},
};
use crate::{
    error::{Error, Result},
    queue::QueueOptions,
    request::QueueName,
};

/// The most commands of one group.
const MAX_GROUP_COMMANDS: usize = 4096;
/// A group is closed once its pushes have this many payload bytes.
const MAX_GROUP_BYTES: usize = 8 << 20;
/// Payload bytes, in KiB, that callers may have on their way to the writer at a time.
const PERMITS: u32 = 64 << 10;

/// Tells a caller what became of its command, once that is durable or known to have failed.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;
/// A verb, to be run on the writer's thread.
type Run = Box<dyn FnOnce(&mut Step<'_>) -> Answer + Send>;

enum Command {
    /// A verb of a queue; pushes may share a transaction with their neighbours.
    Queue {
        id: u32,
        push: Option<usize>,
        run: Run,
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
#[derive(Debug)]
pub(super) struct Core {
    pub(super) path: PathBuf,
    gate: RwLock<Gate>,
    /// The last group that is durable.
    synced: watch::Sender<u64>,
    pub(super) lives: Mutex<BTreeMap<QueueName, Arc<Live>>>,
    pub(super) created: watch::Sender<u64>,
    permits: Arc<Semaphore>,
    low_space_mark: u64,
    defaults: QueueOptions,
    /// Why the store stopped, if it did.
    health: Arc<OnceLock<String>>,
}

#[derive(Debug)]
struct Gate {
    /// `None` once the store is closed.
    db: Option<Db>,
    queues: BTreeMap<u32, QueueState>,
    group: u64,
}

/// A caller's end: commands go through here. The writer ends when the last one is dropped.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) core: Arc<Core>,
    commands: mpsc::Sender<Command>,
}

impl Core {
    fn read_gate(&self) -> RwLockReadGuard<'_, Gate> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_gate(&self) -> RwLockWriteGuard<'_, Gate> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn closed(&self) -> Error {
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
            Box::new(move |durable| {
                let _ = reply.send(value.and_then(|value| durable.map(|()| value)));
            })
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

    /// Closes the store; answers when it may be opened again.
    pub(super) async fn close(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Close { reply }).await.is_err() {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }

    /// Reads beside the writer; answers once what was seen is durable. `None`: there are ended batches
    /// to be settled first.
    pub(super) async fn view<T: Send + 'static>(
        &self,
        id: u32,
        settled: bool,
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
            if settled && !queue.ending.is_empty() {
                return Ok(None);
            }
            let read = catch_unwind(AssertUnwindSafe(|| read(View { db, queue })));
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

/// Starts the writer of a store that was just opened, on this thread, until the store is closed.
pub(super) struct Writer {
    core: Arc<Core>,
    commands: mpsc::Receiver<Command>,
    /// Held until the end; letting go of it lets others open the store.
    _lock: std::fs::File,
    write: Write,
    /// The commits that are durable.
    durable: u64,
    next_queue: u32,
}

impl Writer {
    pub(super) fn new(
        opened: Opened,
        defaults: QueueOptions,
        low_space_mark: u64,
    ) -> (Self, Handle) {
        let Opened {
            path,
            lock,
            db,
            queues,
            next_queue,
        } = opened;
        let (sender, commands) = mpsc::channel(MAX_GROUP_COMMANDS);
        let lives = queues
            .values()
            .map(|queue| (queue.live.name.clone(), queue.live.clone()));
        let core = Arc::new(Core {
            path,
            lives: Mutex::new(lives.collect()),
            synced: watch::Sender::new(0),
            created: watch::Sender::new(0),
            permits: Arc::new(Semaphore::new(PERMITS as usize)),
            low_space_mark,
            defaults,
            health: db.health(),
            gate: RwLock::new(Gate {
                db: None,
                queues,
                group: 0,
            }),
        });
        let durable = db.commits();
        core.write_gate().db = Some(db);
        let writer = Self {
            core: core.clone(),
            commands,
            _lock: lock,
            write: Write::default(),
            durable,
            next_queue,
        };
        (
            writer,
            Handle {
                core,
                commands: sender,
            },
        )
    }

    /// Runs until the store is closed or the last handle is gone.
    pub(super) fn run(mut self) {
        let mut unsettled = self
            .core
            .read_gate()
            .queues
            .values()
            .any(|queue| !queue.ending.is_empty());
        let reply = loop {
            let first = match unsettled {
                true => match self.commands.try_recv() {
                    Err(mpsc::error::TryRecvError::Disconnected) => break None,
                    first => first.ok(),
                },
                false => match self.commands.blocking_recv() {
                    None => break None,
                    first => first,
                },
            };
            let close = first.and_then(|first| self.group(first));
            if close.is_some() {
                break close;
            }
            unsettled = self.settle_slice();
        };
        self.finish(reply);
    }

    /// Applies what waits, makes it durable, and answers; the reply to a `Close` among it.
    fn group(&mut self, first: Command) -> Option<oneshot::Sender<Result<()>>> {
        let low_space = low_space(&self.core.path, self.core.low_space_mark);
        let (mut answers, mut touched) = (Vec::new(), BTreeSet::new());
        let (mut bytes, mut close) = (0, None);
        let core = self.core.clone();
        let mut gate = core.write_gate();
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Queue { id, push, run } => {
                    bytes += push.unwrap_or(0);
                    touched.insert(id);
                    answers.extend(self.apply(
                        &mut gate,
                        id,
                        push.is_some(),
                        run,
                        low_space.as_deref(),
                    ));
                }
                Command::Open {
                    name,
                    options,
                    reply,
                } => {
                    let live = self.open_queue(&mut gate, &name, options);
                    touched.extend(live.as_ref().map(|live| live.id));
                    answers.push(Box::new(move |durable: Result<()>| {
                        let _ = reply.send(live.and_then(|live| durable.map(|()| live)));
                    }));
                }
                Command::Close { reply } => close = Some(reply),
            }
            let full =
                close.is_some() || answers.len() >= MAX_GROUP_COMMANDS || bytes >= MAX_GROUP_BYTES;
            next = if full {
                None
            } else {
                self.commands.try_recv().ok()
            };
        }
        self.commit(&mut gate);
        drop(gate);
        self.sync();
        self.publish(&touched);
        let gate = core.read_gate();
        for answer in answers {
            answer(
                gate.db
                    .as_ref()
                    .map_or_else(|| Err(core.closed()), Db::check),
            );
        }
        close
    }

    /// Runs a verb on its queue.
    fn apply(
        &mut self,
        gate: &mut Gate,
        id: u32,
        push: bool,
        run: Run,
        low_space: Option<&str>,
    ) -> Option<Answer> {
        if !push {
            self.commit(gate);
        }
        let db = gate.db.as_ref()?;
        let queue = gate.queues.get_mut(&id)?;
        let mut step = Step {
            db,
            write: &mut self.write,
            queue,
            low_space,
        };
        let answer = match catch_unwind(AssertUnwindSafe(|| run(&mut step))) {
            Ok(answer) => Some(answer),
            Err(panic) => {
                db.poison(bug(&*panic).to_string());
                None
            }
        };
        if !push {
            self.commit(gate);
        }
        answer
    }

    /// Commits what was collected; a failure has poisoned the store, and every answer will say so.
    fn commit(&mut self, gate: &mut Gate) {
        if let Some(db) = &gate.db {
            let _ = db.commit(&mut self.write);
            if db.commits() != self.durable {
                gate.group = self.core.synced.borrow().saturating_add(1);
            }
        }
    }

    /// Makes every commit durable, if there is one that is not.
    fn sync(&mut self) {
        let gate = self.core.read_gate();
        let Some(db) = &gate.db else { return };
        let commits = db.commits();
        if commits == self.durable || db.sync().is_err() {
            return;
        }
        self.durable = commits;
        let group = gate.group;
        drop(gate);
        self.core.synced.send_replace(group);
    }

    /// Shows the handles of these queues how things stand, and wakes who waits for a change.
    fn publish(&mut self, touched: &BTreeSet<u32>) {
        let mut gate = self.core.write_gate();
        let sound = gate.db.as_ref().is_some_and(|db| db.check().is_ok());
        for id in touched {
            if let Some(queue) = gate.queues.get_mut(id).filter(|_| sound) {
                queue.publish();
                if std::mem::take(&mut queue.wake) {
                    queue.live.changed();
                }
            }
        }
        if !sound {
            // Readings and waiters must come back to be told.
            let group = gate.group;
            self.core.synced.send_replace(group);
            gate.queues.values().for_each(|queue| queue.live.changed());
        }
    }

    /// Settles a slice of an ended batch; whether there is more to do.
    fn settle_slice(&mut self) -> bool {
        let core = self.core.clone();
        let mut gate = core.write_gate();
        let Gate { db, queues, .. } = &mut *gate;
        let Some(db) = db.as_ref().filter(|db| db.check().is_ok()) else {
            return false;
        };
        let Some(queue) = queues.values_mut().find(|queue| !queue.ending.is_empty()) else {
            return false;
        };
        let Some(id) = queue.ending.keys().next().copied() else {
            return false;
        };
        let mut step = Step {
            db,
            write: &mut self.write,
            queue,
            low_space: None,
        };
        let slice = catch_unwind(AssertUnwindSafe(|| step.settle_slice(id)));
        if let Err(panic) = &slice {
            db.poison(bug(&**panic).to_string());
        } else if let Ok(Err(error)) = &slice {
            db.poison(error.to_string());
        }
        let queue_id = queue.id;
        let more = queues.values().any(|queue| !queue.ending.is_empty());
        self.commit(&mut gate);
        drop(gate);
        if !more {
            self.sync();
            self.publish(&BTreeSet::from([queue_id]));
        }
        more
    }

    fn open_queue(
        &mut self,
        gate: &mut Gate,
        name: &QueueName,
        options: Option<QueueOptions>,
    ) -> Result<Arc<Live>> {
        let known = self
            .core
            .lives
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned();
        if let Some(live) = known {
            if let (Some(options), Some(queue)) = (options, gate.queues.get_mut(&live.id)) {
                queue.options = options;
                let db = gate.db.as_ref().ok_or_else(|| self.core.closed())?;
                queue.find_next(db)?;
            }
            return Ok(live);
        }
        let id = self.next_queue;
        let record = QueueV1 {
            name: name.as_str().to_owned(),
            salt: fastrand::u64(..),
            cursor: 0,
            last_position: 0,
            last_batch: 0,
            last_fence: 0,
            last_settled: 0,
            pushed: 0,
            delayed: 0,
            ready: 0,
            ready_bytes: 0,
            in_flight: 0,
            done: 0,
            dead: 0,
            expired: 0,
            cancelled: 0,
            purged: 0,
            held_bytes: 0,
        };
        self.write
            .put(Tree::Meta, keys::queue_record(id), &record, &[])?;
        self.next_queue += 1;
        let live = Live::new(id, name.clone());
        let options = options.unwrap_or(self.core.defaults);
        gate.queues
            .insert(id, QueueState::new(id, record, options, live.clone()));
        self.core
            .lives
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.clone(), live.clone());
        self.core.created.send_modify(|count| *count += 1);
        Ok(live)
    }

    /// Marks the store as closed cleanly, and lets go of it.
    fn finish(mut self, reply: Option<oneshot::Sender<Result<()>>>) {
        self.commands.close();
        self.core.permits.close();
        self.write.put_key(Tree::Meta, keys::CLEAN.to_vec());
        let core = self.core.clone();
        let mut gate = core.write_gate();
        self.commit(&mut gate);
        drop(gate);
        self.sync();
        let mut gate = core.write_gate();
        let closed = gate.db.as_ref().map_or(Ok(()), Db::check);
        let db = gate.db.take();
        let queues = std::mem::take(&mut gate.queues);
        drop(gate);
        // sled writes a snapshot as it ends; a panic in there must not take the answer with it.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(db)));
        if dropped.is_err() {
            tracing::error!("sled panicked while it was closed");
        }
        drop(self);
        queues.values().for_each(|queue| queue.live.changed());
        if let Some(reply) = reply {
            let _ = reply.send(closed);
        }
    }
}

/// Why there is too little room on the disk, if so.
fn low_space(path: &std::path::Path, mark: u64) -> Option<String> {
    let free = rustix::fs::statvfs(path)
        .map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
        .ok()?;
    (free < mark).then(|| {
        format!(
            "the file system of {} has {free} bytes free, and pushes stop below {mark}; free some, or let the queue drain",
            path.display()
        )
    })
}

fn bug(panic: &(dyn std::any::Any + Send)) -> Error {
    Error::internal(format!(
        "a verb of the sled backend panicked: {}",
        db::panic_text(panic)
    ))
}
