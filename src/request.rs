//! Requests: what is pushed, how it is named, and the states it passes through.
//!
//! ```text
//!                 push                              claim
//!   not_before ┌────────┐   ready   ┌─────────┐             ┌───────────┐  done    ┌──────┐
//!  ──────────▶ │delayed │ ────────▶ │  ready  │ ──────────▶ │ in flight │ ───────▶ │ done │
//!              └────────┘           └─────────┘             └───────────┘          └──────┘
//!                   ▲                 ▲     │ too large       │   │  reject, or
//!                   └── retry, later ─┼─────┼─────────────────┘   │  attempts used up
//!                                     │     ▼                     ▼
//!       ttl passed: expired        redrive ◀──────────────── ┌──────┐  purge
//!       cancel:     cancelled                                │ dead │ ───────▶ purged
//!                                                            └──────┘
//! ```
//! A request is in exactly one state; [`Stats`](crate::Stats) counts each of them, and they add up.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    batch::check_note,
    clock::Timestamp,
    error::{Error, Result},
    trace,
};

/// The largest payload that a queue accepts: 64 MiB. One byte more is [`ErrorKind::Invalid`](crate::ErrorKind::Invalid).
pub const MAX_PAYLOAD_BYTES: usize = 64 << 20;
/// The most attributes of one request.
pub const MAX_ATTRIBUTES: usize = 64;
/// The most bytes of one request's attributes, names and values together.
pub const MAX_ATTRIBUTE_BYTES: usize = 4 << 10;
/// The longest idempotency key or source of a bookmark, in bytes.
pub const MAX_KEY_BYTES: usize = 512;
/// The longest queue name, in bytes.
pub const MAX_QUEUE_NAME_BYTES: usize = 128;

/// Small named strings that travel with a request and come back with its outcome: a tenant, a
/// `custom_id`, trace context. At most [`MAX_ATTRIBUTES`], at most [`MAX_ATTRIBUTE_BYTES`].
pub type Attributes = BTreeMap<String, String>;

/// The name of a queue: 1 to [`MAX_QUEUE_NAME_BYTES`] bytes of ASCII letters, digits, `.`, `_`, `-` and `:`.
///
/// ```
/// use batchyard::QueueName;
/// assert!("tenant-7.emails".parse::<QueueName>().is_ok());
/// assert!("a/b".parse::<QueueName>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueueName(String);

impl QueueName {
    /// The name as a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for QueueName {
    /// The queue that a store opens when none is named: `default`.
    fn default() -> Self {
        Self("default".into())
    }
}

impl FromStr for QueueName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let shown: String = name.chars().take(40).collect();
        if name.is_empty() {
            return Err(Error::invalid("a queue name must not be empty"));
        }
        if name.len() > MAX_QUEUE_NAME_BYTES {
            return Err(Error::invalid(format!(
                "queue name {shown:?}… has {} bytes, and at most {MAX_QUEUE_NAME_BYTES} are allowed",
                name.len()
            )));
        }
        match name
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || ".-_:".contains(*c)))
        {
            Some(bad) => Err(Error::invalid(format!(
                "queue name {shown:?} has the character {bad:?}; use letters, digits, '.', '_', '-' and ':'"
            ))),
            None => Ok(Self(name.to_owned())),
        }
    }
}

impl TryFrom<String> for QueueName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<QueueName> for String {
    fn from(name: QueueName) -> Self {
        name.0
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A `u64` newtype that prints, parses and serializes as 16 hexadecimal digits, so that text order is
/// numeric order and no JSON reader rounds it.
macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u64);

        impl $name {
            /// From its number.
            pub const fn from_u64(value: u64) -> Self {
                Self(value)
            }

