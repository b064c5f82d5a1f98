//! Files that are ready to become segments, and those that no longer are segments.
//!
//! ```text
//!  freed ──(nobody reads the oldest)──► ready ──take──► the writer
//!    └─────(enough are ready)──► removed  ▲
//!                             made, synced
//! ```
//!
//! A thread does it, so that the writer finds a file ready; it waits only if there is none.

use std::{
    collections::{BTreeSet, VecDeque},
    io::{self, IoSlice},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    LogOptions, Place,
    fault::{self, Fault},
    format::{PAGE, SECTOR, SegmentHeader},
    found::slot_name,
    read::Segment,
};
use crate::{
    error::{Error, Result},
    fault::point,
    queue::journal::disk::Disk,
    sync::{Builder, Condvar, JoinHandle, Mutex, MutexGuard},
};

/// The spares of a log.
#[derive(Debug)]
pub(super) struct Spares {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<dyn Disk>,
    options: LogOptions,
    state: Mutex<State>,
    /// Something for the thread to do.
    work: Condvar,
    /// Something for a waiting writer.
    done: Condvar,
    disk_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Segment>,
    /// In the order of their numbers.
    freed: VecDeque<Arc<Segment>>,
    slots: BTreeSet<u32>,
    /// Why the last attempt to make one failed.
    failure: Option<String>,
    /// It is time for another attempt.
    retry: bool,
    writer: Writer,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Writer {
    #[default]
    Working,
    /// It has nothing to append.
    Paused,
    /// It is gone, or the thread that works for it is.
    Gone,
}

/// What is to be done next.
enum Step {
    Make(u32),
    Recycle(Segment),
    Remove(Segment),
    Wait,
    Stop,
}

impl Spares {
    /// Takes over what was found, and starts to work. `used` are all slots of the folder.
    pub(super) fn start(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        ready: Vec<Segment>,
        freed: Vec<Arc<Segment>>,
        slots: BTreeSet<u32>,
        disk_bytes: u64,
    ) -> Result<Self> {
        let in_background = disk.in_background();
        let shared = Arc::new(Shared {
            disk,
            options,
            state: Mutex::new(State {
                ready: ready.into(),
                freed: freed.into(),
                slots,
                ..State::default()
            }),
            work: Condvar::new(),
            done: Condvar::new(),
            disk_bytes: AtomicU64::new(disk_bytes),
        });
        let worker = shared.clone();
        let thread = if in_background {
            let thread = Builder::new()
                .name("batchyard-spare".to_owned())
                .spawn(move || worker.run())
                .map_err(|error| {
                    Error::unavailable(format!("no thread can be started: {error}"))
                        .with_source(error)
                })?;
            Some(thread)
        } else {
            None
        };
        let spares = Self { shared, thread };
        spares.work();
        Ok(spares)
    }

    /// A file that is ready. Waits for one if there is none.
    pub(super) fn take(&self) -> Result<Segment> {
        let mut state = self.shared.lock();
        let mut asked = false;
        loop {
            if let Some(spare) = state.ready.pop_front() {
                state.writer = Writer::Working;
                drop(state);
                self.work();
                return Ok(spare);
            }
            if state.writer == Writer::Gone {
                return Err(Error::internal("the thread that makes segments is gone"));
            }
            if asked && let Some(why) = &state.failure {
                return Err(full(why));
            }
            state.failure = None;
            state.writer = Writer::Working;
            asked = true;
            if self.thread.is_some() {
                self.shared.work.notify_one();
                state = self
                    .shared
                    .done
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            } else {
                drop(state);
                self.shared.work_off();
                state = self.shared.lock();
            }
        }
    }

    /// Makes a spare that was taken longer. If that fails it is gone: nothing is known of it any more.
    pub(super) fn lengthen(&self, spare: Segment, length: u32) -> Result<Segment> {
        let grown = spare.file.allocate(length.into());
        if let Err(error) = grown.and_then(|()| spare.file.sync_all()) {
            self.shared.remove(&spare);
            self.shared.lock().failure = Some(error.to_string());
            return Err(full(&error.to_string()).with_source(error));
        }
        self.grown(u64::from(length - spare.length));
        Ok(Segment { length, ..spare })
    }

    /// These are no longer needed; the oldest comes first.
    pub(super) fn free(&self, segments: impl IntoIterator<Item = Arc<Segment>>) {
        self.shared.lock().freed.extend(segments);
        self.work();
    }

