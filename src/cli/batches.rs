//! `batches ls|show|release`: the batches that have not ended, and who has them.

use std::{fmt, num::NonZeroU32, sync::Arc};

use batchyard::{
    BatchEntry, BatchId, BatchState, Fence, Queue, QueueName, Timestamp,
    format::json_lines::PayloadField,
};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    among::Among,
    entries,
    exit::{Exit, Failure},
    look,
    output::{print, print_json, say},
    pick::{self, Picked},
    stats::age,
    store::OpenStore,
    table::Table,
};

/// What to do with open batches.
#[derive(Debug, Subcommand)]
pub(crate) enum BatchesVerb {
    /// List the batches that have not ended
    Ls(LsArgs),
    /// Show one batch, with its checkpoint
    Show(ShowArgs),
    /// Take batches from their holders, or end their wait: they are offered again at once
    Release(ReleaseArgs),
}

/// Options of `batches ls`.
#[derive(Debug, Args)]
#[command(
    after_help = "A batch is held by a handler until the time that is shown, unless that holds on to it; offered to whoever claims \
next; or deferred until the time that is shown. done, retry and reject are how many of its requests have such an outcome already.\n\n\
Example: batchyard batches ls --store ./store --json | jq -r 'select(.state == \"held\") | .id'"
)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    among: Among,
}

/// Options of `batches show`.
#[derive(Debug, Args)]
#[command(
    after_help = "Its requests are those that ls lists as in flight with this batch.\n\n\
Example: batchyard batches show --store ./store 18a3c0de5f00a1b20123456789abcdef"
)]
pub(crate) struct ShowArgs {
    /// The id of the batch
    #[arg(value_parser = batch_id)]
    id: BatchId,
    #[command(flatten)]
    among: Among,
}

/// Options of `batches release`.
#[derive(Debug, Args)]
#[command(
    after_help = "Release only a batch whose holder is gone or hangs: a handler that is still at work learns of it with its next \
heartbeat, and until then another may work on the same batch, under the same id. Its attempt does not count; that of a \
deferred batch does.\n\nThe ids are printed, or with --dry-run those that would be released. One that is no open batch, or is offered \
already, is told; the exit code is 5 then, or 3 if none was released.\n\n\
Example: batchyard batches release --store ./store 18a3c0de5f00a1b20123456789abcdef"
)]
pub(crate) struct ReleaseArgs {
    /// The ids of batches
    #[arg(value_name = "ID", value_parser = batch_id)]
    ids: Vec<BatchId>,
    /// All batches that are held or deferred
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Change nothing, and print what would be released
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    among: Among,
}

/// A batch as it is printed; its checkpoint and context follow, if it is alone.
#[derive(Serialize)]
struct Line<'a> {
    id: BatchId,
    queue: &'a QueueName,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fence: Option<Fence>,
    formed_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<BatchId>,
    attempt: u32,
    attempts_before: u32,
    requests: u32,
    bytes: u64,
    done: u32,
    retry: u32,
    reject: u32,
    unsettled: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_bytes: Option<u64>,
}

/// A batch that was released.
#[derive(Serialize)]
struct Released<'a> {
    id: BatchId,
    queue: &'a QueueName,
}

/// Does it.
pub(super) async fn batches(verb: BatchesVerb) -> Result<Exit, Failure> {
    let among = match &verb {
        BatchesVerb::Ls(LsArgs { among, .. })
        | BatchesVerb::Show(ShowArgs { among, .. })
        | BatchesVerb::Release(ReleaseArgs { among, .. }) => among,
    };
    if let BatchesVerb::Release(args) = &verb
        && args.ids.is_empty()
        && !args.all
    {
        let text = "which batches? name their ids, as batches ls lists them, or give --all";
        return Err(Failure::new(Exit::Usage, text));
    }
    let open = among.store.existing().await?;
    let result = match &verb {
        BatchesVerb::Ls(args) => list(args, &open).await,
        BatchesVerb::Show(args) => show(args, &open).await,
        BatchesVerb::Release(args) => release(args, &open).await,
    };
    open.close(result).await
}

async fn list(args: &LsArgs, open: &OpenStore) -> Result<Exit, Failure> {
    let mut table = Table::new(&HEADINGS, 5);
    for queue in open.existing(args.among.queue.as_ref()).await? {
        let (name, mut after) = (queue.name(), None);
        while let Some(page) = next_page(&*queue, &mut after).await? {
            for entry in &page {
                if args.among.json {
                    print_json(&line(&name, entry))?;
                } else {
                    table.row(cells(&name, entry));
                }
            }
        }
    }
    if !args.among.json {
        print(table.text().as_bytes())?;
    }
    Ok(Exit::Ok)
}

