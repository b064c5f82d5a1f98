//! What of sled's file is in use: its end is given back when nothing lies there, and what is nearly empty is emptied.
//!
//! sled writes to segments of 8 MiB, and to one again once no page lies in it any more. So the last pages in it have to be
//! written elsewhere. sled has a thread for that, which is not run here: it writes without a limit between two syncs of its own, and
//! a sync of it that fails is told to nobody. Without that thread, sled moves one page whenever it writes another one anew. That is too
//! little where many pages get a small change each, and more so if opening follows on opening: the file grows by a segment for
//! each that is written, with a few pages in every one. So the writer has sled move pages (`db/moving.rs`), between the groups of its callers:
//!
//! ```text
//! segments   ▓▓▓▓▓▓▓▓ ░       ▓▓▓▓▓░   ░░      ░                    8 MiB each
//!            full     sparse  full     sparse  sparse  empty  empty
//!                     └──────── moved ─┴───────┘       └ cut off ┘
//! ```
//! Which segments are sparse, and how many pages lie in them, sled's snapshot says. It is that of the end of the log when a
//! store is opened: sled writes one then.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::Path,
};

use super::recovery::{self, SEGMENT_BYTES};
use crate::fault::{is_left_out, point, step};

/// What of a database is in use.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// By number; those that are not here are empty.
    segments: BTreeMap<u64, Segment>,
    /// The one that sled is writing to.
    active: Option<u64>,
}

/// What lies in a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Segment {
    bytes: u64,
    pages: u64,
}

impl Usage {
    /// That of a database that is not open, as its snapshot says; none if there is none, or one that is not understood.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let (_, path) = recovery::snapshots(folder).ok()?.into_iter().max()?;
        Self::parse(&fs::read(path).ok()?)
    }

    /// Reads a snapshot of sled 0.34: where its log ends, and for each page where what it consists of lies.
    fn parse(snapshot: &[u8]) -> Option<Self> {
        let (body, end) = snapshot.split_at_checked(snapshot.len().checked_sub(CHECK_BYTES)?)?;
        let (length, check) = end.split_first_chunk()?;
        let is_whole = u64::from_le_bytes(*length) == body.len() as u64
            && crc32fast::hash(body).to_le_bytes() == *check;
        let mut rest = Snapshot(is_whole.then_some(body)?);
        let (_stable, active) = (rest.bytes(8)?, rest.number()?);
        let mut usage = Self {
            segments: BTreeMap::new(),
            active: active.checked_sub(1).map(|at| at / SEGMENT),
        };
        while let Some(&[kind]) = rest.bytes(1) {
            let mut seen = Vec::new();
            for _ in 0..kind.max(1) {
                let (_lsn, segment) = (rest.bytes(8)?, rest.place()? / SEGMENT);
                // That a page is free takes a note.
                let bytes = if kind == 0 {
                    NOTE_BYTES
                } else {
                    rest.number()?
                };
                let found = usage.segments.entry(segment).or_default();
                found.bytes += bytes;
                if !seen.contains(&segment) {
                    found.pages += 1;
                    seen.push(segment);
                }
            }
        }
        Some(usage)
    }

    /// Up to where anything lies in the file.
    pub(super) fn end(&self) -> u64 {
        let last = self.segments.keys().next_back().copied().max(self.active);
        last.map_or(0, |last| (last + 1) * SEGMENT)
    }

    /// How many bytes lie in it.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// How often sled has to be told to move a page until nothing lies in sparse segments; not at all if a file of so many
    /// bytes is not much larger than what lies in it.
    pub(super) fn moves(&self, file: u64) -> u64 {
        let slack = if is_left_out("sled.slack") {
            0
        } else {
            SLACK_BYTES
        };
        if file <= 2 * self.bytes() + slack {
            return 0;
        }
        let others = self.segments.iter();
        let sparse = others.filter(|(at, segment)| {
            self.active != Some(**at) && segment.bytes * 100 / SEGMENT <= SPARSE_PERCENT
        });
        // sled takes a move to notice that a segment has no more to be moved.
        sparse.map(|(_, segment)| segment.pages + 1).sum()
    }
}

