//! What reading all of a store has shown.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

#[cfg(any(feature = "journal", feature = "sled"))]
use crate::error::Error;
use crate::request::RequestId;

/// What a verification does, and how far it is with that: see [`Store::verify`](crate::Store::verify).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// What it does.
    pub phase: VerifyPhase,
    /// How much of that is done: entries while it counts and reads, requests of those, else bytes.
    pub done: u64,
    /// How much there is.
    pub of: u64,
}

/// What a verification does, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum VerifyPhase {
    /// The store is copied.
    Copying,
    /// sled opens the copy, and does not say how far it is.
    Opening,
    /// All entries are counted.
    Counting,
    /// All entries are read.
    Reading,
    /// What was begun is ended in the copy, as opening does, and nothing says how far that is.
    Recovering,
    /// Every group of a log is read.
    Log,
    /// What happened is put together from the log.
    Replaying,
    /// The requests that are held are looked at, with their outcomes and results.
    Requests,
}

/// What reading all of a store has shown: see [`Store::verify`](crate::Store::verify), and `verify` of the stores in folders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Verified {
    /// Queues.
    pub queues: u64,
    /// Requests that they hold: delayed, ready, in flight, or dead letters.
    pub held: u64,
    /// Bytes that were read and checked.
    pub bytes: u64,
    /// What was found, in that order; of what each queue holds at most about a hundred.
    pub findings: Vec<Finding>,
    /// What was not looked at, because the store was open meanwhile; empty if nobody had it open.
    pub not_looked_at: Vec<Cow<'static, str>>,
}

impl Verified {
    /// Whether nothing is damaged. What was begun and never answered is no damage.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.damages() == 0
    }

    /// A store that is so damaged that nothing of it is read.
    #[cfg(any(feature = "journal", feature = "sled"))]
    pub(crate) fn refused(error: &Error, opening: &'static str) -> Self {
        Self {
            findings: vec![Finding::damaged(error.to_string(), opening)],
            ..Self::default()
        }
    }

    /// How many of the findings are damage.
    #[must_use]
    pub fn damages(&self) -> usize {
        let all = self.findings.iter();
        all.filter(|finding| finding.kind == FindingKind::Damaged)
            .count()
    }
}

/// What a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FindingKind {
    /// Something is not as it was written.
    Damaged,
    /// Something was begun and never answered, as a crash leaves it; no acknowledged request is in it.
    Unconfirmed,
}

/// Something that is not as it should be in a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// The file, from the store's folder on; `None` if it can't be told, or if it is gone.
    pub file: Option<String>,
    /// Where in the file.
    pub offset: Option<u64>,
    /// How many bytes may be affected.
    pub bytes: Option<u64>,
    /// The name of the queue, if one alone is affected.
    pub queue: Option<String>,
    /// The request, if one alone is affected.
    pub request: Option<RequestId>,
    /// What is amiss.
    pub what: String,
    /// What opening the store does about it.
    pub opening: Cow<'static, str>,
}

#[cfg(any(feature = "journal", feature = "sled"))]
impl Finding {
    pub(crate) fn damaged(what: impl Into<String>, opening: &'static str) -> Self {
        Self {
            kind: FindingKind::Damaged,
            file: None,
            offset: None,
            bytes: None,
            queue: None,
            request: None,
            what: what.into(),
            opening: Cow::Borrowed(opening),
        }
    }

    pub(crate) fn in_file(mut self, file: Option<String>) -> Self {
        self.file = file;
        self
    }

    #[cfg(feature = "journal")]
    pub(crate) fn unconfirmed(what: impl Into<String>, opening: &'static str) -> Self {
        Self {
            kind: FindingKind::Unconfirmed,
            ..Self::damaged(what, opening)
        }
    }

    #[cfg(feature = "journal")]
    pub(crate) fn at(mut self, offset: impl Into<u64>, bytes: impl Into<u64>) -> Self {
        (self.offset, self.bytes) = (Some(offset.into()), Some(bytes.into()));
        self
    }
}

/// In one line.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FindingKind::Damaged => "damaged",
            FindingKind::Unconfirmed => "unconfirmed",
        };
        write!(f, "{kind}: ")?;
        if let Some(queue) = &self.queue {
            write!(f, "queue {queue}: ")?;
        }
        f.write_str(&self.what)
    }
}
