//! What goes wrong on the way: failing batches and outages on stderr, without a line for each of thousands.

use std::collections::BTreeSet;

use batchyard::Event;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::cli::output::say;

/// Tells why batches fail, each reason once and the first few only, and every outage, until there are no more events.
pub(super) async fn tell(mut events: broadcast::Receiver<Event>) {
    let mut trouble = Trouble::default();
    loop {
        match events.recv().await {
            Ok(event) => {
                if let Some(line) = trouble.line(event) {
                    say(&line);
                }
            }
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// What was told.
#[derive(Default)]
struct Trouble {
    reasons: BTreeSet<String>,
}

impl Trouble {
    fn line(&mut self, event: Event) -> Option<String> {
        match event {
            Event::Deferred { batch, error, .. } | Event::Split { batch, error, .. } => {
                if self.reasons.len() > REASONS || !self.reasons.insert(error.clone()) {
                    return None;
                }
                Some(if self.reasons.len() > REASONS {
                    "… further reasons are not told here; RUST_LOG=warn logs every failing batch"
                        .into()
                } else {
                    format!("a batch failed, and is tried again or in parts: {error} ({batch})")
                })
            }
            Event::BreakerOpened { until, error, .. } => Some(format!(
                "an outage; nothing is handed out until {until}: {error}"
            )),
            Event::BreakerClosed { .. } => Some("the outage is over".into()),
            _ => None,
        }
    }
}

/// How many reasons are told.
const REASONS: usize = 5;

#[cfg(test)]
mod tests {
    use batchyard::{BatchId, QueueName};

    use super::*;

    #[test]
    fn each_reason_is_told_once_and_not_too_many_are() {
        let mut trouble = Trouble::default();
        let mut told = Vec::new();
        for number in 0..2000 {
            let event = Event::Split {
                queue: QueueName::default(),
                batch: BatchId::from_u128(number),
                error: format!("reason {}", number / 100),
            };
            told.extend(trouble.line(event));
        }
        assert_eq!(told.len(), REASONS + 1, "{told:?}");
        assert!(told[1].contains("reason 1"), "{told:?}");
        assert!(told[REASONS].contains("RUST_LOG"), "{told:?}");
    }
}
