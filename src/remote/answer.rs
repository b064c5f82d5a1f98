//! What a provider answered: a line of its output or error file, or the answer to a single call.
//!
//! ```text
//! {"id":"..","custom_id":"a","response":{"status_code":200,"body":{..}},"error":null}       succeeded
//! {"custom_id":"a","response":{"status_code":429,"body":{"error":{..}}}}                    failed; 429 is retryable
//! {"custom_id":"a","response":null,"error":{"code":"batch_expired","message":".."}}         expired
//! {"custom_id":"a","result":{"type":"succeeded","message":{..}}}                            Anthropic's, likewise
//! ```
//! It is read leniently: `body` may be a string of JSON, `error` null, absent or empty, `status_code` a string or absent; fields that
//! are not named here are ignored. A line with both an answer and an error counts as its answer, since that was paid for. A success
//! whose body has an error is a failure.

use bytes::Bytes;
use serde_json::{Value, value::RawValue};

use super::{
    failure::{NO_ANSWER, ProviderError},
    tokens::Usage,
};
use crate::{
    batch::Outcome,
    format::fields::{Fields, write_flat, write_string},
};

/// The answer to one request of a batch.
///
/// ```
/// use batchyard::remote::{Answer, Verdict};
/// let line = r#"{"custom_id":"a","response":{"status_code":200,"body":{"usage":{"prompt_tokens":3}}}}"#;
/// let answer = Answer::read(line.into())?;
/// assert_eq!(answer.custom_id.as_deref(), Some("a"));
/// assert_eq!(answer.verdict, Verdict::Succeeded { body: r#"{"usage":{"prompt_tokens":3}}"#.into() });
/// assert_eq!(answer.usage.unwrap().input_tokens, 3);
/// # Ok::<(), batchyard::remote::BadLine>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Under which id the request was sent; `None` if the line does not say.
    pub custom_id: Option<String>,
    /// What became of it.
    pub verdict: Verdict,
    /// What it took, if the provider says so.
    pub usage: Option<Usage>,
    /// The line as it came, without its break.
    pub line: Bytes,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was answered.
    Succeeded {
        /// The answer, JSON with its exact text.
        body: String,
    },
    /// It failed; [`ProviderError::is_retryable`] says whether for good.
    Failed(ProviderError),
    /// The window of the batch was over first.
    Expired,
    /// The batch was cancelled first.
    Cancelled,
}

/// A line that is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// What is wrong, without anything of the line.
    pub error: String,
    /// Whether it only ends too early: the rest of a download is missing.
    pub is_cut: bool,
}

impl std::fmt::Display for BadLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for BadLine {}

impl Answer {
    /// Reads a line of an output or error file, or of Anthropic's results; what was stored as a request's result as well.
    ///
    /// # Errors
    /// It is not a JSON object.
    pub fn read(line: Bytes) -> Result<Self, BadLine> {
        let fields: Fields = serde_json::from_slice(&line).map_err(|error| BadLine {
            error: format!("not an answer: {error}"),
            is_cut: error.is_eof(),
        })?;
        let custom_id = match value(fields.field("custom_id")) {
            Value::String(id) => Some(id),
            Value::Number(id) => Some(id.to_string()),
            _ => None,
        };
        let verdict = match fields.field("result").map(parse_fields) {
            Some(Some(result)) => of_result(&result),
            _ => of_response(&fields),
        };
        let usage = match &verdict {
            Verdict::Succeeded { body } => usage_of(body),
            _ => None,
        };
        Ok(Self {
            custom_id,
            verdict,
            usage,
            line,
        })
    }

    /// The outcome to record: a success with the line as its result, so that nothing that the provider said is lost; a failure to
    /// be tried again or dead-lettered with the provider's own error.
    pub fn outcome(&self) -> Outcome {
        match &self.verdict {
            Verdict::Succeeded { .. } => Outcome::result(self.line.clone()),
            Verdict::Failed(error) if error.is_retryable() => Outcome::retry(error.to_string()),
            Verdict::Failed(error) => Outcome::reject(error.to_string()),
            Verdict::Expired => {
                Outcome::retry("the provider's window was over before it was answered")
            }
            Verdict::Cancelled => {
                Outcome::retry("its batch was cancelled at the provider before it was answered")
            }
        }
    }

    /// The outcome of a request that no line answers.
    pub fn missing() -> Outcome {
        Outcome::retry("it is in none of the provider's files")
    }
}

