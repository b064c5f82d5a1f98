//! What lies in the bodies of groups: pieces of pushed requests, and blobs.
//!
//! ```text
//! piece    ┌ header 16 ┐┌ request ┐┌ request ┐ ... ┌ roster ┐┌ trailer 20 ┐
//! header   ┌ back 4 ┐┌ bytes 4 ┐┌ requests 4 ┐┌ check 4 ┐
//!          distance to the piece before it in the same stretch, 0 for the first; the bytes of all of the piece
//! request  ┌ check 4 ┐┌ payload check 4 ┐┌ extras check 4 ┐┌ payload 4 ┐┌ id 8 ┐┌ pushed at 8 ┐┌ extras 2 ┐┌ mark 2 ┐
//!          ┌ extras ┐┌ payload ┐
//! roster   of each request, as variable-length numbers: how far its id is behind the one before, its payload bytes
//! trailer  ┌ back 4 ┐┌ bytes 4 ┐┌ requests 4 ┐┌ roster bytes 4 ┐┌ check of roster and trailer 4 ┐
//! ```
//! Numbers are little-endian; checks are CRC-32. To those of headers and trailers a number is added that the salt of
//! the store and the place make, so that no payload passes for a request, not even a copy of one.
//!
//! Whatever is damaged, a stretch has as many requests as were pushed into it:
//! - A request whose payload or extras are damaged is known by its header.
//! - One whose header is damaged is known by the roster. Where pieces begin and how long they are is in their
//!   headers and in their trailers.
//! - Where the roster is damaged, too, requests that are left are found by their headers. Those that are missing
//!   are named by what is kept in memory of ids, if they are; for each of the others an id stands in, which lies
//!   where it lay and is nobody else's.
//!
//! A piece is written while it grows: until it ends its header says 0 bytes, and it has no roster.

mod known;
mod salvage;

use bytes::Bytes;
use crc32fast::Hasher;

pub(super) use self::known::Known;
use super::{
    codec::{self, Codec, Input, record},
    log::{
        Place,
        fault::{self, Fault},
    },
    state::{Blob, Stretch},
};
use crate::{
    error::{Error, Result},
    request::{Attributes, NewRequest},
};

const PIECE_HEADER: usize = 16;
const TRAILER: usize = 20;
const REQUEST_HEADER: usize = 36;
/// What is whole, at least as far as its header tells.
const WHOLE: u16 = 0xb47c;
/// What had to be copied and was known by the roster only, or by nothing.
const LOST: u16 = 0xb47d;
const STAND_IN: u16 = 0xb47e;

record! {
    /// What a few requests have besides their payload.
    struct Extras {
        due: Option<u64>,
        expires_at: Option<u64>,
        attributes: Attributes,
    }

    /// A recorded outcome.
    struct Outcome {
        position: u64,
        id: u64,
        at: u64,
        attempts: u32,
        kind: u8,
        result: Option<Bytes>,
        reason: u8,
        error: String,
        not_before: Option<u64>,
    }
}

/// What goes into a check besides the bytes: the store, and where in the log they lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Anchor {
    pub(super) salt: u64,
    pub(super) place: Place,
}

impl Anchor {
    /// Of what lies so many bytes behind it.
    pub(super) fn behind(self, bytes: usize) -> Self {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let offset = self.place.offset.saturating_add(bytes);
        Self {
            place: Place {
                offset,
                ..self.place
            },
            ..self
        }
    }

    fn check(self, parts: &[&[u8]]) -> u32 {
        let mut hasher = Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize() ^ self.mask()
    }

    /// What is added to a check: numbers that nobody can tell who does not know the salt.
    fn mask(self) -> u32 {
        let place = u64::from(self.place.segment) << 32 | u64::from(self.place.offset);
        let product = u128::from(place ^ self.salt) * u128::from(MIX ^ self.salt.rotate_left(32));
        let words = [product, product >> 32, product >> 64, product >> 96];
        let folded = words.iter().fold(0, |folded, word| folded ^ word);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "all of it was folded into this"
        )]
        let mask = folded as u32;
        mask
    }
}

/// A request as it is about to be written: all that can be made before its id is known.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) payload: Bytes,
    payload_check: u32,
    extras: Vec<u8>,
    pub(super) due: Option<u64>,
    pub(super) expires_at: Option<u64>,
}

impl Draft {
    pub(super) fn new(request: NewRequest, due: Option<u64>, expires_at: Option<u64>) -> Self {
        let mut extras = Vec::new();
        if due.is_some() || expires_at.is_some() || !request.attributes.is_empty() {
            let attributes = request.attributes;
            let all = Extras {
                due,
                expires_at,
                attributes,
            };
            all.put(&mut extras);
        }
        Self {
            payload_check: crc32fast::hash(&request.payload),
            payload: request.payload,
            extras,
            due,
            expires_at,
        }
    }