    /// The writer pauses: what is ready beyond the wanted number may go.
    pub(super) fn pause(&self) {
        self.shared.lock().writer = Writer::Paused;
        self.work();
    }

    pub(super) fn space(&self) -> Space {
        Space(self.shared.clone())
    }

    pub(super) fn grown(&self, bytes: u64) {
        self.shared.disk_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Something may have become due.
    fn work(&self) {
        if self.thread.is_some() {
            self.shared.work.notify_one();
        } else {
            self.shared.work_off();
        }
    }
}

/// What space the log takes, and whether it gets more: told at once, also while a group is written.
#[derive(Clone, Debug)]
pub(in crate::queue::journal) struct Space(Arc<Shared>);

impl Space {
    /// Bytes that all files of the log take.
    #[cfg(test)]
    pub(in crate::queue::journal) fn disk_bytes(&self) -> u64 {
        self.0.disk_bytes.load(Ordering::Relaxed)
    }

    /// Whether the log can go on growing, as it was found last.
    ///
    /// # Errors
    /// `QueueFull` if a spare segment is missing and can't be made.
    pub(in crate::queue::journal) fn has_room(&self) -> Result<()> {
        let state = self.0.lock();
        match &state.failure {
            Some(why) if state.ready.len() < self.0.options.spares => Err(full(why)),
            _ => Ok(()),
        }
    }

    /// How many segments are ready to be begun.
    pub(in crate::queue::journal) fn ready(&self) -> u64 {
        self.0.lock().ready.len() as u64
    }

