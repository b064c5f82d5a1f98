//! Opening: the last baseline, and every event since.
//!
//! Nothing is changed before all of it has been looked at. What can't be read is set aside and reported: a reason not to
//! open is only that nothing at all is left of a log that was used.

mod members;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    JournalOptions,
    codec::{self, Codec, Input},
    core::Core,
    disk::Disk,
    event::{Baseline, Event},
    fold::fold,
    group::Filling,
    identity::{Identity, LOG},
    log::{
        Cursor, Found, LogOptions, Place, Reader, Scanned, Tail,
        fault::{self, Fault},
    },
    record,
    state::{Blob, QueueState, State},
    tend::Tend,
};
use crate::{
    error::{Error, Result},
    queue::verified::Finding,
};

/// A store that is ready to be served, and what was found amiss on the way.
pub(super) struct Opened {
    pub(super) core: Core,
    pub(super) tend: Tend,
    pub(super) report: Vec<Finding>,
}

/// Where the log is, and how it is kept.
#[derive(Debug)]
pub(super) struct Origin {
    disk: Arc<dyn Disk>,
    options: LogOptions,
    low_space_mark: u64,
}

impl Origin {
    /// Whether there is space for a push that needs a segment longer than those that are kept ready.
    ///
    /// # Errors
    /// `QueueFull` if there is not.
    pub(super) fn check_space(&self, bytes: u64) -> Result<()> {
        if bytes < u64::from(self.options.segment_bytes) {
            return Ok(());
        }
        let free = self.disk.free_bytes().unwrap_or(u64::MAX);
        if free >= bytes.saturating_add(self.low_space_mark) {
            return Ok(());
        }
        Err(Error::queue_full(format!(
            "the disk has {free} bytes free, too few for a push of {bytes} above the low-space mark of {}; push fewer requests at a time, or free some space",
            self.low_space_mark
        )))
    }

    /// What there is of a log that is open.
    ///
    /// # Errors
    /// As [`Found::look`].
    pub(super) fn found(&self) -> Result<Found> {
        Found::look(self.disk.clone(), self.options)
    }

    /// What seeds its checksums.
    pub(super) fn salt(&self) -> u64 {
        self.options.salt
    }

    /// Whether there is space for segments that are not reused as long as they are read.
    ///
    /// # Errors
    /// `Unavailable` if there is not.
    pub(super) fn check_reading(&self) -> Result<()> {
        let free = self.disk.free_bytes().unwrap_or(u64::MAX);
        let needed = self
            .low_space_mark
            .saturating_add(SPARE_SEGMENTS * u64::from(self.options.segment_bytes));
        if free >= needed {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "segments are not reused as long as they are read, and the disk has {free} bytes free of the {needed} that are left for that; free some space and try again"
        )))
    }

    /// The state that is durable, of a log that is open, whose end is this, and to which nobody appends meanwhile.
    ///
    /// # Errors
    /// If it can't be read, or is not what was written.
    pub(super) fn read_again(&self, end: Cursor) -> Result<State> {
        let mut state = self.replay_open();
        for _ in 0..ATTEMPTS {
            if state.is_ok() {
                break;
            }
            // A file that was listed may have been recycled or removed before it was looked at.
            state = self.replay_open();
        }
        let (state, found) = state?;
        if found != end.place() {
            return Err(Error::corrupt(format!(
                "the log ends at {found:?}, and was written up to {:?}",
                end.place()
            )));
        }
        Ok(state)
    }

    fn replay_open(&self) -> Result<(State, Place)> {
        let found = self.found()?;
        let mut report = Vec::new();
        // What was missing already when it was opened was told then.
        let (state, tail) = replay(&found, self.options.salt, &mut report, &mut Vec::new())?;
        match report.first() {
            Some(damage) => Err(Error::corrupt(damage.to_string())),
            None => Ok((state, tail.end)),
        }
    }
}