    /// The bytes that it takes in a piece, at most.
    pub(super) fn bytes(&self) -> usize {
        REQUEST_HEADER + self.extras.len() + self.payload.len() + ENTRY
    }

    /// Writes it; `anchor` is where it will lie.
    pub(super) fn put(&self, id: u64, pushed_at: u64, anchor: Anchor, out: &mut Vec<u8>) {
        let header = Header {
            payload_check: self.payload_check,
            extras_check: crc32fast::hash(&self.extras),
            // Payloads have at most 64 MiB and attributes a few KiB: requests are validated.
            payload: u32::try_from(self.payload.len()).unwrap_or(u32::MAX),
            id,
            pushed_at,
            extras: u16::try_from(self.extras.len()).unwrap_or(u16::MAX),
            mark: WHOLE,
        };
        out.reserve(self.bytes());
        out.extend_from_slice(&header.encode(anchor));
        out.extend_from_slice(&self.extras);
        out.extend_from_slice(&self.payload);
    }
}

/// The header of a request.
struct Header {
    payload_check: u32,
    extras_check: u32,
    payload: u32,
    id: u64,
    pushed_at: u64,
    extras: u16,
    mark: u16,
}

impl Header {
    fn encode(&self, anchor: Anchor) -> [u8; REQUEST_HEADER] {
        let mut bytes = [0; REQUEST_HEADER];
        bytes[4..8].copy_from_slice(&self.payload_check.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.extras_check.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.pushed_at.to_le_bytes());
        bytes[32..34].copy_from_slice(&self.extras.to_le_bytes());
        bytes[34..36].copy_from_slice(&self.mark.to_le_bytes());
        let check = anchor.check(&[&bytes[4..]]);
        bytes[..4].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], anchor: Anchor) -> Option<Self> {
        let small = |from: usize| Some(u32::from_le_bytes(*bytes[from..].first_chunk()?));
        let large = |from: usize| Some(u64::from_le_bytes(*bytes[from..].first_chunk()?));
        let tiny = |from: usize| Some(u16::from_le_bytes(*bytes[from..].first_chunk()?));
        let mark = tiny(34)?;
        let is_one = matches!(mark, WHOLE | LOST | STAND_IN);
        if !is_one || anchor.check(&[&bytes[4..REQUEST_HEADER]]) != small(0)? {
            return None;
        }
        Some(Self {
            payload_check: small(4)?,
            extras_check: small(8)?,
            payload: small(12)?,
            id: large(16)?,
            pushed_at: large(24)?,
            extras: tiny(32)?,
            mark,
        })
    }
}

/// What can't be read of a request, its payload aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Extras,
    Header,
    Id,
}

/// A stored request, by where it lies in the bytes of its stretch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) id: u64,
    /// Of one whose header is damaged: its id, which is about the time.
    pub(super) pushed_at: u64,
    pub(super) bytes: u64,
    payload_check: u32,
    extras: (usize, usize),
    payload: usize,
    loss: Option<Loss>,
}

impl Found {
    /// The request whose header lies at `at`, if one does, and where it ends; `anchor` is where the stretch lies.
    fn at(stretch: &[u8], at: usize, anchor: Anchor) -> Option<(Self, usize)> {
        let header = stretch.get(at..at + REQUEST_HEADER)?;
        let header = Header::decode(header, anchor.behind(at))?;
        let extras = (
            at + REQUEST_HEADER,
            at + REQUEST_HEADER + usize::from(header.extras),
        );
        let end = extras.1 + header.payload as usize;
        if end > stretch.len() {
            return None;
        }
        let is_legible = header.extras == 0
            || crc32fast::hash(&stretch[extras.0..extras.1]) == header.extras_check;
        let (loss, bytes) = match header.mark {
            // Its payload is not here, and the check of it is how long it was.
            LOST => (Some(Loss::Header), header.payload_check),
            STAND_IN => (Some(Loss::Id), header.payload_check),
            _ if !is_legible => (Some(Loss::Extras), header.payload),
            _ => (None, header.payload),
        };
        let found = Self {
            id: header.id,
            pushed_at: header.pushed_at,
            bytes: bytes.into(),
            payload_check: header.payload_check,
            extras,
            payload: extras.1,
            loss,
        };
        Some((found, end))
    }

