//! Walking along the log, over what is damaged, to its end.
//!
//! ```text
//! frame ─ follows the one before? ─ yes ─► another follows? ─ yes ─► synced: pass it on, or report what is damaged
//!              │                               └ no ─► whole? ─ yes ─► pass it on: the last one
//!              │ no                                      └ no ─► the end, unless groups are found behind it
//!              └─► a plausible frame behind? ─ yes ─► damage up to there, go on there
//!                                            └ no ─► the end
//! ```

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

use super::{
    Place,
    fault::{self, Fault},
    format::{CLOSING, FrameHeader, HEADER, Kind, PAGE, SECTOR},
    found::{Found, MOST_SEGMENTS},
    read::Segment,
};
use crate::{error::Result, queue::journal::disk::DiskFile};

/// What a scan meets.
#[derive(Debug)]
pub(in crate::queue::journal) enum Scanned<'a> {
    /// A group, its events as they were appended.
    Group {
        body: Place,
        #[cfg(test)]
        body_bytes: u32,
        events: &'a [u8],
    },
    /// Bytes that should hold groups and do not: damaged, or a segment that is missing. One line for the report.
    Damage {
        from: Place,
        bytes: u64,
        what: String,
    },
}

/// Where the log ends.
#[derive(Debug)]
pub(in crate::queue::journal) struct Tail {
    /// Bytes behind the last good group that will be set aside: begun, and never answered.
    pub(in crate::queue::journal) unconfirmed: Option<(Place, u64)>,
    /// Where the next frame goes.
    pub(in crate::queue::journal) end: Place,
    /// Whether something that may be a group lies there and can't be read now.
    pub(in crate::queue::journal) is_unreadable: bool,
    pub(super) last: Option<FrameHeader>,
    pub(super) epoch: u32,
    pub(super) sequence: u64,
}

pub(super) fn scan(
    found: &Found,
    from: Place,
    verify: bool,
    each: &mut dyn FnMut(Scanned<'_>) -> Result<()>,
) -> Result<Tail> {
    let mut scan = Scan {
        found,
        verify,
        emit_from: from,
        each,
        last: None,
        epoch: 0,
        sequence: 0,
        segment: None,
        events: Vec::new(),
    };
    let start = scan.start(from);
    scan.run(start)
}

struct Scan<'a> {
    found: &'a Found,
    verify: bool,
    /// What lies before it is walked over in silence.
    emit_from: Place,
    each: &'a mut dyn FnMut(Scanned<'_>) -> Result<()>,
    /// The frame that the next one follows; none at the start, and behind damage.
    last: Option<FrameHeader>,
    /// The highest seen: what is older is stale.
    epoch: u32,
    sequence: u64,
    segment: Option<(Arc<Segment>, Window)>,
    /// Of the frame at hand.
    events: Vec<u8>,
}

