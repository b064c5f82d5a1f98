//! The records of a dump as JSON Lines; each line also names its queue.
//!
//! ```text
//! {"id":"…","queue":"default","state":"ready","attempts":0,"attributes":{},"pushed_at":"…","at":"…",…,"payload":…}
//! {"record":"batch","queue":"default","batch":"…","attempt":1,"attempts_before":0,"formed_at":"…",…,"context_text":""}
//! {"record":"settled","queue":"default","ids":["…"]}
//! {"record":"key","queue":"default","key":"…","id":"…","payload":"…","expires_at":"…"}
//! {"record":"bookmark","queue":"default","source":"…","value":…}
//! {"record":"queue","queue":"default","format":1,"last_position":"…","last_batch":"…","last_fence":1,"pushed":3,…}
//! ```
//! A line without `record` is a request. `at` is since when it is in its state; for a delayed one, when it is
//! due; for one in flight, when its batch was formed. Fields that don't apply are left out.
//!
//! Bytes (payloads, results, checkpoints, contexts, values) are in the field of that name if they are JSON,
//! with `_text` behind the name if they are other UTF-8, or with `_base64`. JSON whose white space does not fit on
//! the line comes twice: for reading, and as `_base64` to the byte. Digests are hexadecimal.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{Digest, KnownKey, MOST, OpenBatch, QueueEnd, Record, StoredMember, StoredRequest};
use crate::{
    batch::{BatchId, Fence, Outcome},
    clock::Timestamp,
    error::{Error, Result},
    format::json_lines::{PayloadField, decode_base64},
    queue::Entry,
    request::{Attributes, Bookmark, DeadReason, Position, QueueName, RequestId, State},
};

/// The version of these lines: in the last one of each queue.
const FORMAT: u32 = 1;

/// Appends the line of a record, its line break included.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) if it can't be written as JSON.
pub fn encode(queue: &QueueName, record: &Record, line: &mut Vec<u8>) -> Result<()> {
    match record {
        Record::Request(request) => encode_request(queue, request, line)?,
        Record::Batch(batch) => {
            let head = BatchHead {
                record: "batch",
                queue,
                batch: batch.id,
                parent: batch.parent,
                attempt: batch.attempt,
                attempts_before: batch.attempts_before,
                formed_at: batch.formed_at,
                offered_from: batch.offered_from,
            };
            begin(&head, line)?;
            put("context", &batch.context, line);
            if let Some(checkpoint) = &batch.checkpoint {
                put("checkpoint", checkpoint, line);
            }
        }
        Record::Settled(ids) => {
            let record = "settled";
            begin(&Settled { record, queue, ids }, line)?;
        }
        Record::Key(key) => {
            let head = KeyHead {
                record: "key",
                queue,
                key: hex(&key.key),
                id: key.id,
                payload: hex(&key.payload),
                expires_at: key.expires_at,
            };
            begin(&head, line)?;
        }
        Record::Bookmark(bookmark) => {
            let head = BookmarkHead {
                record: "bookmark",
                queue,
                source: &bookmark.source,
            };
            begin(&head, line)?;
            put("value", &bookmark.value, line);
        }
        Record::Queue(end) => begin(&QueueLine::of(queue, end), line)?,
    }
    line.extend_from_slice(b"}\n");
    Ok(())
}

fn encode_request(queue: &QueueName, request: &StoredRequest, line: &mut Vec<u8>) -> Result<()> {
    let (entry, member) = (&request.entry, request.member.as_ref());
    let head = RequestHead {
        id: entry.id,
        queue,
        state: entry.state,
        attempts: entry.attempts,
        attributes: &entry.attributes,
        pushed_at: entry.pushed_at,
        at: entry.at,
        batch: entry.batch,
        reason: entry.reason,
        error: entry.error.as_deref(),
        position: request.position,
        expires_at: request.expires_at,
        kept_until: request.kept_until,
        attempts_before: member.map(|member| member.attempts_before),
        is_cancelled: member.map(|member| member.is_cancelled),
        outcome: member
            .and_then(|member| member.outcome.as_ref())
            .and_then(Failed::of),
    };
    begin(&head, line)?;
    for (name, value) in [("result", &entry.result), ("payload", &entry.payload)] {
        if let Some(value) = value {
            put(name, value, line);
        }
    }
    Ok(())
}

