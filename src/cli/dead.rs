//! `dead ls|show|redrive|purge`: the requests that failed for good.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::Arc,
};

use batchyard::{DeadReason, Entry, List, Queue, QueueName, RequestId, State};
use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use serde::Serialize;

use super::{
    args::StoreArgs,
    entries,
    exit::{Exit, Failure},
    look,
    output::{print, say},
    store::OpenStore,
    table::Table,
};

macro_rules! pick_help {
    () => {
        "The ids are printed, or with --dry-run those that would be changed. An id that is no dead letter \
is told; the exit code is 5 then, or 3 if none is one.\n\nExample: "
    };
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadVerb {
    /// List dead letters, without their payloads
    Ls(LsArgs),
    /// Show one dead letter, with its payload
    Show(ShowArgs),
    /// Make dead letters ready again, with no attempts counted and without a ttl
    #[command(after_help = concat!(pick_help!(), "batchyard dead redrive --store ./store --all --reason exhausted"))]
    Redrive(PickArgs),
    /// Forget dead letters and their payloads
    #[command(after_help = concat!(pick_help!(), "batchyard dead purge --store ./store --all --dry-run"))]
    Purge(PickArgs),
}

/// Options of `dead ls`.
#[derive(Debug, Args)]
#[command(after_help = "Example: batchyard dead ls --store ./store --reason exhausted")]
pub(crate) struct LsArgs {
    /// Only this queue [default: all queues]
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Only those with this reason
    #[arg(long, value_name = "REASON", value_parser = reasons())]
    reason: Option<DeadReason>,
    /// Print a line of JSON for each, as export does
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Options of `dead show`.
#[derive(Debug, Args)]
#[command(after_help = "Example: batchyard dead show --store ./store 18a3c0de5f00a1b2")]
pub(crate) struct ShowArgs {
    /// The id of the dead letter
    #[arg(value_parser = look::id)]
    id: RequestId,
    /// Only this queue [default: all queues]
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Print it as a line of JSON, as export does
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Options of `dead redrive` and `dead purge`.
#[derive(Debug, Args)]
pub(crate) struct PickArgs {
    /// The ids of dead letters
    #[arg(value_name = "ID", value_parser = look::id)]
    ids: Vec<RequestId>,
    /// All dead letters
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Only those with this reason
    #[arg(long, value_name = "REASON", value_parser = reasons(), conflicts_with = "ids")]
    reason: Option<DeadReason>,
    /// Only this queue [default: all queues]
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Change nothing, and print what would be changed
    #[arg(long)]
    dry_run: bool,
    /// Print each id as JSON, with its queue
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// What happens to dead letters that were picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Redrive,
    Purge,
}

/// A dead letter that was changed.
#[derive(Serialize)]
struct Changed<'a> {
    id: RequestId,
    queue: &'a QueueName,
}

/// Does it.
pub(super) async fn dead(verb: DeadVerb) -> Result<Exit, Failure> {
    let store = match &verb {
        DeadVerb::Ls(LsArgs { store, .. })
        | DeadVerb::Show(ShowArgs { store, .. })
        | DeadVerb::Redrive(PickArgs { store, .. })
        | DeadVerb::Purge(PickArgs { store, .. }) => store,
    };
    if let DeadVerb::Redrive(args) | DeadVerb::Purge(args) = &verb
        && args.ids.is_empty()
        && !args.all
    {
        let text = "which dead letters? name their ids, as dead ls lists them, or give --all";
        return Err(Failure::new(Exit::Usage, text));
    }
    let open = store.existing().await?;
    let result = match &verb {
        DeadVerb::Ls(args) => list(args, &open).await,
        DeadVerb::Show(args) => show(args, &open).await,
        DeadVerb::Redrive(args) => change(args, Change::Redrive, &open).await,
        DeadVerb::Purge(args) => change(args, Change::Purge, &open).await,
    };
    open.close(result).await
}

async fn list(args: &LsArgs, open: &OpenStore) -> Result<Exit, Failure> {
    let mut table = Table::new(&["id", "queue", "reason", "since", "error", "attempts"], 5);
    for queue in open.existing(args.queue.as_ref()).await? {
        let (name, mut list) = (queue.name(), List::new(State::Dead));
        while let Some(page) = look::next_page(&*queue, &mut list).await? {
            let mut lines = Vec::new();
            for entry in page.iter().filter(|entry| fits(entry, args.reason)) {
                if args.json {
                    entries::write_line(&name, entry, &mut lines)?;
                } else {
                    table.row(cells(&name, entry));
                }
            }
            print(&lines)?;
        }
    }
    if !args.json {
        print(table.text().as_bytes())?;
    }
    Ok(Exit::Ok)
}

fn cells(queue: &QueueName, entry: &Entry) -> Vec<String> {
    vec![
        entry.id.to_string(),
        queue.to_string(),
        shown_reason(entry),
        entry.at.to_string(),
        entries::short(entry.error.as_deref().unwrap_or_default(), ERROR_CHARS),
        entry.attempts.to_string(),
    ]
}

fn shown_reason(entry: &Entry) -> String {
    entry
        .reason
        .map_or_else(String::new, |reason| reason.to_string())
}

async fn show(args: &ShowArgs, open: &OpenStore) -> Result<Exit, Failure> {
    let queues = open.existing(args.queue.as_ref()).await?;
    let Some((queue, entry)) = look::find(&queues, args.id, is_dead).await? else {
        return Err(Failure::new(Exit::NotFound, unknown(args.id)));
    };
    look::print_whole(&**queue, entry, args.json).await?;
    Ok(Exit::Ok)
}

fn is_dead(entry: &Entry) -> bool {
    entry.state == State::Dead
}

async fn change(args: &PickArgs, change: Change, open: &OpenStore) -> Result<Exit, Failure> {
    let queues = open.existing(args.queue.as_ref()).await?;
    let (mut changed, mut missing) = (0, 0);
    if args.all {
        for queue in &queues {
            let mut list = List::new(State::Dead);
            while let Some(page) = look::next_page(&**queue, &mut list).await? {
                let page = page.iter().filter(|entry| fits(entry, args.reason));
                let ids: Vec<RequestId> = page.map(|entry| entry.id).collect();
                args.apply(change, &**queue, &ids, &mut changed).await?;
            }
        }
    } else {
        let mut picked: BTreeMap<QueueName, (&Arc<dyn Queue>, Vec<RequestId>)> = BTreeMap::new();
        for id in &args.ids {
            let Some((queue, _)) = look::find(&queues, *id, is_dead).await? else {
                say(&unknown(*id));
                missing += 1;
                continue;
            };
            let (_, ids) = picked
                .entry(queue.name())
                .or_insert_with(|| (queue, Vec::new()));
            if !ids.contains(id) {
                ids.push(*id);
            }
        }
        for (queue, ids) in picked.values() {
            args.apply(change, &***queue, ids, &mut changed).await?;
        }
    }
    say(&format!("{changed} {}", args.verb(change)));
    Ok(match (changed, missing) {
        (_, 0) => Exit::Ok,
        (0, _) => Exit::NotFound,
        _ => Exit::Partial,
    })
}

impl PickArgs {
    fn verb(&self, change: Change) -> &'static str {
        match (change, self.dry_run) {
            (Change::Redrive, false) => "redriven",
            (Change::Redrive, true) => "would be redriven",
            (Change::Purge, false) => "purged",
            (Change::Purge, true) => "would be purged",
        }
    }

    /// Changes these dead letters of a queue, in one step, counts and prints them.
    async fn apply(
        &self,
        change: Change,
        queue: &dyn Queue,
        ids: &[RequestId],
        changed: &mut u64,
    ) -> Result<(), Failure> {
        let admin = look::administration(queue)?;
        *changed += match change {
            _ if self.dry_run => ids.len() as u64,
            Change::Redrive => admin.redrive(queue.now(), ids).await?,
            Change::Purge => admin.purge(queue.now(), ids).await?,
        };
        self.print(&queue.name(), ids).map_err(|error| {
            if self.dry_run {
                return error.into();
            }
            let so_far = format!(
                "{changed} {}, and no more were looked at",
                self.verb(change)
            );
            Failure::unprinted(error, so_far)
        })
    }

    fn print(&self, queue: &QueueName, ids: &[RequestId]) -> io::Result<()> {
        let mut text = Vec::new();
        for id in ids {
            if self.json {
                serde_json::to_writer(&mut text, &Changed { id: *id, queue })?;
                text.push(b'\n');
            } else {
                writeln!(text, "{id}")?;
            }
        }
        print(&text)
    }
}

fn fits(entry: &Entry, reason: Option<DeadReason>) -> bool {
    reason.is_none() || entry.reason == reason
}

fn unknown(id: RequestId) -> String {
    format!("{id} is no dead letter; dead ls lists them")
}

/// Parses reasons as they are printed.
fn reasons() -> impl TypedValueParser<Value = DeadReason> {
    let known = |text: String| REASONS.into_iter().find(|(name, _)| *name == text);
    PossibleValuesParser::new(REASONS.map(|(name, _)| name)).try_map(move |text| {
        known(text)
            .map(|(_, reason)| reason)
            .ok_or("no such reason")
    })
}

const REASONS: [(&str, DeadReason); 5] = [
    ("rejected", DeadReason::Rejected),
    ("exhausted", DeadReason::Exhausted),
    ("too_large", DeadReason::TooLarge),
    ("undecodable", DeadReason::Undecodable),
    ("damaged", DeadReason::Damaged),
];
const ERROR_CHARS: usize = 60;