impl Scan<'_> {
    /// Where to begin, so that the frame before `from` is known even if nothing lies at `from`.
    fn start(&mut self, from: Place) -> Place {
        if self.enter(from.segment) && self.frame(from.offset).is_some() {
            return from;
        }
        let before = self.found.segments.range(..from.segment);
        if from.offset > PAGE && self.found.segments.get(from.segment).is_some() {
            return Place::start_of(from.segment);
        }
        match before.last() {
            Some(before) if before.number + 1 == from.segment => Place::start_of(before.number),
            _ => from,
        }
    }

    fn run(mut self, mut at: Place) -> Result<Tail> {
        loop {
            if !self.enter(at.segment) {
                let next = self.later(at.segment);
                let is_first = at <= Place::start_of(1) && self.last.is_none();
                if next.is_some() || !is_first {
                    let what = format!("segment {} is missing", at.segment);
                    self.damage(at, 0, next, what)?;
                }
                let Some(next) = next else {
                    let end = at.segment.clamp(1, MOST_SEGMENTS);
                    return Ok(self.tail(Place::start_of(end)));
                };
                at = self.skip_to(next);
                continue;
            }
            let next = match self.frame(at.offset) {
                Some(frame) if self.follows(&frame) => self.pass(frame)?,
                _ => self.resume(at)?,
            };
            match next {
                Some(next) => at = next,
                None => return Ok(self.tail(at)),
            }
        }
    }

    /// Passes a frame on, and tells where the next one begins; none if it is not whole and the last.
    fn pass(&mut self, frame: FrameHeader) -> Result<Option<Place>> {
        self.note(&frame);
        let last = self.last.replace(frame);
        if let Kind::Continues(next) = frame.kind {
            return Ok(Some(Place::start_of(next)));
        }
        let end = frame.end();
        let confirmed = self.frame(end).is_some_and(|next| self.follows(&next));
        let events_good = self.load_events(&frame);
        let skips_body = confirmed && !self.verify;
        let body_good = skips_body || self.body_is_good(&frame);
        let is_whole = events_good && body_good;
        if !confirmed
            && !is_whole
            && self.search(end).is_none()
            && self.later(frame.place.segment).is_none()
        {
            self.last = last;
            self.sequence = last.map_or(0, |last| last.sequence);
            return Ok(None);
        }
        let at = |offset: u32| Place {
            offset,
            ..frame.place
        };
        let (body, behind) = (at(frame.place.offset + HEADER), at(end));
        if !events_good {
            self.damage(
                frame.place,
                u64::from(end - frame.place.offset),
                Some(behind),
                "a group does not match its checksum".to_owned(),
            )?;
        } else if !body_good {
            self.damage(
                body,
                frame.body_bytes.into(),
                Some(behind),
                "the body of a group does not match its checksum".to_owned(),
            )?;
        }
        if events_good && frame.kind == Kind::Group && frame.place >= self.emit_from {
            (self.each)(Scanned::Group {
                body,
                #[cfg(test)]
                body_bytes: frame.body_bytes,
                events: &self.events,
            })?;
        }
        Ok(Some(behind))
    }

    /// Where groups go on behind something that is none; nothing if there are no more.
    fn resume(&mut self, at: Place) -> Result<Option<Place>> {
        let here = self.search(at.offset).map(|offset| Place { offset, ..at });
        let Some(next) = here.or_else(|| self.later(at.segment)) else {
            return Ok(None);
        };
        let end = if next.segment == at.segment {
            next.offset
        } else {
            self.found
                .segments
                .get(at.segment)
                .map_or(at.offset, |segment| segment.length)
        };
        let bytes = u64::from(end - at.offset.min(end));
        let what = if bytes == 0 {
            "groups are missing here".to_owned()
        } else {
            format!(
                "no group can be read here; they go on at {} of segment {}",
                next.offset, next.segment
            )
        };
        self.damage(at, bytes, Some(next), what)?;
        Ok(Some(self.skip_to(next)))
    }

    fn skip_to(&mut self, next: Place) -> Place {
        self.last = None;
        next
    }

    /// The end of the log, and what lies behind it that was begun and never answered.
    fn tail(mut self, end: Place) -> Tail {
        let unconfirmed = self.enter(end.segment).then(|| self.begun(end)).flatten();
        let bytes = unconfirmed.unwrap_or(SECTOR.into());
        let window = self.segment.as_ref().map(|(_, window)| window);
        Tail {
            is_unreadable: window.is_some_and(|window| window.has_failed(end.offset, bytes)),
            unconfirmed: unconfirmed.map(|bytes| (end, bytes)),
            end,
            last: self.last,
            epoch: self.epoch.max(self.found.epoch),
            sequence: self.sequence,
        }
    }

    /// How many bytes were begun at the end of the log.
    fn begun(&mut self, end: Place) -> Option<u64> {
        let frame = self.frame(end.offset);
        let (segment, window) = self.segment.as_mut()?;
        let sectors = |from: u32| (from..segment.length).step_by(SECTOR as usize);
        let mut used = |at: &u32| window.bytes(*at, SECTOR) != [0; SECTOR as usize];
        let behind = if segment.fresh {
            sectors(end.offset)
                .filter(|at| used(at))
                .last()
                .map(|at| at + SECTOR)
        } else if used(&end.offset) {
            Some(frame.map_or(segment.length, |frame| frame.end()))
        } else {
            None
        };
        behind.map(|behind| u64::from(behind - end.offset))
    }

    fn enter(&mut self, number: u32) -> bool {
        if self
            .segment
            .as_ref()
            .is_some_and(|(segment, _)| segment.number == number)
        {
            return true;
        }
        let Some(segment) = self.found.segments.get(number) else {
            return false;
        };
        let window = Window::new(segment.file.clone(), segment.length);
        self.segment = Some((segment, window));
        true
    }

    /// The header of a frame at this offset of the segment at hand.
    fn frame(&mut self, offset: u32) -> Option<FrameHeader> {
        let (segment, window) = self.segment.as_mut()?;
        if offset < PAGE || !offset.is_multiple_of(SECTOR) || offset >= segment.length {
            return None;
        }
        let place = Place {
            segment: segment.number,
            offset,
        };
        let bytes = window.bytes(offset, HEADER);
        let frame = FrameHeader::decode(bytes, self.found.options.salt, place)?;
        (frame.end() <= segment.length).then_some(frame)
    }

    /// Whether this frame is the one that has to come next.
    fn follows(&self, frame: &FrameHeader) -> bool {
        self.last.map_or_else(
            || self.is_plausible(frame),
            |last| {
                frame.previous == last.checksum
                    && last.sequence.checked_add(1) == Some(frame.sequence)
                    && frame.epoch >= last.epoch
            },
        )
    }

    /// Whether it may come later, if what lies between is damaged.
    fn is_plausible(&self, frame: &FrameHeader) -> bool {
        fault::is(Fault::AcceptStale) || (frame.epoch, frame.sequence) > (self.epoch, self.sequence)
    }

    fn note(&mut self, frame: &FrameHeader) {
        self.epoch = self.epoch.max(frame.epoch);
        self.sequence = frame.sequence;
    }

    /// The next plausible frame in the segment at hand.
    fn search(&mut self, from: u32) -> Option<u32> {
        let length = self.segment.as_ref()?.0.length;
        (from..length).step_by(SECTOR as usize).find(|at| {
            self.frame(*at)
                .is_some_and(|frame| self.is_plausible(&frame))
        })
    }

    /// The first plausible frame in a later segment.
    fn later(&mut self, than: u32) -> Option<Place> {
        let behind = (Bound::Excluded(than), Bound::Unbounded);
        let later = self.found.segments.range(behind);
        let at_hand = self.segment.take();
        let place = later.into_iter().find_map(|later| {
            self.enter(later.number);
            let offset = self.search(PAGE)?;
            Some(Place {
                segment: later.number,
                offset,
            })
        });
        self.segment = at_hand;
        place
    }

    /// Reads the events of a frame; tells whether they are what they were.
    fn load_events(&mut self, frame: &FrameHeader) -> bool {
        let Some((_, window)) = self.segment.as_mut() else {
            return false;
        };
        self.events.clear();
        let at = frame.place.offset + HEADER + frame.body_bytes;
        let bytes = window.bytes(at, frame.events_bytes + CLOSING);
        let (events, closing) = bytes.split_at(frame.events_bytes as usize);
        self.events.extend_from_slice(events);
        let seed = frame.seed(self.found.options.salt);
        fault::is(Fault::TrustEvents)
            || (closing == frame.closing() && seed.checksum(events) == frame.events_checksum)
    }

    fn body_is_good(&mut self, frame: &FrameHeader) -> bool {
        let Some((_, window)) = self.segment.as_mut() else {
            return false;
        };
        let mut hasher = crc32fast::Hasher::new();
        let mut at = frame.place.offset + HEADER;
        let end = at + frame.body_bytes;
        while at < end {
            let step = (end - at).min(WINDOW / 2);
            hasher.update(window.bytes(at, step));
            at += step;
        }
        hasher.finalize() == frame.body_checksum
    }

    /// Tells of damage, behind which the scan goes on at `to`, unless all of it lies where it is silent.
    fn damage(&mut self, from: Place, bytes: u64, to: Option<Place>, what: String) -> Result<()> {
        if to.is_some_and(|to| to <= self.emit_from) {
            return Ok(());
        }
        (self.each)(Scanned::Damage { from, bytes, what })
    }
}