    /// Whether there is a segment to begin, or one may be had.
    ///
    /// # Errors
    /// `Unavailable` if none could be made a moment ago; that is tried again all the time.
    pub(in crate::queue::journal) fn has_segment(&self) -> Result<()> {
        let state = self.0.lock();
        match &state.failure {
            // Where no thread tries again, whoever takes one does.
            Some(why) if state.ready.is_empty() && self.0.disk.in_background() => {
                Err(Error::unavailable(full(why).to_string()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Spares {
    /// The folder must not be touched any more when its owner goes on.
    fn drop(&mut self) {
        self.shared.lock().writer = Writer::Gone;
        self.shared.work.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    /// The oldest that is freed, if nobody reads it.
    fn pop_freed(&mut self) -> Option<Segment> {
        let oldest = if fault::is(Fault::RecycleOutOfOrder) {
            self.freed.pop_back()?
        } else {
            self.freed.pop_front()?
        };
        match Arc::try_unwrap(oldest) {
            Ok(oldest) => Some(oldest),
            Err(held) if fault::is(Fault::RecycleUnderReader) => Some(Segment {
                name: held.name.clone(),
                file: held.file.clone(),
                ..*held
            }),
            Err(held) => {
                self.freed.push_front(held);
                None
            }
        }
    }

    /// How many may be ready. While the writer is at work it is one more than are made, or all that is freed just
    /// after one was made would go to waste.
    fn most(&self, options: &LogOptions) -> usize {
        options.spares + usize::from(self.writer != Writer::Paused)
    }

    fn next_slot(&self) -> u32 {
        let mut free = (0..u32::MAX).filter(|slot| !self.slots.contains(slot));
        free.next().unwrap_or(u32::MAX)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread.
    fn run(&self) {
        let _gone = Gone(self);
        loop {
            let mut state = self.lock();
            match self.next(&mut state) {
                Step::Stop => return,
                Step::Wait => {
                    // Who reads a freed segment does not say when it is done.
                    if state.failure.is_none() && state.freed.is_empty() {
                        drop(self.work.wait(state));
                        continue;
                    }
                    let woken = self.work.wait_timeout(state, RETRY);
                    let (mut state, timeout) = woken.unwrap_or_else(PoisonError::into_inner);
                    state.retry = timeout.timed_out();
                }
                step => {
                    drop(state);
                    self.step(step);
                }
            }
        }
    }

    /// All that is due, at once.
    fn work_off(&self) {
        loop {
            let step = self.next(&mut self.lock());
            if matches!(step, Step::Wait | Step::Stop) {
                return;
            }
            self.step(step);
        }
    }

    fn next(&self, state: &mut State) -> Step {
        if state.writer == Writer::Gone {
            return Step::Stop;
        }
        let most = state.most(&self.options);
        if state.ready.len() > most
            && let Some(surplus) = state.ready.pop_front()
        {
            return Step::Remove(surplus);
        }
        if let Some(oldest) = state.pop_freed() {
            return if state.ready.len() < most && self.fits(&oldest) {
                Step::Recycle(oldest)
            } else {
                Step::Remove(oldest)
            };
        }
        let missing = state.ready.len() < self.options.spares;
        if missing && (state.failure.is_none() || state.retry) {
            state.retry = false;
            return Step::Make(state.next_slot());
        }
        Step::Wait
    }

    /// Whether it can be used again.
    fn fits(&self, segment: &Segment) -> bool {
        segment.length == self.options.segment_bytes
    }

    fn step(&self, step: Step) {
        match step {
            Step::Make(slot) => self.make(slot),
            Step::Recycle(segment) => self.recycle(segment),
            Step::Remove(segment) => self.remove(&segment),
            Step::Wait | Step::Stop => {}
        }
    }

    fn make(&self, slot: u32) {
        let made = self.make_file(slot);
        let mut state = self.lock();
        match made {
            Ok(spare) => {
                state.failure = None;
                state.slots.insert(slot);
                state.ready.push_back(spare);
            }
            Err(error) => {
                // It is tried again twice a second.
                let failure = error.to_string();
                if state.failure.as_ref() != Some(&failure) {
                    tracing::warn!(error = failure, "no spare segment can be made");
                }
                state.failure = Some(failure);
            }
        }
        self.done.notify_all();
    }

    fn make_file(&self, slot: u32) -> io::Result<Segment> {
        let name = slot_name(slot);
        let file = self.disk.create(&name)?;
        let spare = Segment {
            number: 0,
            name,
            file,
            length: self.options.segment_bytes,
            fresh: true,
        };
        match self.prepare(&spare) {
            Ok(()) => {
                self.disk_bytes
                    .fetch_add(spare.length.into(), Ordering::Relaxed);
                Ok(spare)
            }
            Err(error) => {
                let removed = self.disk.remove(&spare.name);
                if let Err(error) = removed {
                    tracing::warn!(%error, spare.name, "an unfinished segment can't be removed");
                    self.lock().slots.insert(slot);
                }
                Err(error)
            }
        }
    }

    /// Makes a new file a spare.
    fn prepare(&self, spare: &Segment) -> io::Result<()> {
        point("journal.make");
        spare.file.allocate(spare.length.into())?;
        self.write_header(spare)?;
        spare.file.sync_all()?;
        if !fault::is(Fault::SkipFolderSync) {
            self.disk.sync_folder()?;
        }
        point("journal.made");
        Ok(())
    }

    /// Makes what is freed ready again. From now on it says so itself, even to one who can't read the root.
    fn recycle(&self, freed: Segment) {
        let spare = Segment {
            fresh: false,
            ..freed
        };
        point("journal.recycle");
        let written = self.write_header(&spare);
        if let Err(error) = written.and_then(|()| spare.file.sync_data()) {
            tracing::warn!(%error, spare.name, "a freed segment can't be reused");
            self.remove(&spare);
            return;
        }
        point("journal.recycled");
        let mut state = self.lock();
        state.failure = None;
        state.ready.push_back(spare);
        self.done.notify_all();
    }

    fn write_header(&self, spare: &Segment) -> io::Result<()> {
        let header = SegmentHeader {
            number: 0,
            oldest: 0,
            from: Place::default(),
            epoch: 0,
            fresh: spare.fresh,
            length: spare.length,
        };
        let header = header.encode(self.options.salt);
        let rest = [0; (PAGE - SECTOR) as usize];
        let page = [IoSlice::new(&header), IoSlice::new(&rest)];
        spare.file.write_at(&page, 0)
    }

    fn remove(&self, segment: &Segment) {
        point("journal.remove");
        match self.disk.remove(&segment.name) {
            Ok(()) => {
                point("journal.removed");
                self.disk_bytes
                    .fetch_sub(segment.length.into(), Ordering::Relaxed);
                if let Some(slot) = super::found::slot_of(&segment.name) {
                    self.lock().slots.remove(&slot);
                }
            }
            Err(error) => tracing::warn!(%error, segment.name, "a freed segment can't be removed"),
        }
    }
}

/// Tells a waiting writer that nobody works for it any more, whatever ended the thread.
struct Gone<'a>(&'a Shared);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.lock().writer = Writer::Gone;
        self.0.done.notify_all();
    }
}

pub(super) fn full(why: &str) -> Error {
    Error::queue_full(format!("no segment can be added to the log: {why}"))
}

/// How long until it is tried again to make one.
const RETRY: Duration = Duration::from_millis(500);
