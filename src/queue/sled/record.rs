//! Records: what a value looks like on disk.
//!
//! ```text
//! ┌──────┬─────────┬───────────────┬───────────────┬──────────┬────────────────┬──────┐
//! │ kind │ version │ head length   │ body length   │ CRC-32   │ head (bincode) │ body │
//! │ u8   │ u8      │ u32           │ u32           │ u32      │                │      │
//! └──────┴─────────┴───────────────┴───────────────┴──────────┴────────────────┴──────┘
//! ```
//! Numbers of the frame are little-endian. The checksum covers the key and everything but itself, so
//! a value can't pass for another key's. Payload bytes are the body, outside serde. A version is one
//! frozen struct: a changed struct is a new version beside the old one, and an unknown version is an
//! error, never a guess. This is the only module that knows bincode.

use std::collections::BTreeMap;

use bincode::Options;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::keys::Tree;
use crate::{
    error::{Error, Result},
    queue::transfer::Digest,
};

/// A kind of record, in its current version.
pub(super) trait Record: Serialize + DeserializeOwned {
    /// Tells it from all other kinds; never reused.
    const KIND: u8;
    /// The version of the struct.
    const VERSION: u8 = 1;
}

/// The bytes before the head.
const FRAME_BYTES: usize = 14;

macro_rules! records {
    ($($record:ident = $kind:literal),* $(,)?) => {
        $(impl Record for $record { const KIND: u8 = $kind; })*
    };
}

records! {
    StoreV1 = 1, CountsV1 = 2, QueueV1 = 3, RequestV1 = 4, DeadV1 = 5, PartV1 = 6, PlaceV1 = 7,
    BatchV1 = 8, NoteV1 = 9, OutcomeV1 = 10, SettledV1 = 11, KeptV1 = 12, KeyV1 = 13,
    KeyExpiryV1 = 14, MarkV1 = 15, BookmarkV1 = 16, ChunkV1 = 17,
}

/// The store.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoreV1 {
    /// As in the store's `FORMAT` file.
    pub(super) uuid: String,
}

/// What the store must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CountsV1 {
    /// How many commits there ever were.
    pub(super) commits: u64,
    /// Entries per tree, in the order of [`Tree::ALL`].
    pub(super) entries: Vec<u64>,
}

impl CountsV1 {
    /// Of an empty store.
    pub(super) fn new() -> Self {
        Self {
            commits: 0,
            entries: vec![0; Tree::ALL.len()],
        }
    }
}

/// A queue: its counters and how far it has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct QueueV1 {
    pub(super) name: String,
    pub(super) salt: u64,
    /// Requests up to this position are members of batches or gone; those after it are ready.
    pub(super) cursor: u64,
    /// The last position given; what lies after it was never answered.
    pub(super) last_position: u64,
    pub(super) last_batch: u64,
    pub(super) last_fence: u64,
    pub(super) last_settled: u64,
    pub(super) pushed: u64,
    pub(super) delayed: u64,
    pub(super) ready: u64,
    pub(super) ready_bytes: u64,
    pub(super) in_flight: u64,
    pub(super) done: u64,
    pub(super) dead: u64,
    pub(super) expired: u64,
    pub(super) cancelled: u64,
    pub(super) purged: u64,
    pub(super) held_bytes: u64,
}

impl QueueV1 {
    /// A queue that nothing was pushed to yet.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            salt: fastrand::u64(..),
            cursor: 0,
            last_position: 0,
            last_batch: 0,
            last_fence: 0,
            last_settled: 0,
            pushed: 0,
            delayed: 0,
            ready: 0,
            ready_bytes: 0,
            in_flight: 0,
            done: 0,
            dead: 0,
            expired: 0,
            cancelled: 0,
            purged: 0,
            held_bytes: 0,
        }
    }
}

/// Rows of `requests` that were pushed together; they are the body, one after the other.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ChunkV1 {
    /// As they were after the commit that wrote this, unless there was a later one.
    pub(super) counts: CountsV1,
    /// The queue after that commit.
    pub(super) queue: QueueV1,
    /// The payload bytes of all its rows, if each is where it was pushed and has no parts.
    pub(super) plain: Option<u64>,
    /// For each row: how far its position is from the chunk's, and its bytes.
    pub(super) rows: Vec<(u64, u32)>,
}

/// A waiting request or a member; the body is its payload, unless that is in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RequestV1 {
    pub(super) id: u64,
    pub(super) pushed_at: u64,
    pub(super) ready_at: u64,
    pub(super) expires_at: Option<u64>,
    pub(super) attempts: u32,
    pub(super) error: Option<String>,
    pub(super) attributes: BTreeMap<String, String>,
    /// The bytes of the payload.
    pub(super) bytes: u64,
    /// How many parts it is in; 0 if it is the body.
    pub(super) parts: u32,
}

