//! What travels to the scripts and back: times, heads, outcomes and records as bytes.
//!
//! A record is what the server holds of a request. Times and ids are 16 hexadecimal digits, sizes 8:
//! ```text
//!   0  kind: l delayed, r ready or in flight, d done, x dead
//!   1  mark: c to be cancelled if it would come back, else -
//!   2  position                 18  at: ready, due, settled since       34  attempts (8)
//!  42  batch: its formed half   58  sequence in the order of settling   74  kept until
//!  90  reason of a dead letter  91  length of the note (8), ffffffff for none
//!  99  expires                 115  pushed at                          131  payload bytes (8)
//! 139  length of the attributes (8)
//! 147  attributes as JSON, then the note: a result if done, else the last error
//! ```

use std::str;

use bytes::Bytes;

use crate::{
    batch::{BatchId, Outcome},
    clock::Timestamp,
    error::{Error, Result},
    queue::{
        Entry,
        transfer::{Digest, StoredRequest, digest},
    },
    request::{Attributes, DeadReason, NewRequest, Position, RequestId, State},
};

/// A number as the scripts keep it.
pub(super) fn hex(value: u64) -> Bytes {
    format!("{value:016x}").into()
}

/// A time as the scripts keep it.
pub(super) fn time(value: Timestamp) -> Bytes {
    hex(value.as_nanos())
}

/// A number as the scripts count with it.
pub(super) fn decimal(value: &impl ToString) -> Bytes {
    value.to_string().into()
}

/// Whether something follows.
pub(super) fn flag(yes: bool) -> Bytes {
    Bytes::from_static(if yes { b"1" } else { b"0" })
}

/// A digest as the scripts keep it: 32 hexadecimal digits.
pub(super) fn digits(digest: &Digest) -> Bytes {
    format!("{:032x}", u128::from_be_bytes(*digest)).into()
}

/// Reads a digest.
pub(super) fn parse_digits(digits: &[u8]) -> Result<Digest> {
    let digest = str::from_utf8(digits)
        .ok()
        .and_then(|digits| u128::from_str_radix(digits, 16).ok());
    digest
        .map(u128::to_be_bytes)
        .ok_or_else(|| damaged("a digest"))
}

/// Reads 8 or 16 hexadecimal digits.
pub(super) fn parse_hex(digits: &[u8]) -> Result<u64> {
    str::from_utf8(digits)
        .ok()
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| damaged("a number"))
}

/// Reads a count of attempts.
pub(super) fn parse_count(digits: &[u8]) -> Result<u32> {
    u32::try_from(parse_hex(digits)?).map_err(|_| damaged("a count"))
}

/// Reads a time.
pub(super) fn parse_time(digits: &[u8]) -> Result<Timestamp> {
    parse_hex(digits).map(Timestamp::from_nanos)
}

/// Reads a number in decimal digits.
pub(super) fn parse_decimal<T: str::FromStr>(digits: &[u8]) -> Result<T> {
    str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| damaged("a count"))
}

/// The head of a request about to be pushed; `push.lua` has its layout.
pub(super) fn head_of(now: Timestamp, request: &NewRequest) -> Result<Bytes> {
    let due = request.not_before.filter(|due| *due > now);
    let expires = request.ttl.map_or(Timestamp::MAX, |ttl| now.after(ttl));
    let mut head = format!(
        "{:016x}{:016x}{:08x}",
        due.map_or(0, Timestamp::as_nanos),
        expires.as_nanos(),
        request.payload.len()
    )
    .into_bytes();
    match &request.idempotency_key {
        None => head.push(b'0'),
        Some(key) => {
            head.push(b'1');
            head.extend_from_slice(&digits(&digest(key.as_bytes())));
            head.extend_from_slice(&digits(&digest(&request.payload)));
        }
    }
    let attributes = json(&request.attributes)?;
    head.extend(format!("{:08x}", attributes.len()).into_bytes());
    head.extend(attributes);
    Ok(head.into())
}

/// An outcome; `update.lua` has its layout.
pub(super) fn outcome(outcome: &Outcome) -> Bytes {
    let mut bytes = Vec::new();
    match outcome {
        Outcome::Done { result } => {
            bytes.push(b'd');
            bytes.extend_from_slice(&flag(result.is_some()));
            bytes.extend_from_slice(result.as_deref().unwrap_or_default());
        }
        Outcome::Retry { error, not_before } => {
            bytes.push(b'r');
            bytes.extend_from_slice(&time(not_before.unwrap_or_default()));
            bytes.extend_from_slice(error.as_bytes());
        }
        Outcome::Reject { reason, error } => {
            bytes.push(b'x');
            bytes.push(reason_letter(*reason));
            bytes.extend_from_slice(error.as_bytes());
        }
    }
    bytes.into()
}

