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
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::{
    apply::Step,
    clean::{self, Closed, Held},
    db::Db,
    handle::{Answer, Command, Core, Gate, Handle, MAX_GROUP_COMMANDS, PERMITS, Run, bug},
    moment::{Past, Saved},
    open::Opened,
    record::QueueV1,
    state::{Live, QueueState},
    write::Write,
};
use crate::{
    clock::Timestamp,
    error::{ErrorKind, Result},
    fault::point,
    queue::{QueueOptions, transfer::Turns},
    request::QueueName,
};

/// A group is closed once its pushes have this many payload bytes.
const MAX_GROUP_BYTES: usize = 8 << 20;

/// The writer of an open store; [`run`](Self::run) takes over its thread.
pub(super) struct Writer {
    core: Arc<Core>,
    commands: mpsc::Receiver<Command>,
    /// Held until the end; letting go of it lets others open the store.
    lock: std::fs::File,
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
            turns: Turns::default(),
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
            lock,
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
        let moves = self.core.read_gate().db.as_ref().map_or(0, Db::moves);
        if moves > 0 {
            let path = self.core.path.display();
            tracing::info!(%path, moves, "the file of the store is nearly empty in parts: pages are moved");
        }
        let mut has_more = true;
        let reply = loop {
            let first = if has_more {
                match self.commands.try_recv() {
                    Err(mpsc::error::TryRecvError::Disconnected) => break None,
                    first => first.ok(),
                }
            } else {
                match self.commands.blocking_recv() {
                    None => break None,
                    first => first,
                }
            };
            let close = first.and_then(|first| self.group(first));
            if close.is_some() {
                break close;
            }
            has_more = self.settle_slice();
            has_more |= self.move_some();
        };
        self.finish(reply);
    }

    /// Applies what waits, makes it durable, and answers; the reply to a `Close` among it.
    fn group(&mut self, first: Command) -> Option<oneshot::Sender<Result<()>>> {
        let low_space = low_space(&self.core.path, self.core.low_space_mark);
        self.keep_room();
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
                    touched.insert(live.id);
                    answers.push(Box::new(move |durable: Result<()>| {
                        let _ = reply.send(durable.map(|()| live));
                    }));
                }
                Command::Hold { now, saved, reply } => {
                    let past = self.hold(&mut gate, now, saved);
                    touched.extend(gate.queues.keys());
                    answers.push(Box::new(move |durable: Result<()>| {
                        let _ = reply.send(past.and_then(|past| durable.map(|()| past)));
                    }));
                }
                Command::Lock { reply } => drop(reply.send(self.lock.try_clone())),
                Command::Forget => gate.db.iter().for_each(Db::forget_moments),
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
        let synced = self.sync();
        self.publish(&touched);
        point("sled.published");
        self.let_readers_go(synced);
        let gate = core.read_gate();
        for answer in answers {
            answer(
                gate.db
                    .as_ref()
                    .map_or_else(|| Err(core.closed()), Db::check),
            );
        }
        point("sled.answered");
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
            Ok((answer, failed)) => {
                // Arguments are refused before anything is written, and among pushes a refused one
                // leaves alone what its neighbours wrote. Anything else stopped half way.
                let damaged = matches!(failed, Some(ErrorKind::Corrupt | ErrorKind::Internal));
                if !self.write.is_empty() && (damaged || (failed.is_some() && !push)) {
                    db.poison("a verb that failed half way");
                }
                Some(answer)
            }
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

    /// Makes every commit durable, if there is one that is not; the group that is durable now.
    fn sync(&mut self) -> Option<u64> {
        let gate = self.core.read_gate();
        let db = gate.db.as_ref()?;
        let commits = db.commits();
        if commits == self.durable || db.sync().is_err() {
            return None;
        }
        self.durable = commits;
        Some(gate.group)
    }

    /// Lets those answer who have read what is durable now. What they tell has to be shown by then.
    fn let_readers_go(&self, synced: Option<u64>) {
        if let Some(group) = synced {
            self.core.synced.send_replace(group);
        }
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
            for queue in gate.queues.values() {
                queue.live.changed();
            }
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
        // Its counters were shown with the end of the batch, and a crash only repeats the slice: there
        // is nothing to sync yet.
        queue.publish();
        let more = queues.values().any(|queue| !queue.ending.is_empty());
        drop(gate);
        if !more {
            point("sled.settled");
            let synced = self.sync();
            self.let_readers_go(synced);
        }
        more
    }

    /// Moves some pages, so that the file gets smaller; whether there are more to be moved.
    fn move_some(&mut self) -> bool {
        let core = self.core.clone();
        let gate = core.read_gate();
        let Some(db) = gate.db.as_ref().filter(|db| db.has_moves()) else {
            return false;
        };
        // What moves needs room before it makes some.
        if low_space(&core.path, core.low_space_mark.saturating_mul(2)).is_some() {
            return false;
        }
        let moved = db.move_some();
        let has_more = db.has_moves();
        drop(gate);
        if moved.is_err() {
            self.publish(&BTreeSet::new());
        }
        moved.is_ok() && has_more
    }

    /// Brings all queues to `now`, and keeps what they hold for whoever reads it.
    fn hold(&mut self, gate: &mut Gate, now: Timestamp, saved: Saved) -> Result<Arc<Past>> {
        self.commit(gate);
        let Gate { db, queues, .. } = &mut *gate;
        let db = db.as_ref().ok_or_else(|| self.core.closed())?;
        db.check()?;
        for queue in queues.values_mut() {
            let mut step = Step {
                db,
                write: &mut self.write,
                queue,
                low_space: None,
            };
            let bring = || step.advance(now).and_then(|()| step.settle_all());
            let brought = catch_unwind(AssertUnwindSafe(bring));
            let brought = brought.unwrap_or_else(|panic| Err(bug(&*panic)));
            brought.inspect_err(|error| db.poison(error.to_string()))?;
        }
        db.commit(&mut self.write)?;
        self.commit(gate);
        let Gate { db, queues, .. } = &*gate;
        let db = db.as_ref().ok_or_else(|| self.core.closed())?;
        let past = Arc::new(Past::of(queues.values(), db.windows().all(), saved));
        db.hold(Arc::clone(&past));
        Ok(past)
    }

    /// Ends moments when the disk gets low, well before pushes would be refused.
    fn keep_room(&self) {
        // Nobody may be reading what is dropped then.
        let gate = self.core.write_gate();
        let Some(db) = gate.db.as_ref().filter(|db| db.has_moments()) else {
            return;
        };
        let least = self.core.low_space_mark.saturating_mul(2);
        if low_space(&self.core.path, least).is_some() {
            db.end_moments(&format!(
                "the disk of {} gets low, with fewer bytes free than twice the low-space mark; begin again when there are more",
                self.core.path.display()
            ));
        }
    }

    fn open_queue(
        &mut self,
        gate: &mut Gate,
        name: &QueueName,
        options: Option<QueueOptions>,
    ) -> Arc<Live> {
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
            }
            return live;
        }
        let id = self.next_queue;
        let record = QueueV1::new(name.as_str());
        self.write.put_queue(id, &record);
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
        live
    }

    /// Marks the store as closed cleanly, and lets go of it.
    fn finish(mut self, reply: Option<oneshot::Sender<Result<()>>>) {
        point("sled.close");
        self.commands.close();
        self.core.permits.close();
        let core = self.core.clone();
        let mut gate = core.write_gate();
        self.commit(&mut gate);
        if let Some(db) = &gate.db {
            db.end_moments("the store was closed");
        }
        drop(gate);
        let synced = self.sync();
        self.let_readers_go(synced);
        let mut gate = core.write_gate();
        let closed = gate.db.as_ref().map_or(Ok(()), |db| {
            db.check()?;
            let held = gate.queues.iter();
            let held = held.map(|(id, queue)| (*id, Held::of(&queue.record)));
            let closed = Closed {
                commits: db.commits(),
                queues: held.collect(),
            };
            point("sled.mark");
            clean::mark(&core.path, &closed)?;
            point("sled.marked");
            Ok(())
        });
        let db = gate.db.take();
        let queues = std::mem::take(&mut gate.queues);
        drop(gate);
        if let Some(db) = db {
            db.let_go();
        }
        point("sled.closed");
        drop(self);
        for queue in queues.values() {
            queue.live.changed();
        }
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
