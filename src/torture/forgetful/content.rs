//! The bytes of one file, twice: as processes see them, and as the disk has them.
//!
//! ```text
//! write ──▶ live ──sync──▶ durable        dirty: the sectors in which they differ since the last sync
//! ```
//! A torn loss lets any of the dirty sectors reach the disk, each as it was at any moment since the last sync, and
//! the size as well or not. Pages are shared between both images, and one page of zeros by all.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use fastrand::Rng;

/// Bytes that reach the disk as a whole or not at all.
pub(super) const SECTOR_BYTES: usize = 512;
/// What memory is allocated in, and what the space of the disk is counted in.
pub(super) const PAGE_BYTES: usize = 4096;
const SECTORS: usize = PAGE_BYTES / SECTOR_BYTES;
/// So many older states of a sector are remembered: each write since the last sync makes one.
const OLDER_STATES: usize = 3;

type Page = Arc<[u8; PAGE_BYTES]>;
type Sector = [u8; SECTOR_BYTES];

static ZEROS: LazyLock<Page> = LazyLock::new(|| Arc::new([0; PAGE_BYTES]));

/// One image of a file; pages that are not there are zeros.
#[derive(Clone, Debug, Default)]
struct Image {
    size: u64,
    pages: BTreeMap<u64, Page>,
}

/// A file's bytes, live and durable.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    live: Image,
    durable: Image,
    /// By page: which of its sectors were written since the last sync, a bit each.
    dirty: BTreeMap<u64, u8>,
    /// By sector: states between the last sync and now.
    older: BTreeMap<u64, Vec<Sector>>,
    /// The smallest size since the last sync, if the file was cut below what the disk has.
    cut_to: Option<u64>,
}

impl Content {
    pub(super) fn size(&self) -> u64 {
        self.live.size
    }

    /// Bytes of the disk that it takes.
    pub(super) fn space(&self) -> u64 {
        (self.live.pages.len() * PAGE_BYTES) as u64
    }