/// Reads a recorded retry or reject outcome.
pub(super) fn parse_outcome(bytes: &[u8]) -> Result<Outcome> {
    match bytes {
        [b'r', rest @ ..] if rest.len() >= 16 => {
            let not_before = parse_time(&rest[..16])?;
            Ok(Outcome::Retry {
                error: text(&rest[16..])?,
                not_before: (not_before > Timestamp::EPOCH).then_some(not_before),
            })
        }
        [b'x', reason, error @ ..] => Ok(Outcome::Reject {
            reason: parse_reason(*reason)?,
            error: text(error)?,
        }),
        _ => Err(damaged("an outcome")),
    }
}

/// A record, split into its columns.
pub(super) struct Record {
    bytes: Bytes,
    attributes_end: usize,
}

impl Record {
    pub(super) fn parse(bytes: Bytes) -> Result<Self> {
        if bytes.len() < 147 || !bytes[..147].is_ascii() {
            return Err(damaged("a record"));
        }
        let attributes_end = 147usize.saturating_add(length(&bytes[139..147])?);
        let note = match &bytes[91..99] {
            b"ffffffff" => 0,
            digits => length(digits)?,
        };
        if bytes.len() != attributes_end.saturating_add(note) {
            return Err(damaged("a record"));
        }
        Ok(Self {
            bytes,
            attributes_end,
        })
    }

    pub(super) fn attempts(&self) -> Result<u32> {
        parse_count(&self.bytes[34..42])
    }

    pub(super) fn pushed_at(&self) -> Result<Timestamp> {
        parse_time(&self.bytes[115..131])
    }

    pub(super) fn position(&self) -> Result<Position> {
        parse_hex(&self.bytes[2..18]).map(Position::from_u64)
    }

    /// Whether it is to be cancelled if it would come back.
    pub(super) fn is_marked(&self) -> bool {
        self.bytes[1] == b'c'
    }

    pub(super) fn kept_until(&self) -> Result<Timestamp> {
        parse_time(&self.bytes[74..90])
    }

    pub(super) fn expires_at(&self) -> Result<Option<Timestamp>> {
        let at = parse_time(&self.bytes[99..115])?;
        Ok((at < Timestamp::MAX).then_some(at))
    }

    pub(super) fn size(&self) -> Result<u64> {
        parse_hex(&self.bytes[131..139])
    }

    pub(super) fn attributes(&self) -> Result<Attributes> {
        match &self.bytes[147..self.attributes_end] {
            [] => Ok(Attributes::new()),
            json => serde_json::from_slice(json)
                .map_err(|error| damaged("a request's attributes").with_source(error)),
        }
    }

    /// The result of a done request, or the last error of another.
    pub(super) fn note(&self) -> Option<Bytes> {
        (&self.bytes[91..99] != b"ffffffff").then(|| self.bytes.slice(self.attributes_end..))
    }

    /// What is known of the request, as the five values of `entries.lua`.
    pub(super) fn entry(
        &self,
        id: RequestId,
        kind: u8,
        formed_at: &[u8],
        counted: u32,
        salt: u64,
    ) -> Result<Entry> {
        let state = match kind {
            b'l' => State::Delayed,
            b'r' => State::Ready,
            b'f' => State::InFlight,
            b'd' => State::Done,
            b'x' => State::Dead,
            _ => return Err(damaged("a record's kind")),
        };
        let batch = parse_hex(&self.bytes[42..58])?;
        let (done, dead) = (state == State::Done, state == State::Dead);
        let note = self.note();
        Ok(Entry {
            id,
            state,
            attempts: self.attempts()?.saturating_add(counted),
            pushed_at: self.pushed_at()?,
            at: match state {
                State::InFlight => parse_time(formed_at)?,
                _ => parse_time(&self.bytes[18..34])?,
            },
            attributes: self.attributes()?,
            bytes: if done { 0 } else { self.size()? },
            payload: None,
            batch: (batch > 0).then(|| BatchId::new(batch, salt)),
            result: note.clone().filter(|_| done),
            reason: dead.then(|| parse_reason(self.bytes[90])).transpose()?,
            error: note.filter(|_| !done).map(|note| text(&note)).transpose()?,
        })
    }
}

/// A request that is taken in from a dump, and what its record has beside.
pub(super) struct Row<'a> {
    pub(super) stored: &'a StoredRequest,
    pub(super) position: u64,
    /// The formed half of its batch's id, or 0.
    pub(super) batch: u64,
    pub(super) bytes: u64,
}