/// Cuts off the end of the file of a database that is not open, if nothing lies there; how often sled has to be told to
/// move a page, and how large the file is now. Its snapshot says what lies where, and is durable.
///
/// sled fills what is not used with zeros when it opens a database, at the end of the file as well.
pub(super) fn trim(folder: &Path, file: &File) -> io::Result<(u64, u64)> {
    let bytes = file.metadata()?.len();
    let Some(usage) = Usage::read(folder) else {
        return Ok((0, bytes));
    };
    if usage.end() < bytes && step("sled.trim")? {
        file.set_len(usage.end())?;
        point("sled.trimmed");
        file.sync_all()?;
    }
    let bytes = bytes.min(usage.end());
    Ok((usage.moves(bytes), bytes))
}

/// What is left of a snapshot.
struct Snapshot<'a>(&'a [u8]);

impl<'a> Snapshot<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A number in one to nine bytes.
    fn number(&mut self) -> Option<u64> {
        let first = u64::from(*self.bytes(1)?.first()?);
        let mut byte = || Some(u64::from(*self.bytes(1)?.first()?));
        Some(match first {
            0..=240 => first,
            241..=248 => 240 + 256 * (first - 241) + byte()?,
            249 => 2_288 + 256 * byte()? + byte()?,
            _ => {
                let bytes = self.bytes(usize::try_from(first - 247).ok()?)?;
                let mut number = [0; 8];
                number[..bytes.len()].copy_from_slice(bytes);
                u64::from_le_bytes(number)
            }
        })
    }

    /// Where something lies in the file; none of ours lies in a file of its own.
    fn place(&mut self) -> Option<u64> {
        match self.bytes(1)? {
            [0] => self.number(),
            _ => None,
        }
    }
}

pub(super) const SEGMENT: u64 = SEGMENT_BYTES as u64;
/// sled moves what lies in segments that are used up to this part only.
const SPARSE_PERCENT: u64 = 50;
/// A file may be larger than twice what lies in it by so much: sled needs some segments to write to.
pub(super) const SLACK_BYTES: u64 = 8 * SEGMENT;
/// sled counts so many bytes for the note that a page is free.
const NOTE_BYTES: u64 = 32;
/// A length and a checksum end a snapshot.
const CHECK_BYTES: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(active: u64, segments: &[(u64, u64, u64)]) -> Usage {
        let segments = segments.iter();
        let segments = segments.map(|(at, bytes, pages)| {
            let (bytes, pages) = (*bytes, *pages);
            (*at, Segment { bytes, pages })
        });
        Usage {
            segments: segments.collect(),
            active: Some(active),
        }
    }

    #[test]
    fn pages_are_moved_out_of_sparse_segments_if_the_file_is_much_larger_than_what_lies_in_it() {
        let half = SEGMENT / 2;
        let of = usage(3, &[(0, SEGMENT, 9), (1, half, 7), (2, 90, 3), (3, 90, 4)]);
        let enough = 2 * of.bytes() + SLACK_BYTES;
        assert_eq!(of.moves(enough), 0);
        assert_eq!(of.moves(enough + 1), 7 + 1 + 3 + 1);
        assert_eq!(of.end(), 4 * SEGMENT);
        assert_eq!(usage(5, &[(1, 90, 1)]).end(), 6 * SEGMENT);
        assert_eq!(Usage::default().end(), 0);
    }

    #[test]
    fn a_snapshot_of_sled_tells_where_pages_lie_and_a_damaged_one_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let config = recovery::config(folder.path(), 1 << 20);
        let value = vec![7; 60 << 10];
        for _ in 0..2 {
            let sled = config.open().unwrap();
            for window in 0..24_u8 {
                let tree = sled.open_tree([window]).unwrap();
                for key in 0..8_u8 {
                    tree.insert([key], &*value).unwrap();
                }
            }
            for window in 4..24_u8 {
                sled.drop_tree([window]).unwrap();
            }
        }
        // A snapshot is made when it is opened.
        drop(config.open().unwrap());
        let found = Usage::read(folder.path()).unwrap();
        let left = 4 * 8 * value.len() as u64;
        assert!(
            (left..left + (1 << 20)).contains(&found.bytes()),
            "{found:?}"
        );
        assert!(found.segments.values().all(|segment| segment.pages > 0));
        let (_, path) = recovery::snapshots(folder.path()).unwrap().pop().unwrap();
        let whole = fs::read(path).unwrap();
        assert_eq!(Usage::parse(&whole).as_ref(), Some(&found));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            assert_eq!(Usage::parse(&damaged), None, "byte {at}");
        }
        assert_eq!(Usage::parse(&whole[..7]), None);
    }
}