    /// What is there from an offset on, up to so many bytes.
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.live.read(offset, len)
    }

    /// How many pages a write would take that are not there yet.
    pub(super) fn new_pages(&self, offset: u64, len: usize) -> u64 {
        let pages = pages(offset, len as u64);
        let all = pages.end - pages.start;
        all - self.live.pages.range(pages).count() as u64
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.live.size = self.live.size.max(offset + bytes.len() as u64);
        let mut left = bytes;
        let mut at = offset;
        while !left.is_empty() {
            let (page, start) = (at / PAGE_BYTES as u64, in_page(at));
            let (part, rest) = left.split_at(left.len().min(PAGE_BYTES - start));
            self.touch(page, start, part.len());
            let whole = part.len() == PAGE_BYTES;
            if whole && part == ZEROS.as_slice() {
                self.live.pages.insert(page, ZEROS.clone());
            } else {
                let into = self.live.pages.entry(page).or_insert_with(|| ZEROS.clone());
                Arc::make_mut(into)[start..start + part.len()].copy_from_slice(part);
            }
            (left, at) = (rest, at + part.len() as u64);
        }
    }

    /// Makes it so long; what is new are zeros.
    pub(super) fn resize(&mut self, size: u64) {
        if size < self.live.size {
            let cut = self.cut_to.unwrap_or(u64::MAX).min(size);
            self.cut_to = (cut < self.durable.size).then_some(cut);
            let (page, start) = (size / PAGE_BYTES as u64, in_page(size));
            self.live.pages.split_off(&size.div_ceil(PAGE_BYTES as u64));
            self.dirty.split_off(&size.div_ceil(PAGE_BYTES as u64));
            self.older.split_off(&size.div_ceil(SECTOR_BYTES as u64));
            if start > 0 && self.live.pages.contains_key(&page) {
                self.touch(page, start, PAGE_BYTES - start);
                let page = self.live.pages.entry(page).or_default_page();
                page[start..].fill(0);
            }
        }
        self.live.size = size;
    }

    /// Takes space for a range; what was not there are zeros.
    pub(super) fn allocate(&mut self, offset: u64, len: u64, grow: bool) {
        for page in pages(offset, len) {
            if !self.live.pages.contains_key(&page) {
                self.touch(page, 0, PAGE_BYTES);
                self.live.pages.insert(page, ZEROS.clone());
            }
        }
        if grow {
            self.live.size = self.live.size.max(offset + len);
        }
    }

    /// Makes a range zeros.
    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        let end = (offset + len).min(self.live.size);
        let mut at = offset;
        while at < end {
            let step =
                (PAGE_BYTES - in_page(at)).min(usize::try_from(end - at).unwrap_or(PAGE_BYTES));
            self.write(at, &ZEROS[..step]);
            at += step as u64;
        }
    }

    /// What is live is durable.
    pub(super) fn sync(&mut self) {
        for page in self.dirty.keys() {
            match self.live.pages.get(page) {
                Some(bytes) => self.durable.pages.insert(*page, bytes.clone()),
                None => self.durable.pages.remove(page),
            };
        }
        if let Some(cut) = self.cut_to {
            let keep = cut.div_ceil(PAGE_BYTES as u64);
            let gone: Vec<u64> = self
                .durable
                .pages
                .range(keep..)
                .map(|(page, _)| *page)
                .collect();
            for page in gone {
                if !self.live.pages.contains_key(&page) {
                    self.durable.pages.remove(&page);
                }
            }
        }
        self.durable.size = self.live.size;
        self.settled();
    }

    /// What is live stays so and never becomes durable: the kernel takes the pages of a sync that failed for clean.
    pub(super) fn sync_failed(&mut self) {
        self.dirty.clear();
        self.older.clear();
    }

    /// Only what is durable is left.
    pub(super) fn lose(&mut self) {
        self.live = self.durable.clone();
        self.settled();
    }

    fn settled(&mut self) {
        self.sync_failed();
        self.cut_to = None;
    }

    /// Some of what was not synced reached the disk; nothing else is left.
    pub(super) fn tear(&mut self, random: &mut Rng) {
        // A file that was cut and written anew is the old one still, or it was cut before anything was written.
        let old = self.cut_to.is_some() && random.bool();
        if !old {
            self.tear_size(random);
            for (page, sectors) in std::mem::take(&mut self.dirty) {
                for sector in (0..SECTORS).filter(|sector| sectors & (1 << sector) != 0) {
                    self.tear_sector(page, sector, random);
                }
            }
            self.durable.trim();
        }
        self.lose();
    }

    fn tear_size(&mut self, random: &mut Rng) {
        if let Some(cut) = self.cut_to {
            self.durable.size = cut;
            self.durable.trim();
        }
        let (from, to) = (self.durable.size, self.live.size);
        let sectors = (to.max(from) - from) / SECTOR_BYTES as u64;
        self.durable.size = match random.u8(..3) {
            0 => from,
            1 => to,
            _ => from
                .max((from / SECTOR_BYTES as u64 + random.u64(..=sectors)) * SECTOR_BYTES as u64)
                .min(to.max(from)),
        };
    }

    fn tear_sector(&mut self, page: u64, sector: usize, random: &mut Rng) {
        let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
        let older = self.older.get(&(page * SECTORS as u64 + sector as u64));
        let older = older.map_or(&[][..], Vec::as_slice);
        let state = match random.usize(..older.len() + 2) {
            0 => return,
            1 => self.live.pages.get(&page).unwrap_or(&*ZEROS)[range.clone()].to_vec(),
            n => older[n - 2].to_vec(),
        };
        let into = self.durable.pages.entry(page).or_default_page();
        into[range].copy_from_slice(&state);
    }

    /// Notes that bytes of a page are about to be written.
    fn touch(&mut self, page: u64, start: usize, len: usize) {
        let mask = self.dirty.entry(page).or_default();
        for sector in start / SECTOR_BYTES..(start + len).div_ceil(SECTOR_BYTES) {
            if *mask & (1 << sector) != 0 {
                let number = page * SECTORS as u64 + sector as u64;
                let older = self.older.entry(number).or_default();
                if older.len() < OLDER_STATES {
                    let page = self.live.pages.get(&page).unwrap_or(&*ZEROS);
                    let mut state = [0; SECTOR_BYTES];
                    state
                        .copy_from_slice(&page[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES]);
                    older.push(state);
                }
            }
            *mask |= 1 << sector;
        }
    }
}

impl Image {
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let len = self.size.saturating_sub(offset).min(len as u64);
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let start = in_page(at);
            let step = (PAGE_BYTES - start).min(usize::try_from(end - at).unwrap_or(PAGE_BYTES));
            let page = self.pages.get(&(at / PAGE_BYTES as u64)).unwrap_or(&*ZEROS);
            bytes.extend_from_slice(&page[start..start + step]);
            at += step as u64;
        }
        bytes
    }

    /// Nothing is left behind the size.
    fn trim(&mut self) {
        self.pages.split_off(&self.size.div_ceil(PAGE_BYTES as u64));
        let start = in_page(self.size);
        if start > 0
            && let Some(page) = self.pages.get_mut(&(self.size / PAGE_BYTES as u64))
        {
            Arc::make_mut(page)[start..].fill(0);
        }
    }
}

trait OrZeros<'a> {
    fn or_default_page(self) -> &'a mut [u8; PAGE_BYTES];
}

impl<'a> OrZeros<'a> for std::collections::btree_map::Entry<'a, u64, Page> {
    fn or_default_page(self) -> &'a mut [u8; PAGE_BYTES] {
        Arc::make_mut(self.or_insert_with(|| ZEROS.clone()))
    }
}

fn in_page(at: u64) -> usize {
    usize::try_from(at % PAGE_BYTES as u64).unwrap_or_default()
}

/// The pages that a range touches.
fn pages(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / PAGE_BYTES as u64..(offset + len).div_ceil(PAGE_BYTES as u64)
}
