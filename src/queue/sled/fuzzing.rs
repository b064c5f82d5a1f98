//! Doors into what sled stores for the fuzz targets; see [`crate::fuzzing`].

use std::path::Path;

use sled::IVec;

use super::{
    keys::{self, Note, PartOf, Tree},
    open::parse_format,
    record::{
        self, BatchV1, BookmarkV1, ChunkV1, CountsV1, DeadV1, KeptV1, KeyExpiryV1, KeyV1, MarkV1,
        NoteV1, OutcomeV1, PartV1, PlaceV1, QueueV1, Record, RequestV1, SettledV1, StoreV1,
    },
    rows::{self, Chunk},
};

/// An entry of a tree, whatever its key and its value are.
///
/// ```text
/// kind  flags  key bytes  key ...  value ...               flags & 1: as it would be found
///                         key ...  head bytes (2)  head and body ...    or with a frame that is right
/// ```
pub(crate) fn entry(data: &[u8]) {
    let [kind, flags, length, rest @ ..] = data else {
        return;
    };
    let (key, value) = rest.split_at(rest.len().min(usize::from(*length)));
    let framed;
    let value = if flags & 1 == 0 {
        value
    } else {
        let [low, high, rest @ ..] = value else {
            return;
        };
        let head = usize::from(u16::from_le_bytes([*low, *high]));
        let (head, body) = rest.split_at(rest.len().min(head));
        framed = record::frame(key, (*kind, 1), head, &[body]).expect("it has a length");
        &framed
    };
    let check = match kind % 18 {
        1 => same_again::<StoreV1>,
        2 => same_again::<CountsV1>,
        3 => same_again::<QueueV1>,
        4 => same_again::<RequestV1>,
        5 => same_again::<DeadV1>,
        6 => same_again::<PartV1>,
        7 => same_again::<PlaceV1>,
        8 => same_again::<BatchV1>,
        9 => same_again::<NoteV1>,
        10 => same_again::<OutcomeV1>,
        11 => same_again::<SettledV1>,
        12 => same_again::<KeptV1>,
        13 => same_again::<KeyV1>,
        14 => same_again::<KeyExpiryV1>,
        15 => same_again::<MarkV1>,
        16 => same_again::<BookmarkV1>,
        17 => same_again::<ChunkV1>,
        _ => |_: &[u8], _: &[u8]| {},
    };
    check(key, value);
    chunk(key, value);
    keys_of(key, value);
}

/// A FORMAT that is accepted says the same when it was written and read again.
pub(crate) fn format(text: &str) {
    if let Ok(format) = parse_format(Path::new("store"), text) {
        let again = parse_format(Path::new("store"), &format.text());
        assert_eq!(again.expect("it was written"), format);
    }
}

/// What can be read is the same when it was written and read again, and no other key's.
fn same_again<R: Record>(key: &[u8], value: &[u8]) {
    // Damaged or not: that it does not panic is all that can be said of it.
    let _ = record::decode_unchecked::<R>(value);
    let Ok((found, body)) = record::decode::<R>(Tree::Meta, key, value) else {
        return;
    };
    let written = record::encode(key, &found, body).expect("it has a length");
    let (again, same) = record::decode::<R>(Tree::Meta, key, &written).expect("it was written");
    assert_eq!(same, body);
    let twice = record::encode(key, &again, same).expect("it has a length");
    assert_eq!(twice, written);
    // A sum of 32 bits may be that of another key as well, but not of one that differs in a bit.
    if let Some((last, before)) = key.split_last() {
        let other = [before, &[last ^ 1]].concat();
        assert!(record::decode::<R>(Tree::Meta, &other, &written).is_err());
    }
    let mut damaged = written;
    let at = body.len() % damaged.len();
    damaged[at] ^= 1;
    assert!(record::decode::<R>(Tree::Meta, key, &damaged).is_err());
}

/// A chunk of rows in a window: those that are found are there when it is written again.
fn chunk(key: &[u8], value: &[u8]) {
    let queue = keys::queue(key);
    let number = IVec::from(key.get(4..).unwrap_or_default());
    let chunk = rows::chunk((queue, 0), (number, IVec::from(value)));
    let salvaged = rows::salvaged_rows(&chunk);
    let Ok(opened) = rows::open(&chunk) else {
        return;
    };
    assert_eq!(salvaged.as_ref(), Some(&opened.rows));
    let head = rows::head(&chunk).expect("it could be opened");
    let at = (queue, chunk.first);
    let value = rows::encode_left(at, &opened.rows, head.queue, head.counts);
    let again = Chunk {
        value: value.expect("it has a length").into(),
        ..chunk
    };
    let again = rows::open(&again).expect("it was written");
    assert_eq!(again.rows, opened.rows);
    let (first, last) = (again.first, again.last());
    let _ = opened.plain_within(first, last);
    let all = opened.rows_within((queue, 0), (queue, u64::MAX));
    assert_eq!(all.count(), again.rows.len());
}

/// Keys sort as what they are made of, and give it back.
fn keys_of(one: &[u8], other: &[u8]) {
    let parts = |bytes: &[u8]| {
        let numbers = bytes.get(4..).unwrap_or_default();
        let numbers = numbers.as_chunks::<8>().0.iter().take(4);
        let numbers: Vec<u64> = numbers.map(|bytes| u64::from_be_bytes(*bytes)).collect();
        (keys::queue(bytes), numbers)
    };
    let (one, other) = (parts(one), parts(other));
    let key = |(queue, numbers): &(u32, Vec<u64>)| keys::key(*queue, numbers);
    assert_eq!(key(&one).cmp(&key(&other)), one.cmp(&other));
    assert_eq!(keys::queue(&key(&one)), one.0);
    for (index, number) in one.1.iter().enumerate() {
        assert_eq!(keys::number(&key(&one), index), *number);
    }
    let id = one.1.first().copied().unwrap_or(0);
    assert_eq!(keys::count(keys::apart(one.0)), keys::count(one.0));
    for of in [PartOf::Payload, PartOf::Result, PartOf::Rest] {
        let part = |number| keys::part(one.0, id, of, number);
        assert!(part(255) < part(256) && keys::number(&part(7), 0) == id);
    }
    let batch = u128::from(id) << 64;
    let note = |note| keys::note(one.0, batch, note);
    assert!(note(Note::Context) < note(Note::Checkpoint));
    assert!(keys::batch(one.0, batch) < note(Note::Context));
}
