//! What a provider says went wrong, with a request, a batch or a call, and whether it may go well another time.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An error in a provider's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProviderError {
    /// The HTTP status that the request had, or would have had.
    pub status: Option<u16>,
    /// Its code, such as `rate_limit_exceeded`.
    pub code: Option<String>,
    /// Its type, such as `invalid_request_error`.
    pub kind: Option<String>,
    /// What it says, at most 2,000 characters; empty if it says nothing.
    pub message: String,
    /// The line of the input file that it is about, counted from 1.
    pub line: Option<u64>,
}

impl ProviderError {
    /// One of our own making, for what no provider said.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: Some(code.to_owned()),
            message: message.into(),
            ..Self::default()
        }
    }

    /// The error that this JSON is, or holds in a field `error`; `None` for null, and for objects with nothing in them.
    ///
    /// Text, `{"error":{"message","type","param","code"}}`, `{"type":"error","error":{"type","message"}}`,
    /// `{"message","code"}`, `{"detail"}`, and lists of any of these are understood; of other JSON the text is the message.
    pub fn read(error: &Value) -> Option<Self> {
        let mut value = error;
        // As deep as anybody was seen to nest it.
        for _ in 0..4 {
            let inner = match value {
                Value::Array(list) => list.first(),
                Value::Object(fields) => fields.get("error").filter(|inner| !is_nothing(inner)),
                _ => None,
            };
            let Some(inner) = inner else { break };
            value = inner;
        }
        if is_nothing(value) {
            return None;
        }
        let text = |names: &[&str]| {
            let found = names.iter().filter_map(|name| value.get(name));
            found.filter(|text| !is_nothing(text)).map(plain).next()
        };
        let message = match value {
            Value::Object(_) => text(&["message", "detail", "msg", "error"]).unwrap_or_default(),
            other => plain(other),
        };
        let code = text(&["code"]);
        let status = ["status", "status_code", "code"].iter().find_map(|name| {
            let number = value.get(name)?;
            let number = number.as_u64().or_else(|| number.as_str()?.parse().ok());
            number
                .and_then(|number| u16::try_from(number).ok())
                .filter(|status| (400..600).contains(status))
        });
        Some(Self {
            status,
            code,
            kind: text(&["type"]).filter(|kind| kind != "error"),
            message: message.chars().take(MESSAGE_CHARS).collect(),
            line: value.get("line").and_then(Value::as_u64),
        })
    }

    /// With the status of the call, if it does not have one.
    #[must_use]
    pub fn with_status(mut self, status: Option<u16>) -> Self {
        self.status = self.status.or(status);
        self
    }

    /// Whether the same request may go well another time. Its code decides; a code that is not known leaves it to the
    /// status, and that to the type. What nobody can tell may: attempts are bounded.
    pub fn is_retryable(&self) -> bool {
        self.verdict().unwrap_or(true)
    }

    /// The same where somebody can tell.
    pub(super) fn verdict(&self) -> Option<bool> {
        let known = |name: &Option<String>| {
            let name = name.as_deref()?;
            let is_in = |names: &[&str]| names.contains(&name);
            if is_in(&RETRYABLE) {
                return Some(true);
            }
            is_in(&FINAL).then_some(false)
        };
        let by_status = || match self.status? {
            408 | 409 | 425 | 429 | 500..=599 => Some(true),
            400..=499 => Some(false),
            _ => None,
        };
        let by_code = known(&self.code).or_else(by_status);
        by_code.or_else(|| known(&self.kind))
    }

    /// Whether it says that the window was over before the request was answered.
    pub(super) fn is_expiry(&self) -> bool {
        let is =
            |name: &Option<String>| matches!(name.as_deref(), Some("batch_expired" | "expired"));
        is(&self.code) || is(&self.kind)
    }

    /// Whether it says that the batch was cancelled before the request was answered.
    pub(super) fn is_cancellation(&self) -> bool {
        let is = |name: &Option<String>| {
            let name = name.as_deref();
            matches!(
                name,
                Some("batch_cancelled" | "batch_canceled" | "cancelled" | "canceled")
            )
        };
        is(&self.code) || is(&self.kind)
    }
}

