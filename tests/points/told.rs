//! What a child tells: each thing before it is asked for, and again once it was answered.

use std::{
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use batchyard::{
    Administration, BatchEntry, BatchId, Cancelled, Capabilities, Claim, Entry, Lease, List,
    Member, NewRequest, Outcome, Page, Pushed, Queue, QueueName, RequestId, Result, ResultCursor,
    SettledPage, State, Stats, Then, Timestamp, Update, torture::event::Counts,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A line of a child. Requests are named by their ids or their names, batches by their ids.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    Opening,
    Opened,
    /// Everything that the queue shows.
    Seen {
        stats: Counts,
        entries: Vec<SeenEntry>,
    },
    Push {
        number: u64,
        names: Vec<String>,
    },
    Pushed {
        number: u64,
        ids: Vec<String>,
    },
    Claimed {
        batch: String,
        parent: Option<String>,
        fence: u64,
        requests: u32,
        unsettled: u32,
        checkpoint: Option<String>,
    },
    /// All members of a batch, as its handler sees them: id, name, recorded outcome.
    Members {
        batch: String,
        members: Vec<(String, String, Option<String>)>,
    },
    Update {
        batch: String,
        outcomes: Vec<(String, String)>,
        checkpoint: Option<String>,
        /// What becomes of the rest, if the batch ends: an outcome, or `split`.
        end: Option<String>,
    },
    Updated {
        batch: String,
    },
    Cancel(Vec<String>),
    Cancelled(Vec<bool>),
    Redrive(Vec<String>),
    Redriven(u64),
    Purge(Vec<String>),
    Purged(u64),
    Closing,
    Closed,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SeenEntry {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) result: Option<String>,
}

/// A line of its own, in one write, so that a kill leaves none half told.
pub(crate) fn tell(told: &Told) {
    let line = format!("\n{PREFIX}{}\n", serde_json::to_string(told).unwrap());
    let mut output = std::io::stdout().lock();
    output.write_all(line.as_bytes()).unwrap();
    output.flush().unwrap();
}

/// What a line tells, if it was told whole.
pub(crate) fn hear(line: &str) -> Option<Told> {
    serde_json::from_str(line.strip_suffix('\n')?.strip_prefix(PREFIX)?).ok()
}

const PREFIX: &str = "told ";

/// Something that a queue does wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    Nothing,
    /// Checkpoints are answered, and not stored.
    NoCheckpoint,
    /// Outcomes are stored after the end of their batch.
    OutcomesLate,
    /// Outcomes of an update are stored in two steps.
    HalfUpdate,
}

impl Plant {
    pub(crate) fn from_name(name: &str) -> Self {
        match name {
            "NoCheckpoint" => Self::NoCheckpoint,
            "OutcomesLate" => Self::OutcomesLate,
            "HalfUpdate" => Self::HalfUpdate,
            _ => Self::Nothing,
        }
    }
}

/// A queue that tells what it is asked for and what it answers.
#[derive(Debug)]
pub(crate) struct Telling<Q> {
    pub(crate) queue: Q,
    /// How far its clock is ahead: so late that whoever held a batch before holds it no more.
    pub(crate) ahead: Duration,
    pub(crate) plant: Plant,
    pub(crate) pushes: AtomicU64,
    /// What `OutcomesLate` holds back.
    pub(crate) late: std::sync::Mutex<Vec<(RequestId, Outcome)>>,
}

/// An outcome in a word.
pub(crate) fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done { result: None } => "done".into(),
        Outcome::Done {
            result: Some(result),
        } => {
            format!("done {}", String::from_utf8_lossy(result))
        }
        Outcome::Retry { .. } => "retry".into(),
        Outcome::Reject { .. } => "reject".into(),
    }
}

