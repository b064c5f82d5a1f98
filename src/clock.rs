//! Time as a value: [`Timestamp`], and the only place that reads a clock.
//!
//! Every verb of a queue is given `now`. [`now`] is where a caller without an opinion gets it: the
//! system clock, read once when the process first asks, and advanced by the monotonic clock from
//! then on, so that it never steps within a process. It follows tokio's clock, so a test with paused
//! time moves it.

use std::{
    fmt,
    str::FromStr,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::time::Instant;

use crate::error::Error;

/// A point in time: whole nanoseconds since the Unix epoch (reaches the year 2554).
///
/// Arithmetic saturates: a time before the epoch is the epoch, one past the end is [`Timestamp::MAX`].
/// It prints, and serializes, as RFC 3339 in UTC, to the nanosecond.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The Unix epoch.
    pub const EPOCH: Self = Self(0);
    /// The last representable time, used for "never".
    pub const MAX: Self = Self(u64::MAX);

    /// From nanoseconds since the Unix epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since the Unix epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Milliseconds since the Unix epoch, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// This time, `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// This time, `duration` earlier.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, such as `2026-11-22T10:51:00.25Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(time) => time.fmt(f),
            Err(_) => write!(f, "{} ns", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    /// From RFC 3339, such as `2026-11-22T10:51:00.25Z`.
    fn from_str(text: &str) -> crate::error::Result<Self> {
        let time: Option<jiff::Timestamp> = text.parse().ok();
        let nanos = time.and_then(|time| u64::try_from(time.as_nanosecond()).ok());
        nanos.map(Self).ok_or_else(|| {
            Error::invalid(format!(
                "{text:?} is not a time such as 2026-11-22T10:51:00.25Z"
            ))
        })
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, nanos))
    }
}

/// The current time: the system clock, read once when the process first asks, and advanced by the
/// monotonic clock from then on, so that it never steps within a process.
pub fn now() -> Timestamp {
    static ANCHOR: OnceLock<(Timestamp, Instant)> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
    let (wall, monotonic) =
        ANCHOR.get_or_init(|| (Timestamp::from(SystemTime::now()), Instant::now()));
    wall.after(Instant::now().saturating_duration_since(*monotonic))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let second = Duration::from_secs(1);
        assert_eq!(Timestamp::EPOCH.before(second), Timestamp::EPOCH);
        assert_eq!(Timestamp::MAX.after(second), Timestamp::MAX);
        assert_eq!(Timestamp::EPOCH.since(Timestamp::MAX), Duration::ZERO);
        assert_eq!(
            Timestamp::EPOCH.after(second).since(Timestamp::EPOCH),
            second
        );
    }

    #[test]
    fn a_timestamp_prints_as_rfc_3339() {
        let time = Timestamp::from_millis(1_700_000_000_250);
        assert_eq!(time.to_string(), "2023-11-14T22:13:20.25Z");
        assert_eq!(
            serde_json::to_value(time).unwrap(),
            "2023-11-14T22:13:20.25Z"
        );
        assert_eq!(Timestamp::MAX.to_string(), "2554-07-21T23:34:33.709551615Z");
        for time in [Timestamp::EPOCH, time, Timestamp::MAX] {
            assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        }
        for text in ["", "noon", "1969-12-31T23:59:59Z", "9999-01-01T00:00:00Z"] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn now_follows_paused_time() {
        let before = now();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(now().since(before) >= Duration::from_secs(3600));
    }
}
