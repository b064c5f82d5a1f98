//! The trees of a store and the keys in them.
//!
//! Every key begins with the queue's number (`u32`), except in `meta`; numbers are big-endian, so the
//! order of bytes is the order of numbers.
//!
//! | tree | key after the queue | value |
//! |---|---|---|
//! | `meta` | `s`, `c`, `q` or `i` + queue | the store, what it must hold, a queue, that a queue is still coming in |
//! | `requests` | position | a request that is ready (past the cursor) or member of a batch, with its payload; in the trees that `rows` tells of |
//! | `delayed` | due time, position it had | a delayed request, with its payload |
//! | `dead` | id | a dead letter, with its payload |
//! | `parts` | id, what, number | a part of a payload or result that is too large for its record |
//! | `places` | id | where a waiting or claimed request is, unless its position is its id |
//! | `expiry` | time, id | nothing: the request is looked up when the time has come |
//! | `pending` | batch | a batch: the key range it took, fence, attempt, state |
//! | `notes` | batch, what | its context, its checkpoint; once it has ended, until when its results are kept |
//! | `outcomes` | id | the recorded outcome of a member; kept for the retention if it is `done` |
//! | `marks` | id | this member is to be cancelled if it would come back |
//! | `settled` | sequence | ids in the order in which they were settled |
//! | `kept` | time, sequence | ids whose results are to be forgotten |
//! | `keys` | digest of an idempotency key | the request it stands for |
//! | `key_expiry` | time, id | the idempotency key to be forgotten |
//! | `bookmarks` | name of a source | how far its producer has read |

/// A tree of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tree {
    Meta,
    Requests,
    Delayed,
    Dead,
    Parts,
    Places,
    Expiry,
    Pending,
    Notes,
    Outcomes,
    Marks,
    Settled,
    Kept,
    Keys,
    KeyExpiry,
    Bookmarks,
}

impl Tree {
    /// All trees, in the order of their numbers.
    pub(super) const ALL: [(Self, &'static str); 16] = [
        (Self::Meta, "meta"),
        (Self::Requests, "requests"),
        (Self::Delayed, "delayed"),
        (Self::Dead, "dead"),
        (Self::Parts, "parts"),
        (Self::Places, "places"),
        (Self::Expiry, "expiry"),
        (Self::Pending, "pending"),
        (Self::Notes, "notes"),
        (Self::Outcomes, "outcomes"),
        (Self::Marks, "marks"),
        (Self::Settled, "settled"),
        (Self::Kept, "kept"),
        (Self::Keys, "keys"),
        (Self::KeyExpiry, "key_expiry"),
        (Self::Bookmarks, "bookmarks"),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// The store's own record in `meta`.
pub(super) const STORE: &[u8] = b"s";
/// Entries per tree and commits so far, in `meta`; it does not count itself.
pub(super) const COUNTS: &[u8] = b"c";

/// What a part is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartOf {
    Payload = 0,
    Result = 1,
    /// The result given to the rest of a batch; its "id" is the time at which the batch was formed.
    Rest = 2,
}

/// What a note on a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    Context = 0,
    Checkpoint = 1,
    /// Until when its done members are kept: 8 bytes, big-endian. Goes with them.
    KeptUntil = 2,
}

/// A queue's record in `meta`.
pub(super) fn queue_record(queue: u32) -> Vec<u8> {
    let mut key = vec![b'q'];
    key.extend(queue.to_be_bytes());
    key
}

/// Tells that what is under this number is not a queue yet.
pub(super) fn incoming(queue: u32) -> Vec<u8> {
    let mut key = vec![b'i'];
    key.extend(queue.to_be_bytes());
    key
}

/// The number under which a queue takes in a dump: queues are counted with the other bits.
pub(super) fn apart(queue: u32) -> u32 {
    queue ^ APART
}

/// Which queue of the store this number is for, in the order in which they were made.
pub(super) fn count(queue: u32) -> u32 {
    queue & !APART
}

const APART: u32 = 1 << 31;

/// A key of numbers.
pub(super) fn key(queue: u32, numbers: &[u64]) -> Vec<u8> {
    let mut key = Vec::with_capacity(4 + 8 * numbers.len());
    key.extend(queue.to_be_bytes());
    for number in numbers {
        key.extend(number.to_be_bytes());
    }
    key
}

/// A key of bytes.
pub(super) fn text(queue: u32, bytes: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(4 + bytes.len());
    key.extend(queue.to_be_bytes());
    key.extend(bytes);
    key
}

/// A batch's key.
pub(super) fn batch(queue: u32, batch: u128) -> Vec<u8> {
    text(queue, &batch.to_be_bytes())
}

/// The key of a note on a batch.
pub(super) fn note(queue: u32, id: u128, note: Note) -> Vec<u8> {
    let mut key = batch(queue, id);
    key.push(note as u8);
    key
}

/// The key of a part.
pub(super) fn part(queue: u32, id: u64, of: PartOf, number: u32) -> Vec<u8> {
    let mut key = key(queue, &[id]);
    key.push(of as u8);
    key.extend(number.to_be_bytes());
    key
}

/// The queue's number in a key; `u32::MAX` if the key is too short, which no key of ours is.
pub(super) fn queue(key: &[u8]) -> u32 {
    key.get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(u32::MAX, u32::from_be_bytes)
}

/// The `index`-th number of a key of numbers; 0 if the key is too short, which no key of ours is.
pub(super) fn number(key: &[u8], index: usize) -> u64 {
    let start = 4 + 8 * index;
    key.get(start..start + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_numbered_in_their_order() {
        for (index, (tree, name)) in Tree::ALL.into_iter().enumerate() {
            assert_eq!(tree as usize, index);
            assert_eq!(tree.name(), name);
        }
    }

    #[test]
    fn keys_sort_as_their_numbers_and_give_them_back() {
        assert!(key(1, &[255, 9]) < key(1, &[256, 0]));
        assert!(key(1, &[u64::MAX]) < key(2, &[0]));
        assert_eq!(number(&key(7, &[3, u64::MAX]), 1), u64::MAX);
    }
}
