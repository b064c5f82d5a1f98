//! What lies in the bodies of groups: pieces of pushed requests, and blobs.
//!
//! ```text
//! piece    ┌ back 4 ┐┌ bytes 4 ┐┌ requests 4 ┐┌ check 4 ┐┌ request ┐┌ request ┐ ...
//!          distance to the piece before it in the same stretch, 0 for the first
//! request  ┌ check 4 ┐┌ payload check 4 ┐┌ id 8 ┐┌ pushed at 8 ┐┌ payload 4 ┐┌ extras 2 ┐┌ mark 2 ┐┌ extras ┐┌ payload ┐
//! ```
//! Numbers are little-endian; checks are CRC-32. The check of a request covers its header and extras, so
//! a damaged payload still tells whose it is. A piece is written while it grows, so its own header is
//! filled in last.

use bytes::Bytes;
use crc32fast::Hasher;

use super::{
    codec::{self, Codec, record},
    state::Blob,
};
use crate::{
    error::{Error, Result},
    request::{Attributes, NewRequest},
};

pub(super) const PIECE_HEADER: usize = 16;
const REQUEST_HEADER: usize = 32;
const MARK: u16 = 0xb47c;

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

    /// The bytes that it takes in a piece.
    pub(super) fn bytes(&self) -> usize {
        REQUEST_HEADER + self.extras.len() + self.payload.len()
    }

    pub(super) fn put(&self, id: u64, pushed_at: u64, out: &mut Vec<u8>) {
        let mut header = [0; REQUEST_HEADER];
        header[4..8].copy_from_slice(&self.payload_check.to_le_bytes());
        header[8..16].copy_from_slice(&id.to_le_bytes());
        header[16..24].copy_from_slice(&pushed_at.to_le_bytes());
        // Payloads have at most 64 MiB and attributes a few KiB: requests are validated.
        let payload = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        let extras = u16::try_from(self.extras.len()).unwrap_or(u16::MAX);
        header[24..28].copy_from_slice(&payload.to_le_bytes());
        header[28..30].copy_from_slice(&extras.to_le_bytes());
        header[30..32].copy_from_slice(&MARK.to_le_bytes());
        let check = check_of(&header, &self.extras);
        header[..4].copy_from_slice(&check.to_le_bytes());
        out.reserve(self.bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(&self.extras);
        out.extend_from_slice(&self.payload);
    }
}

fn check_of(header: &[u8], extras: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&header[4..]);
    hasher.update(extras);
    hasher.finalize()
}

/// A stored request, by where it lies in the bytes of its stretch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) id: u64,
    pub(super) pushed_at: u64,
    pub(super) bytes: u64,
    payload_check: u32,
    extras: (usize, usize),
    payload: usize,
}

impl Found {
    /// The request whose header lies at `at`, if one does.
    fn at(stretch: &[u8], at: usize) -> Option<(Self, usize)> {
        let header = stretch.get(at..at + REQUEST_HEADER)?;
        let small = |from: usize| Some(u32::from_le_bytes(*header[from..].first_chunk()?));
        let large = |from: usize| Some(u64::from_le_bytes(*header[from..].first_chunk()?));
        let payload_bytes = small(24)?;
        let last = small(28)?;
        let (extras_bytes, mark) = ((last & 0xffff) as usize, last >> 16);
        let extras = (at + REQUEST_HEADER, at + REQUEST_HEADER + extras_bytes);
        let end = extras.1 + payload_bytes as usize;
        let is_one = mark == u32::from(MARK) && end <= stretch.len();
        if !is_one || check_of(header, &stretch[extras.0..extras.1]) != small(0)? {
            return None;
        }
        let found = Self {
            id: large(8)?,
            pushed_at: large(16)?,
            bytes: payload_bytes.into(),
            payload_check: small(4)?,
            extras,
            payload: extras.1,
        };
        Some((found, end))
    }

    /// Copies it into a piece, with its payload or without.
    pub(super) fn copy(&self, stretch: &[u8], payload: bool, out: &mut Vec<u8>) {
        let at = self.extras.0 - REQUEST_HEADER;
        #[expect(clippy::cast_possible_truncation, reason = "it lies in memory")]
        let end = self.payload + if payload { self.bytes as usize } else { 0 };
        let from = out.len();
        out.extend_from_slice(&stretch[at..end]);
        if !payload {
            let header = &mut out[from..];
            header[4..8].copy_from_slice(&crc32fast::hash(&[]).to_le_bytes());
            header[24..28].copy_from_slice(&[0; 4]);
            let (header, extras) = header.split_at_mut(REQUEST_HEADER);
            let check = check_of(header, extras);
            header[..4].copy_from_slice(&check.to_le_bytes());
        }
    }

    pub(super) fn extras(&self, stretch: &[u8]) -> Result<Extras> {
        match self.extras {
            (from, to) if from == to => Ok(Extras::default()),
            (from, to) => codec::whole(&stretch[from..to]),
        }
    }

    /// When it expires, if it does.
    pub(super) fn expires_at(&self, stretch: &[u8]) -> Result<Option<u64>> {
        Ok(self.extras(stretch)?.expires_at)
    }

    /// Its payload; `None` if that is damaged.
    pub(super) fn payload(&self, stretch: &Bytes) -> Option<Bytes> {
        #[expect(clippy::cast_possible_truncation, reason = "it lies in memory")]
        let payload = stretch.slice(self.payload..self.payload + self.bytes as usize);
        (crc32fast::hash(&payload) == self.payload_check).then_some(payload)
    }
}

