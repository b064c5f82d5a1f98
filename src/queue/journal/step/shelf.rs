//! What one verb has read, so that it reads and checks it once.
//!
//! ```text
//!  stretch ──▶ its requests                     the last few, as many as go into `KEPT_BYTES`
//!  blob    ──▶ its bytes, checked               likewise
//!  page    ──▶ of each outcome in it: position, id, kind, and where it lies: a blob of its own
//! ```
//! Requests are looked at one by one, in the order of their ids or of their settling, and hundreds of them share a stretch
//! and a page of outcomes. Pages may overlap, up to all of a batch with all others, where handlers record what is done as it
//! is done. So all that is kept of each is where its outcomes lie, a few bytes each.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    ops::Range,
    rc::Rc,
};

use bytes::Bytes;

use super::{Loaded, Step, legible};
use crate::{
    error::Result,
    queue::journal::{
        codec::{self, Codec},
        log::Place,
        record::{self, Outcome},
        state::{Blob, Page, Stretch},
    },
};

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    stretches: RefCell<Kept<Place, (Stretch, Rc<Loaded>)>>,
    blobs: RefCell<Kept<Blob, Bytes>>,
    pages: RefCell<Pages>,
}

/// The last of what was read, up to `KEPT_BYTES`, and at least one.
#[derive(Debug)]
struct Kept<K, V> {
    all: BTreeMap<K, V>,
    order: VecDeque<(K, usize)>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Pages {
    /// `None`: a page that is damaged.
    all: BTreeMap<Blob, Option<Rc<Listing>>>,
    outcomes: usize,
}

/// The outcomes of a page.
#[derive(Debug)]
pub(in crate::queue::journal) struct Listing {
    /// As they are stored.
    pub(in crate::queue::journal) outcomes: Vec<Listed>,
    /// Where in that list they are, by position.
    by_position: BTreeMap<u64, usize>,
}

/// An outcome, and where it lies.
#[derive(Debug)]
pub(in crate::queue::journal) struct Listed {
    pub(in crate::queue::journal) id: u64,
    pub(in crate::queue::journal) kind: u8,
    blob: Blob,
}

/// What is found of an outcome.
pub(in crate::queue::journal) enum Recorded {
    Outcome(Outcome),
    /// It is not in the pages that can be read, and may be in one that can't.
    Damaged,
    Nothing,
}

impl Step<'_> {
    /// A stretch, read.
    pub(in crate::queue::journal) fn stretch(&self, stretch: &Stretch) -> Result<Rc<Loaded>> {
        let place = Place {
            segment: stretch.segment,
            offset: stretch.offset,
        };
        if let Some((known, loaded)) = self.shelf.stretches.borrow().all.get(&place)
            && known == stretch
        {
            return Ok(Rc::clone(loaded));
        }
        let loaded = Rc::new(self.load(stretch)?);
        let kept = (*stretch, Rc::clone(&loaded));
        let bytes = stretch.bytes as usize;
        self.shelf.stretches.borrow_mut().keep(place, kept, bytes);
        Ok(loaded)
    }

    /// The stretch of an id, read.
    pub(in crate::queue::journal) fn stretch_with(&self, id: u64) -> Result<Option<Rc<Loaded>>> {
        let found = self.queue()?.stretch_of(id);
        let found = found.map(|(_, stretch)| *stretch);
        found.map(|stretch| self.stretch(&stretch)).transpose()
    }

    /// A value that many share.
    pub(in crate::queue::journal) fn shared<T: Codec>(&self, blob: Blob) -> Result<T> {
        codec::whole(&self.bytes_of(blob)?)
    }

    /// The bytes of a blob, which are what was written.
    fn bytes_of(&self, blob: Blob) -> Result<Bytes> {
        if let Some(bytes) = self.shelf.blobs.borrow().all.get(&blob) {
            return Ok(bytes.clone());
        }
        let bytes = self.read(blob.place(), blob.bytes)?;
        record::check_blob(blob, &bytes)?;
        let mut blobs = self.shelf.blobs.borrow_mut();
        blobs.keep(blob, bytes.clone(), bytes.len());
        Ok(bytes)
    }

