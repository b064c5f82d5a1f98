//! Tidying up between groups: baselines, freeing segments, looking whether the disk is full.
//!
//! Segments are freed strictly oldest first, so one request that nobody takes would keep all that came
//! after it. When the log takes more than twice what is needed, plus a constant, what is needed of its
//! oldest segment is carried to its head, a slice between two groups; see [`carry`](self::carry).

pub(super) mod carry;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use super::{
    JournalOptions,
    codec::Codec,
    core::{Core, Inner},
    disk::Disk,
    event::{Baseline, Event},
    log::{
        Place, Root,
        fault::{self, Fault},
    },
    open::note,
    state::Blob,
};
use crate::{
    error::{Error, Result},
    fault::{point, step},
};

/// What the writer looks after.
#[derive(Debug)]
pub(super) struct Tend {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    low_space_mark: u64,
    segment_bytes: u64,
    /// What the last baseline took of the log, with what was left unused at the ends of segments.
    baseline_bytes: u64,
    /// The segment in which it was last looked whether something is to be carried.
    weighed_in: u32,
    /// The round of carrying that is under way.
    round: Option<Round>,
    /// What was found when all had been carried.
    found: Carriage,
}

/// How much more than the live bytes was carried in a round: they are estimated, without keys, attributes and unused ends. Without
/// it, a log that can't get any smaller would be carried for ever.
#[derive(Clone, Copy, Debug, Default)]
struct Carriage {
    live: u64,
    waste: u64,
}

/// All of the log is carried once: as soon as nothing is needed of the segment in which this began, or of those before.
#[derive(Debug)]
struct Round {
    began: u32,
    /// The bytes that seemed to be needed then.
    live: u64,
    carried: u64,
}

impl Carriage {
    /// How many bytes of the log so many live ones take: as many more as were found, or fewer if less is live. Not more, since
    /// what a little takes says nothing of much; if that takes more, the next round finds it out.
    fn takes(self, live: u64) -> u64 {
        let share = u128::from(self.waste) * u128::from(live.min(self.live));
        let waste = share / u128::from(self.live.max(1));
        live.saturating_add(u64::try_from(waste).unwrap_or(u64::MAX))
    }
}

impl Tend {
    pub(super) fn new(disk: Arc<dyn Disk>, path: PathBuf, options: &JournalOptions) -> Self {
        Self {
            disk,
            path,
            low_space_mark: options.low_space_mark,
            segment_bytes: options.segment_bytes.into(),
            baseline_bytes: 0,
            weighed_in: 0,
            round: None,
            found: Carriage::default(),
        }
    }

    /// Called by the writer now and then, and when it has had nothing to do for a while.
    pub(super) fn look(&mut self, core: &Core, is_idle: bool) {
        let is_due = {
            let Ok(mut inner) = core.lock() else { return };
            inner.since_look = (0, 0);
            self.is_due(core, &inner, is_idle)
        };
        let tidied = if is_due {
            self.write_baseline(core)
        } else {
            Ok(())
        };
        let tidied = tidied.and_then(|()| self.carry(core, is_idle));
        // Whatever became of that: it is known later that the last group was whole.
        let rested = if is_idle { rest(core) } else { Ok(()) };
        for error in [tidied, rested].into_iter().filter_map(Result::err) {
            tracing::warn!(store = %self.path.display(), "{error}");
        }
        if let Some(why) = self.gets_low(core) {
            core.moments.give_way(&why);
        }
        // Last, since tidying may have made room.
        let no_room = self.no_room(core);
        if let Ok(mut inner) = core.lock() {
            inner.no_room = no_room;
        }
    }

    /// Whether a baseline is worth what it takes: it lets segments go, and shortens the next opening. It takes as much
    /// as all that is kept in memory, which may be many segments: then it comes the more rarely.
    fn is_due(&self, core: &Core, inner: &Inner, is_idle: bool) -> bool {
        let own = self.baseline_bytes;
        let enough = self.segment_bytes.max(16 * own);
        let freeable = freeable_bytes(core, inner);
        let is_worth_it = match inner.since_baseline {
            0 => false,
            since if since >= 4 * enough => true,
            since if since >= 16 * own || (is_idle && since >= own) => {
                freeable > 0 || (is_idle && since >= self.segment_bytes / 8)
            }
            _ => freeable >= 2 * self.segment_bytes && self.frees_enough(freeable),
        };
        is_worth_it && self.has_room(core, inner, own)
    }