/// A dead letter; the body is its payload, unless that is in parts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DeadV1 {
    pub(super) request: RequestV1,
    pub(super) at: u64,
    pub(super) batch: Option<u128>,
    pub(super) reason: u8,
    /// Where it is in `settled`.
    pub(super) sequence: u64,
}

/// A part of a payload or result, which is the body.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PartV1 {}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PlaceV1 {
    /// In `requests`, ready or member of a batch.
    At(u64),
    /// In `delayed`: due time, position it had.
    Delayed(u64, u64),
}

/// A batch. Its members are the entries of `requests` from `first` to `last`: nothing else is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, as they are on disk"
)]
pub(super) struct BatchV1 {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) requests: u32,
    pub(super) bytes: u64,
    pub(super) formed_at: u64,
    pub(super) parent: Option<u128>,
    pub(super) prior: u32,
    pub(super) attempt: u32,
    pub(super) fence: u64,
    pub(super) held: bool,
    /// The end of the lease if it is held, else the time from which it is offered.
    pub(super) until: u64,
    /// Members without an outcome, and their payload bytes.
    pub(super) open: u32,
    pub(super) open_bytes: u64,
    /// Members with a retry or reject outcome, and their payload bytes.
    pub(super) verdicts: u32,
    pub(super) verdict_bytes: u64,
    /// Members marked as cancelled.
    pub(super) marks: u32,
    pub(super) checkpoint: bool,
    pub(super) context: bool,
    /// A large update is being written: outcomes settled after the queue's `last_settled` don't count.
    pub(super) staging: bool,
    pub(super) ending: Option<EndingV1>,
}

/// How far the settling of a batch has come, and what it goes by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EndingV1 {
    /// When the batch ended.
    pub(super) at: u64,
    pub(super) retry_at: u64,
    pub(super) max_attempts: u32,
    /// Until when done members are kept; not at all if that is when it ended.
    pub(super) kept_until: u64,
    pub(super) phase: PhaseV1,
    /// Members before this position are settled in this phase.
    pub(super) reached: u64,
    /// The next place in `settled`.
    pub(super) sequence: u64,
    /// The outcome of members that have none; `None` if the batch is split.
    pub(super) rest: Option<VerdictV1>,
    /// The bytes of the result in `rest` and its parts.
    pub(super) rest_result: Option<ResultV1>,
    /// The batches that the rest becomes.
    pub(super) children: [ChildV1; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PhaseV1 {
    /// Members without an outcome are recorded as done; then the others are settled.
    Record,
    /// Members are settled by their outcomes.
    Settle,
}

/// Half of a split batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChildV1 {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) requests: u32,
    pub(super) bytes: u64,
    pub(super) marks: u32,
}

/// What an outcome says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum VerdictV1 {
    Done,
    Retry {
        error: String,
        not_before: Option<u64>,
    },
    Reject {
        reason: u8,
        error: String,
    },
}

/// A result: its bytes, and how many parts it is in; 0 if it is the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ResultV1 {
    pub(super) bytes: u64,
    pub(super) parts: u32,
}

/// The outcome of a member; the body is its result, unless that is in parts. The rest is what
/// remains to be told of a done request when its entry in `requests` is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OutcomeV1 {
    pub(super) batch: u128,
    pub(super) at: u64,
    pub(super) verdict: VerdictV1,
    pub(super) result: Option<ResultV1>,
    pub(super) attempts: u32,
    pub(super) pushed_at: u64,
    pub(super) attributes: BTreeMap<String, String>,
    pub(super) sequence: u64,
}

/// Ids that were settled in one step, in order, and how many of them are still kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct SettledV1 {
    pub(super) kept: u32,
    pub(super) ids: Vec<u64>,
}

/// Ids of done requests whose batch has ended.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KeptV1 {
    pub(super) ids: Vec<u64>,
}

/// What an idempotency key stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyV1 {
    pub(super) id: u64,
    pub(super) payload: Digest,
    pub(super) expires_at: u64,
}

/// The digest of an idempotency key, to be forgotten.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KeyExpiryV1 {
    pub(super) key: Digest,
}

/// A note on a batch, which is the body.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NoteV1 {}

/// A mark on a member.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MarkV1 {}

/// A bookmark, whose value is the body.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BookmarkV1 {}

/// Writes a record for this key.
pub(super) fn encode<R: Record>(key: &[u8], record: &R, body: &[u8]) -> Result<Vec<u8>> {
    encode_all(key, record, &[body])
}

/// Writes a record whose body is all of these.
pub(super) fn encode_all<R: Record>(key: &[u8], record: &R, body: &[&[u8]]) -> Result<Vec<u8>> {
    let head = options()
        .serialize(record)
        .map_err(|error| Error::internal("a record can't be written").with_source(error))?;
    frame(key, (R::KIND, R::VERSION), &head, body)
}