            /// Its number.
            pub const fn as_u64(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
                u64::from_str_radix(text, 16)
                    .ok()
                    .filter(|_| digits)
                    .map(Self)
                    .ok_or_else(|| {
                        Error::invalid(format!(
                            "{text:?} is not a {}: 16 hexadecimal digits are",
                            stringify!($name)
                        ))
                    })
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

hex_id! {
    /// Names a request for life: the first position it was given. Unique within its queue; ids of
    /// later pushes are larger, and those of one push are consecutive numbers.
    RequestId
}

hex_id! {
    /// Where a request stands in its queue: a monotonic timestamp, `max(now, last + 1)` in nanoseconds.
    ///
    /// It only orders. When a request became ready is stored beside it, because a clock may have
    /// stepped. A request that is retried, promoted or redriven gets a new position at the tail.
    Position
}

/// The attribute that carries the W3C trace context of whoever pushed a request.
pub const TRACEPARENT: &str = "traceparent";
/// The attribute that carries what vendors add to it.
pub const TRACESTATE: &str = "tracestate";

/// A request about to be pushed.
///
/// ```
/// use std::time::Duration;
/// use batchyard::NewRequest;
/// let request = NewRequest::new("hello")
///     .attribute("tenant", "7")
///     .idempotency_key("order-1881")
///     .ttl(Duration::from_secs(3600));
/// assert_eq!(&request.payload[..], b"hello");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRequest {
    /// The bytes to hand to the handler; opaque, may be empty, at most [`MAX_PAYLOAD_BYTES`].
    pub payload: Bytes,
    /// Strings that come back with the outcome.
    pub attributes: Attributes,
    /// The earliest time at which it may be ready; until then it is delayed. Default: at once.
    pub not_before: Option<Timestamp>,
    /// How long after the push it expires if no batch has taken it. Default: never.
    pub ttl: Option<Duration>,
    /// A second push with this key within the queue's `idempotency_window` adds nothing and is
    /// answered with the first one's id; with another payload it is refused. Default: none.
    pub idempotency_key: Option<String>,
}

impl NewRequest {
    /// A request with this payload and nothing else.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            ..Self::default()
        }
    }

    /// A request whose payload is `value` as JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if it can't be written as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        serde_json::to_vec(value)
            .map(Self::new)
            .map_err(|error| Error::invalid("payload can't be written as JSON").with_source(error))
    }

    /// With one more attribute.
    #[must_use]
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(name.into(), value.into());
        self
    }

    /// With the W3C trace context of whoever pushes it, as [`TRACEPARENT`] and, unless it is empty, [`TRACESTATE`] in its
    /// attributes: with the feature `otel` the span of the batch that takes it has a link to there.
    #[must_use]
    pub fn with_trace_context(
        self,
        traceparent: impl Into<String>,
        tracestate: impl Into<String>,
    ) -> Self {
        let tracestate = tracestate.into();
        let with = self.attribute(TRACEPARENT, traceparent);
        if tracestate.is_empty() {
            return with;
        }
        with.attribute(TRACESTATE, tracestate)
    }

    /// With the trace context of the current span, if spans are collected with `tracing-opentelemetry`, and the feature `otel` is there.
    #[must_use]
    pub fn with_current_trace_context(self) -> Self {
        match trace::context(&tracing::Span::current()) {
            Some((traceparent, tracestate)) => self.with_trace_context(traceparent, tracestate),
            None => self,
        }
    }

    /// Not ready before this time.
    #[must_use]
    pub fn not_before(mut self, time: Timestamp) -> Self {
        self.not_before = Some(time);
        self
    }

    /// Expires this long after the push, unless a batch has taken it.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Pushed at most once within the queue's window.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Checks the limits that hold on every backend; each `push` calls it before it stores anything.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid), naming the limit.
    pub fn validate(&self) -> Result<()> {
        let attribute_bytes: usize = self
            .attributes
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        let key_bytes = self.idempotency_key.as_ref().map_or(0, String::len);
        let limits = [
            ("payload bytes", self.payload.len(), MAX_PAYLOAD_BYTES),
            ("attributes", self.attributes.len(), MAX_ATTRIBUTES),
            ("attribute bytes", attribute_bytes, MAX_ATTRIBUTE_BYTES),
            ("idempotency key bytes", key_bytes, MAX_KEY_BYTES),
        ];
        match limits.into_iter().find(|(_, is, most)| is > most) {
            Some((what, is, most)) => Err(Error::invalid(format!(
                "a request has {is} {what}, and at most {most} are allowed"
            ))),
            None => Ok(()),
        }
    }
}

/// What a backend answers to a key that it knows with another payload, in the same words on each.
pub(crate) fn key_conflict(key: &str, id: RequestId) -> Error {
    Error::invalid(format!(
        "idempotency key {key:?} was pushed with another payload, as request {id}"
    ))
}

