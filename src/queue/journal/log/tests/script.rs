//! A scripted writer that remembers what it was answered, and when.

use std::sync::Arc;

use super::{append, open};
use crate::{
    error::{ErrorKind, Result},
    queue::journal::{
        disk::Disk,
        log::{
            Cursor, Log, LogOptions, Pin, Place, Reader, Root,
            format::{Head, SegmentHeader},
        },
        simulated::SimDisk,
    },
};

/// Small, so that a short script fills many of them.
pub(super) const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 16 * 1024,
    spares: 2,
    zero_ahead: 4096,
    salt: 0x5eed_5a17,
};

/// A group, by the number of operations before it was begun and before it was answered.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) place: Place,
    pub(super) events: Vec<u8>,
    pub(super) body: Vec<u8>,
    pub(super) began: usize,
    pub(super) answered: Option<usize>,
}

/// A root, likewise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) root: Root,
    pub(super) began: usize,
    pub(super) answered: Option<usize>,
}

/// All that was done.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    pub(super) groups: Vec<Written>,
    pub(super) roots: Vec<Stored>,
    /// Segments that held what a reader had pinned were reused.
    pub(super) misread: Option<String>,
    /// What ended the script before its time.
    pub(super) error: Option<ErrorKind>,
}

/// The writer.
pub(super) struct Writer<'a> {
    disk: &'a SimDisk,
    /// What could not be removed is left over.
    fails: bool,
    dice: fastrand::Rng,
    log: Log,
    reader: Reader,
    cursor: Cursor,
    pinned: Option<(Pin, Written)>,
    pub(super) history: History,
}

/// Opens a log on this disk and works on it for so many steps, or until it fails.
pub(super) fn run(disk: &SimDisk, seed: u64, steps: usize) -> History {
    let fails = disk.fails();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    match open(&shared, OPTIONS) {
        Ok((log, cursor, reader, ..)) => {
            let mut writer = Writer {
                disk,
                fails,
                dice: fastrand::Rng::with_seed(seed),
                log,
                reader,
                cursor,
                pinned: None,
                history: History::default(),
            };
            for _ in 0..steps {
                if let Err(error) = writer.step() {
                    writer.history.error = Some(error.kind());
                    break;
                }
            }
            writer.history
        }
        Err(error) => History {
            error: Some(error.kind()),
            ..History::default()
        },
    }
}

impl Writer<'_> {
    fn step(&mut self) -> Result<()> {
        match self.dice.u32(0..24) {
            0 | 1 => self.store_root(),
            2 | 3 => {
                self.cursor = self.log.mark(self.cursor)?;
                Ok(())
            }
            4 => self.reopen(),
            5 => {
                self.check_pinned();
                let last = self.history.groups.last();
                self.pinned = last.map(|group| {
                    let segment = group.place.segment;
                    (self.reader.pin(segment..=segment), group.clone())
                });
                Ok(())
            }
            6 => {
                self.cursor = self.cursor.next_segment();
                self.append()
            }
            _ => self.append(),
        }
    }

    fn append(&mut self) -> Result<()> {
        let body = self.bytes(&[0, 1, 400, 432, 3000, 3500, 4000, 7000, 20_000, 40_000]);
        let events = self.bytes(&[0, 10, 64, 500, 900]);
        let began = self.disk.operations();
        if !self.cursor.fits(body.len(), events.len()) {
            self.cursor = self.cursor.next_segment();
        }
        let place = Place {
            offset: self.cursor.body().offset - 64,
            ..self.cursor.body()
        };
        self.history.groups.push(Written {
            place,
            events: events.clone(),
            body: body.clone(),
            began,
            answered: None,
        });
        append(&mut self.log, &mut self.cursor, &body, &events)?;
        if let Some(group) = self.history.groups.last_mut() {
            group.answered = Some(self.disk.operations());
        }
        self.check_pinned();
        if !self.fails
            && let Err(why) = check_order(self.disk)
        {
            self.history.misread = Some(why);
        }
        Ok(())
    }

    /// As the store does: what begins here replaces all before.
    fn store_root(&mut self) -> Result<()> {
        self.append()?;
        let from = self.history.groups.last().map(|group| group.place);
        let from = from.unwrap_or_default();
        let root = Root {
            oldest: from.segment,
            from,
            note: [self.dice.u8(..); 64],
        };
        self.history.roots.push(Stored {
            root,
            began: self.disk.operations(),
            answered: None,
        });
        self.log.set_root(root)?;
        if let Some(stored) = self.history.roots.last_mut() {
            stored.answered = Some(self.disk.operations());
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<()> {
        self.check_pinned();
        self.pinned = None;
        let shared: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let (log, cursor, reader, ..) = open(&shared, OPTIONS)?;
        (self.log, self.cursor, self.reader) = (log, cursor, reader);
        Ok(())
    }

    /// What is pinned is still there, even if it was freed: read through its file.
    fn check_pinned(&mut self) {
        let Some((_, group)) = &self.pinned else {
            return;
        };
        let length = u32::try_from(group.body.len()).unwrap();
        let body = Place {
            offset: group.place.offset + 64,
            ..group.place
        };
        match self.reader.read(body, length) {
            Ok(read) if read == group.body => {}
            read => {
                let what = read.map(|_| "other bytes");
                self.history.misread = Some(format!("{body:?} is pinned and gave {what:?}"));
            }
        }
    }

    fn bytes(&mut self, sizes: &[usize]) -> Vec<u8> {
        let size = sizes[self.dice.usize(..sizes.len())];
        let mut bytes = vec![0; size];
        self.dice.fill(&mut bytes);
        bytes
    }
}

/// Segments are reused and removed oldest first: those that can be found are without a gap.
pub(super) fn check_order(disk: &SimDisk) -> Result<(), String> {
    let heads = disk.image().into_values();
    let heads = heads.filter_map(|bytes| {
        let head = SegmentHeader::decode(bytes.first_chunk()?, OPTIONS.salt);
        match head {
            Head::Header(header) if header.number > 0 => Some(header.number),
            _ => None,
        }
    });
    let mut numbers: Vec<_> = heads.collect();
    numbers.sort_unstable();
    if numbers.windows(2).any(|pair| pair[0] + 1 != pair[1]) {
        return Err(format!("only segments {numbers:?} are there"));
    }
    Ok(())
}