    /// The outcomes of a page; `None` if they are damaged.
    pub(in crate::queue::journal) fn listing(&self, page: &Page) -> Result<Option<Rc<Listing>>> {
        if let Some(known) = self.shelf.pages.borrow().all.get(&page.blob) {
            return Ok(known.clone());
        }
        let bytes = self.bytes_of(page.blob);
        let listing = bytes.and_then(|bytes| Listing::of(page.blob, &bytes));
        let listing = legible(listing)?.map(Rc::new);
        let mut pages = self.shelf.pages.borrow_mut();
        pages.keep(page.blob, listing.clone());
        Ok(listing)
    }

    /// Whether one of these pages, as far as they are legible, has an outcome for a position.
    pub(in crate::queue::journal) fn is_recorded(
        &self,
        pages: &[Page],
        position: u64,
    ) -> Result<bool> {
        for page in pages.iter().filter(|page| page.covers(position)) {
            let listing = self.listing(page)?;
            if listing.is_some_and(|listing| listing.at(position).is_some()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The outcome recorded for a position in one of these pages.
    pub(in crate::queue::journal) fn recorded(
        &self,
        pages: &[Page],
        position: u64,
    ) -> Result<Recorded> {
        let mut recorded = Recorded::Nothing;
        for page in pages.iter().filter(|page| page.covers(position)) {
            let Some(listing) = self.listing(page)? else {
                recorded = Recorded::Damaged;
                continue;
            };
            let Some(listed) = listing.at(position) else {
                continue;
            };
            match legible(self.listed(page.blob, listed))? {
                Some(outcome) => return Ok(Recorded::Outcome(outcome)),
                None => recorded = Recorded::Damaged,
            }
        }
        Ok(recorded)
    }

    /// An outcome of a page, from the page if that is still here.
    fn listed(&self, page: Blob, listed: &Listed) -> Result<Outcome> {
        let one = listed.blob;
        if let Some(bytes) = self.shelf.blobs.borrow().all.get(&page) {
            let from = (one.offset - page.offset) as usize;
            return codec::whole(&bytes[from..from + one.bytes as usize]);
        }
        record::blob_value(one, &self.read(one.place(), one.bytes)?)
    }
}

impl Listing {
    fn of(page: Blob, bytes: &[u8]) -> Result<Self> {
        let all = codec::items::<Outcome>(bytes)?;
        let mut by_position = BTreeMap::new();
        for (index, (outcome, _)) in all.iter().enumerate() {
            by_position.entry(outcome.position).or_insert(index);
        }
        #[expect(clippy::cast_possible_truncation, reason = "a blob has 4 GiB at most")]
        let listed = |(outcome, lies): (Outcome, Range<usize>)| Listed {
            id: outcome.id,
            kind: outcome.kind,
            blob: Blob {
                offset: page.offset + lies.start as u32,
                bytes: lies.len() as u32,
                check: crc32fast::hash(&bytes[lies]),
                ..page
            },
        };
        Ok(Self {
            outcomes: all.into_iter().map(listed).collect(),
            by_position,
        })
    }

    fn at(&self, position: u64) -> Option<&Listed> {
        let index = self.by_position.get(&position)?;
        self.outcomes.get(*index)
    }
}

impl Pages {
    fn keep(&mut self, page: Blob, listing: Option<Rc<Listing>>) {
        let outcomes = listing.as_ref().map_or(1, |listing| listing.outcomes.len());
        if self.outcomes + outcomes > KEPT_OUTCOMES {
            *self = Self::default();
        }
        self.outcomes += outcomes;
        self.all.insert(page, listing);
    }
}

impl<K: Ord + Copy, V> Kept<K, V> {
    fn keep(&mut self, key: K, value: V, bytes: usize) {
        while self.bytes + bytes > KEPT_BYTES
            && let Some((oldest, freed)) = self.order.pop_front()
        {
            self.all.remove(&oldest);
            self.bytes -= freed;
        }
        if self.all.insert(key, value).is_none() {
            self.order.push_back((key, bytes));
            self.bytes += bytes;
        }
    }
}

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
            order: VecDeque::new(),
            bytes: 0,
        }
    }
}

impl Page {
    pub(in crate::queue::journal) fn covers(&self, position: u64) -> bool {
        self.first <= position && position <= self.last
    }
}

impl Blob {
    fn place(&self) -> Place {
        Place {
            segment: self.segment,
            offset: self.offset,
        }
    }
}

const KEPT_BYTES: usize = 4 << 20;
/// Each takes about 80 bytes. A batch whose outcomes come in any order may have so many.
const KEPT_OUTCOMES: usize = 128 << 10;