    /// Whether a baseline pays just now.
    fn pays(&self, core: &Core, inner: &Inner) -> bool {
        self.frees_enough(freeable_bytes(core, inner))
            && self.has_room(core, inner, self.baseline_bytes)
    }

    /// Whether what a baseline lets go of is twice what it takes. The one before is among what it lets go of; without counting
    /// that, a log whose baseline is larger than a segment would grow with every segment that is tidied up. And with less than
    /// twice as much, a log in which that and what is carried make up a segment would be written again and again, and get no smaller.
    fn frees_enough(&self, freeable: u64) -> bool {
        freeable > 0 && freeable >= 2 * self.baseline_bytes
    }

    /// Whether a baseline of so many bytes can be written to its end: one that is begun in vain uses up what others need. Unless it
    /// gives a segment back, one is left to those who settle.
    fn has_room(&self, core: &Core, inner: &Inner, bytes: u64) -> bool {
        let part = (PART_BYTES + 2 * SLACK_BYTES) as u64;
        let all = bytes + (bytes / part + 1) * 2 * SLACK_BYTES as u64;
        if usize::try_from(all).is_ok_and(|all| inner.filling.takes(all)) {
            return true;
        }
        // At the end of each segment less than a part may be left unused.
        let used = self.segment_bytes.saturating_sub(part);
        let segments = all.div_ceil(used.max(self.segment_bytes / 2).max(1));
        let gives_back = freeable_bytes(core, inner) >= self.segment_bytes;
        let free = self.disk.free_bytes().unwrap_or(u64::MAX);
        let there = core.space.ready() + free / self.segment_bytes.max(1);
        there >= segments + u64::from(!gives_back)
    }

    /// Writes all that is kept in memory at the head of the log, in parts between the groups of others; then lets go of the
    /// segments that nothing refers to.
    ///
    /// # Errors
    /// `Poisoned`; `Unavailable` if there is no space for it: the one before holds.
    pub(super) fn write_baseline(&mut self, core: &Core) -> Result<()> {
        let mut since = 0;
        let written = self.put_baseline(core, &mut since);
        if written.is_err() {
            core.lock()?.since_baseline += since;
        }
        written
    }

    fn put_baseline(&mut self, core: &Core, since: &mut u64) -> Result<()> {
        let mut bytes = Vec::new();
        let mut from = Place::default();
        let mut oldest = 0;
        let mut has_room = true;
        core.log_now(|inner| {
            inner.seal();
            from = inner.filling.at.place();
            oldest = inner.state.oldest_segment().unwrap_or(from.segment);
            inner.state.put(&mut bytes);
            has_room = self.has_room(core, inner, bytes.len() as u64);
            *since = std::mem::take(&mut inner.since_baseline);
        })?;
        if !has_room {
            // As far as is known; or all would be written down again and again to find that out.
            self.baseline_bytes = self.baseline_bytes.max(bytes.len() as u64);
            return Err(Error::unavailable(format!(
                "there is no room for a baseline of {} bytes; the one before holds",
                bytes.len()
            )));
        }
        let (mut parts, mut took): (Vec<Blob>, u64) = (Vec::new(), 0);
        for part in bytes.chunks(PART_BYTES) {
            let mut put = Ok(());
            core.log_now(|inner| {
                let mut value = Vec::with_capacity(part.len() + 8);
                bytes::Bytes::copy_from_slice(part).put(&mut value);
                let before = inner.filling.place();
                put = inner.make_room(&core.space, value.len() + SLACK_BYTES);
                if put.is_ok() {
                    parts.push(inner.filling.put_blob(&value));
                }
                inner.seal();
                took += self.between(before, inner.filling.place());
            })?;
            put?;
            point("journal.part");
        }
        let baseline = Baseline {
            parts,
            segment: from.segment,
            offset: from.offset,
        };
        let mut index = Ok(Blob::default());
        core.log_now(|inner| {
            let mut value = Vec::new();
            baseline.put(&mut value);
            let bytes = 2 * value.len() + SLACK_BYTES;
            index = inner.make_room(&core.space, bytes).map(|()| {
                let index = inner.filling.put_blob(&value);
                inner.filling.put(&Event::Baseline(baseline));
                index
            });
            inner.seal();
        })?;
        let mut index = index?;
        let is_kept = step("journal.baseline").unwrap_or(true);
        if !is_kept || fault::is(Fault::DropBaseline) {
            index = Blob::default();
        }
        let root = Root {
            oldest: oldest.min(from.segment),
            from,
            note: note(index),
        };
        let mut log = core.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = &mut *log {
            log.set_root(root)?;
        }
        drop(log);
        self.baseline_bytes = took;
        let mut inner = core.lock()?;
        let own = bytes.len() as u64;
        inner.since_baseline = inner.since_baseline.saturating_sub(own);
        Ok(())
    }