impl fmt::Display for ProviderError {
    /// `status 400, invalid_request_error, unknown_parameter: what it says`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status.map(|status| format!("status {status}"));
        let code = self
            .code
            .clone()
            .filter(|code| self.status.is_none_or(|status| *code != status.to_string()));
        let kind = self.kind.clone().filter(|kind| Some(kind) != code.as_ref());
        let line = self.line.map(|line| format!("line {line}"));
        let parts: Vec<_> = [status, kind, code, line].into_iter().flatten().collect();
        f.write_str(&parts.join(", "))?;
        match (parts.is_empty(), self.message.is_empty()) {
            (true, true) => f.write_str("an error without a word"),
            (_, true) => Ok(()),
            (true, false) => f.write_str(&self.message),
            (false, false) => write!(f, ": {}", self.message),
        }
    }
}

impl std::error::Error for ProviderError {}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.iter().all(is_nothing),
        Value::Object(fields) => fields.values().all(is_nothing),
        _ => false,
    }
}

/// A text as it is, anything else as JSON.
fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

const RETRYABLE: [&str; 12] = [
    "rate_limit_exceeded",
    "rate_limit_error",
    "token_limit_exceeded",
    "server_error",
    "internal_error",
    "internal_server_error",
    "overloaded_error",
    "api_error",
    "timeout_error",
    "batch_expired",
    "batch_cancelled",
    NO_ANSWER,
];
const FINAL: [&str; 9] = [
    "invalid_request_error",
    "content_policy_violation",
    "content_filter",
    "model_not_found",
    "context_length_exceeded",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
];
/// The code of a line that has neither an answer nor an error.
pub(super) const NO_ANSWER: &str = "no_answer";
const MESSAGE_CHARS: usize = 2000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_is_found_wherever_it_stands() {
        for (json, want) in [
            (json!("boom"), "boom"),
            (json!({"error": "boom"}), "boom"),
            (
                json!({"error": {"message": "boom", "type": "t", "code": "c"}}),
                "t, c: boom",
            ),
            (
                json!({"type": "error", "error": {"type": "t", "message": "boom"}}),
                "t: boom",
            ),
            (
                json!({"error": {"type": "error", "error": {"type": "t", "message": "boom"}, "request_id": "r"}}),
                "t: boom",
            ),
            (
                json!({"object": "error", "message": "boom", "type": "t", "code": 404}),
                "status 404, t: boom",
            ),
            (
                json!({"detail": [{"loc": ["a"], "msg": "boom"}]}),
                r#"[{"loc":["a"],"msg":"boom"}]"#,
            ),
            (
                json!([{"code": "c", "message": "boom", "line": 3}]),
                "c, line 3: boom",
            ),
            (json!({"code": "c"}), "c"),
            (json!(7), "7"),
            (json!({"other": 1}), "an error without a word"),
        ] {
            assert_eq!(
                ProviderError::read(&json).unwrap().to_string(),
                want,
                "{json}"
            );
        }
        for nothing in [
            json!(null),
            json!({}),
            json!([]),
            json!(""),
            json!({"code": null, "message": ""}),
            json!({"error": null}),
        ] {
            assert_eq!(ProviderError::read(&nothing), None, "{nothing}");
        }
        let long = ProviderError::read(&json!("x".repeat(9000))).unwrap();
        assert_eq!(long.message.len(), MESSAGE_CHARS);
    }

    #[test]
    fn the_code_decides_then_the_status_then_the_type() {
        for (error, want) in [
            (json!({"code": "rate_limit_exceeded", "status": 400}), true),
            (json!({"code": "model_not_found", "status": 500}), false),
            (
                json!({"code": "else", "type": "invalid_request_error", "status": 503}),
                true,
            ),
            (json!({"type": "server_error", "status": 422}), false),
            (json!({"type": "overloaded_error"}), true),
            (json!({"type": "not_found_error"}), false),
            (json!({"code": "else"}), true),
            (json!("no idea"), true),
        ] {
            let read = ProviderError::read(&error).unwrap();
            assert_eq!(read.is_retryable(), want, "{error}");
        }
        for (status, want) in [
            (400, false),
            (401, false),
            (403, false),
            (404, false),
            (408, true),
            (409, true),
            (413, false),
            (418, false),
            (422, false),
            (425, true),
            (429, true),
            (500, true),
            (503, true),
            (529, true),
            (302, true),
        ] {
            let error = ProviderError::default().with_status(Some(status));
            assert_eq!(error.is_retryable(), want, "{status}");
        }
    }
}
