//! The lines that a handler outside this process is sent, and those that it answers.
//!
//! ```text
//! a request   {"id":"17a3c0de5f00a1b2","attempt":1,"payload":{"to":"a@example.org"}}
//!             {"id":"17a3c0de5f00a1b3","attempt":1,"payload_text":"not JSON, but UTF-8"}
//!             {"id":"17a3c0de5f00a1b4","attempt":2,"payload_base64":"/wA="}
//! an answer   {"id":"17a3c0de5f00a1b2","result":{"sent":true}}         done
//!             {"id":"17a3c0de5f00a1b3","error":"no such address"}      dead-lettered
//!             {"id":"17a3c0de5f00a1b4","error":"busy","retry":true}    tried again in a later batch
//! ```
//! JSON payloads and results keep their exact text: numbers of any size, field order and duplicate
//! fields come through as they were written. Fields of an answer that are not named here are ignored.

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::{
    batch::{Member, Outcome},
    format::fields::{write_flat, write_string},
    request::RequestId,
};

/// A payload as a field of a JSON line can hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadField<'a> {
    /// `payload`: it is JSON, and stands there as it is.
    Json(&'a str),
    /// `payload_text`: it is UTF-8, but not JSON.
    Text(&'a str),
    /// `payload_base64`: any other bytes.
    Bytes(&'a [u8]),
}

impl<'a> PayloadField<'a> {
    /// The first of the three that fits.
    pub fn of(payload: &'a [u8]) -> Self {
        if let Ok(json) = serde_json::from_slice::<&RawValue>(payload) {
            return Self::Json(json.get());
        }
        std::str::from_utf8(payload).map_or(Self::Bytes(payload), Self::Text)
    }

    /// Appends the field: its name, a colon and its value, on one line.
    pub fn write(self, line: &mut Vec<u8>) {
        self.write_as("payload", line);
    }

    /// Appends the field as [`write`](Self::write) does, named after what else it holds: `name`,
    /// `name_text` or `name_base64`.
    pub fn write_as(self, name: &str, line: &mut Vec<u8>) {
        match self {
            Self::Json(json) => {
                line.extend_from_slice(format!("\"{name}\":").as_bytes());
                write_flat(json, line);
            }
            Self::Text(text) => {
                line.extend_from_slice(format!("\"{name}_text\":").as_bytes());
                write_string(text, line);
            }
            Self::Bytes(bytes) => {
                line.extend_from_slice(format!("\"{name}_base64\":\"").as_bytes());
                write_base64(bytes, line);
                line.push(b'"');
            }
        }
    }
}

/// Appends the line of a member, its line break included.
pub fn encode_request_line(member: &Member, line: &mut Vec<u8>) {
    let head = format!("{{\"id\":\"{}\",\"attempt\":{},", member.id, member.attempt);
    line.reserve(head.len() + member.payload.len() + 32);
    line.extend_from_slice(head.as_bytes());
    PayloadField::of(&member.payload).write(line);
    line.extend_from_slice(b"}\n");
}

/// The outcome that an answer line stands for; a line break at its end is not minded.
///
/// # Errors
/// What is wrong with the line, in words, without anything of its content but the id.
pub fn decode_answer_line(line: &[u8]) -> Result<(RequestId, Outcome), String> {
    let answer: Answer<'_> = serde_json::from_slice(line).map_err(|error| describe(&error))?;
    let id = answer.id;
    let error = answer.error.filter(|error| error.get() != "null");
    let outcome = match (answer.result, error) {
        (Some(result), None) => Outcome::result(Bytes::copy_from_slice(result.get().as_bytes())),
        (None, Some(error)) if answer.retry => Outcome::retry(text_of(error)),
        (None, Some(error)) => Outcome::reject(text_of(error)),
        (Some(_), Some(_)) => return Err(format!("answer to {id} has both a result and an error")),
        (None, None) => return Err(format!("answer to {id} has neither a result nor an error")),
    };
    Ok((id, outcome))
}

#[derive(Deserialize)]
struct Answer<'a> {
    id: RequestId,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
    #[serde(default)]
    retry: bool,
}

/// A field that is there, even if it is `null`: that is a result like any other.
fn present<'de, D: Deserializer<'de>>(field: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(field).map(Some)
}

/// The string that an error is, or else its JSON.
fn text_of(error: &RawValue) -> String {
    serde_json::from_str(error.get()).unwrap_or_else(|_| error.get().to_owned())
}

/// An error of the parser with the column alone: which line it was is the caller's to say.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(what) => format!("not an answer: {what} at column {}", error.column()),
        None => format!("not an answer: {text}"),
    }
}

/// Standard base64 with padding, RFC 4648 section 4.
fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = at(0) << 16 | at(1) << 8 | at(2);
        for index in 0..4 {
            let sextet = (group >> (18 - 6 * index)) & 0x3f;
            let digit = BASE64[sextet as usize];
            out.push(if index > chunk.len() { b'=' } else { digit });
        }
    }
}