/// Opens the log on this disk.
pub(super) fn open(
    disk: Arc<dyn Disk>,
    Identity { salt, is_used }: Identity,
    path: PathBuf,
    options: &JournalOptions,
) -> Result<Opened> {
    let log_options = log_options(salt, options);
    let found = Found::look(disk.clone(), log_options)?;
    if is_used && !found.has_segments() {
        return Err(gone(&path));
    }
    let mut report = Vec::new();
    if is_used && !found.has_root() {
        report.push(root_is_gone());
    }
    let mut missing = Vec::new();
    let (mut state, tail) = replay(&found, salt, &mut report, &mut missing)?;
    report.extend(missing);
    if fault::is(Fault::ReuseFence) {
        let queues = state.queues.values_mut();
        queues.for_each(|queue| queue.stored.last_fence = 0);
    }
    let (log, cursor, reader) = found.recover(tail, &mut report)?;
    let tend = Tend::new(disk.clone(), path.clone(), options);
    let filling = Filling::new(cursor, Vec::new(), salt);
    let origin = Origin {
        disk,
        options: log_options,
        low_space_mark: options.low_space_mark,
    };
    let core = Core::new(
        path,
        origin,
        options.queues,
        (state, filling),
        (log, reader),
    );
    Ok(Opened { core, tend, report })
}

/// How a log is kept.
pub(super) fn log_options(salt: u64, options: &JournalOptions) -> LogOptions {
    LogOptions {
        segment_bytes: options.segment_bytes,
        spares: SPARES,
        zero_ahead: ZERO_AHEAD,
        salt,
    }
}

pub(super) fn root_is_gone() -> Finding {
    Finding::damaged(
        "the root of the log is gone; it was made again",
        "a baseline is looked for in the log, and the root is made again",
    )
}

/// A log of which nothing is left.
pub(super) fn gone(path: &Path) -> Error {
    Error::corrupt(format!(
        "the log of {path} is gone: nothing in {path}/{LOG} can be recognised as a part of it; if that lies on a disk of its own, mount that, \
         else bring the store back from a copy",
        path = path.display()
    ))
}

/// The state as the log tells it, and where the log ends; and which files, or parts of them, are missing from before
/// that: those stay missing until nothing is needed of them any more.
pub(super) fn replay(
    found: &Found,
    salt: u64,
    report: &mut Vec<Finding>,
    missing: &mut Vec<Finding>,
) -> Result<(State, Tail)> {
    let reader = found.reader();
    let root = found.root();
    let stored = root.map(|root| (note_blob(&root.note), root.from));
    let (mut state, from) = match stored {
        Some((None, from)) => (Some(State::default()), from.max(found.oldest())),
        Some((Some(blob), from)) => {
            // A disk that fails once need not fail again, and an older baseline may be long gone.
            let again = |_| read_baseline(&reader, blob);
            (read_baseline(&reader, blob).or_else(again).ok(), from)
        }
        // Before its first baseline a store has no root.
        None if found.is_from_the_start() => (Some(State::default()), found.oldest()),
        None => (None, found.oldest()),
    };
    let mut from = from;
    if state.is_none() {
        report.push(Finding::damaged(
            "the last baseline can't be read",
            "an older one is looked for in the log",
        ));
        if let Some((older, at)) = search(found, &reader)? {
            (state, from) = (Some(older), at);
        } else {
            let what = format!(
                "no baseline is left; what can be told from the segments since {} is served, and may have been served before",
                found.oldest().segment
            );
            report.push(Finding::damaged(what, COUNTED_AGAIN));
            from = found.oldest();
        }
    }
    for number in found.missing_before(from.segment) {
        // What was in it before that baseline is known; of requests and outcomes nothing is left there.
        let at = Place::start_of(number);
        missing.push(not_read(
            &reader,
            at,
            0,
            &format!("segment {number} is missing"),
        ));
    }
    for (end, gone) in found.cut() {
        missing.push(not_read(&reader, end, gone.into(), "the file was cut here"));
    }
    let mut state = state.unwrap_or_default();
    let tail = found.scan(from, false, &mut |scanned| {
        match scanned {
            Scanned::Damage { from, bytes, what } => {
                report.push(not_read(&reader, from, bytes, &what));
            }
            Scanned::Group { body, events, .. } => {
                if let Err(error) = fold_group(&mut state, body, events) {
                    let what = format!("segment {} at {}: {error}", body.segment, body.offset);
                    let finding = Finding::damaged(what, COUNTED_AGAIN);
                    report.push(finding.in_file(reader.file_of(body.segment)));
                }
            }
        }
        Ok(())
    })?;
    state.salt = salt;
    let is_amiss = state.queues.values().any(|queue| queue.amiss > 0);
    if is_amiss || !report.is_empty() || !missing.is_empty() {
        for queue in state.queues.values_mut() {
            count_again(queue, &reader, salt, report);
        }
    }
    Ok((state, tail))
}