/// The queue and the record that a line stands for; a line break at its end is not minded.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid), saying what is wrong with it.
pub fn decode(line: &[u8]) -> Result<(QueueName, Record)> {
    let head: Head<'_> = read(line)?;
    let record = match head.record.as_deref() {
        None => Record::Request(Box::new(read::<RequestLine<'_>>(line)?.request()?)),
        Some("batch") => Record::Batch(read::<BatchLine<'_>>(line)?.batch()?),
        Some("settled") => Record::Settled(read::<SettledLine>(line)?.ids),
        Some("key") => Record::Key(read::<KeyLine>(line)?.key()?),
        Some("bookmark") => Record::Bookmark(read::<BookmarkLine<'_>>(line)?.bookmark()?),
        Some("queue") => Record::Queue(read::<QueueLine>(line)?.end()?),
        Some(other) => {
            let text = format!("a record {other:?} is not known; use a newer version of batchyard");
            return Err(Error::invalid(text));
        }
    };
    Ok((head.queue, record))
}

fn read<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T> {
    serde_json::from_slice(line).map_err(|error| {
        let text = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let what = text.strip_suffix(&place).unwrap_or(&text);
        Error::invalid(format!(
            "not a line of a dump: {what} (column {})",
            error.column()
        ))
    })
}

/// An object without its last brace.
fn begin<T: Serialize>(head: &T, line: &mut Vec<u8>) -> Result<()> {
    serde_json::to_writer(&mut *line, head)
        .map_err(|error| Error::invalid("a record can't be written as JSON").with_source(error))?;
    line.pop();
    Ok(())
}

/// Adds bytes in the field that fits.
fn put(name: &str, value: &[u8], line: &mut Vec<u8>) {
    let field = PayloadField::of(value);
    if let PayloadField::Json(json) = field {
        let is_exact = json.len() == value.len() && !json.contains(['\n', '\r']);
        if !is_exact {
            line.push(b',');
            PayloadField::Bytes(value).write_as(name, line);
        }
    }
    line.push(b',');
    field.write_as(name, line);
}

/// Bytes from the three fields that they may be in.
fn bytes(
    json: Option<&RawValue>,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<Bytes>> {
    Ok(match (json, text, base64) {
        (_, _, Some(base64)) => {
            let bytes = decode_base64(base64.as_bytes());
            Some(
                bytes
                    .ok_or_else(|| Error::invalid("a field is not base64"))?
                    .into(),
            )
        }
        (_, Some(text), None) => Some(text.into()),
        (Some(json), None, None) => Some(Bytes::copy_from_slice(json.get().as_bytes())),
        (None, None, None) => None,
    })
}

fn hex(digest: &Digest) -> String {
    format!("{:032x}", u128::from_be_bytes(*digest))
}

fn unhex(text: &str) -> Result<Digest> {
    // Their length and alphabet are those of a batch id.
    let id: BatchId = text.parse().map_err(|_| {
        Error::invalid(format!(
            "{text:?} is not a digest: 32 hexadecimal digits are"
        ))
    })?;
    Ok(id.as_u128().to_be_bytes())
}

/// A field that is there, even if it is `null`.
fn present<'de, D: Deserializer<'de>>(field: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(field).map(Some)
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    record: Option<std::borrow::Cow<'a, str>>,
    queue: QueueName,
}

#[derive(Serialize)]
struct RequestHead<'a> {
    id: RequestId,
    queue: &'a QueueName,
    state: State,
    attempts: u32,
    attributes: &'a Attributes,
    pushed_at: Timestamp,
    at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<BatchId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<DeadReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<Position>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts_before: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_cancelled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Failed>,
}

#[derive(Deserialize)]
struct RequestLine<'a> {
    id: RequestId,
    state: State,
    attempts: u32,
    attributes: Attributes,
    pushed_at: Timestamp,
    at: Timestamp,
    batch: Option<BatchId>,
    reason: Option<DeadReason>,
    error: Option<String>,
    position: Option<Position>,
    expires_at: Option<Timestamp>,
    kept_until: Option<Timestamp>,
    attempts_before: Option<u32>,
    is_cancelled: Option<bool>,
    outcome: Option<Failed>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    result_text: Option<String>,
    result_base64: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
    payload_text: Option<String>,
    payload_base64: Option<String>,
}

impl RequestLine<'_> {
    fn request(self) -> Result<StoredRequest> {
        let payload = bytes(self.payload, self.payload_text, self.payload_base64)?;
        let is_done = self.state == State::Done;
        let size = payload.as_ref().filter(|_| !is_done).map_or(0, Bytes::len);
        let member = self.attempts_before.map(|attempts_before| StoredMember {
            attempts_before,
            is_cancelled: self.is_cancelled.unwrap_or(false),
            outcome: self.outcome.map(Failed::outcome),
        });
        let entry = Entry {
            id: self.id,
            state: self.state,
            attempts: self.attempts,
            pushed_at: self.pushed_at,
            at: self.at,
            attributes: self.attributes,
            bytes: size as u64,
            payload,
            batch: self.batch,
            result: bytes(self.result, self.result_text, self.result_base64)?,
            reason: self.reason,
            error: self.error,
        };
        Ok(StoredRequest {
            entry,
            position: self.position,
            expires_at: self.expires_at,
            member,
            kept_until: self.kept_until,
        })
    }
}

/// The recorded outcome of a member that is not done.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Failed {
    Retry {
        error: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_before: Option<Timestamp>,
    },
    Reject {
        reason: DeadReason,
        error: String,
    },
}

impl Failed {
    fn of(outcome: &Outcome) -> Option<Self> {
        match outcome.clone() {
            Outcome::Done { .. } => None,
            Outcome::Retry { error, not_before } => Some(Self::Retry { error, not_before }),
            Outcome::Reject { reason, error } => Some(Self::Reject { reason, error }),
        }
    }

    fn outcome(self) -> Outcome {
        match self {
            Self::Retry { error, not_before } => Outcome::Retry { error, not_before },
            Self::Reject { reason, error } => Outcome::Reject { reason, error },
        }
    }
}

#[derive(Serialize)]
struct BatchHead<'a> {
    record: &'static str,
    queue: &'a QueueName,
    batch: BatchId,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<BatchId>,
    attempt: u32,
    attempts_before: u32,
    formed_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    offered_from: Option<Timestamp>,
}

