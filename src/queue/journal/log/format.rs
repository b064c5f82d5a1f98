//! What the log writes, as bytes: pure functions, all integers little-endian.
//!
//! ```text
//! segment header, alone in the first 4 KiB         frame, from a 512-byte boundary on
//!   0 magic "BYSEGMNT"                               0 magic "BYGR"          36 number of the next segment
//!   8 format version                                 4 checksum of 8..64     40 sequence number
//!  12 checksum of the other 508 bytes                8 epoch                 48 number of this segment
//!  16 salt of the store                             12 bytes of its body     52 offset of this frame
//!  24 number; 0 in a spare                          16 bytes of its events   56 zeros
//!  28 oldest live segment when it was begun         20 checksum of its body
//!  32 where recovery starts, likewise               24 checksum of its events
//!  40 epoch                                         28 checksum of the frame before it
//!  44 1 if all behind it was zeros then             32 kind: group, mark, continues
//!  48 bytes of the file, at least; 0: not told      64 body | events | closing: 8 B magic, frame checksum
//! root slot, alone in 4 KiB, two of them
//!   0 magic "BYROOT.."  8 version  12 checksum  16 salt  24 generation  32 oldest  36 from  44 epoch  48 note (64)
//! ```
//!
//! The checksums of header and events start from the salt, the segment's number, the offset, the epoch and the
//! checksum of the frame before it, and number and offset are written down as well: what an earlier use of the file
//! or an earlier run has left can't pass for what belongs there. The checksum of the body is a plain CRC-32, so
//! that those who fill it can take it while the bytes are in their hands; the header's covers it.

use super::{
    Place, Root,
    fault::{self, Fault},
};

/// A frame without body and events has as many bytes, less its closing.
pub(super) const HEADER: u32 = 64;
/// Ends each frame.
pub(super) const CLOSING: u32 = 16;
/// Frames begin at its multiples; a disk writes a sector whole or not at all.
pub(super) const SECTOR: u32 = 512;
/// Writes end at its multiples, so that no page has to be read first.
pub(super) const PAGE: u32 = 4096;
/// From here on a frame is large.
const LARGE_FRAME: u64 = 32 * 1024;
/// Where the second slot of the root lies; the first is at 0.
pub(super) const SLOT: u64 = PAGE as u64;

/// The sector that heads a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// 0 in a spare.
    pub(super) number: u32,
    pub(super) oldest: u32,
    pub(super) from: Place,
    pub(super) epoch: u32,
    /// Whether all behind it was zero when it was begun.
    pub(super) fresh: bool,
    /// How long the file is, at least; 0 if that is not told.
    pub(super) length: u32,
}

/// What the first sector of a segment file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Blank,
    Damaged,
    /// Of a version that this code does not know.
    Newer(u32),
    Header(SegmentHeader),
}

/// What a frame is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Group,
    /// An empty group, which is no one's but the log's.
    Mark,
    /// The last of a segment: the log goes on in that one.
    Continues(u32),
}

/// The start of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) kind: Kind,
    pub(super) place: Place,
    pub(super) epoch: u32,
    pub(super) sequence: u64,
    pub(super) previous: u32,
    pub(super) body_bytes: u32,
    pub(super) events_bytes: u32,
    pub(super) body_checksum: u32,
    pub(super) events_checksum: u32,
    /// Its own.
    pub(super) checksum: u32,
}

/// What a root slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RootSlot {
    pub(super) generation: u64,
    pub(super) epoch: u32,
    pub(super) root: Root,
}

/// What the checksums of a frame start from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed {
    pub(super) salt: u64,
    pub(super) place: Place,
    pub(super) epoch: u32,
    pub(super) previous: u32,
}

impl Seed {
    /// The start of a checksum.
    pub(super) fn hasher(self) -> crc32fast::Hasher {
        let mut hasher = crc32fast::Hasher::new();
        if fault::is(Fault::AcceptStale) {
            return hasher;
        }
        hasher.update(&self.salt.to_le_bytes());
        for field in [
            self.place.segment,
            self.place.offset,
            self.epoch,
            self.previous,
        ] {
            hasher.update(&field.to_le_bytes());
        }
        hasher
    }

