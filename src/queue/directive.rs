//! What operators ask of a queue: to be paused, and to let go of what is ready.
//!
//! Directives are bookmarks, so that they are as durable as everything else, move with a dump, and reach the dispatchers
//! of other processes; a backend shows those it has in its [`Stats`]. Dispatchers obey them, a claim does not.

use bytes::Bytes;

use crate::{clock::Timestamp, stats::Stats};

/// Since when the queue is paused; empty if it is not.
pub(super) const PAUSED: &str = "batchyard:paused";
/// Up to when what became ready is to leave at once.
pub(super) const FLUSHED: &str = "batchyard:flushed";

/// Whether a bookmark of this source is a directive.
#[cfg(feature = "control")]
pub(crate) fn is_one(source: &str) -> bool {
    [PAUSED, FLUSHED].contains(&source)
}

/// The value of a directive that was given at a time, or taken back.
pub(super) fn value(at: Option<Timestamp>) -> Bytes {
    at.map(|at| at.to_string()).unwrap_or_default().into()
}

/// The time that a value has; anything else is no directive of ours.
pub(super) fn parse(value: &[u8]) -> Option<Timestamp> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The directives of a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Directives {
    paused_at: Option<Timestamp>,
    flushed_at: Option<Timestamp>,
}

impl Directives {
    /// Those among the bookmarks of a queue.
    ///
    /// # Errors
    /// As the first look-up that fails.
    pub(crate) fn find<B: AsRef<[u8]>, E>(
        mut bookmark: impl FnMut(&str) -> Result<Option<B>, E>,
    ) -> Result<Self, E> {
        let mut time = |source| -> Result<_, E> {
            Ok(bookmark(source)?.and_then(|value| parse(value.as_ref())))
        };
        Ok(Self {
            paused_at: time(PAUSED)?,
            flushed_at: time(FLUSHED)?,
        })
    }

    /// Takes note of a bookmark.
    #[cfg(feature = "sled")]
    pub(crate) fn note(&mut self, source: &str, value: &[u8]) {
        match source {
            PAUSED => self.paused_at = parse(value),
            FLUSHED => self.flushed_at = parse(value),
            _ => {}
        }
    }

    /// A reading that shows them.
    pub(crate) fn shown_in(self, stats: Stats) -> Stats {
        Stats {
            paused_at: self.paused_at,
            flushed_at: self.flushed_at,
            ..stats
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directive_is_a_time_and_anything_else_is_none() {
        for at in [
            Timestamp::EPOCH,
            Timestamp::from_nanos(1_800_000_000_000_000_001),
        ] {
            assert_eq!(parse(&value(Some(at))), Some(at));
        }
        for value in [&value(None)[..], b"soon", b"\xff"] {
            assert_eq!(parse(value), None);
        }
    }
}
