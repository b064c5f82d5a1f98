//! How far a run is: kept with the queue as its bookmark, written in the step that queues requests.

use batchyard::{Bookmark, Queue, fault::point};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Exit, Failure, Plan};

/// What a run remembers of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    /// What is run on what.
    pub(super) identity: Identity,
    /// How far INPUT was read.
    pub(super) read: Progress,
    /// INPUT was read to its end.
    pub(super) complete: bool,
    /// Whether what failed was brought back.
    #[serde(default)]
    pub(super) retry: Retry,
}

/// How far a `--retry-failed` is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Retry {
    /// There was none.
    #[default]
    No,
    /// Not all of what failed may be back.
    Begun,
    /// What fails now has failed anew.
    Redriven,
}

/// A prefix of INPUT and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Its bytes.
    pub(super) offset: u64,
    /// Its SHA-256.
    pub(super) sha256: String,
    /// Its lines.
    pub(super) lines: u64,
    /// Those that became requests.
    pub(super) requests: u64,
    /// Those that were refused.
    pub(super) refused: u64,
}

impl Default for Progress {
    /// The empty prefix.
    fn default() -> Self {
        Self {
            offset: 0,
            sha256: hex(&Sha256::digest([])),
            lines: 0,
            requests: 0,
            refused: 0,
        }
    }
}

/// What must be the same for a run to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    input: String,
    command: String,
    mode: String,
}

impl Identity {
    pub(super) fn of(plan: &Plan) -> Self {
        let Plan { args, handling, .. } = plan;
        let input = std::path::absolute(&args.input).unwrap_or_else(|_| args.input.clone());
        let mut command = Sha256::new();
        for word in handling.words() {
            command.update((word.len() as u64).to_le_bytes());
            command.update(word);
        }
        Self {
            input: hex(&Sha256::digest(input.as_os_str().as_encoded_bytes())),
            command: hex(&command.finalize()),
            mode: match (args.lines, handling.is_plain()) {
                (false, false) => "json",
                (false, true) => "json, plain",
                (true, false) => "lines",
                (true, true) => "lines, plain",
            }
            .into(),
        }
    }

    /// Refuses to go on with something else; a retry of what failed may use another command.
    pub(super) fn check(&self, before: &Self, retrying: bool) -> Result<(), Failure> {
        let changed = if self.input != before.input {
            "INPUT is another file"
        } else if self.mode != before.mode {
            "--lines and --plain are not what they were"
        } else if self.command != before.command && !retrying {
            "COMMAND is another one"
        } else {
            return Ok(());
        };
        Err(conflict(changed))
    }
}

impl Ledger {
    pub(super) async fn load(queue: &dyn Queue) -> Result<Option<Self>, Failure> {
        let Some(value) = queue.bookmark(SOURCE).await? else {
            return Ok(None);
        };
        serde_json::from_slice(&value).map(Some).map_err(|error| {
            let text = format!(
                "the store's note on this run can't be read ({error}); start over with --fresh"
            );
            Failure::new(Exit::Damaged, text)
        })
    }

    pub(super) async fn save(&self, queue: &dyn Queue) -> Result<(), Failure> {
        queue
            .push_from(queue.now(), Vec::new(), self.bookmark())
            .await?;
        point("run.saved");
        Ok(())
    }

    pub(super) fn bookmark(&self) -> Bookmark {
        let value = serde_json::to_vec(self).expect("numbers and strings are always writable");
        Bookmark {
            source: SOURCE.into(),
            value: value.into(),
        }
    }
}

/// The run in the store is about something else.
pub(super) fn conflict(changed: &str) -> Failure {
    let text = format!(
        "{changed} since this run began, so it can't go on; put it back, or start over with --fresh"
    );
    Failure::new(Exit::Conflict, text)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

const SOURCE: &str = "input";
