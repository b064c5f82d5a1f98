//! Appending to the log.

use std::{
    io::{self, IoSlice},
    sync::Arc,
};

use super::{
    Cursor, LogOptions, Root,
    fault::{self, Fault},
    format::{FrameHeader, HEADER, Kind, PAGE, RootSlot, SECTOR, SLOT, Seed, SegmentHeader},
    read::{Segment, Segments},
    spare::{Space, Spares, full},
};
use crate::{
    error::{Error, Result},
    fault::{point, step},
    queue::journal::disk::DiskFile,
};

/// The end of the log, used by one thread at a time.
///
/// A first write to a place in a file costs more than any later one: the sync also has to note, in the file system's
/// own journal, that there is something now. So a small group in a new file zeroes what lies behind it, for the
/// hundreds that follow. For a large one this is no gain: writing twice as much would cost more than the note.
#[derive(Debug)]
pub(in crate::queue::journal) struct Log {
    pub(super) options: LogOptions,
    pub(super) segments: Segments,
    pub(super) spares: Spares,
    /// The open segment; none before the first group of a log.
    pub(super) open: Option<Arc<Segment>>,
    /// Where the next frame goes.
    pub(super) next: Cursor,
    /// What the next frame follows.
    pub(super) last: Last,
    pub(super) epoch: u32,
    pub(super) root_file: Arc<dyn DiskFile>,
    pub(super) root: RootSlot,
    /// The slot that holds it.
    pub(super) slot: usize,
    /// In a new file: up to here it has been written to.
    pub(super) zeroed: u32,
    /// Frames written since the log was opened, each with a sync.
    pub(super) syncs: u64,
    pub(super) poison: Option<String>,
}

/// The frame that the next one follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    pub(super) checksum: u32,
    pub(super) sequence: u64,
    /// None if there is no frame before.
    pub(super) kind: Option<Kind>,
}