    /// One of which nothing is left.
    fn lost(id: u64, bytes: u64, loss: Loss) -> Self {
        Self {
            id,
            pushed_at: id,
            bytes,
            payload_check: 0,
            extras: (0, 0),
            payload: 0,
            loss: Some(loss),
        }
    }

    /// Copies it to the end of a piece, with its payload or without; `anchor` is where it will lie.
    pub(super) fn copy(&self, stretch: &[u8], payload: bool, anchor: Anchor, out: &mut Vec<u8>) {
        let is_whole = self.loss.is_none();
        #[expect(clippy::cast_possible_truncation, reason = "it lies in memory")]
        let bytes = if payload { self.bytes as u32 } else { 0 };
        let end = self.payload + if is_whole { bytes as usize } else { 0 };
        let extras = if is_whole { self.extras } else { (0, 0) };
        let extras = &stretch[extras.0..extras.1];
        let header = Header {
            payload_check: match (is_whole, payload) {
                (true, true) => self.payload_check,
                (true, false) => crc32fast::hash(&[]),
                (false, _) => bytes,
            },
            extras_check: crc32fast::hash(extras),
            payload: if is_whole { bytes } else { 0 },
            id: self.id,
            pushed_at: self.pushed_at,
            extras: u16::try_from(extras.len()).unwrap_or(u16::MAX),
            mark: match self.loss {
                None => WHOLE,
                Some(Loss::Extras | Loss::Header) => LOST,
                Some(Loss::Id) => STAND_IN,
            },
        };
        out.extend_from_slice(&header.encode(anchor));
        out.extend_from_slice(extras);
        if is_whole {
            out.extend_from_slice(&stretch[self.payload..end]);
        }
    }

    /// Whether more than its payload is damaged.
    pub(super) fn is_lost(&self) -> bool {
        self.loss.is_some()
    }

    /// What is damaged besides its payload.
    pub(super) fn lost_of_it(&self) -> Option<&'static str> {
        Some(match self.loss? {
            Loss::Extras => "its stored attributes are damaged",
            Loss::Header => "what was stored of it is damaged",
            Loss::Id => {
                "what was stored of it is damaged, even its id, for which this one stands in"
            }
        })
    }

    /// What else was pushed, as far as it is legible.
    pub(super) fn extras(&self, stretch: &[u8]) -> Result<Extras> {
        match self.extras {
            (from, to) if from == to || self.loss.is_some() => Ok(Extras::default()),
            (from, to) => codec::whole(&stretch[from..to]),
        }
    }

    /// When it expires, if it does.
    pub(super) fn expires_at(&self, stretch: &[u8]) -> Result<Option<u64>> {
        Ok(self.extras(stretch)?.expires_at)
    }

    /// Its payload, if all of it is as it was pushed; or what is damaged.
    pub(super) fn payload(&self, stretch: &Bytes) -> Result<Bytes, &'static str> {
        if let Some(loss) = self.lost_of_it() {
            return Err(loss);
        }
        #[expect(clippy::cast_possible_truncation, reason = "it lies in memory")]
        let payload = stretch.slice(self.payload..self.payload + self.bytes as usize);
        let is_right = crc32fast::hash(&payload) == self.payload_check;
        if !is_right && !fault::is(Fault::TrustPayloads) {
            return Err("its stored payload is damaged");
        }
        Ok(payload)
    }
}

/// The ids and sizes of the requests of a piece, as they are written behind them.
#[derive(Debug, Default)]
pub(super) struct Roster {
    bytes: Vec<u8>,
    last: u64,
    requests: u32,
}

impl Roster {
    pub(super) fn add(&mut self, id: u64, bytes: u64) {
        id.saturating_sub(self.last).put(&mut self.bytes);
        bytes.put(&mut self.bytes);
        self.last = id;
        self.requests += 1;
    }

    /// What it takes at the end of its piece, with the trailer.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len() + TRAILER
    }

    /// The id and size of each.
    fn read(bytes: &[u8], requests: u32) -> Option<Vec<(u64, u64)>> {
        let mut input = Input::new(bytes);
        let mut all = Vec::new();
        let mut last = 0_u64;
        while !input.is_empty() {
            let distance = u64::take(&mut input).ok()?;
            last = last.checked_add(distance)?;
            all.push((last, u64::take(&mut input).ok()?));
        }
        (all.len() == requests as usize).then_some(all)
    }
}

/// Begins a piece, which lies at `anchor`, `back` bytes behind the one before it in its stretch.
pub(super) fn begin_piece(out: &mut Vec<u8>, anchor: Anchor, back: u32) {
    out.extend_from_slice(&piece_header(anchor, [back, 0, 0]));
}

