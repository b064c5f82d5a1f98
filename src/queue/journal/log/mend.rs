//! From what was found to a log that can be appended to.
//!
//! What could be read may be in the system's cache alone, left by a process that died before it was synced. So
//! whatever the log will build on is written again with the same bytes and synced here, before anyone is told of
//! it: names, the root, the last header and the last frame. Each step may be cut off and is then done again.

use std::{
    collections::BTreeSet,
    io::{self, IoSlice},
    sync::Arc,
};

use super::{
    Cursor, Place, RESERVE, Root, Tail,
    fault::{self, Fault},
    format::{FrameHeader, PAGE, RootSlot, SLOT},
    found::{Found, ROOT, slot_of},
    read::{Reader, Segment},
    spare::Spares,
    write::{Last, Log, write_header, write_slot},
};
use crate::{
    error::{Error, Result, is_full},
    fault::point,
    queue::{journal::disk::DiskFile, verified::Finding},
};

impl Tail {
    /// What is said of an end of the log that can't be read: it may hold what was answered.
    pub(in crate::queue::journal) fn unreadable(&self) -> String {
        format!(
            "the log can't be read in segment {} at {}, where it may end: nothing was changed, so open it again when the disk can be \
             read; if it stays so, copy the file with zeros for what can't be read",
            self.end.segment, self.end.offset
        )
    }

    /// What is said of bytes that are unconfirmed.
    pub(in crate::queue::journal) fn begun(from: Place, bytes: u64) -> String {
        format!(
            "{bytes} bytes in segment {} at {} were begun and never answered",
            from.segment, from.offset
        )
    }
}

