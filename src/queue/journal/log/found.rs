//! What lies in the folder of a log, before anything is changed.

use std::{collections::BTreeSet, io, sync::Arc};

use super::{
    LogOptions, Place, Root, Scanned, Tail,
    format::{self, FrameHeader, HEADER, Head, PAGE, RootSlot, SECTOR, SLOT, SegmentHeader},
    read::{Reader, Segment, Segments},
    scan::{self, Window},
};
use crate::{
    error::{Error, Result},
    queue::{
        journal::disk::{Disk, DiskFile},
        verified::Finding,
    },
};

/// A log as it was found. Looking changes nothing.
#[derive(Debug)]
pub(in crate::queue::journal) struct Found {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) options: LogOptions,
    /// Those that are live, as far as is known.
    pub(super) segments: Segments,
    /// Segments below the oldest live one, in order.
    pub(super) freed: Vec<Arc<Segment>>,
    /// Files that were made ready.
    pub(super) spares: Vec<Arc<Segment>>,
    /// Files that were never finished: nothing is in them.
    pub(super) unfinished: Vec<String>,
    /// Files in which nothing can be recognised.
    pub(super) damaged: Vec<String>,
    /// Segments whose header is damaged; their groups tell which they are.
    pub(super) headless: Vec<u32>,
    /// Segments whose files are shorter than their headers say, and by how much.
    pub(super) short: Vec<(u32, u32)>,
    /// The slot that counts, and which one that is.
    pub(super) slot: Option<(usize, RootSlot)>,
    pub(super) oldest: u32,
    /// The highest that any header names.
    pub(super) epoch: u32,
    /// Where in the root a slot is that is neither whole nor empty.
    pub(super) bad_slots: Vec<u64>,
    new: bool,
    /// Whether the file of the root is there.
    has_root: bool,
}

impl Found {
    /// Lists the folder, and reads headers and the root. An empty folder is fine.
    ///
    /// # Errors
    /// `Invalid` for what a newer version wrote, `Unavailable` for what can't be read.
    pub(in crate::queue::journal) fn look(
        disk: Arc<dyn Disk>,
        options: LogOptions,
    ) -> Result<Self> {
        let segment_bytes = options
            .segment_bytes
            .clamp(MIN_SEGMENT, u32::MAX - 2 * PAGE)
            .next_multiple_of(PAGE);
        let options = LogOptions {
            segment_bytes,
            spares: options.spares.max(1),
            ..options
        };
        let mut found = Self {
            disk,
            options,
            segments: Segments::default(),
            freed: Vec::new(),
            spares: Vec::new(),
            unfinished: Vec::new(),
            damaged: Vec::new(),
            headless: Vec::new(),
            short: Vec::new(),
            slot: None,
            oldest: 1,
            epoch: 0,
            bad_slots: Vec::new(),
            new: false,
            has_root: false,
        };
        let unreadable = |error| unreadable("the log's folder", error);
        let mut names = found.disk.list().map_err(unreadable)?;
        names.sort();
        let root_is_blank = found.read_root(&names).map_err(unreadable)?;
        for name in names.iter().filter(|name| slot_of(name).is_some()) {
            found.read_segment(name)?;
        }
        found.part();
        found.new = root_is_blank && found.segments.range(..).is_empty() && found.freed.is_empty();
        Ok(found)
    }

    /// What was stored last. `None` if the log is new, or if both slots are damaged.
    pub(in crate::queue::journal) fn root(&self) -> Option<Root> {
        self.slot.map(|(_, slot)| slot.root)
    }

    /// Whether nothing was ever appended.
    #[cfg(test)]
    pub(in crate::queue::journal) fn is_new(&self) -> bool {
        self.new
    }

    /// Whether there is anything of what was appended: then at least the segment in which the log goes on.
    pub(in crate::queue::journal) fn has_segments(&self) -> bool {
        !self.segments.range(..).is_empty() || !self.freed.is_empty()
    }

    /// Whether the file of the root is there, with or without a root in it.
    pub(in crate::queue::journal) fn has_root(&self) -> bool {
        self.has_root
    }

    /// Whether everything since the first group is there: nothing was ever freed.
    pub(in crate::queue::journal) fn is_from_the_start(&self) -> bool {
        self.new || self.segments.get(1).is_some()
    }

    /// The start of the oldest segment that is there and not known to be freed.
    pub(in crate::queue::journal) fn oldest(&self) -> Place {
        let segments = self.segments.range(..);
        Place::start_of(segments.first().map_or(self.oldest, |oldest| oldest.number))
    }

    /// Reads what is found now, and later what is appended.
    pub(in crate::queue::journal) fn reader(&self) -> Reader {
        Reader::new(self.segments.clone())
    }