/// The part of a file that is read at once. What can't be read counts as zeros, so that it is damage and no more.
#[derive(Debug)]
pub(super) struct Window {
    file: Arc<dyn DiskFile>,
    length: u32,
    start: u32,
    loaded: u32,
    buffer: Vec<u8>,
    /// Where sectors begin that could not be read.
    failed: BTreeSet<u64>,
}

impl Window {
    pub(super) fn new(file: Arc<dyn DiskFile>, length: u32) -> Self {
        Self {
            file,
            length,
            start: 0,
            loaded: 0,
            buffer: Vec::new(),
            failed: BTreeSet::new(),
        }
    }

    /// Whether any of these bytes could not be read.
    fn has_failed(&self, at: u32, bytes: u64) -> bool {
        let from = u64::from(at / SECTOR * SECTOR);
        self.failed
            .range(from..u64::from(at) + bytes)
            .next()
            .is_some()
    }

    /// These bytes of the file, which must lie in it.
    pub(super) fn bytes(&mut self, at: u32, bytes: u32) -> &[u8] {
        if at < self.start || at + bytes > self.start + self.loaded {
            self.load(at, bytes);
        }
        let from = (at - self.start) as usize;
        &self.buffer[from..from + bytes as usize]
    }

    fn load(&mut self, at: u32, bytes: u32) {
        self.start = at / SECTOR * SECTOR;
        let wanted = (at - self.start + bytes)
            .max(WINDOW)
            .min(self.length - self.start);
        self.loaded = wanted;
        if self.buffer.len() < wanted as usize {
            self.buffer = vec![0; wanted as usize];
        }
        let buffer = &mut self.buffer[..wanted as usize];
        let failed = read_what_can_be(&*self.file, buffer, self.start.into());
        self.failed.extend(failed);
    }
}

/// Reads a stretch that starts with a sector. Sectors that can't be read become zeros; where they are.
fn read_what_can_be(file: &dyn DiskFile, buffer: &mut [u8], at: u64) -> Vec<u64> {
    let mut failed = Vec::new();
    if file.read_at(buffer, at).is_ok() {
        return failed;
    }
    for (index, sector) in buffer.chunks_mut(SECTOR as usize).enumerate() {
        let at = at + index as u64 * u64::from(SECTOR);
        if let Err(error) = file.read_at(sector, at) {
            tracing::error!(at, %error, "a sector of the log can't be read");
            sector.fill(0);
            failed.push(at);
        }
    }
    failed
}

/// Small, because a scan hops over bodies; large enough for the system to read ahead over small groups.
const WINDOW: u32 = 64 * 1024;
