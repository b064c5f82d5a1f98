//! The one error type, whose kind tells the caller what to do next.

#[cfg(feature = "redis")]
use std::sync::Arc;
use std::{error::Error as StdError, fmt};

use serde::{Deserialize, Serialize};

/// A [`Result`](std::result::Result) with Batchyard's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, to what, and (through its [`kind`](Error::kind)) what the caller should do.
///
/// `Display` prints the message alone; the cause is reachable through [`source`](StdError::source).
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The kinds of [`Error`]; each says what the caller should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The queue was closed by this process. Open it again.
    Closed,
    /// What is stored is damaged. Nothing wrong was served; the message names what to run.
    Corrupt,
    /// A bug in Batchyard or in a backend. Please report it.
    Internal,
    /// The call or its arguments can never work. Mend the caller; retrying does not help.
    Invalid,
    /// The batch has been claimed by another holder, or has ended. Drop the work on it.
    LeaseLost,
    /// Another process owns the store; the message names its pid. Stop it, or use another store.
    Locked,
    /// There is no such queue, request, batch or file. Check the name or the id.
    NotFound,
    /// A write or a sync failed, so nothing is promised any more. Open the store again.
    Poisoned,
    /// The queue's bounds or the disk's low-space mark are reached. Slow down and try again later.
    QueueFull,
    /// The backend can't be reached just now. Try again later; pushes with a key are safe to repeat.
    Unavailable,
}

impl Error {
    /// An error of this kind; `message` in lower case, without a full stop, with the key facts in it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error with `context` put before its message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// As many errors like this one as there are callers to tell; a lone caller gets this one itself.
    #[cfg(feature = "redis")]
    pub(crate) fn copies(self, callers: usize) -> Vec<Self> {
        if callers == 1 {
            return vec![self];
        }
        let source: Option<Arc<dyn StdError + Send + Sync>> = self.source.map(Arc::from);
        let copy = || Self {
            kind: self.kind,
            message: self.message.clone(),
            source: source.clone().map(|source| Box::new(Shared(source)).into()),
        };
        std::iter::repeat_with(copy).take(callers).collect()
    }
}

/// The cause of several errors.
#[cfg(feature = "redis")]
#[derive(Debug)]
struct Shared(Arc<dyn StdError + Send + Sync>);

#[cfg(feature = "redis")]
impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(feature = "redis")]
impl StdError for Shared {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// Constructors named after their kind, for backends and handlers.
macro_rules! constructors {
    ($($name:ident => $kind:ident),* $(,)?) => {
        impl Error {
            $(
                #[doc = concat!("An error of kind [`ErrorKind::", stringify!($kind), "`].")]
                pub fn $name(message: impl Into<String>) -> Self {
                    Self::new(ErrorKind::$kind, message)
                }
            )*
        }
    };
}

constructors! {
    closed => Closed,
    corrupt => Corrupt,
    internal => Internal,
    invalid => Invalid,
    lease_lost => LeaseLost,
    locked => Locked,
    not_found => NotFound,
    poisoned => Poisoned,
    queue_full => QueueFull,
    unavailable => Unavailable,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

/// Whether there is no space left, on the disk or of what one may use of it.
#[cfg(any(feature = "sled", feature = "journal", feature = "command"))]
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_its_kind_message_context_and_cause() {
        let cause = std::io::Error::other("disk on fire");
        let error = Error::poisoned("sync failed")
            .with_source(cause)
            .context("store a");
        assert_eq!(error.kind(), ErrorKind::Poisoned);
        assert_eq!(error.to_string(), "store a: sync failed");
        assert_eq!(error.source().unwrap().to_string(), "disk on fire");
    }

    #[cfg(feature = "redis")]
    #[test]
    fn every_caller_is_told_the_cause_and_a_lone_one_gets_the_cause_itself() {
        let error = || Error::unavailable("no answer").with_source(fmt::Error);
        for callers in [0, 1, 3] {
            let copies = error().copies(callers);
            assert_eq!(copies.len(), callers);
            for copy in copies {
                assert_eq!(
                    (copy.kind(), &*copy.to_string()),
                    (ErrorKind::Unavailable, "no answer")
                );
                let cause = copy.source().unwrap();
                assert_eq!(cause.to_string(), fmt::Error.to_string());
                assert_eq!(cause.is::<fmt::Error>(), callers == 1);
            }
        }
    }
}