/// Counts a queue again, of which events may be lost.
fn count_again(queue: &mut QueueState, reader: &Reader, salt: u64, report: &mut Vec<Finding>) {
    if queue.amiss > 0 {
        let what = format!(
            "{} events of queue {} don't fit what is left of it; what it holds was counted again",
            queue.amiss, queue.stored.name
        );
        report.push(Finding::damaged(what, COUNTED_AGAIN));
    }
    queue.recount();
    let lost = members::drop_lost(queue, reader, salt);
    if lost > 0 {
        let name = &queue.stored.name;
        let what = format!("of {lost} requests of queue {name} nothing is left");
        report.push(Finding::damaged(what, COUNTED_AGAIN));
        queue.recount();
    }
    members::count_ready(queue, reader, salt);
    members::count(queue, reader, salt);
    queue.stored.count_requests();
}

/// Bytes that should hold groups and do not.
pub(super) fn not_read(reader: &Reader, from: Place, bytes: u64, what: &str) -> Finding {
    let what = format!(
        "{bytes} bytes in segment {} at {}: {what}",
        from.segment, from.offset
    );
    Finding::damaged(what, COUNTED_AGAIN)
        .in_file(reader.file_of(from.segment))
        .at(from.offset, bytes)
}

fn fold_group(state: &mut State, body: Place, events: &[u8]) -> Result<()> {
    let mut input = Input::new(events);
    while !input.is_empty() {
        let event = Event::take(&mut input)?;
        fold(state, event, body);
    }
    Ok(())
}

/// The last baseline in the log that can be read, and where its scan goes on.
fn search(found: &Found, reader: &Reader) -> Result<Option<(State, Place)>> {
    let mut baselines: Vec<Baseline> = Vec::new();
    found.scan(found.oldest(), false, &mut |scanned| {
        if let Scanned::Group { events, .. } = scanned {
            let mut input = Input::new(events);
            while let Ok(event) = Event::take(&mut input) {
                if let Event::Baseline(baseline) = event {
                    baselines.push(baseline);
                }
            }
        }
        Ok(())
    })?;
    let readable = baselines.iter().rev().find_map(|baseline| {
        let state = read_parts(reader, baseline).ok()?;
        Some((state, baseline.from()))
    });
    Ok(readable)
}

impl Baseline {
    fn from(&self) -> Place {
        Place {
            segment: self.segment,
            offset: self.offset,
        }
    }
}

fn read_baseline(reader: &Reader, blob: Blob) -> Result<State> {
    let baseline: Baseline = read_blob(reader, blob)?;
    read_parts(reader, &baseline)
}

fn read_parts(reader: &Reader, baseline: &Baseline) -> Result<State> {
    let mut all = Vec::new();
    for part in &baseline.parts {
        let part: bytes::Bytes = read_blob(reader, *part)?;
        all.extend_from_slice(&part);
    }
    codec::whole(&all)
}

fn read_blob<T: Codec>(reader: &Reader, blob: Blob) -> Result<T> {
    let place = Place {
        segment: blob.segment,
        offset: blob.offset,
    };
    record::blob_value(blob, &reader.read(place, blob.bytes)?)
}

/// The more at once, the fewer syncs are made longer by it. For groups up to an eighth of it zeroing pays, and beyond it
/// does not: 64 callers got 0.89 of a plain log's rate with it and 0.74 without; 256 callers 0.80 with it and 1.05 without.
const ZERO_AHEAD: u32 = 512 << 10;

/// The note of a root: where the baseline lies. All zeros: there is none yet.
pub(super) fn note(blob: Blob) -> [u8; 64] {
    let mut note = [0; 64];
    let numbers = [blob.segment, blob.offset, blob.bytes, blob.check];
    for (index, number) in numbers.iter().enumerate() {
        note[4 * index..4 * index + 4].copy_from_slice(&number.to_le_bytes());
    }
    note
}

fn note_blob(note: &[u8; 64]) -> Option<Blob> {
    let number = |index: usize| {
        let digits = note[4 * index..4 * index + 4].iter().rev();
        digits.fold(0, |number, byte| number << 8 | u32::from(*byte))
    };
    let blob = Blob {
        segment: number(0),
        offset: number(1),
        bytes: number(2),
        check: number(3),
    };
    (blob.segment > 0).then_some(blob)
}

/// What opening does about lost events.
const COUNTED_AGAIN: &str =
    "the log is read on from where it can be, and the queues are counted again from what they hold";

/// To read again what changes while it is read.
/// So many may be needed while others are read.
const SPARE_SEGMENTS: u64 = 4;
const ATTEMPTS: usize = 3;

/// Segments kept ready: one to settle with when the disk is full, one to carry with.
const SPARES: usize = 2;