    /// The checksum of one stretch of bytes.
    pub(super) fn checksum(self, bytes: &[u8]) -> u32 {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// Where the next frame begins behind one at `offset`. Small ones share a page; behind a large one a page is
/// begun, because the next is likely to be as large and is faster to write from there.
pub(super) fn frame_end(offset: u32, body: u64, events: u64) -> u64 {
    let bytes = u64::from(HEADER + CLOSING) + body + events;
    let boundary = if bytes < LARGE_FRAME { SECTOR } else { PAGE };
    (u64::from(offset) + bytes).next_multiple_of(boundary.into())
}

impl SegmentHeader {
    pub(super) fn encode(&self, salt: u64) -> [u8; SECTOR as usize] {
        let mut bytes = [0; SECTOR as usize];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        put(&mut bytes, 8, VERSION);
        bytes[16..24].copy_from_slice(&salt.to_le_bytes());
        let fields = [
            self.number,
            self.oldest,
            self.from.segment,
            self.from.offset,
            self.epoch,
        ];
        let more = [self.fresh.into(), self.length];
        for (index, field) in fields.into_iter().chain(more).enumerate() {
            put(&mut bytes, 24 + 4 * index, field);
        }
        seal(&mut bytes);
        bytes
    }

    pub(super) fn decode(bytes: &[u8; SECTOR as usize], salt: u64) -> Head {
        if *bytes == [0; SECTOR as usize] {
            return Head::Blank;
        }
        if bytes[..8] != *SEGMENT_MAGIC || !is_sealed(bytes) || long(bytes, 16) != salt {
            return Head::Damaged;
        }
        if word(bytes, 8) != VERSION {
            return Head::Newer(word(bytes, 8));
        }
        Head::Header(Self {
            number: word(bytes, 24),
            oldest: word(bytes, 28),
            from: Place {
                segment: word(bytes, 32),
                offset: word(bytes, 36),
            },
            epoch: word(bytes, 40),
            fresh: word(bytes, 44) == 1,
            length: word(bytes, 48),
        })
    }
}

impl FrameHeader {
    /// What all checksums of this frame start from.
    pub(super) fn seed(&self, salt: u64) -> Seed {
        Seed {
            salt,
            place: self.place,
            epoch: self.epoch,
            previous: self.previous,
        }
    }

    /// Where the next frame may begin.
    pub(super) fn end(&self) -> u32 {
        let end = frame_end(
            self.place.offset,
            self.body_bytes.into(),
            self.events_bytes.into(),
        );
        u32::try_from(end).unwrap_or(u32::MAX)
    }

    /// The bytes; its checksum becomes known with them.
    pub(super) fn encode(&mut self, salt: u64) -> [u8; HEADER as usize] {
        let mut bytes = [0; HEADER as usize];
        bytes[..4].copy_from_slice(FRAME_MAGIC);
        let (kind, next) = match self.kind {
            Kind::Group => (1, 0),
            Kind::Mark => (2, 0),
            Kind::Continues(next) => (3, next),
        };
        let fields = [
            self.epoch,
            self.body_bytes,
            self.events_bytes,
            self.body_checksum,
            self.events_checksum,
            self.previous,
            kind,
            next,
        ];
        for (index, field) in fields.into_iter().enumerate() {
            put(&mut bytes, 8 + 4 * index, field);
        }
        bytes[40..48].copy_from_slice(&self.sequence.to_le_bytes());
        put(&mut bytes, 48, self.place.segment);
        put(&mut bytes, 52, self.place.offset);
        self.checksum = self.seed(salt).checksum(&bytes[8..]);
        put(&mut bytes, 4, self.checksum);
        bytes
    }

    /// The header of a frame at this place, if these bytes are one.
    pub(super) fn decode(bytes: &[u8], salt: u64, place: Place) -> Option<Self> {
        let header = Self::decode_anywhere(bytes, salt)?;
        if fault::is(Fault::AcceptStale) && header.kind == Kind::Group {
            return Some(Self { place, ..header });
        }
        (header.place == place).then_some(header)
    }

    /// The same, wherever it says that it lies.
    pub(super) fn decode_anywhere(bytes: &[u8], salt: u64) -> Option<Self> {
        if bytes.len() < HEADER as usize || bytes[..4] != *FRAME_MAGIC {
            return None;
        }
        let kind = match (word(bytes, 32), word(bytes, 36)) {
            (1, 0) => Kind::Group,
            (2, 0) => Kind::Mark,
            // Never back, so that whoever follows it gets to an end.
            (3, next) if next > word(bytes, 48) => Kind::Continues(next),
            _ => return None,
        };
        let header = Self {
            kind,
            place: Place {
                segment: word(bytes, 48),
                offset: word(bytes, 52),
            },
            epoch: word(bytes, 8),
            sequence: long(bytes, 40),
            previous: word(bytes, 28),
            body_bytes: word(bytes, 12),
            events_bytes: word(bytes, 16),
            body_checksum: word(bytes, 20),
            events_checksum: word(bytes, 24),
            checksum: word(bytes, 4),
        };
        let sum = header.seed(salt).checksum(&bytes[8..HEADER as usize]);
        (sum == header.checksum).then_some(header)
    }

    /// What its last bytes are.
    pub(super) fn closing(&self) -> [u8; CLOSING as usize] {
        let mut bytes = [0; CLOSING as usize];
        bytes[..8].copy_from_slice(CLOSING_MAGIC);
        put(&mut bytes, 8, self.checksum);
        put(&mut bytes, 12, !self.checksum);
        bytes
    }
}

impl RootSlot {
    pub(super) fn encode(&self, salt: u64) -> [u8; SECTOR as usize] {
        let mut bytes = [0; SECTOR as usize];
        bytes[..8].copy_from_slice(ROOT_MAGIC);
        put(&mut bytes, 8, VERSION);
        bytes[16..24].copy_from_slice(&salt.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.generation.to_le_bytes());
        let from = self.root.from;
        let fields = [self.root.oldest, from.segment, from.offset, self.epoch];
        for (index, field) in fields.into_iter().enumerate() {
            put(&mut bytes, 32 + 4 * index, field);
        }
        bytes[48..112].copy_from_slice(&self.root.note);
        seal(&mut bytes);
        bytes
    }

    pub(super) fn decode(bytes: &[u8; SECTOR as usize], salt: u64) -> Option<Self> {
        let ours = bytes[..8] == *ROOT_MAGIC && word(bytes, 8) == VERSION;
        if !ours || !is_sealed(bytes) || long(bytes, 16) != salt {
            return None;
        }
        let mut note = [0; 64];
        note.copy_from_slice(&bytes[48..112]);
        Some(Self {
            generation: long(bytes, 24),
            epoch: word(bytes, 44),
            root: Root {
                oldest: word(bytes, 32),
                from: Place {
                    segment: word(bytes, 36),
                    offset: word(bytes, 40),
                },
                note,
            },
        })
    }
}

/// The salt in a segment header or a root slot, if it is whole.
pub(super) fn salt(bytes: &[u8; SECTOR as usize]) -> Option<u64> {
    let is_ours = bytes[..8] == *SEGMENT_MAGIC || bytes[..8] == *ROOT_MAGIC;
    (is_ours && is_sealed(bytes)).then(|| long(bytes, 16))
}

fn seal(bytes: &mut [u8; SECTOR as usize]) {
    let sum = sector_checksum(bytes);
    put(bytes, 12, sum);
}

fn is_sealed(bytes: &[u8; SECTOR as usize]) -> bool {
    word(bytes, 12) == sector_checksum(bytes)
}

fn sector_checksum(bytes: &[u8; SECTOR as usize]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..12]);
    hasher.update(&bytes[16..]);
    hasher.finalize()
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(long)
}

const SEGMENT_MAGIC: &[u8; 8] = b"BYSEGMNT";
const ROOT_MAGIC: &[u8; 8] = b"BYROOT..";
const FRAME_MAGIC: &[u8; 4] = b"BYGR";
const CLOSING_MAGIC: &[u8; 8] = b"BYGREND.";
const VERSION: u32 = 1;
