//! `explain`: why nothing has gone yet, and when it will.

use batchyard::{
    BatchEntry, BatchId, BatchState, Entry, ErrorKind, Explanation, Queue, QueueName, RequestId,
    State, Timestamp,
};
use clap::Args;
use serde::Serialize;

use super::{
    args::StoreArgs,
    batches,
    exit::{Exit, Failure},
    look,
    output::{print, print_json},
    show,
    store::OpenStore,
};

/// Options of `explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "The answer is that of the dispatcher that serves the queue, if the process that has the store open can be asked. \
On a server nobody can: what the queue holds is explained there.\n\nExample: batchyard explain --store ./store emails"
)]
pub(crate) struct ExplainArgs {
    /// The name of a queue, or the id of a request [default: all queues]
    #[arg(value_name = "QUEUE|ID")]
    what: Option<String>,
    /// Print a line of JSON for each queue; of a request that waits or is in flight, with where it is as `request`
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// A queue, and the request that was asked for.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    explanation: &'a Explanation,
    request: Place<'a>,
}

/// Where a request is that is not settled.
#[derive(Serialize)]
struct Place<'a> {
    id: RequestId,
    state: State,
    /// Since when it is ready, when it is due, or when its batch was formed.
    at: Timestamp,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<BatchId>,
    /// Of its batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// Explains it.
pub(super) async fn explain(args: ExplainArgs) -> Result<Exit, Failure> {
    let open = args.store.existing().await?;
    let result = explain_all(&args, &open).await;
    open.close(result).await
}

async fn explain_all(args: &ExplainArgs, open: &OpenStore) -> Result<Exit, Failure> {
    let Some(what) = &args.what else {
        return args.explain_queues(open, None).await;
    };
    let name: QueueName = what.parse()?;
    let has_queue = open.store.queues(what).await?.contains(&name);
    match what.parse::<RequestId>() {
        Ok(id) if !has_queue => args.explain_request(open, id).await,
        _ => args.explain_queues(open, Some(&name)).await,
    }
}

impl ExplainArgs {
    async fn explain_queues(
        &self,
        open: &OpenStore,
        name: Option<&QueueName>,
    ) -> Result<Exit, Failure> {
        for queue in open.existing(name).await? {
            let explanation = explain_queue(open, &*queue).await?;
            self.print(&explanation)?;
        }
        Ok(Exit::Ok)
    }

    fn print(&self, explanation: &Explanation) -> Result<(), Failure> {
        if self.json {
            print_json(explanation)?;
        } else {
            print(format!("{explanation}\n").as_bytes())?;
        }
        Ok(())
    }

    /// What a request waits for, and then its queue.
    async fn explain_request(&self, open: &OpenStore, id: RequestId) -> Result<Exit, Failure> {
        let queues = open.existing(None).await?;
        let Some((queue, entry)) = look::find(&queues, id, |_| true).await? else {
            return Err(Failure::new(Exit::NotFound, show::unknown(id)));
        };
        let is_open = matches!(entry.state, State::Delayed | State::Ready | State::InFlight);
        let batch = batch_of(&**queue, &entry).await?;
        if !self.json {
            print(format!("{}\n", sentence(&entry, batch.as_ref())).as_bytes())?;
        } else if !is_open {
            let mut line = Vec::new();
            super::entries::write_line(&queue.name(), &entry, &mut line)?;
            print(&line)?;
        }
        if is_open {
            let explanation = explain_queue(open, &**queue).await?;
            if self.json {
                print_json(&Line {
                    explanation: &explanation,
                    request: place(&entry, batch.as_ref()),
                })?;
            } else {
                self.print(&explanation)?;
            }
        }
        Ok(Exit::Ok)
    }
}

/// The open batch that a request is in, if this store shows its batches.
async fn batch_of(queue: &dyn Queue, entry: &Entry) -> Result<Option<BatchEntry>, Failure> {
    match entry.batch {
        Some(batch) if entry.state == State::InFlight && queue.capabilities().batches => {
            let admin = look::administration(queue)?;
            Ok(admin.batch(queue.now(), batch).await?)
        }
        _ => Ok(None),
    }
}

fn place<'a>(entry: &'a Entry, batch: Option<&BatchEntry>) -> Place<'a> {
    let (batch_state, until) = batch.map(batches::state).unzip();
    Place {
        id: entry.id,
        state: entry.state,
        at: entry.at,
        attempts: entry.attempts,
        error: entry.error.as_deref(),
        batch: entry.batch,
        batch_state,
        until: until.flatten(),
    }
}

/// What the dispatcher says that serves this queue, or what the queue itself shows.
pub(super) async fn explain_queue(
    open: &OpenStore,
    queue: &dyn Queue,
) -> Result<Explanation, Failure> {
    let name = queue.name();
    match open.explain(&name).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        explained => return Ok(explained?),
    }
    let now = queue.now();
    let stats = queue.stats(now).await?;
    Ok(Explanation::unserved(name, stats, now))
}

/// Where a request is, in words.
fn sentence(entry: &Entry, held: Option<&BatchEntry>) -> String {
    let Entry {
        id, at, attempts, ..
    } = entry;
    let batch = entry
        .batch
        .map_or_else(String::new, |batch| batch.to_string());
    let error = entry.error.as_deref();
    let after = match (attempts, error) {
        (0, _) => String::new(),
        (_, None) => format!(", after {attempts} attempts"),
        (_, Some(error)) => {
            format!(", after {attempts} attempts, of which the last ended with: {error}")
        }
    };
    match entry.state {
        State::Delayed => format!("request {id} is delayed until {at}{after}"),
        State::Ready => {
            format!("request {id} has been ready since {at}, and waits for a batch{after}")
        }
        State::InFlight => {
            let held = match held.map(|batch| batch.state) {
                Some(BatchState::Held { until }) => format!(" and is held until {until}"),
                Some(BatchState::Offered) => " and is offered to whoever claims next".to_owned(),
                Some(BatchState::Deferred { until }) => format!(" and is deferred until {until}"),
                None => String::new(),
            };
            format!("request {id} is in batch {batch}, which was formed at {at}{held}{after}")
        }
        State::Done => format!("request {id} has been done since {at}"),
        State::Dead => format!(
            "request {id} has been a dead letter since {at} ({}): {}",
            entry
                .reason
                .map_or_else(String::new, |reason| reason.to_string()),
            error.unwrap_or("no error was given")
        ),
        state => format!("request {id} is {state}"),
    }
}