/// What [`write_base64`] wrote; `None` if it is not that.
pub(crate) fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    if !text.len().is_multiple_of(4) {
        return None;
    }
    for (at, group) in text.chunks(4).enumerate() {
        let is_last = (at + 1) * 4 == text.len();
        let cut = group.strip_suffix(b"==");
        let digits = cut.or(group.strip_suffix(b"=")).unwrap_or(group);
        let padding = 4 - digits.len();
        if padding > 0 && !is_last {
            return None;
        }
        let mut value: u32 = 0;
        for digit in digits {
            value = value << 6 | u32::try_from(sextet(*digit)?).ok()?;
        }
        value <<= 6 * padding;
        bytes.extend_from_slice(&value.to_be_bytes()[1..4 - padding]);
    }
    Some(bytes)
}

fn sextet(digit: u8) -> Option<usize> {
    match digit {
        b'A'..=b'Z' => Some(usize::from(digit - b'A')),
        b'a'..=b'z' => Some(usize::from(digit - b'a') + 26),
        b'0'..=b'9' => Some(usize::from(digit - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, Position, Timestamp};

    fn line(payload: &'static [u8]) -> String {
        let member = Member {
            id: RequestId::from_u64(0x2a),
            position: Position::from_u64(1),
            attempt: 3,
            pushed_at: Timestamp::EPOCH,
            payload: payload.into(),
            attributes: Attributes::new(),
            outcome: None,
        };
        let mut line = Vec::new();
        encode_request_line(&member, &mut line);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_request_is_one_line_whatever_its_payload() {
        for (payload, want) in [
            (
                &br#"{"n":1e400,"n":2}"#[..],
                r#""payload":{"n":1e400,"n":2}"#,
            ),
            (b" [1,\r\n 2]\n", r#""payload":[1,   2]"#),
            (b"null", r#""payload":null"#),
            (b"", r#""payload_text":"""#),
            (b"two\nlines \"q\"", r#""payload_text":"two\nlines \"q\"""#),
            (b"{} {}", r#""payload_text":"{} {}""#),
            (b"\xff\x00", r#""payload_base64":"/wA=""#),
            (b"\"\xff\"", r#""payload_base64":"Iv8i""#),
        ] {
            let want = format!("{{\"id\":\"000000000000002a\",\"attempt\":3,{want}}}\n");
            let got = line(payload);
            assert_eq!(got, want);
            assert!(
                serde_json::from_str::<serde_json::Value>(&got).is_ok() || got.contains("1e400")
            );
        }
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, want) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut out = Vec::new();
            write_base64(bytes.as_bytes(), &mut out);
            assert_eq!(decode_base64(&out), Some(bytes.into()));
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
        for text in ["Z", "Zg=", "Zg==Zg==", "Z===", "Z-==", "Zg\n="] {
            assert_eq!(decode_base64(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_answer_is_an_outcome_and_a_result_keeps_its_text() {
        for (fields, want) in [
            (
                r#""result":{"b":1.10,"a":null}"#,
                Outcome::result(r#"{"b":1.10,"a":null}"#),
            ),
            (r#""result":null"#, Outcome::result("null")),
            (r#""result":1,"error":null"#, Outcome::result("1")),
            (
                r#""error":"no such\taddress""#,
                Outcome::reject("no such\taddress"),
            ),
            (r#""error":"busy","retry":true"#, Outcome::retry("busy")),
            (
                r#""error":"bad","retry":false,"took":7"#,
                Outcome::reject("bad"),
            ),
            (r#""error":{"code":7}"#, Outcome::reject(r#"{"code":7}"#)),
        ] {
            let line = format!("{{\"id\":\"000000000000002a\",{fields}}}\r\n");
            let answer = decode_answer_line(line.as_bytes());
            assert_eq!(answer, Ok((RequestId::from_u64(0x2a), want)), "{line}");
        }
    }

    #[test]
    fn what_is_not_an_answer_is_described_without_its_content() {
        for (line, why) in [
            ("", "EOF while parsing"),
            ("secret", "not an answer: expected value at column 1"),
            (r#"["000000000000002a",1,2,true,9]"#, "not an answer"),
            (r#"{"result":1}"#, "missing field `id`"),
            (r#"{"id":42,"result":1}"#, "expected a string"),
            (r#"{"id":"42","result":1}"#, "16 hexadecimal digits"),
            (
                r#"{"id":"000000000000002a"}"#,
                "neither a result nor an error",
            ),
            (
                r#"{"id":"000000000000002a","error":null}"#,
                "neither a result nor an error",
            ),
            (
                r#"{"id":"000000000000002a","result":1,"error":"x"}"#,
                "both a result and an error",
            ),
            (
                r#"{"id":"000000000000002a","result":1,"result":2}"#,
                "duplicate field",
            ),
            (
                r#"{"id":"000000000000002a","result":1} x"#,
                "trailing characters",
            ),
            (
                r#"{"id":"000000000000002a","error":"x","retry":"yes"}"#,
                "expected a boolean",
            ),
        ] {
            let error = decode_answer_line(line.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
            assert!(
                !error.contains("secret") && !error.contains("line 1"),
                "{error}"
            );
        }
    }
}
