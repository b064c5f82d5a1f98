//! What an answer that is no success means.

use std::{fmt::Write, time::Duration};

use reqwest::{Response, StatusCode, Url, header};

use super::shown;
use crate::{
    clock::Timestamp,
    handler::{FailureKind, HandlerError},
};

/// The error for this answer, with the beginning of what the endpoint says about it.
pub(super) async fn refusal(url: &Url, response: Response, now: Timestamp) -> HandlerError {
    let status = response.status();
    let text_of = |name| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let wait = text_of(header::RETRY_AFTER).and_then(|text| retry_after(text, now));
    let location = text_of(header::LOCATION).and_then(|place| url.join(place).ok());
    let mut message = format!("{} answered {status}", shown(url));
    if status.is_redirection() {
        let place = location.as_ref().map_or_else(|| "nowhere".into(), shown);
        let _ = write!(
            message,
            ", a redirect to {place}, which is not followed: post there instead"
        );
    } else {
        let said = excerpt(response).await;
        if !said.is_empty() {
            let _ = write!(message, ": {said}");
        }
    }
    let error = HandlerError::new(kind_of(status), message);
    match wait {
        Some(wait) => error.retry_after(wait),
        None => error,
    }
}

/// A wrong token, a wrong path or a moved endpoint says nothing about any request: every batch would be
/// answered alike, so it is an outage until somebody mends it, and no request is dead-lettered for it.
fn kind_of(status: StatusCode) -> FailureKind {
    match status.as_u16() {
        300..=399 | 401 | 403..=405 | 407 | 429 | 503 => FailureKind::Outage,
        408 | 425 | 500..=599 => FailureKind::Transient,
        _ => FailureKind::Permanent,
    }
}

/// A `Retry-After` in either form, RFC 9110 section 10.2.3; at most a day.
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
        let nanos = u64::try_from(date.as_nanosecond()).unwrap_or(0);
        Timestamp::from_nanos(nanos).since(now)
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// The beginning of the body, on one line; what can't be had soon is left out.
async fn excerpt(mut response: Response) -> String {
    let mut bytes = Vec::new();
    let reading = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_EXCERPT_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(EXCERPT_TIMEOUT, reading).await;
    let cut = bytes.len() > MAX_EXCERPT_BYTES;
    bytes.truncate(MAX_EXCERPT_BYTES);
    let text = String::from_utf8_lossy(&bytes).replace(char::is_control, " ");
    let text = text.trim();
    if cut {
        format!("{text}…")
    } else {
        text.to_owned()
    }
}

const MAX_EXCERPT_BYTES: usize = 300;
const EXCERPT_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_at_most_a_day() {
        let now = Timestamp::from_millis(784_111_700_000);
        let day = Some(MAX_RETRY_AFTER);
        for (text, want) in [
            ("0", Some(Duration::ZERO)),
            (" 120 ", Some(Duration::from_secs(120))),
            ("99999999999999999999999", day),
            (
                "Sun, 06 Nov 1994 08:49:37 GMT",
                Some(Duration::from_secs(77)),
            ),
            ("Sun, 06 Nov 1994 08:47:37 GMT", Some(Duration::ZERO)),
            (
                "Sun, 06 Nov 1994 08:49:37 +0000",
                Some(Duration::from_secs(77)),
            ),
            ("Thu, 01 Jan 2026 00:00:00 GMT", day),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(text, now), want, "{text:?}");
        }
    }

    #[test]
    fn a_status_decides_who_is_to_blame() {
        use FailureKind::{Outage, Permanent, Transient};
        for (status, want) in [
            (429, Outage),
            (503, Outage),
            (408, Transient),
            (425, Transient),
            (500, Transient),
            (502, Transient),
            (504, Transient),
            (400, Permanent),
            (401, Outage),
            (404, Outage),
            (413, Permanent),
            (422, Permanent),
            (301, Outage),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(kind_of(status), want, "{status}");
        }
    }
}
