//! A request as one line of JSON, in whatever state it is.
//!
//! ```text
//! {"id":"…","queue":"default","state":"ready","attempts":0,"attributes":{},"pushed_at":"…","at":"…","payload":…}
//! ```
//! `at` is since when it is in its state; for a delayed one, when it is due. `batch`, `reason`, `error`
//! and `result` are there where they apply. Payloads and results are as on the lines of handlers.

use std::io;

use batchyard::{
    Attributes, BatchId, DeadReason, Entry, QueueName, RequestId, State, Timestamp,
    format::json_lines::PayloadField,
};
use serde::Serialize;

#[derive(Serialize)]
struct Head<'a> {
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
}

/// Appends the line of a request.
///
/// # Errors
/// If it can't be written as JSON.
pub(crate) fn write_line(queue: &QueueName, entry: &Entry, line: &mut Vec<u8>) -> io::Result<()> {
    let head = Head {
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
    };
    serde_json::to_writer(&mut *line, &head)?;
    // Fields of any size follow, without being parsed and copied first.
    line.pop();
    for (name, value) in [("result", &entry.result), ("payload", &entry.payload)] {
        if let Some(value) = value {
            line.push(b',');
            PayloadField::of(value).write_as(name, line);
        }
    }
    line.extend_from_slice(b"}\n");
    Ok(())
}

/// The name and the value of the field that a payload is on such a line.
pub(crate) fn payload(payload: &[u8]) -> (String, String) {
    let mut field = Vec::new();
    PayloadField::of(payload).write(&mut field);
    let field = String::from_utf8_lossy(&field);
    let (name, value) = field.split_once(':').unwrap_or_default();
    (name.trim_matches('"').to_owned(), value.to_owned())
}

/// Text on one line, without what a terminal would obey, and not longer than this.
pub(crate) fn short(text: &str, most: usize) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().map(plain).take(most).collect();
    if text.chars().nth(most).is_some() {
        short.pop();
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_or_not_for_a_terminal_is_cut() {
        assert_eq!(short("no such address", 20), "no such address");
        assert_eq!(short("a\nb\x1b[31m", 20), "a b [31m");
        assert_eq!(short("123456", 5), "1234…");
        assert_eq!(short("12345", 5), "12345");
    }
}