/// What `push` answers for each request, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// The request's id for life.
    pub id: RequestId,
    /// True if its idempotency key was known: nothing was added, and `id` is the earlier request's.
    pub duplicate: bool,
}

/// How far a producer has read its source, stored in the same atomic step as the requests it became.
///
/// A producer that pushes with [`push_from`](crate::Queue::push_from) and, after a crash, asks
/// [`bookmark`](crate::Queue::bookmark) where it was, queues nothing twice and leaves nothing out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// The producer's name for its source, such as a file; at most 512 bytes.
    pub source: String,
    /// The producer's own note, such as an offset; at most 64 KiB.
    pub value: Bytes,
}

impl Bookmark {
    /// Checks the limits that hold on every backend; each `push_from` calls it before it stores anything.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid), naming the limit.
    pub fn validate(&self) -> Result<()> {
        let source_bytes = self.source.len();
        if source_bytes > MAX_KEY_BYTES {
            return Err(Error::invalid(format!(
                "the source of a bookmark has {source_bytes} bytes, and at most {MAX_KEY_BYTES} are allowed"
            )));
        }
        check_note("the value of a bookmark", &self.value)
    }
}

/// The states of a request; see [how it works](crate::documentation::how_it_works) for the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for its `not_before`, or for the backoff of its retry.
    Delayed,
    /// Waits for a batch.
    Ready,
    /// Member of a batch that has not ended, without a `done` outcome.
    InFlight,
    /// Settled successfully.
    Done,
    /// Dead-lettered, with its reason; waits for a redrive or a purge.
    Dead,
    /// Its `ttl` passed before a batch took it.
    Expired,
    /// Cancelled before it was settled.
    Cancelled,
}

impl State {
    /// All of them, in this order.
    pub const ALL: [Self; 7] = [
        Self::Delayed,
        Self::Ready,
        Self::InFlight,
        Self::Done,
        Self::Dead,
        Self::Expired,
        Self::Cancelled,
    ];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delayed => "delayed",
            Self::Ready => "ready",
            Self::InFlight => "in_flight",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        })
    }
}

/// Why a request was dead-lettered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeadReason {
    /// The handler rejected it, or failed for good with it alone.
    Rejected,
    /// It failed, or killed its holder, as often as `max_attempts` allows.
    Exhausted,
    /// It alone exceeds the limits of a batch.
    TooLarge,
    /// Its payload is not what the handler or `request_kwargs` needs.
    Undecodable,
    /// Its stored bytes are damaged.
    Damaged,
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rejected => "rejected",
            Self::Exhausted => "exhausted",
            Self::TooLarge => "too_large",
            Self::Undecodable => "undecodable",
            Self::Damaged => "damaged",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_names_are_checked_with_a_reason() {
        for good in ["a", "tenant-7.emails:eu_1", &"x".repeat(128)] {
            assert_eq!(good.parse::<QueueName>().unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", "empty"),
            ("a/b", "'/'"),
            ("{a}", "'{'"),
            ("ü", "'ü'"),
            (&"x".repeat(300), "300 bytes"),
        ] {
            let error = bad.parse::<QueueName>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
    }

    #[test]
    fn ids_print_and_parse_as_sixteen_hex_digits() {
        let id = RequestId::from_u64(0x2a);
        assert_eq!(id.to_string(), "000000000000002a");
        assert_eq!("000000000000002a".parse::<RequestId>().unwrap(), id);
        for bad in ["", "2a", "+00000000000002a", "00000000000000zz"] {
            assert!(bad.parse::<RequestId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_request_over_a_limit_is_refused_and_the_limit_named() {
        assert!(NewRequest::new("").validate().is_ok());
        assert!(
            NewRequest::new(vec![0; MAX_PAYLOAD_BYTES])
                .validate()
                .is_ok()
        );
        let error = NewRequest::new(vec![0; MAX_PAYLOAD_BYTES + 1])
            .validate()
            .unwrap_err();
        assert!(error.to_string().contains("67108864"), "{error}");
        assert!(
            NewRequest::new("")
                .idempotency_key("k".repeat(513))
                .validate()
                .is_err()
        );
        assert!(
            NewRequest::new("")
                .attribute("a", "v".repeat(4096))
                .validate()
                .is_err()
        );
    }
}