    /// Calls `each` for every group from `from` on, in order, and for what is damaged between them; never for a
    /// last group that is not whole. Reads headers and events and hops over bodies; with `verify` it checks
    /// bodies as well.
    ///
    /// # Errors
    /// What `each` returns, and `Unavailable` for what can't be read.
    pub(in crate::queue::journal) fn scan(
        &self,
        from: Place,
        verify: bool,
        each: &mut dyn FnMut(Scanned<'_>) -> Result<()>,
    ) -> Result<Tail> {
        scan::scan(self, from, verify, each)
    }

    /// What of headers and of the root is not as it was written, as far as that alone tells.
    pub(in crate::queue::journal) fn flaws(&self) -> Vec<Finding> {
        let in_log = |name: &str| Some(format!("log/{name}"));
        let slots = self.bad_slots.iter().map(|at| {
            let what = format!("a slot of the root, at {at}, is damaged");
            Finding::damaged(
                what,
                "the other slot counts, and what is missing since then is looked for in the log",
            )
            .in_file(in_log(ROOT))
            .at(*at, SECTOR)
        });
        let headless = self.headless.iter().map(|number| {
            let name = self
                .segments
                .get(*number)
                .map(|segment| segment.name.clone());
            let what =
                format!("the header of segment {number} is damaged; its groups tell which it is");
            Finding::damaged(what, "the header is written again")
                .in_file(name.as_deref().and_then(in_log))
                .at(0_u64, SECTOR)
        });
        let foreign = self.damaged.iter().map(|name| {
            let what = format!("{name} is none of the log's segments any more");
            Finding::damaged(what, "the file is renamed, and kept in quarantine")
                .in_file(in_log(name))
        });
        slots.chain(headless).chain(foreign).collect()
    }

    /// The numbers of segments before this one that should be there and are not.
    pub(in crate::queue::journal) fn missing_before(&self, segment: u32) -> Vec<u32> {
        let numbers = self.oldest..segment;
        numbers
            .filter(|number| self.segments.get(*number).is_none())
            .take(MOST_MISSING)
            .collect()
    }

    /// Segments whose files were cut: where each ends, and how many bytes are gone.
    pub(in crate::queue::journal) fn cut(&self) -> impl Iterator<Item = (Place, u32)> {
        self.short.iter().map(|(number, gone)| {
            let segment = self.segments.get(*number);
            let place = Place {
                segment: *number,
                offset: segment.map_or(0, |segment| segment.length),
            };
            (place, *gone)
        })
    }

    /// How many bytes the files of the live segments have.
    pub(in crate::queue::journal) fn live_bytes(&self) -> u64 {
        let live = self.segments.range(..);
        live.iter().map(|segment| u64::from(segment.length)).sum()
    }

    /// Reads the slots; tells whether there is nothing in them.
    fn read_root(&mut self, names: &[String]) -> io::Result<bool> {
        if !names.iter().any(|name| name == ROOT) {
            return Ok(true);
        }
        self.has_root = true;
        let file = self.disk.open(ROOT)?;
        let mut blank = true;
        for index in 0..2 {
            let mut bytes = [0; SECTOR as usize];
            let at = SLOT * index as u64;
            if at + u64::from(SECTOR) > file.len()? || file.read_at(&mut bytes, at).is_err() {
                self.bad_slots.push(at);
                continue;
            }
            let is_blank = bytes.iter().all(|byte| *byte == 0);
            blank &= is_blank;
            let decoded = RootSlot::decode(&bytes, self.options.salt);
            if decoded.is_none() && !is_blank {
                self.bad_slots.push(at);
            }
            if let Some(slot) = decoded {
                self.epoch = self.epoch.max(slot.epoch);
                let better = |(_, old): (usize, RootSlot)| old.generation < slot.generation;
                if self.slot.is_none_or(better) {
                    self.slot = Some((index, slot));
                }
            }
        }
        self.oldest = self.slot.map_or(1, |(_, slot)| slot.root.oldest.max(1));
        Ok(blank)
    }

    fn read_segment(&mut self, name: &str) -> Result<()> {
        let unreadable = |error| unreadable(name, error);
        let file = self.disk.open(name).map_err(unreadable)?;
        let length = file.len().map_err(unreadable)?;
        let length = u32::try_from(length).unwrap_or(u32::MAX - PAGE);
        // A file that was cut off may end anywhere.
        let length = length / SECTOR * SECTOR;
        if length < MIN_SEGMENT {
            self.unfinished.push(name.to_owned());
            return Ok(());
        }
        let segment = |number, fresh| Segment {
            number,
            name: name.to_owned(),
            file: file.clone(),
            length,
            fresh,
        };
        let mut bytes = [0; SECTOR as usize];
        let read = file.read_at(&mut bytes, 0);
        let head = match read {
            Ok(()) => SegmentHeader::decode(&bytes, self.options.salt),
            Err(_) => Head::Damaged,
        };
        match head {
            Head::Newer(version) => {
                return Err(Error::invalid(format!(
                    "{name} has format {version}, which this version of batchyard does not know; it was left untouched"
                )));
            }
            Head::Header(header) if header.number <= MOST_SEGMENTS => {
                self.epoch = self.epoch.max(header.epoch);
                self.oldest = self.oldest.max(header.oldest);
                if header.length > length {
                    self.short.push((header.number, header.length - length));
                }
                let segment = Arc::new(segment(header.number, header.fresh));
                if header.number == 0 {
                    self.spares.push(segment);
                } else {
                    self.add(segment);
                }
            }
            blank_or_damaged => match recognise(&file, length, self.options.salt) {
                Some(frame) => {
                    self.headless.push(frame.place.segment);
                    self.add(Arc::new(segment(frame.place.segment, false)));
                }
                None if blank_or_damaged == Head::Blank => self.unfinished.push(name.to_owned()),
                None => {
                    // A disk that gives nothing may give all of it later: it is not put aside for that.
                    read.map_err(unreadable)?;
                    self.damaged.push(name.to_owned());
                }
            },
        }
        Ok(())
    }

    /// Two files can't be the same segment, unless one is damaged: the one with a header of its own counts.
    fn add(&mut self, segment: Arc<Segment>) {
        let headless = self.headless.last() == Some(&segment.number);
        let other = if headless && self.segments.get(segment.number).is_some() {
            self.headless.pop();
            Some(segment)
        } else {
            self.segments.insert(segment)
        };
        self.damaged.extend(other.map(|other| other.name.clone()));
    }

    /// Separates what is freed from what is live.
    fn part(&mut self) {
        self.freed = self.segments.free_below(self.oldest);
        let oldest = self.oldest;
        self.headless.retain(|number| *number >= oldest);
        self.short.retain(|(number, _)| *number >= oldest);
    }
}

/// The salts of the stores whose files lie in this folder.
///
/// # Errors
/// Those of reading it.
pub(in crate::queue::journal) fn salts(disk: &dyn Disk) -> io::Result<BTreeSet<u64>> {
    let mut salts = BTreeSet::new();
    for name in disk.list()? {
        let slots: &[u64] = match (name == ROOT, slot_of(&name)) {
            (true, _) => &[0, SLOT],
            (false, Some(_)) => &[0],
            (false, None) => continue,
        };
        let file = disk.open(&name)?;
        for at in slots {
            let mut bytes = [0; SECTOR as usize];
            let is_there = at + u64::from(SECTOR) <= file.len()?;
            if is_there && file.read_at(&mut bytes, *at).is_ok() {
                salts.extend(format::salt(&bytes));
            }
        }
    }
    Ok(salts)
}

/// Whether there are files in this folder that are called like those of a log.
///
/// # Errors
/// Those of listing it.
pub(in crate::queue::journal) fn has_segments(disk: &dyn Disk) -> io::Result<bool> {
    let names = disk.list()?;
    Ok(names.iter().any(|name| slot_of(name).is_some()))
}

/// The slot in the name of a segment file.
pub(super) fn slot_of(name: &str) -> Option<u32> {
    let slot = name.strip_prefix("segment-")?.strip_suffix(".log")?;
    let slot = slot.parse().ok()?;
    (slot_name(slot) == name).then_some(slot)
}

pub(super) fn slot_name(slot: u32) -> String {
    format!("segment-{slot:03}.log")
}

/// A group that tells which segment a file without a good header is: the newest in it, for what an earlier use of
/// the file has left lies behind.
fn recognise(file: &Arc<dyn DiskFile>, length: u32, salt: u64) -> Option<FrameHeader> {
    let mut window = Window::new(file.clone(), length);
    let frames = (PAGE..length).step_by(SECTOR as usize).filter_map(|at| {
        let frame = FrameHeader::decode_anywhere(window.bytes(at, HEADER), salt)?;
        let is_one = frame.place.offset == at && frame.place.segment <= MOST_SEGMENTS;
        is_one.then_some(frame)
    });
    frames.max_by_key(|frame| frame.place.segment)
}

pub(super) fn unreadable(what: &str, error: io::Error) -> Error {
    Error::unavailable(format!("{what} can't be read: {error}")).with_source(error)
}

/// The file with the two slots of the root.
pub(super) const ROOT: &str = "root";
/// No log is as long; what says so is damaged.
pub(super) const MOST_SEGMENTS: u32 = u32::MAX / 2;
/// So many are named.
const MOST_MISSING: usize = 100;
/// A header, and a page for what comes behind it.
const MIN_SEGMENT: u32 = 2 * PAGE;
