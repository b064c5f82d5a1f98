//! Walking through a tree in the order of its keys.

use sled::IVec;

use super::{
    db::Db,
    rows::{self, OpenChunk},
};
use crate::error::Result;

/// Entries of a tree in order; ends after an error.
pub(super) struct Range<'a> {
    pub(super) db: &'a Db,
    pub(super) source: Source<'a>,
}

pub(super) enum Source<'a> {
    Ended,
    Entries(Box<sled::Iter>),
    Rows(Box<dyn Iterator<Item = Result<(IVec, IVec)>> + 'a>),
}

impl Iterator for Range<'_> {
    type Item = Result<(IVec, IVec)>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = match &mut self.source {
            Source::Ended => None,
            Source::Entries(iter) => {
                let next = self.db.guard("a read", || iter.next().transpose());
                next.transpose()
            }
            Source::Rows(rows) => rows.next(),
        };
        if !matches!(next, Some(Ok(_))) {
            self.source = Source::Ended;
        }
        next
    }
}

/// Chunks of `requests` in order. They are looked up when they are needed, so that rows may be deleted
/// meanwhile.
pub(super) struct Chunks<'a> {
    db: &'a Db,
    from: (u32, u64),
    to: (u32, u64),
    reached: Option<(u32, u64)>,
    found: std::vec::IntoIter<rows::Chunk>,
}

impl Chunks<'_> {
    fn step(&mut self) -> Result<Option<OpenChunk>> {
        if self.found.len() == 0 {
            let (at, after) = self
                .reached
                .map_or((self.from, false), |reached| (reached, true));
            let found = self
                .db
                .guard("a read", || self.db.windows().chunks(at, after))?;
            self.found = found.into_iter();
        }
        let next = self.found.next();
        let Some(chunk) = next.filter(|chunk| (chunk.queue, chunk.first) <= self.to) else {
            return Ok(None);
        };
        self.reached = Some((chunk.queue, chunk.first));
        rows::open(&chunk).map(Some)
    }
}

impl<'a> Chunks<'a> {
    pub(super) fn new(db: &'a Db, from: (u32, u64), to: (u32, u64)) -> Self {
        Self {
            db,
            from,
            to,
            reached: None,
            found: Vec::new().into_iter(),
        }
    }

    /// The rows in the chunks, with their keys.
    pub(super) fn rows(self) -> impl Iterator<Item = Result<(IVec, IVec)>> + 'a {
        let (from, to) = (self.from, self.to);
        self.flat_map(move |chunk| {
            let (rows, error) = match chunk {
                Ok(chunk) => (Some(chunk.rows_within(from, to)), None),
                Err(error) => (None, Some(Err(error))),
            };
            rows.into_iter().flatten().map(Ok).chain(error)
        })
    }
}

impl Iterator for Chunks<'_> {
    type Item = Result<OpenChunk>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}