impl Found {
    /// Sets aside what is unconfirmed, makes the rest durable, and is ready to append. `tail` is what the last
    /// scan answered; `report` is told what was set aside.
    ///
    /// # Errors
    /// `Poisoned` if a write or sync failed; what is on the disk can be looked at and recovered again. `Unavailable` if the
    /// end of the log can't be read; nothing was changed then.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a tail is good for one recovery"
    )]
    pub(in crate::queue::journal) fn recover(
        self,
        tail: Tail,
        report: &mut Vec<Finding>,
    ) -> Result<(Log, Cursor, Reader)> {
        let failed = |error: io::Error| {
            Error::poisoned(format!("mending the log failed: {error}")).with_source(error)
        };
        if tail.is_unreadable {
            return Err(Error::unavailable(tail.unreadable()));
        }
        self.disk.sync_folder().map_err(failed)?;
        point("journal.mend");
        let root_file = self.mend_root().map_err(failed)?;
        point("journal.root_mended");
        self.clear(&tail, report).map_err(failed)?;
        point("journal.cleared");
        if !fault::is(Fault::KeepTheTail) {
            self.set_aside(&tail, report).map_err(failed)?;
        }
        if let Some(last) = &tail.last
            && !fault::is(Fault::TrustWhatIsReadable)
        {
            self.write_again(last).map_err(failed)?;
        }
        self.into_log(&tail, root_file)
    }

    /// Writes the slot that counts again; the other one stays, in case this is cut off.
    fn mend_root(&self) -> io::Result<Arc<dyn DiskFile>> {
        let is_there = self.disk.list()?.iter().any(|name| name == ROOT);
        let file = if is_there {
            self.disk.open(ROOT)?
        } else {
            self.disk.create(ROOT)?
        };
        point("journal.root_opened");
        file.allocate(2 * SLOT)?;
        file.sync_all()?;
        if !is_there {
            self.disk.sync_folder()?;
        }
        if let Some((index, slot)) = &self.slot
            && !fault::is(Fault::TrustTheRoot)
        {
            write_slot(&*file, *index, &slot.encode(self.options.salt))?;
        }
        Ok(file)
    }

    /// Removes files in which nothing is, and puts those aside of which nothing is known.
    fn clear(&self, tail: &Tail, report: &mut Vec<Finding>) -> io::Result<()> {
        // Begun, and cut off before the segment before it named it.
        let begun = self.segments.remove_above(tail.end.segment);
        let begun = begun.iter().map(|segment| segment.name.clone());
        let nothing: Vec<String> = begun.chain(self.unfinished.iter().cloned()).collect();
        for name in &nothing {
            self.disk.remove(name)?;
        }
        for name in &self.damaged {
            let aside = self.free_name(&format!("quarantine-{name}"))?;
            self.disk.rename(name, &aside)?;
            report.push(Finding::damaged(
                format!("{name} is none of the log's segments any more; it was renamed to {aside}"),
                "",
            ));
        }
        if nothing.is_empty() && self.damaged.is_empty() {
            return Ok(());
        }
        self.disk.sync_folder()
    }

    /// Copies what is unconfirmed to a file of its own, then zeroes it. A full disk is no reason not to open: these
    /// bytes were never answered.
    fn set_aside(&self, tail: &Tail, report: &mut Vec<Finding>) -> io::Result<()> {
        let Some((from, bytes)) = tail.unconfirmed else {
            return Ok(());
        };
        let Some(segment) = self.segments.get(from.segment) else {
            return Ok(());
        };
        let end = u64::from(from.offset) + bytes;
        let kept = match self.copy_aside(&segment, from, end) {
            Ok(name) => format!("they were set aside in {name}"),
            Err(error) if is_full(&error) => {
                "they were dropped, since the disk has no space to keep them".to_owned()
            }
            Err(error) => return Err(error),
        };
        point("journal.set_aside");
        let what = format!("{}; {kept}", Tail::begun(from, bytes));
        report.push(Finding::unconfirmed(what, ""));
        let zeros = vec![0; usize::try_from(bytes).unwrap_or(STRETCH).min(STRETCH)];
        let mut at = from.offset.into();
        while at < end {
            let step = usize::try_from(end - at).unwrap_or(STRETCH).min(STRETCH);
            segment.file.write_at(&[IoSlice::new(&zeros[..step])], at)?;
            at += step as u64;
        }
        segment.file.sync_data()?;
        point("journal.cut");
        Ok(())
    }

    /// Copies a part of a segment to a file of its own, whose name it answers; nothing is left of one that does not fit.
    fn copy_aside(&self, segment: &Segment, from: Place, end: u64) -> io::Result<String> {
        let name = self.free_name(&format!("quarantine-{}-{}", from.segment, from.offset))?;
        let start = u64::from(from.offset);
        let copy = self.disk.create(&name)?;
        let copied = copy.allocate(end - start).and_then(|()| {
            each_stretch(segment, start, end, |stretch, at| {
                copy.write_at(&[IoSlice::new(stretch)], at - start)
            })
        });
        let copied = copied.and_then(|()| copy.sync_all());
        if let Err(error) = copied {
            // It is the first error that counts.
            let _ = self.disk.remove(&name);
            return Err(error);
        }
        self.disk.sync_folder()?;
        Ok(name)
    }

    /// Writes the last frame again.
    fn write_again(&self, last: &FrameHeader) -> io::Result<()> {
        let Some(segment) = self.segments.get(last.place.segment) else {
            return Ok(());
        };
        each_stretch(
            &segment,
            last.place.offset.into(),
            last.end().into(),
            |stretch, at| segment.file.write_at(&[IoSlice::new(stretch)], at),
        )?;
        segment.file.sync_data()?;
        point("journal.written_again");
        Ok(())
    }

    fn into_log(
        mut self,
        tail: &Tail,
        root_file: Arc<dyn DiskFile>,
    ) -> Result<(Log, Cursor, Reader)> {
        let failed = |error: io::Error| {
            Error::poisoned(format!("mending the log failed: {error}")).with_source(error)
        };
        let names = self.disk.list().map_err(failed)?;
        let slots: BTreeSet<u32> = names.iter().filter_map(|name| slot_of(name)).collect();
        let live = self.segments.range(..);
        let all = live.iter().chain(&self.freed).chain(&self.spares);
        let bytes = 2 * SLOT + all.map(|file| u64::from(file.length)).sum::<u64>();
        drop(live);
        let ready = self.keep_spares().map_err(failed)?;
        let epoch = tail.epoch.saturating_add(1);
        let (slot, root) = self.slot.unwrap_or((
            1,
            RootSlot {
                generation: 0,
                epoch,
                root: Root::default(),
            },
        ));
        let open = self.mend_length(tail.end).map_err(failed)?;
        let start = Cursor::start_of(tail.end.segment, self.options.segment_bytes);
        let next = open.as_ref().map_or(start, |open| {
            Cursor::inside(tail.end, open.length, self.options.segment_bytes)
        });
        let mut log = Log {
            options: self.options,
            segments: self.segments.clone(),
            spares: Spares::start(
                self.disk.clone(),
                self.options,
                ready,
                std::mem::take(&mut self.freed),
                slots,
                bytes,
            )?,
            open,
            next,
            last: tail.last.map_or(
                Last {
                    checksum: 0,
                    sequence: tail.sequence,
                    kind: None,
                },
                |last| Last {
                    checksum: last.checksum,
                    sequence: last.sequence,
                    kind: Some(last.kind),
                },
            ),
            epoch,
            root_file,
            root,
            slot,
            zeroed: 0,
            syncs: 0,
            poison: None,
        };
        self.mend_headers(&log).map_err(failed)?;
        point("journal.headers_mended");
        let cursor = log.mark(next)?;
        let reader = self.reader();
        Ok((log, cursor, reader))
    }

    /// As many of the spares as are wanted; the others are treated as freed.
    fn keep_spares(&mut self) -> io::Result<Vec<Segment>> {
        let mut ready = Vec::new();
        for spare in std::mem::take(&mut self.spares) {
            let is_wanted = ready.len() < self.options.spares;
            match Arc::try_unwrap(spare) {
                Ok(spare) if is_wanted && spare.length == self.options.segment_bytes => {
                    spare.file.sync_all()?;
                    ready.push(spare);
                }
                Ok(spare) => self.freed.insert(0, Arc::new(spare)),
                Err(held) => self.freed.insert(0, held),
            }
        }
        Ok(ready)
    }

    /// The segment in which the log goes on, with room for the frame that names the next one, even if it was cut.
    fn mend_length(&self, end: Place) -> io::Result<Option<Arc<Segment>>> {
        let Some(open) = self.segments.get(end.segment) else {
            return Ok(None);
        };
        let needed = (end.offset + RESERVE).next_multiple_of(PAGE);
        if open.length >= needed {
            return Ok(Some(open));
        }
        open.file.allocate(needed.into())?;
        open.file.sync_all()?;
        let open = Arc::new(open.with_length(needed));
        self.segments.insert(open.clone());
        Ok(Some(open))
    }

    /// Writes the header of the open segment again, and those that were damaged.
    fn mend_headers(&self, log: &Log) -> io::Result<()> {
        for number in self
            .headless
            .iter()
            .copied()
            .chain(self.short.iter().map(|(number, _)| *number))
            .chain(log.open.as_ref().map(|open| open.number))
        {
            if let Some(segment) = self.segments.get(number) {
                let header = log.header(&segment).encode(self.options.salt);
                write_header(&*segment.file, &header, true)?;
            }
        }
        Ok(())
    }

    fn free_name(&self, wanted: &str) -> io::Result<String> {
        let names = self.disk.list()?;
        let more = (2..).map(|number: u32| format!("{wanted}.{number}"));
        let mut all = std::iter::once(wanted.to_owned()).chain(more);
        let free = all.find(|name| !names.contains(name));
        free.ok_or_else(|| io::ErrorKind::AlreadyExists.into())
    }
}

/// Reads a part of a segment, piece by piece.
fn each_stretch(
    segment: &Segment,
    from: u64,
    to: u64,
    mut each: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(to - from).unwrap_or(STRETCH).min(STRETCH)];
    let mut at = from;
    while at < to {
        let step = usize::try_from(to - at).unwrap_or(STRETCH).min(STRETCH);
        segment.file.read_at(&mut buffer[..step], at)?;
        each(&buffer[..step], at)?;
        at += step as u64;
    }
    Ok(())
}

/// How much is copied at once.
const STRETCH: usize = 256 * 1024;