/// Ends the piece that begins at `from`.
pub(super) fn end_piece(
    out: &mut Vec<u8>,
    (from, anchor): (usize, Anchor),
    back: u32,
    roster: &Roster,
) {
    let bytes = u32::try_from(out.len() - from + roster.bytes()).unwrap_or(u32::MAX);
    let header = piece_header(anchor, [back, bytes, roster.requests]);
    out[from..from + PIECE_HEADER].copy_from_slice(&header);
    out.extend_from_slice(&roster.bytes);
    let anchor = anchor.behind(out.len() - from);
    let listed = u32::try_from(roster.bytes.len()).unwrap_or(u32::MAX);
    let numbers = [back, bytes, roster.requests, listed].map(u32::to_le_bytes);
    let check = anchor.check(&[&roster.bytes, numbers.as_flattened()]);
    out.extend_from_slice(numbers.as_flattened());
    out.extend_from_slice(&check.to_le_bytes());
}

fn piece_header(anchor: Anchor, numbers: [u32; 3]) -> [u8; PIECE_HEADER] {
    let mut header = [0; PIECE_HEADER];
    header[..12].copy_from_slice(numbers.map(u32::to_le_bytes).as_flattened());
    let check = anchor.check(&[&header[..12]]);
    header[12..].copy_from_slice(&check.to_le_bytes());
    header
}

/// All requests of a stretch in order, the damaged ones included.
pub(super) fn requests(bytes: &[u8], stretch: &Stretch, known: &Known) -> Vec<Found> {
    let anchor = Anchor {
        salt: known.salt,
        place: Place {
            segment: stretch.segment,
            offset: stretch.offset,
        },
    };
    let pieces = Pieces { bytes, anchor };
    let whole = pieces.walk(stretch.tail as usize, stretch.requests);
    whole.unwrap_or_else(|| pieces.salvage(stretch, known))
}

/// The pieces of a stretch, and where that lies.
struct Pieces<'a> {
    bytes: &'a [u8],
    anchor: Anchor,
}

impl Pieces<'_> {
    /// What the header of the piece at `at` says: how far back the one before is, how long this one is, and how
    /// many requests it has.
    fn header(&self, at: usize) -> Option<(usize, usize, u32)> {
        let header = self.bytes.get(at..at + PIECE_HEADER)?;
        let number = |from: usize| Some(u32::from_le_bytes(*header[from..].first_chunk()?));
        let check = self.anchor.behind(at).check(&[&header[..12]]);
        let is_one = check == number(12)?;
        is_one.then_some((number(0)? as usize, number(4)? as usize, number(8)?))
    }

    /// Walks along the pieces, if all is whole but payloads and extras.
    fn walk(&self, tail: usize, requests: u32) -> Option<Vec<Found>> {
        let mut pieces = Vec::new();
        let mut at = tail;
        let mut left = requests;
        loop {
            let (back, _, requests) = self.header(at)?;
            let begins = at + PIECE_HEADER;
            if back == 0 {
                pieces.push((begins, requests));
                break;
            }
            at = at.checked_sub(back)?;
            pieces.push((begins, requests));
        }
        for (_, requests) in &pieces[1..] {
            left = left.checked_sub(*requests)?;
        }
        // The last one may be growing, or have grown since.
        pieces[0].1 = left;
        let most = self.bytes.len() / REQUEST_HEADER;
        let mut all = Vec::with_capacity(most.min(requests as usize));
        for (mut at, requests) in pieces.into_iter().rev() {
            for _ in 0..requests {
                let (found, next) = Found::at(self.bytes, at, self.anchor)?;
                all.push(found);
                at = next;
            }
        }
        Some(all)
    }
}

/// What a blob holds, if it is whole.
pub(super) fn blob_value<T: Codec>(blob: Blob, bytes: &[u8]) -> Result<T> {
    check_blob(blob, bytes)?;
    codec::whole(bytes)
}

/// Fails if the bytes of a blob are not what was written.
pub(super) fn check_blob(blob: Blob, bytes: &[u8]) -> Result<()> {
    if crc32fast::hash(bytes) == blob.check {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "the journal is damaged in segment {} at {}",
        blob.segment, blob.offset
    )))
}

/// Half of its bits are set, without a pattern: 2^64 divided by the golden ratio.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
/// An entry of a roster takes at most so many bytes.
const ENTRY: usize = 20;
/// What a request, or a piece, takes at most besides its extras and its payload.
pub(super) const MOST_BESIDES: usize = REQUEST_HEADER + ENTRY;

#[cfg(test)]
mod tests;