    /// How much of the log lies between two places, with what was left unused at the ends of segments.
    fn between(&self, from: Place, to: Place) -> u64 {
        let begun = u64::from(to.segment - from.segment) * self.segment_bytes;
        (begun + u64::from(to.offset)).saturating_sub(u64::from(from.offset))
    }

    /// The last thing before the store is closed.
    ///
    /// # Errors
    /// As [`write_baseline`](Self::write_baseline): the last group has its witness even so.
    pub(super) fn finish(&mut self, core: &Core) -> Result<()> {
        let is_due = core.lock()?.since_baseline > 0;
        let tidied = if is_due {
            self.write_baseline(core)
        } else {
            Ok(())
        };
        witness(core)?;
        tidied
    }

    /// Why nothing may be kept for those who only read, if so: well before pushes would be refused.
    fn gets_low(&self, core: &Core) -> Option<String> {
        if let Err(full) = core.space.has_room() {
            return Some(full.to_string());
        }
        let (free, least) = (
            self.disk.free_bytes().ok()?,
            self.low_space_mark.saturating_mul(2),
        );
        (free < least).then(|| {
            format!(
                "the disk of {} has {free} bytes free, fewer than twice the low-space mark; begin again when there are more",
                self.path.display()
            )
        })
    }

    /// Why the disk takes no more pushes, if so.
    fn no_room(&self, core: &Core) -> Option<String> {
        if let Err(full) = core.space.has_room() {
            return Some(full.to_string());
        }
        let free = self.disk.free_bytes().ok()?;
        (free < self.low_space_mark).then(|| {
            format!(
                "the disk of {} has {free} bytes free, fewer than the low-space mark of {}; free some, or settle what is queued",
                self.path.display(),
                self.low_space_mark
            )
        })
    }
}

/// The bytes of the segments that a baseline would let go of.
fn freeable_bytes(core: &Core, inner: &Inner) -> u64 {
    core.reader.log_bytes(..oldest_needed(inner))
}

/// The oldest segment of which anything is needed, besides the baseline.
fn oldest_needed(inner: &Inner) -> u32 {
    let current = inner.filling.place().segment;
    let oldest = inner.state.oldest_segment();
    oldest.unwrap_or(current).min(current)
}

/// Whether so much can be written: it lets segments go, and must not be tried again and again when it can't.
fn has_room_for(core: &Core, inner: &Inner, bytes: usize) -> bool {
    inner.filling.takes(bytes) || core.space.has_segment().is_ok()
}

/// Nobody wants anything just now: makes sure of the last group, and lets go of spares that only a busy log needs.
fn rest(core: &Core) -> Result<()> {
    point("journal.idle");
    witness(core)?;
    let log = core.log.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(log) = &*log {
        log.rest();
    }
    Ok(())
}

/// Puts an empty group behind the last one, so that this is known to have been whole. Does nothing if the
/// segment is full: the next group will be in another one, which the end of this one names.
fn witness(core: &Core) -> Result<()> {
    core.log_now(|inner| {
        if inner.filling.is_empty() && !inner.is_witnessed && inner.filling.takes(0) {
            inner.seal_as_it_is();
        }
    })
}

/// For the events that come with what is put.
const SLACK_BYTES: usize = 1024;
const PART_BYTES: usize = 256 << 10;