async fn show(args: &ShowArgs, open: &OpenStore) -> Result<Exit, Failure> {
    let queues = open.existing(args.among.queue.as_ref()).await?;
    let Some((queue, entry)) = find(&queues, args.id).await? else {
        return Err(Failure::new(Exit::NotFound, unknown(args.id)));
    };
    let mut text = Vec::new();
    if args.among.json {
        write_line(&queue.name(), &entry, &mut text)?;
    } else {
        describe(&queue.name(), &entry, queue.now(), &mut text);
    }
    print(&text)?;
    Ok(Exit::Ok)
}

async fn release(args: &ReleaseArgs, open: &OpenStore) -> Result<Exit, Failure> {
    let queues = open.existing(args.among.queue.as_ref()).await?;
    let (mut released, mut not) = (0, 0);
    if args.all {
        for queue in &queues {
            let mut after = None;
            while let Some(page) = next_page(&**queue, &mut after).await? {
                released += args.apply(&**queue, &page).await?.len() as u64;
            }
        }
    } else {
        let picked = Picked::find(&args.ids, async |id| find(&queues, id).await, unknown).await?;
        not = picked.missing;
        for (queue, entries) in picked.found.values() {
            let changed = args.apply(&***queue, entries).await?;
            for entry in entries.iter().filter(|entry| !changed.contains(&entry.id)) {
                say(&format!("{} is offered already", entry.id));
                not += 1;
            }
            released += changed.len() as u64;
        }
    }
    let verb = if args.dry_run {
        "would be released"
    } else {
        "released"
    };
    say(&format!("{released} {verb}"));
    Ok(pick::exit(released, not))
}

impl ReleaseArgs {
    /// Releases those of these batches of a queue that are not offered already, in one step, and prints them; those that were.
    async fn apply(
        &self,
        queue: &dyn Queue,
        entries: &[BatchEntry],
    ) -> Result<Vec<BatchId>, Failure> {
        let waiting = entries
            .iter()
            .filter(|entry| entry.state != BatchState::Offered);
        let ids: Vec<BatchId> = waiting.map(|entry| entry.id).collect();
        let released = if self.dry_run {
            ids
        } else {
            let admin = look::administration(queue)?;
            admin.release(queue.now(), &ids).await?
        };
        for id in &released {
            if self.among.json {
                let queue = &queue.name();
                print_json(&Released { id: *id, queue })?;
            } else {
                print(format!("{id}\n").as_bytes())?;
            }
        }
        Ok(released)
    }
}

/// The next page of open batches; `None` at the end.
async fn next_page(
    queue: &dyn Queue,
    after: &mut Option<BatchId>,
) -> Result<Option<Vec<BatchEntry>>, Failure> {
    let admin = look::administration(queue)?;
    let page = admin.batches(queue.now(), *after, PAGE).await?;
    let Some(last) = page.last() else {
        return Ok(None);
    };
    *after = Some(last.id);
    Ok(Some(page))
}

/// The queue that has this batch, with all that is known of it: no two have batches of one id.
async fn find(
    queues: &[Arc<dyn Queue>],
    id: BatchId,
) -> Result<Option<(&Arc<dyn Queue>, BatchEntry)>, Failure> {
    for queue in queues {
        let admin = look::administration(&**queue)?;
        if let Some(entry) = admin.batch(queue.now(), id).await? {
            return Ok(Some((queue, entry)));
        }
    }
    Ok(None)
}

fn unknown(id: BatchId) -> String {
    format!("{id} is no open batch; batches ls lists them")
}

/// The word for who has a batch, and until when.
pub(super) fn state(entry: &BatchEntry) -> (&'static str, Option<Timestamp>) {
    match entry.state {
        BatchState::Held { until } => ("held", Some(until)),
        BatchState::Offered => ("offered", None),
        BatchState::Deferred { until } => ("deferred", Some(until)),
    }
}

fn unsettled(entry: &BatchEntry) -> u32 {
    let outcomes = entry.outcomes;
    let settled = outcomes.done + outcomes.retry + outcomes.reject;
    entry.requests.saturating_sub(settled)
}