#[derive(Deserialize)]
struct BatchLine<'a> {
    batch: BatchId,
    parent: Option<BatchId>,
    attempt: u32,
    attempts_before: u32,
    formed_at: Timestamp,
    offered_from: Option<Timestamp>,
    #[serde(borrow, default, deserialize_with = "present")]
    context: Option<&'a RawValue>,
    context_text: Option<String>,
    context_base64: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    checkpoint: Option<&'a RawValue>,
    checkpoint_text: Option<String>,
    checkpoint_base64: Option<String>,
}

impl BatchLine<'_> {
    fn batch(self) -> Result<OpenBatch> {
        let checkpoint = (
            self.checkpoint,
            self.checkpoint_text,
            self.checkpoint_base64,
        );
        Ok(OpenBatch {
            id: self.batch,
            parent: self.parent,
            attempt: self.attempt,
            attempts_before: self.attempts_before,
            formed_at: self.formed_at,
            offered_from: self.offered_from,
            context: bytes(self.context, self.context_text, self.context_base64)?
                .unwrap_or_default(),
            checkpoint: bytes(checkpoint.0, checkpoint.1, checkpoint.2)?,
        })
    }
}

#[derive(Serialize)]
struct Settled<'a> {
    record: &'static str,
    queue: &'a QueueName,
    ids: &'a [RequestId],
}

#[derive(Deserialize)]
struct SettledLine {
    ids: Vec<RequestId>,
}

#[derive(Serialize)]
struct KeyHead<'a> {
    record: &'static str,
    queue: &'a QueueName,
    key: String,
    id: RequestId,
    payload: String,
    expires_at: Timestamp,
}

