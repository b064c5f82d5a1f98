//! Whatever a handler outside the process answers, and whatever a payload is: no panic, no line that
//! is not one line of JSON, nothing lost on the way.

use bytes::Bytes;
use serde_json::{Value, value::RawValue};

use crate::{
    batch::{Member, Outcome},
    clock::Timestamp,
    format::{
        json_lines::{PayloadField, decode_answer_line, encode_request_line},
        template::{RequestsType, Template},
    },
    request::{Attributes, Position, RequestId},
};

/// An answer, a payload, and `request_kwargs` with a payload on the next line.
pub fn json_lines(data: &[u8]) {
    answer(data);
    request(data);
    if let Some(at) = data.iter().position(|&byte| byte == b'\n') {
        template(&data[..at], &data[at + 1..]);
    }
}

/// A result is a part of the line, to the byte, and JSON.
fn answer(line: &[u8]) {
    if let Ok((_, Outcome::Done { result })) = decode_answer_line(line) {
        let result = result.expect("an answer has a result");
        assert!(line.windows(result.len()).any(|part| part == result));
        serde_json::from_slice::<&RawValue>(&result).expect("a result is JSON");
    }
}

/// A payload becomes one line of JSON from which it can be had back.
fn request(payload: &[u8]) {
    let member = Member {
        id: RequestId::from_u64(7),
        position: Position::from_u64(7),
        attempt: 1,
        pushed_at: Timestamp::EPOCH,
        payload: Bytes::copy_from_slice(payload),
        attributes: Attributes::new(),
        outcome: None,
    };
    let mut line = Vec::new();
    encode_request_line(&member, &mut line);
    assert_eq!(
        line.iter().position(|&byte| byte == b'\n'),
        Some(line.len() - 1)
    );
    serde_json::from_slice::<&RawValue>(&line).expect("a line is JSON");
    match PayloadField::of(payload) {
        PayloadField::Json(json) => {
            let flat = json.replace(['\n', '\r'], " ");
            let tail = format!("\"payload\":{flat}}}\n");
            assert!(line.ends_with(tail.as_bytes()));
        }
        PayloadField::Text(text) => {
            let value: Value = serde_json::from_slice(&line).expect("a line with a text is JSON");
            assert_eq!(value["payload_text"], text);
        }
        PayloadField::Bytes(bytes) => {
            let value: Value = serde_json::from_slice(&line).expect("a line with base64 is JSON");
            let text = value["payload_base64"]
                .as_str()
                .expect("base64 is a string");
            assert_eq!(decoded(text), bytes);
        }
    }
}

/// Merging gives JSON, changes nothing the second time, and survives being stored.
fn template(kwargs: &[u8], payload: &[u8]) {
    let Ok(kwargs) = std::str::from_utf8(kwargs) else {
        return;
    };
    let Ok(template) = Template::new(RequestsType::Partial, kwargs) else {
        return;
    };
    let stored = Template::decode(&template.encode()).expect("what was encoded decodes");
    assert_eq!(stored, template);
    let Ok(body) = template.apply(Bytes::copy_from_slice(payload)) else {
        return;
    };
    if body == payload {
        return;
    }
    serde_json::from_slice::<&RawValue>(&body).expect("a merged body is JSON");
    assert_eq!(
        template.apply(body.clone()),
        Ok(body),
        "merging twice is merging once"
    );
}

/// A decoder that shares nothing with the encoder.
fn decoded(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        other => panic!("{other} is no digit of base64"),
    };
    assert_eq!(text.len() % 4, 0);
    let digits = text.trim_end_matches('=');
    let bits: Vec<u8> = digits
        .bytes()
        .flat_map(|byte| (0..6).rev().map(move |bit| digit(byte) >> bit & 1))
        .collect();
    let bytes = bits.chunks_exact(8);
    bytes
        .map(|byte| byte.iter().fold(0, |byte, bit| byte << 1 | bit))
        .collect()
}