impl Log {
    /// Writes a group where `at` says, in order, and syncs it: `Ok` means that it is on stable storage.
    ///
    /// # Errors
    /// `QueueFull` if there is no space for another segment: then nothing was written, and the same call may be
    /// made again. `Poisoned` if a write or sync failed, now or before. `Internal` if `at` is not where the log
    /// goes on.
    pub(in crate::queue::journal) fn append(
        &mut self,
        at: Cursor,
        body: &[IoSlice<'_>],
        events: &[u8],
    ) -> Result<()> {
        let mut sum = crc32fast::Hasher::new();
        for part in body {
            sum.update(part);
        }
        self.append_summed(at, body, sum.finalize(), events)
    }

    /// The same for a body whose CRC-32 is known: taken while the bytes were copied it costs little, and here the
    /// group waits for it.
    ///
    /// # Errors
    /// Those of [`Log::append`]. What is appended with a wrong checksum is found damaged by recovery.
    pub(in crate::queue::journal) fn append_summed(
        &mut self,
        at: Cursor,
        body: &[IoSlice<'_>],
        body_checksum: u32,
        events: &[u8],
    ) -> Result<()> {
        let body_bytes = body.iter().map(|part| part.len()).sum();
        self.go_to(at, body_bytes, events.len())?;
        self.write(Kind::Group, body, body_checksum, events)
    }

    /// Stores the root durably, then frees all segments below its oldest.
    ///
    /// # Errors
    /// `Poisoned`, as in [`Log::append`].
    pub(in crate::queue::journal) fn set_root(&mut self, root: Root) -> Result<()> {
        self.check()?;
        let slot = RootSlot {
            generation: self.root.generation.saturating_add(1),
            epoch: self.epoch,
            root,
        };
        if fault::is(Fault::FreeBeforeRoot) {
            self.free_below(root.oldest);
        }
        let index = 1 - self.slot;
        let bytes = slot.encode(self.options.salt);
        let written = step("journal.root").and_then(|is_taken| {
            if is_taken {
                write_slot(&*self.root_file, index, &bytes)
            } else {
                Ok(())
            }
        });
        self.must(written, "the root")?;
        point("journal.rooted");
        (self.root, self.slot) = (slot, index);
        self.free_below(root.oldest);
        point("journal.freed");
        Ok(())
    }

    /// Where it goes on.
    pub(in crate::queue::journal) fn cursor(&self) -> Cursor {
        self.next
    }

    /// How many syncs its frames took since it was opened.
    #[cfg(test)]
    pub(in crate::queue::journal) fn syncs(&self) -> u64 {
        self.syncs
    }

    /// What space it takes.
    pub(in crate::queue::journal) fn space(&self) -> Space {
        self.spares.space()
    }

    /// Nothing is to be appended for a while: spares beyond those that are always kept may go.
    pub(in crate::queue::journal) fn rest(&self) {
        self.spares.pause();
    }

    /// Writes a witness for the last group: if that is found damaged later, it will be known that it was there.
    /// Does nothing behind another one, or if the segment is full.
    ///
    /// # Errors
    /// `Poisoned`, as in [`Log::append`].
    pub(in crate::queue::journal) fn mark(&mut self, at: Cursor) -> Result<Cursor> {
        self.check()?;
        self.spares.pause();
        let witnessed = !matches!(self.last.kind, Some(Kind::Group));
        let end = at.end_of(0, 0) + u64::from(SECTOR);
        if witnessed || at.place != self.next.place || end > at.length.into() {
            return Ok(at);
        }
        self.write(Kind::Mark, &[], 0, &[])?;
        Ok(self.next)
    }

    fn check(&self) -> Result<()> {
        match &self.poison {
            None => Ok(()),
            Some(why) => Err(poisoned(why)),
        }
    }

    /// Poisons the log if this failed.
    fn must(&mut self, done: io::Result<()>, what: &str) -> Result<()> {
        done.map_err(|error| {
            let why = format!("writing {what} failed: {error}");
            tracing::error!(why, "the log is poisoned");
            let poisoned = poisoned(&why).with_source(error);
            self.poison = Some(why);
            poisoned
        })
    }

    /// Makes ready to write a frame of these sizes at `at`.
    fn go_to(&mut self, at: Cursor, body: usize, events: usize) -> Result<()> {
        self.check()?;
        let next = self.next;
        let turn = at.place == next.next_segment().place;
        if !turn && at.place != next.place {
            return Err(Error::internal(format!(
                "a group was meant for {:?}, and the log goes on at {:?}",
                at.place, next.place
            )));
        }
        let at = if turn { next.next_segment() } else { next };
        if !at.fits(body, events) || at.end_of(body, events) > MAX_SEGMENT {
            return Err(Error::internal(format!(
                "a group of {body} and {events} bytes does not fit at {:?}",
                at.place
            )));
        }
        if turn || self.open.is_none() {
            self.begin(at, at.length_for(body, events))?;
        } else if let Some(open) = self.open.clone()
            && at.length_for(body, events) > open.length
        {
            self.lengthen(&open, at.length_for(body, events))?;
        }
        Ok(())
    }

    /// Begins a segment: its header, then the frame in the one before that names it.
    fn begin(&mut self, at: Cursor, length: u32) -> Result<()> {
        let number = at.place.segment;
        let mut spare = self.spares.take()?;
        if length > spare.length {
            spare = self.spares.lengthen(spare, length)?;
            point("journal.lengthened");
        }
        point("journal.begin");
        spare.number = number;
        if fault::is(Fault::ContinueBeforeHeader) {
            self.leave_for(number)?;
        }
        let header = self.header(&spare).encode(self.options.salt);
        let written = write_header(&*spare.file, &header, spare.fresh);
        self.must(written, &spare.name)?;
        point("journal.header");
        self.leave_for(number)?;
        point("journal.left");
        let open = Arc::new(spare);
        self.segments.insert(open.clone());
        self.next = Cursor::inside(at.place, open.length, self.options.segment_bytes);
        self.zeroed = 0;
        self.open = Some(open);
        Ok(())
    }

    /// Names the next segment in the open one, if there is one and it has not done so.
    fn leave_for(&mut self, number: u32) -> Result<()> {
        if self.open.is_none() || matches!(self.last.kind, Some(Kind::Continues(_))) {
            return Ok(());
        }
        self.write(Kind::Continues(number), &[], 0, &[])
    }

    /// Makes the open segment, which has no group yet, longer.
    fn lengthen(&mut self, open: &Segment, length: u32) -> Result<()> {
        if let Err(error) = open.file.allocate(length.into()) {
            return Err(full(&error.to_string()).with_source(error));
        }
        let synced = open.file.sync_all();
        self.must(synced, &open.name)?;
        self.spares.grown(u64::from(length - open.length));
        let longer = Arc::new(open.with_length(length));
        self.segments.insert(longer.clone());
        self.next = Cursor::inside(self.next.place, length, self.options.segment_bytes);
        self.open = Some(longer);
        Ok(())
    }

    fn free_below(&self, oldest: u32) {
        let open = self.open.as_ref().map_or(u32::MAX, |open| open.number);
        self.spares.free(self.segments.free_below(oldest.min(open)));
    }

    pub(super) fn header(&self, segment: &Segment) -> SegmentHeader {
        SegmentHeader {
            number: segment.number,
            length: segment.length,
            oldest: self.root.root.oldest,
            from: self.root.root.from,
            epoch: self.epoch,
            fresh: segment.fresh,
        }
    }

    /// Writes a frame where the log goes on, and syncs it.
    fn write(
        &mut self,
        kind: Kind,
        body: &[IoSlice<'_>],
        body_checksum: u32,
        events: &[u8],
    ) -> Result<()> {
        let Some(open) = self.open.clone() else {
            return Err(Error::internal("the log has no open segment"));
        };
        let place = self.next.place;
        let seed = Seed {
            salt: self.options.salt,
            place,
            epoch: self.epoch,
            previous: self.last.checksum,
        };
        let body_bytes: usize = body.iter().map(|part| part.len()).sum();
        let mut frame = FrameHeader {
            kind,
            place,
            epoch: self.epoch,
            sequence: self.last.sequence.saturating_add(1),
            previous: self.last.checksum,
            body_bytes: length(body_bytes)?,
            events_bytes: length(events.len())?,
            body_checksum,
            events_checksum: seed.checksum(events),
            checksum: 0,
        };
        let header = frame.encode(self.options.salt);
        let closing = frame.closing();
        let written = u64::from(place.offset + HEADER)
            + body_bytes as u64
            + (events.len() + closing.len()) as u64;
        let end = self.written_to(frame.end(), written, &open);
        let padding = &ZEROS[..usize::try_from(end - written).unwrap_or(0)];
        let mut parts = Vec::with_capacity(body.len() + 4);
        parts.push(IoSlice::new(&header));
        parts.extend_from_slice(body);
        parts.extend([events, &closing, padding].map(IoSlice::new));
        let at = place.offset.into();
        let write = || {
            if step("journal.write")? {
                open.file.write_at(&parts, at)?;
            }
            point("journal.written");
            if step("journal.sync")? && !fault::is(Fault::AnswerBeforeSync) {
                let synced = open.file.sync_data();
                if synced.is_err() && fault::is(Fault::RetrySync) {
                    open.file.sync_data()?;
                } else {
                    synced?;
                }
            }
            point("journal.synced");
            Ok(())
        };
        let done = write();
        self.syncs += 1;
        self.must(done, &open.name)?;
        self.last = Last {
            checksum: frame.checksum,
            sequence: frame.sequence,
            kind: Some(kind),
        };
        self.next.place.offset = frame.end();
        self.zeroed = self.zeroed.max(u32::try_from(end).unwrap_or(u32::MAX));
        Ok(())
    }

    /// Up to where zeros follow a frame whose bytes end at `written`: to a page boundary. In a recycled file they
    /// cover the sector in which the next frame will begin; in a new one, if none are there, what small groups need.
    fn written_to(&self, frame_end: u32, written: u64, open: &Segment) -> u64 {
        let ahead = u64::from(self.options.zero_ahead);
        let is_small = written - u64::from(self.next.place.offset) <= ahead / 8;
        let covered = if !open.fresh {
            if fault::is(Fault::LeaveTheEnd) {
                written
            } else {
                u64::from(frame_end) + 1
            }
        } else if is_small && frame_end > self.zeroed {
            u64::from(frame_end) + ahead
        } else {
            written
        };
        let most = written + ZEROS.len() as u64 - u64::from(PAGE);
        let end = covered.min(most).next_multiple_of(PAGE.into());
        end.min(open.length.into())
    }
}

/// Writes the header of a segment and syncs it; in a recycled file it also ends what lay behind.
pub(super) fn write_header(
    file: &dyn DiskFile,
    header: &[u8; SECTOR as usize],
    fresh: bool,
) -> io::Result<()> {
    let pages = if fresh { 1 } else { 2 };
    let rest = &ZEROS[..pages * PAGE as usize - header.len()];
    file.write_at(&[IoSlice::new(header), IoSlice::new(rest)], 0)?;
    if fault::is(Fault::SkipHeaderSync) {
        return Ok(());
    }
    file.sync_all()
}

pub(super) fn write_slot(
    file: &dyn DiskFile,
    index: usize,
    bytes: &[u8; SECTOR as usize],
) -> io::Result<()> {
    let rest = &ZEROS[..PAGE as usize - bytes.len()];
    file.write_at(
        &[IoSlice::new(bytes), IoSlice::new(rest)],
        SLOT * index as u64,
    )?;
    file.sync_data()
}

fn length(bytes: usize) -> Result<u32> {
    u32::try_from(bytes)
        .map_err(|_| Error::internal(format!("a frame of {bytes} bytes is too long")))
}

fn poisoned(why: &str) -> Error {
    Error::poisoned(format!("the log has stopped: {why}"))
}

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// No segment is longer.
const MAX_SEGMENT: u64 = u32::MAX as u64 - 4 * PAGE as u64;