fn text(bytes: Option<&bytes::Bytes>) -> Option<String> {
    bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

impl<Q: Queue> Telling<Q> {
    async fn plainly(&self, now: Timestamp, lease: &Lease, mut update: Update) -> Result<()> {
        match self.plant {
            Plant::NoCheckpoint => update.checkpoint = None,
            Plant::OutcomesLate => {
                let ends = matches!(update.then, Then::Finish { .. });
                let mut late = std::mem::take(&mut *self.late.lock().unwrap());
                late.append(&mut update.outcomes);
                self.queue.update(now, lease, update).await?;
                if ends {
                    let outcomes = Update {
                        outcomes: late,
                        ..Update::then(Then::Release)
                    };
                    // The batch has ended: nobody takes them.
                    let _ = self.queue.update(now, lease, outcomes).await;
                } else {
                    *self.late.lock().unwrap() = late;
                }
                return Ok(());
            }
            Plant::HalfUpdate if update.checkpoint.is_some() && !update.outcomes.is_empty() => {
                let outcomes = Update {
                    outcomes: std::mem::take(&mut update.outcomes),
                    ..Update::then(update.then.clone())
                };
                self.queue.update(now, lease, outcomes).await?;
            }
            Plant::HalfUpdate | Plant::Nothing => {}
        }
        self.queue.update(now, lease, update).await
    }

    fn admin_of(&self) -> &dyn Administration {
        self.queue.admin().expect("every durable backend has it")
    }
}

#[async_trait]
impl<Q: Queue> Queue for Telling<Q> {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        let number = self.pushes.fetch_add(1, Ordering::SeqCst);
        let names = requests
            .iter()
            .map(|request| request.attributes[NAME].clone());
        tell(&Told::Push {
            number,
            names: names.collect(),
        });
        let pushed = self.queue.push(now, requests).await?;
        let ids = pushed.iter().map(|pushed| pushed.id.to_string());
        tell(&Told::Pushed {
            number,
            ids: ids.collect(),
        });
        Ok(pushed)
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        self.queue.stats(now).await
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        let lease = self.queue.claim(now, claim).await?;
        if let Some(lease) = &lease {
            tell(&Told::Claimed {
                batch: lease.batch.to_string(),
                parent: lease.parent.map(|parent| parent.to_string()),
                fence: lease.fence.0,
                requests: lease.requests,
                unsettled: lease.unsettled,
                checkpoint: text(lease.checkpoint.as_ref()),
            });
        }
        Ok(lease)
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        self.queue.read(lease, page).await
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        let batch = lease.batch.to_string();
        let outcomes = update.outcomes.iter();
        let end = match &update.then {
            Then::Finish { rest, .. } => Some(word(rest)),
            Then::Split { .. } => Some("split".into()),
            _ => None,
        };
        tell(&Told::Update {
            batch: batch.clone(),
            outcomes: outcomes
                .map(|(id, outcome)| (id.to_string(), word(outcome)))
                .collect(),
            checkpoint: text(update.checkpoint.as_ref()),
            end,
        });
        self.plainly(now, lease, update).await?;
        tell(&Told::Updated { batch });
        Ok(())
    }

    fn now(&self) -> Timestamp {
        self.queue.now().after(self.ahead)
    }

    fn name(&self) -> QueueName {
        self.queue.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.queue.capabilities()
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        self.queue.pushed()
    }

    fn admin(&self) -> Option<&dyn Administration> {
        Some(self)
    }

    async fn close(&self) -> Result<()> {
        self.queue.close().await
    }
}

#[async_trait]
impl<Q: Queue> Administration for Telling<Q> {
    async fn status(&self, now: Timestamp, id: RequestId) -> Result<Option<Entry>> {
        self.admin_of().status(now, id).await
    }

    async fn list(&self, now: Timestamp, list: &List) -> Result<Vec<Entry>> {
        self.admin_of().list(now, list).await
    }

    async fn results(
        &self,
        now: Timestamp,
        after: Option<ResultCursor>,
        max_requests: std::num::NonZeroU32,
    ) -> Result<SettledPage> {
        self.admin_of().results(now, after, max_requests).await
    }

    async fn cancel(&self, now: Timestamp, ids: &[RequestId]) -> Result<Vec<Cancelled>> {
        tell(&Told::Cancel(names(ids)));
        let cancelled = self.admin_of().cancel(now, ids).await?;
        let at_once = cancelled.iter().map(|what| *what == Cancelled::Now);
        tell(&Told::Cancelled(at_once.collect()));
        Ok(cancelled)
    }

    async fn redrive(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        tell(&Told::Redrive(names(ids)));
        let redriven = self.admin_of().redrive(now, ids).await?;
        tell(&Told::Redriven(redriven));
        Ok(redriven)
    }

    async fn purge(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        tell(&Told::Purge(names(ids)));
        let purged = self.admin_of().purge(now, ids).await?;
        tell(&Told::Purged(purged));
        Ok(purged)
    }

    async fn batch(&self, now: Timestamp, id: BatchId) -> Result<Option<BatchEntry>> {
        self.admin_of().batch(now, id).await
    }

    async fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: std::num::NonZeroU32,
    ) -> Result<Vec<BatchEntry>> {
        self.admin_of().batches(now, after, max_batches).await
    }

    async fn release(&self, now: Timestamp, ids: &[BatchId]) -> Result<Vec<BatchId>> {
        self.admin_of().release(now, ids).await
    }
}

fn names(ids: &[RequestId]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}

/// The attribute with the name of a request.
pub(crate) const NAME: &str = "name";
