//! What a handler answers: a [`Report`], or a [`HandlerError`] whose kind decides what is next.

use std::{error::Error as StdError, fmt, time::Duration};

use serde::Serialize;

use crate::{
    batch::Outcome,
    error::{Error, ErrorKind},
    request::RequestId,
};

/// What became of the members of a batch, besides the outcomes that were recorded on the way.
///
/// ```
/// use batchyard::{Outcome, Report, RequestId};
/// let id = RequestId::from_u64(7);
/// // All succeeded.
/// let report = Report::done();
/// // One did not; all others did.
/// let report = Report::done().with(id, Outcome::reject("no such address"));
/// // Only these are known; the others are tried again, in the same batch.
/// let report = Report::outcomes(vec![(id, Outcome::result("ok"))]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Outcomes by request; those already recorded win.
    pub outcomes: Vec<(RequestId, Outcome)>,
    /// Members that are neither in `outcomes` nor recorded.
    pub rest: Rest,
}

/// What becomes of the members that a [`Report`] does not name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    /// They have this outcome.
    Outcome(Outcome),
    /// They should have been named: a transient failure of the batch, which is offered again with
    /// the outcomes recorded so far.
    Missing,
}

impl Report {
    /// Every member succeeded.
    pub fn done() -> Self {
        Self::rest(Outcome::done())
    }

    /// Every member has this outcome.
    pub fn rest(outcome: Outcome) -> Self {
        Self {
            outcomes: Vec::new(),
            rest: Rest::Outcome(outcome),
        }
    }

    /// These members have these outcomes, and no other is known.
    pub fn outcomes(outcomes: Vec<(RequestId, Outcome)>) -> Self {
        Self {
            outcomes,
            rest: Rest::Missing,
        }
    }

    /// Every outcome has been recorded with [`Batch::record`](crate::Batch::record).
    pub fn recorded() -> Self {
        Self::outcomes(Vec::new())
    }

    /// This member has this outcome.
    #[must_use]
    pub fn with(mut self, id: RequestId, outcome: Outcome) -> Self {
        self.outcomes.push((id, outcome));
        self
    }
}

/// Why a batch failed as a whole; its kind decides what is next.
///
/// It is not a [`std::error::Error`], so that `?` turns any error of another library into a transient one.
pub struct HandlerError {
    kind: FailureKind,
    message: String,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What a failed batch means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Nothing is wrong with the requests: what the handler needs is down or asks to slow down. No
    /// attempt is counted; the queue's breaker opens, and one batch at a time probes until one passes.
    Outage,
    /// It may work next time: the same batch is offered again after a backoff. After `max_attempts` it
    /// counts as permanent.
    Transient,
    /// It can never work with this batch: it is split until the guilty requests stand alone and are
    /// dead-lettered.
    Permanent,
}

impl HandlerError {
    /// An error of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
            source: None,
        }
    }

    /// What the handler needs is down, or asks to slow down.
    pub fn outage(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Outage, message)
    }

    /// It may work next time.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Transient, message)
    }

    /// It can never work with this batch.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Permanent, message)
    }

    /// Not before this long from now: what a `Retry-After` said.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// With its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Its kind.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// How long to wait at the least, if it is known.
    pub fn wait(&self) -> Option<Duration> {
        self.retry_after
    }

    /// True if the batch has another holder now, so nothing is to be decided about it here.
    pub(crate) fn is_lease_lost(&self) -> bool {
        let source = self.source.as_deref();
        source
            .and_then(|source| source.downcast_ref::<Error>())
            .is_some_and(|error| error.kind() == ErrorKind::LeaseLost)
    }
}

impl fmt::Display for HandlerError {
    /// The message, followed by its causes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut shown = self.message.clone();
        let mut cause: Option<&(dyn StdError + 'static)> =
            self.source.as_deref().map(|source| source as _);
        while let Some(error) = cause {
            let text = error.to_string();
            if !shown.contains(&text) {
                write!(f, ": {text}")?;
                shown = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::transient(error.to_string()).with_source(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_error_is_transient_and_keeps_its_cause() {
        fn fails() -> Result<(), HandlerError> {
            Err(std::io::Error::other("no route"))?;
            Ok(())
        }
        let error = fails().unwrap_err();
        assert_eq!(error.kind(), FailureKind::Transient);
        assert_eq!(error.to_string(), "no route");
    }

    #[test]
    fn a_lost_lease_is_recognised_through_the_question_mark() {
        let error = HandlerError::from(Error::lease_lost("gone"));
        assert!(error.is_lease_lost());
        assert!(!HandlerError::transient("gone").is_lease_lost());
    }
}