impl Verdict {
    /// What the answer to a call of its own says: its status, and its body.
    pub fn of_call(status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let body = serde_json::from_str::<&RawValue>(&text)
            .map(RawValue::get)
            .ok();
        match (status, body) {
            (200..=299, Some(body)) => of_body(Some(status), body),
            (200..=299, None) => Self::Failed(ProviderError::new(
                NO_ANSWER,
                format!("status {status}, and what was answered is not JSON"),
            )),
            (_, body) => {
                let error = match body {
                    Some(body) => value(Some(body)),
                    None => Value::from(text.trim()),
                };
                let error = ProviderError::read(&error).unwrap_or_default();
                Self::Failed(error.with_status(Some(status)))
            }
        }
    }

    /// Appends the line in which a provider would have said this, so that the answer to a call is read like one from a batch. JSON
    /// bodies stand there as they are.
    pub fn write_line(custom_id: &str, status: u16, body: &[u8], line: &mut Vec<u8>) {
        line.extend_from_slice(b"{\"custom_id\":");
        write_string(custom_id, line);
        line.extend_from_slice(
            format!(",\"response\":{{\"status_code\":{status},\"body\":").as_bytes(),
        );
        match serde_json::from_slice::<&RawValue>(body) {
            Ok(json) => write_flat(json.get(), line),
            Err(_) => write_string(&String::from_utf8_lossy(body), line),
        }
        line.extend_from_slice(b"},\"error\":null}\n");
    }
}

/// Of `response` and `error`.
fn of_response(line: &Fields) -> Verdict {
    let error = || ProviderError::read(&value(line.field("error")));
    let response = line.field("response").and_then(parse_fields);
    let Some(response) = response else {
        return of_error(error());
    };
    let status = status_of(&response);
    let body = response.field("body").filter(|body| *body != "null");
    // JSON that was made a string of.
    let inner: Option<String> = body.and_then(|body| serde_json::from_str(body).ok());
    let inner = inner.filter(|inner| serde_json::from_str::<Fields>(inner).is_ok());
    let body = inner.as_deref().or(body);
    let verdict = match (status, body) {
        (None | Some(200..=299), Some(body)) => of_body(status, body),
        (None | Some(200..=299), None) => return of_error(error()),
        (_, body) => {
            let own = ProviderError::read(&value(body)).or_else(error);
            of_error(Some(own.unwrap_or_default().with_status(status)))
        }
    };
    match (verdict, error()) {
        // What the line says itself, if the body does not say it better.
        (Verdict::Failed(own), Some(error)) if own.message.is_empty() => {
            of_error(Some(error.with_status(own.status)))
        }
        (verdict, _) => verdict,
    }
}

/// Of a body that came with a success, or without a status.
fn of_body(status: Option<u16>, body: &str) -> Verdict {
    let error =
        parse_fields(body).and_then(|fields| ProviderError::read(&value(fields.field("error"))));
    match error {
        Some(error) => of_error(Some(error)),
        None if status.is_none() && body == "{}" => of_error(None),
        None => Verdict::Succeeded {
            body: body.to_owned(),
        },
    }
}

fn of_error(error: Option<ProviderError>) -> Verdict {
    match error {
        Some(error) if error.is_expiry() => Verdict::Expired,
        Some(error) if error.is_cancellation() => Verdict::Cancelled,
        Some(error) => Verdict::Failed(error),
        None => Verdict::Failed(ProviderError::new(
            NO_ANSWER,
            "the line has neither an answer nor an error",
        )),
    }
}

/// Of Anthropic's `result`.
fn of_result(result: &Fields) -> Verdict {
    let kind = value(result.field("type"));
    let error = || ProviderError::read(&value(result.field("error")));
    let body = result.field("message").filter(|body| *body != "null");
    match (kind.as_str().unwrap_or_default(), body) {
        ("succeeded", Some(body)) => Verdict::Succeeded {
            body: body.to_owned(),
        },
        ("expired", _) => Verdict::Expired,
        ("canceled" | "cancelled", _) => Verdict::Cancelled,
        ("errored", _) => of_error(error()),
        (other, _) => Verdict::Failed(error().unwrap_or_else(|| {
            let shown: String = other.chars().take(60).collect();
            ProviderError::new(
                NO_ANSWER,
                format!("a result of the type {shown:?} without an answer"),
            )
        })),
    }
}

/// A number, or one written as a text; a status that is none is not there.
fn status_of(response: &Fields) -> Option<u16> {
    let status = value(response.field("status_code"));
    let number = status
        .as_u64()
        .or_else(|| status.as_str()?.trim().parse().ok());
    let number = number.and_then(|number| u16::try_from(number).ok());
    number.filter(|status| (100..=999).contains(status))
}

fn parse_fields(json: &str) -> Option<Fields> {
    serde_json::from_str(json).ok()
}

fn value(json: Option<&str>) -> Value {
    let read = |json| serde_json::from_str(json).ok();
    json.and_then(read).unwrap_or(Value::Null)
}

fn usage_of(body: &str) -> Option<Usage> {
    let body = parse_fields(body)?;
    Usage::read(&value(body.field("usage")))
}