/// Puts the frame around the head and the body of a record.
pub(super) fn frame(
    key: &[u8],
    (kind, version): (u8, u8),
    head: &[u8],
    body: &[&[u8]],
) -> Result<Vec<u8>> {
    let body_bytes = body.iter().map(|part| part.len()).sum();
    let mut value = Vec::with_capacity(FRAME_BYTES + head.len() + body_bytes);
    value.extend([kind, version]);
    value.extend(length(head.len())?);
    value.extend(length(body_bytes)?);
    value.extend([0; 4]);
    value.extend(head);
    for part in body {
        value.extend_from_slice(part);
    }
    let checksum = checksum(key, &value);
    value[10..FRAME_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Ok(value)
}

/// Reads the record of this key; what does not check out is `Corrupt`.
pub(super) fn decode<'a, R: Record>(
    tree: Tree,
    key: &[u8],
    value: &'a [u8],
) -> Result<(R, &'a [u8])> {
    let corrupt = |why: &str| {
        Error::corrupt(format!(
            "an entry of {:?} is damaged ({why}); run `repair` to save what can be read",
            tree.name()
        ))
    };
    let number = |at: usize| {
        let bytes = value.get(at..at + 4)?;
        bytes.try_into().ok().map(u32::from_le_bytes)
    };
    let (Some(head), Some(body), Some(sum)) = (number(2), number(6), number(10)) else {
        return Err(corrupt("too short"));
    };
    if value.len() as u64 != FRAME_BYTES as u64 + u64::from(head) + u64::from(body) {
        return Err(corrupt("wrong length"));
    }
    if checksum(key, value) != sum {
        return Err(corrupt("wrong checksum"));
    }
    if (value[0], value[1]) != (R::KIND, R::VERSION) {
        return Err(corrupt("a kind or version that is not known"));
    }
    let (head, body) = value[FRAME_BYTES..].split_at(head as usize);
    let record = options()
        .deserialize(head)
        .map_err(|error| corrupt("not readable").with_source(error))?;
    Ok((record, body))
}

/// Reads what may be damaged, for whoever checks what is in it.
pub(super) fn decode_unchecked<R: Record>(value: &[u8]) -> Option<(R, &[u8])> {
    let head = u32::from_le_bytes(value.get(2..6)?.try_into().ok()?);
    let (head, body) = value.get(FRAME_BYTES..)?.split_at_checked(head as usize)?;
    Some((options().deserialize(head).ok()?, body))
}

fn length(bytes: usize) -> Result<[u8; 4]> {
    u32::try_from(bytes)
        .map(u32::to_le_bytes)
        .map_err(|error| Error::internal("a record is too long").with_source(error))
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&value[..10]);
    hasher.update(&value[FRAME_BYTES..]);
    hasher.finalize()
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_limit(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> RequestV1 {
        RequestV1 {
            id: 1_700_000_000_000_000_000,
            pushed_at: 1_700_000_000_000_000_000,
            ready_at: 3,
            expires_at: Some(300),
            attempts: 2,
            error: Some("no".into()),
            attributes: BTreeMap::from([("a".into(), "b".into())]),
            bytes: 2,
            parts: 0,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write;
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// These bytes are on disks: if this fails, the change needs a new version.
    #[test]
    fn the_first_version_of_a_request_has_these_bytes() {
        let value = encode(b"key", &request(), b"hi").unwrap();
        assert_eq!(
            hex(&value),
            "04012300000002000000ad755421fd00002a36fe9c9717fd00002a36fe9c97170301fb2c010201026e6f010161016202006869"
        );
        let (read, body) = decode::<RequestV1>(Tree::Requests, b"key", &value).unwrap();
        assert_eq!((read, body), (request(), &b"hi"[..]));
    }

    #[test]
    fn no_flipped_bit_and_no_cut_is_served() {
        let value = encode(b"key", &request(), b"hi").unwrap();
        for bit in 0..value.len() * 8 {
            let mut bad = value.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                decode::<RequestV1>(Tree::Requests, b"key", &bad).is_err(),
                "bit {bit}"
            );
        }
        for cut in 0..value.len() {
            assert!(decode::<RequestV1>(Tree::Requests, b"key", &value[..cut]).is_err());
        }
    }

    #[test]
    fn a_value_does_not_pass_for_another_key_or_kind() {
        let value = encode(b"key", &request(), b"hi").unwrap();
        assert!(decode::<RequestV1>(Tree::Requests, b"kez", &value).is_err());
        assert!(decode::<DeadV1>(Tree::Dead, b"key", &value).is_err());
    }
}