/// Begins a piece: room for its header.
pub(super) fn begin_piece(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; PIECE_HEADER]);
}

/// Fills in the header of the piece that `bytes` are.
pub(super) fn end_piece(piece: &mut [u8], back: u32, requests: u32) {
    let bytes = u32::try_from(piece.len() - PIECE_HEADER).unwrap_or(u32::MAX);
    piece[..4].copy_from_slice(&back.to_le_bytes());
    piece[4..8].copy_from_slice(&bytes.to_le_bytes());
    piece[8..12].copy_from_slice(&requests.to_le_bytes());
    let check = crc32fast::hash(&piece[..12]);
    piece[12..16].copy_from_slice(&check.to_le_bytes());
}

/// All requests of a stretch in order, as far as they are legible.
///
/// `tail` is where its last piece begins. Where a piece or a request is damaged, what lies around it is
/// found by looking for the next header that is whole.
pub(super) fn requests(stretch: &[u8], tail: usize, expected: u32) -> Vec<Found> {
    let mut all = Vec::with_capacity(expected as usize);
    if !walk(stretch, tail, &mut all) {
        search(stretch, &mut all);
    }
    all
}

/// Walks the pieces; false if they are not whole.
fn walk(stretch: &[u8], tail: usize, all: &mut Vec<Found>) -> bool {
    let mut pieces = Vec::new();
    let mut at = tail;
    loop {
        let Some(header) = stretch.get(at..at + PIECE_HEADER) else {
            return false;
        };
        let number = |from: usize| {
            let digits = header[from..].first_chunk();
            digits.map_or(0, |digits| u32::from_le_bytes(*digits))
        };
        let (back, bytes, requests) = (number(0) as usize, number(4) as usize, number(8));
        let end = at + PIECE_HEADER + bytes;
        if crc32fast::hash(&header[..12]) != number(12) || end > stretch.len() {
            return false;
        }
        pieces.push((at + PIECE_HEADER, end, requests));
        match back {
            0 => break,
            back if back > at => return false,
            back => at -= back,
        }
    }
    for (mut at, end, requests) in pieces.into_iter().rev() {
        for _ in 0..requests {
            match Found::at(stretch, at) {
                Some((found, next)) if next <= end => {
                    all.push(found);
                    at = next;
                }
                _ => return false,
            }
        }
    }
    true
}

/// Looks for whole headers, byte by byte.
fn search(stretch: &[u8], all: &mut Vec<Found>) {
    all.clear();
    let mut at = 0;
    while at + REQUEST_HEADER <= stretch.len() {
        match Found::at(stretch, at) {
            Some((found, end)) if all.last().is_none_or(|last| last.id < found.id) => {
                all.push(found);
                at = end;
            }
            _ => at += 1,
        }
    }
}

/// What a blob holds, if it is whole.
pub(super) fn blob_value<T: Codec>(blob: Blob, bytes: &[u8]) -> Result<T> {
    if crc32fast::hash(bytes) != blob.check {
        return Err(Error::corrupt(format!(
            "the journal is damaged in segment {} at {}",
            blob.segment, blob.offset
        )));
    }
    codec::whole(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pieces of two requests, with other bytes between them.
    fn stretch() -> (Vec<u8>, usize) {
        let mut out = Vec::new();
        let mut tail = 0;
        for piece in 0..2_u64 {
            let at = out.len();
            begin_piece(&mut out);
            for request in 0..2 {
                let new = NewRequest::new(format!("payload {piece} {request}"));
                let new = match request {
                    0 => new,
                    _ => new.attribute("a", "b"),
                };
                Draft::new(new, None, None).put(10 * piece + request, 7, &mut out);
            }
            let back = u32::try_from(at - tail).unwrap();
            end_piece(&mut out[at..], back, 2);
            tail = at;
            if piece == 0 {
                out.extend_from_slice(&[0xee; 100]);
            }
        }
        (out, tail)
    }

    fn ids(found: &[Found]) -> Vec<u64> {
        found.iter().map(|found| found.id).collect()
    }

    #[test]
    fn the_requests_of_a_stretch_are_found_in_order() {
        let (bytes, tail) = stretch();
        let found = requests(&bytes, tail, 4);
        assert_eq!(ids(&found), [0, 1, 10, 11]);
        let bytes = Bytes::from(bytes);
        assert_eq!(found[3].payload(&bytes).unwrap(), "payload 1 1");
        assert_eq!(found[3].extras(&bytes).unwrap().attributes["a"], "b");
        assert_eq!(found[0].extras(&bytes).unwrap(), Extras::default());
    }

    #[test]
    fn a_flipped_byte_costs_one_request_and_is_never_served() {
        let (whole, tail) = stretch();
        let all = requests(&whole, tail, 4);
        let shared = Bytes::from(whole.clone());
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let found = requests(&bytes, tail, 4);
            let bytes = Bytes::from(bytes);
            let mut lost = all.len();
            for found in found {
                let original = all.iter().find(|original| original.id == found.id);
                let original = original.unwrap_or_else(|| panic!("byte {at}: an id is made up"));
                if let Some(payload) = found.payload(&bytes) {
                    assert_eq!(Some(payload), original.payload(&shared), "byte {at}");
                    lost -= 1;
                }
            }
            assert!(lost <= 1, "byte {at}: {lost} requests are lost");
        }
    }
}