fn line<'a>(queue: &'a QueueName, entry: &BatchEntry) -> Line<'a> {
    let (state, until) = state(entry);
    Line {
        id: entry.id,
        queue,
        state,
        until,
        fence: entry.fence,
        formed_at: entry.formed_at,
        parent: entry.parent,
        attempt: entry.attempt,
        attempts_before: entry.attempts_before,
        requests: entry.requests,
        bytes: entry.bytes,
        done: entry.outcomes.done,
        retry: entry.outcomes.retry,
        reject: entry.outcomes.reject,
        unsettled: unsettled(entry),
        checkpoint_bytes: entry.checkpoint_bytes,
    }
}

/// Appends the line of a batch, its notes included.
fn write_line(queue: &QueueName, entry: &BatchEntry, text: &mut Vec<u8>) -> Result<(), Failure> {
    serde_json::to_writer(&mut *text, &line(queue, entry)).map_err(std::io::Error::from)?;
    text.pop();
    for (name, note) in notes(entry) {
        text.push(b',');
        PayloadField::of(note).write_as(name, text);
    }
    text.extend_from_slice(b"}\n");
    Ok(())
}

/// What its holders and its claim have left with a batch.
fn notes(entry: &BatchEntry) -> impl Iterator<Item = (&'static str, &[u8])> {
    let context = entry
        .context
        .as_deref()
        .filter(|context| !context.is_empty());
    let notes = [
        ("checkpoint", entry.checkpoint.as_deref()),
        ("context", context),
    ];
    let given = notes.into_iter();
    given.filter_map(|(name, note)| note.map(|note| (name, note)))
}

fn cells(queue: &QueueName, entry: &BatchEntry) -> Vec<String> {
    let (state, until) = state(entry);
    let checkpoint = entry.checkpoint_bytes;
    let counts = [
        entry.attempt,
        entry.requests,
        entry.outcomes.done,
        entry.outcomes.retry,
        entry.outcomes.reject,
    ];
    let mut cells = vec![
        entry.id.to_string(),
        queue.to_string(),
        state.to_owned(),
        until.map_or_else(|| "-".to_owned(), |until| until.to_string()),
        entry.formed_at.to_string(),
    ];
    cells.extend(counts.map(|count| count.to_string()));
    cells.push(entry.bytes.to_string());
    cells.push(checkpoint.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string()));
    cells
}

/// Describes a batch for people, a fact a line.
fn describe(queue: &QueueName, entry: &BatchEntry, now: Timestamp, text: &mut Vec<u8>) {
    let state = match entry.state {
        BatchState::Held { until } => {
            format!(
                "held until {until}, for {} unless its holder holds on to it",
                age(until.since(now))
            )
        }
        BatchState::Offered if entry.fence.is_some() => {
            "offered again: the lease of its holder has run out".to_owned()
        }
        BatchState::Offered => "offered: whoever claims next gets it".to_owned(),
        BatchState::Deferred { until } => {
            format!("deferred until {until}, for {}", age(until.since(now)))
        }
    };
    let attempts = match entry.attempts_before {
        0 => entry.attempt.to_string(),
        before => format!(
            "{}, and {before} of the batches that it was split from",
            entry.attempt
        ),
    };
    let outcomes = entry.outcomes;
    let mut fact = |name: &str, value: &dyn fmt::Display| {
        text.extend_from_slice(format!("{name:<12}{value}\n").as_bytes());
    };
    fact("id", &entry.id);
    fact("queue", queue);
    fact("state", &state);
    fact("formed", &entry.formed_at);
    if let Some(parent) = entry.parent {
        fact("parent", &parent);
    }
    fact("attempts", &attempts);
    if let Some(Fence(fence)) = entry.fence {
        fact("fence", &fence);
    }
    fact("requests", &entry.requests);
    fact("done", &outcomes.done);
    fact("retry", &outcomes.retry);
    fact("reject", &outcomes.reject);
    fact("unsettled", &unsettled(entry));
    fact("bytes", &entry.bytes);
    for (what, note) in notes(entry) {
        let (name, value) = entries::payload(note);
        fact(&name.replace("payload", what), &value);
    }
}

/// An id, as it is printed.
fn batch_id(text: &str) -> Result<BatchId, String> {
    let unknown = |_| "a batch id is 32 hexadecimal digits, as batches ls prints them".to_owned();
    text.parse().map_err(unknown)
}

const HEADINGS: [&str; 12] = [
    "batch",
    "queue",
    "state",
    "until",
    "formed",
    "attempt",
    "requests",
    "done",
    "retry",
    "reject",
    "bytes",
    "checkpoint",
];
const PAGE: NonZeroU32 = NonZeroU32::new(100).expect("not zero");