impl Row<'_> {
    /// Its record; it has no place in the order of settling yet.
    pub(super) fn encode(&self) -> Result<Bytes> {
        let entry = &self.stored.entry;
        let member = self.stored.member.as_ref();
        let (done, dead) = (entry.state == State::Done, entry.state == State::Dead);
        let kind = match entry.state {
            State::Delayed => 'l',
            State::Done => 'd',
            State::Dead => 'x',
            _ => 'r',
        };
        let is_marked = member.is_some_and(|member| member.is_cancelled);
        let attempts = match member {
            Some(member) if !done => member.attempts_before,
            _ => entry.attempts,
        };
        let reason = (entry.reason.filter(|_| dead)).map_or(b'-', reason_letter);
        let note = if done {
            entry.result.as_deref()
        } else {
            entry.error.as_deref().map(str::as_bytes)
        };
        let attributes = json(&entry.attributes)?;
        let length = note.map_or("ffffffff".to_owned(), |note| format!("{:08x}", note.len()));
        let record = format!(
            "{kind}{}{:016x}{:016x}{attempts:08x}{:016x}{:016x}{:016x}{}\
{length}{:016x}{:016x}{:08x}{:08x}",
            if is_marked { 'c' } else { '-' },
            self.position,
            entry.at.as_nanos(),
            if done || dead { self.batch } else { 0 },
            0,
            self.stored.kept_until.unwrap_or(Timestamp::MAX).as_nanos(),
            char::from(reason),
            self.stored.expires_at.unwrap_or(Timestamp::MAX).as_nanos(),
            entry.pushed_at.as_nanos(),
            self.bytes,
            attributes.len()
        );
        let note = note.unwrap_or_default();
        Ok([record.as_bytes(), &attributes, note].concat().into())
    }
}

/// Attributes as they are stored: nothing if there are none.
fn json(attributes: &Attributes) -> Result<Vec<u8>> {
    if attributes.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::to_vec(attributes)
        .map_err(|error| Error::internal("attributes can't be written as JSON").with_source(error))
}

/// What is stored does not read as what was written.
pub(super) fn damaged(what: &str) -> Error {
    Error::corrupt(format!(
        "{what} stored on the Redis server can't be read; something else wrote to keys that begin with batchyard:"
    ))
}

fn length(digits: &[u8]) -> Result<usize> {
    usize::try_from(parse_hex(digits)?).map_err(|_| damaged("a length"))
}

fn text(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|error| damaged("an error text").with_source(error))
}

fn reason_letter(reason: DeadReason) -> u8 {
    match reason {
        DeadReason::Rejected => b'r',
        DeadReason::Exhausted => b'e',
        DeadReason::TooLarge => b't',
        DeadReason::Undecodable => b'u',
        DeadReason::Damaged => b'd',
    }
}

fn parse_reason(letter: u8) -> Result<DeadReason> {
    Ok(match letter {
        b'r' => DeadReason::Rejected,
        b'e' => DeadReason::Exhausted,
        b't' => DeadReason::TooLarge,
        b'u' => DeadReason::Undecodable,
        b'd' => DeadReason::Damaged,
        _ => return Err(damaged("a reason")),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn retry_and_reject_outcomes_survive_the_trip() {
        for known in [
            Outcome::retry("busy"),
            Outcome::retry(""),
            Outcome::Retry {
                error: "later".into(),
                not_before: Some(Timestamp::from_millis(5)),
            },
            Outcome::Reject {
                reason: DeadReason::Undecodable,
                error: "not JSON".into(),
            },
        ] {
            assert_eq!(parse_outcome(&outcome(&known)).unwrap(), known);
        }
        assert!(parse_outcome(b"r1").is_err());
        assert!(parse_outcome(b"x?why").is_err());
    }

    #[test]
    fn a_head_has_its_columns_where_the_script_reads_them() {
        let now = Timestamp::from_nanos(16);
        let request = NewRequest::new("abc")
            .not_before(Timestamp::from_nanos(17))
            .ttl(Duration::from_nanos(1))
            .idempotency_key("k");
        let head = head_of(now, &request).unwrap();
        assert_eq!(&head[..41], b"00000000000000110000000000000011000000031");
        assert_eq!(&head[41..73], &digits(&digest(b"k"))[..]);
        assert_eq!(&head[73..105], &digits(&digest(b"abc"))[..]);
        assert_eq!(&head[105..], b"00000000");
    }

    #[test]
    fn a_damaged_record_is_an_error_not_a_panic() {
        for bytes in [&b""[..], &[b'r'; 200], &[0xff; 147]] {
            assert!(Record::parse(Bytes::copy_from_slice(bytes)).is_err());
        }
    }
}