#[derive(Deserialize)]
struct KeyLine {
    key: String,
    id: RequestId,
    payload: String,
    expires_at: Timestamp,
}

impl KeyLine {
    fn key(self) -> Result<KnownKey> {
        Ok(KnownKey {
            key: unhex(&self.key)?,
            id: self.id,
            payload: unhex(&self.payload)?,
            expires_at: self.expires_at,
        })
    }
}

#[derive(Serialize)]
struct BookmarkHead<'a> {
    record: &'static str,
    queue: &'a QueueName,
    source: &'a str,
}

#[derive(Deserialize)]
struct BookmarkLine<'a> {
    source: String,
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    value_text: Option<String>,
    value_base64: Option<String>,
}

impl BookmarkLine<'_> {
    fn bookmark(self) -> Result<Bookmark> {
        let value = bytes(self.value, self.value_text, self.value_base64)?;
        Ok(Bookmark {
            source: self.source,
            value: value.unwrap_or_default(),
        })
    }
}

#[derive(Serialize, Deserialize)]
struct QueueLine {
    #[serde(skip_deserializing)]
    record: &'static str,
    queue: QueueName,
    format: u32,
    last_position: Position,
    last_batch: BatchId,
    last_fence: Fence,
    pushed: u64,
    done: u64,
    expired: u64,
    cancelled: u64,
    purged: u64,
}

impl QueueLine {
    fn of(queue: &QueueName, end: &QueueEnd) -> Self {
        Self {
            record: "queue",
            queue: queue.clone(),
            format: FORMAT,
            last_position: end.last_position,
            last_batch: end.last_batch,
            last_fence: end.last_fence,
            pushed: end.pushed,
            done: end.done,
            expired: end.expired,
            cancelled: end.cancelled,
            purged: end.purged,
        }
    }

    fn end(self) -> Result<QueueEnd> {
        if self.format != FORMAT {
            return Err(Error::invalid(format!(
                "the dump has format {}, and this version of batchyard reads {FORMAT}; use a newer one",
                self.format
            )));
        }
        let numbers = [
            self.last_position.as_u64(),
            self.last_batch.halves().0,
            self.last_fence.0,
        ];
        if numbers.iter().any(|number| *number > MOST) {
            return Err(Error::invalid(
                "the last position, batch or fence of the dump leaves no room for others",
            ));
        }
        Ok(QueueEnd {
            last_position: self.last_position,
            last_batch: self.last_batch,
            last_fence: self.last_fence,
            pushed: self.pushed,
            done: self.done,
            expired: self.expired,
            cancelled: self.cancelled,
            purged: self.purged,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_to_the_byte_from_whichever_field() {
        for value in [
            &b"{\"n\":1e400, \"n\":2}"[..],
            b" [1,\r\n 2]\n",
            b"null",
            b"",
            b"two\nlines \"q\"",
            b"\xff\x00\x01",
            b"\xff",
        ] {
            let value = Bytes::copy_from_slice(value);
            let bookmark = Record::Bookmark(Bookmark {
                source: "a \"file\"".into(),
                value,
            });
            let mut line = Vec::new();
            encode(&QueueName::default(), &bookmark, &mut line).unwrap();
            let break_at = line.iter().position(|byte| *byte == b'\n');
            assert_eq!(break_at, Some(line.len() - 1), "one line");
            assert_eq!(decode(&line).unwrap(), (QueueName::default(), bookmark));
        }
    }

    #[test]
    fn a_line_that_is_none_says_why() {
        for (line, why) in [
            (&b"nope"[..], "column"),
            (b"{}", "queue"),
            (br#"{"queue":"q"}"#, "id"),
            (br#"{"queue":"q","record":"riddle"}"#, "newer version"),
            (
                br#"{"queue":"q","record":"settled","ids":["7"]}"#,
                "16 hexadecimal",
            ),
            (
                br#"{"queue":"q","record":"bookmark","source":"a","value_base64":"?"}"#,
                "base64",
            ),
        ] {
            let error = decode(line).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
