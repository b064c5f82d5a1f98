//! `dead ls|show|redrive|purge`: the requests that failed for good.

mod filter;
mod pace;

use std::{
    io::{self, Write},
    sync::Arc,
};

use batchyard::{Entry, List, Queue, QueueName, RequestId, State};
use clap::{Args, Subcommand};
use serde::Serialize;

use self::{
    filter::FilterArgs,
    pace::{Pace, Rate},
};
use super::{
    among::Among,
    entries,
    exit::{Exit, Failure},
    look,
    output::{print, say},
    pick::{self, Picked},
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
    #[command(after_help = concat!("With --rate it takes its time, and ends at a signal with what was redriven so far.\n\n", pick_help!(), "batchyard dead redrive --store ./store --all --error timeout --rate 100/s"))]
    Redrive(RedriveArgs),
    /// Forget dead letters and their payloads
    #[command(after_help = concat!(pick_help!(), "batchyard dead purge --store ./store --all --older 720h --dry-run"))]
    Purge(PickArgs),
}

/// Options of `dead ls`.
#[derive(Debug, Args)]
#[command(after_help = "Example: batchyard dead ls --store ./store --reason exhausted")]
pub(crate) struct LsArgs {
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    among: Among,
}

/// Options of `dead show`.
#[derive(Debug, Args)]
#[command(after_help = "Example: batchyard dead show --store ./store 18a3c0de5f00a1b2")]
pub(crate) struct ShowArgs {
    /// The id of the dead letter
    #[arg(value_parser = look::id)]
    id: RequestId,
    #[command(flatten)]
    among: Among,
}

/// Options of `dead redrive`.
#[derive(Debug, Args)]
pub(crate) struct RedriveArgs {
    #[command(flatten)]
    pick: PickArgs,
    /// Not faster than this, such as 100/s or 10/min [default: as fast as it goes]
    #[arg(long, value_name = "RATE", value_parser = pace::rate)]
    rate: Option<Rate>,
}

/// Options of `dead redrive` and `dead purge`.
#[derive(Debug, Args)]
pub(crate) struct PickArgs {
    /// The ids of dead letters
    #[arg(value_name = "ID", value_parser = look::id, conflicts_with = "FilterArgs")]
    ids: Vec<RequestId>,
    /// All dead letters
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
    /// Change nothing, and print what would be changed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    among: Among,
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
    let among = match &verb {
        DeadVerb::Ls(LsArgs { among, .. })
        | DeadVerb::Show(ShowArgs { among, .. })
        | DeadVerb::Redrive(RedriveArgs {
            pick: PickArgs { among, .. },
            ..
        })
        | DeadVerb::Purge(PickArgs { among, .. }) => among,
    };
    if let DeadVerb::Redrive(RedriveArgs { pick: args, .. }) | DeadVerb::Purge(args) = &verb
        && args.ids.is_empty()
        && !args.all
    {
        let text = "which dead letters? name their ids, as dead ls lists them, or give --all";
        return Err(Failure::new(Exit::Usage, text));
    }
    let open = among.store.existing().await?;
    let result = match &verb {
        DeadVerb::Ls(args) => list(args, &open).await,
        DeadVerb::Show(args) => show(args, &open).await,
        DeadVerb::Redrive(RedriveArgs { pick, rate }) => {
            change(pick, Change::Redrive, *rate, &open).await
        }
        DeadVerb::Purge(args) => change(args, Change::Purge, None, &open).await,
    };
    open.close(result).await
}

async fn list(args: &LsArgs, open: &OpenStore) -> Result<Exit, Failure> {
    let mut table = Table::new(&["id", "queue", "reason", "since", "error", "attempts"], 5);
    for queue in open.existing(args.among.queue.as_ref()).await? {
        let (name, mut list) = (queue.name(), List::new(State::Dead));
        while let Some(page) = look::next_page(&*queue, &mut list).await? {
            let mut lines = Vec::new();
            let now = queue.now();
            for entry in page.iter().filter(|entry| args.filter.fits(entry, now)) {
                if args.among.json {
                    entries::write_line(&name, entry, &mut lines)?;
                } else {
                    table.row(cells(&name, entry));
                }
            }
            print(&lines)?;
        }
    }
    if !args.among.json {
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
    let queues = open.existing(args.among.queue.as_ref()).await?;
    let Some((queue, entry)) = look::find(&queues, args.id, is_dead).await? else {
        return Err(Failure::new(Exit::NotFound, unknown(args.id)));
    };
    look::print_whole(&**queue, entry, args.among.json).await?;
    Ok(Exit::Ok)
}

fn is_dead(entry: &Entry) -> bool {
    entry.state == State::Dead
}

async fn change(
    args: &PickArgs,
    change: Change,
    rate: Option<Rate>,
    open: &OpenStore,
) -> Result<Exit, Failure> {
    let queues = open.existing(args.among.queue.as_ref()).await?;
    let mut work = Work {
        args,
        change,
        pace: Pace::new(rate.filter(|_| !args.dry_run))?,
        changed: 0,
        of: 0,
    };
    let (stopped, missing) = if args.all {
        (work.change_all(&queues).await?, 0)
    } else {
        let find = async |id| look::find(&queues, id, is_dead).await;
        let picked = Picked::find(&args.ids, find, unknown).await?;
        let stopped = work.change_picked(&picked).await?;
        (stopped, picked.missing)
    };
    let (changed, verb) = (work.changed, args.verb(change));
    if let Some(exit) = stopped {
        say(&format!("stopped: {changed} {verb} so far"));
        return Ok(exit);
    }
    say(&format!("{changed} {verb}"));
    Ok(pick::exit(changed, missing))
}

/// What is done to dead letters, and how far it is.
struct Work<'a> {
    args: &'a PickArgs,
    change: Change,
    pace: Pace,
    changed: u64,
    /// How many there may be in all.
    of: u64,
}

impl Work<'_> {
    /// All that fit; the exit code if it was asked to stop.
    async fn change_all(&mut self, queues: &[Arc<dyn Queue>]) -> Result<Option<Exit>, Failure> {
        for queue in queues {
            self.of += queue.stats(queue.now()).await?.dead;
        }
        for queue in queues {
            let mut list = List::new(State::Dead);
            while let Some(page) = look::next_page(&**queue, &mut list).await? {
                let now = queue.now();
                let page = page
                    .iter()
                    .filter(|entry| self.args.filter.fits(entry, now));
                let ids: Vec<RequestId> = page.map(|entry| entry.id).collect();
                let stopped = self.apply(&**queue, &ids).await?;
                if stopped.is_some() {
                    return Ok(stopped);
                }
            }
        }
        Ok(None)
    }

    /// Those that were named; the exit code if it was asked to stop.
    async fn change_picked(&mut self, picked: &Picked<'_, Entry>) -> Result<Option<Exit>, Failure> {
        let found = picked.found.values();
        self.of = found.map(|(_, entries)| entries.len() as u64).sum();
        for (queue, entries) in picked.found.values() {
            let ids: Vec<RequestId> = entries.iter().map(|entry| entry.id).collect();
            let stopped = self.apply(&***queue, &ids).await?;
            if stopped.is_some() {
                return Ok(stopped);
            }
        }
        Ok(None)
    }

    /// Changes these dead letters of a queue, step by step, counts and prints them.
    async fn apply(
        &mut self,
        queue: &dyn Queue,
        ids: &[RequestId],
    ) -> Result<Option<Exit>, Failure> {
        let admin = look::administration(queue)?;
        for ids in ids.chunks(self.pace.step) {
            if let Some(exit) = self.pace.next().await {
                return Ok(Some(exit));
            }
            let now = queue.now();
            let changed = match self.change {
                _ if self.args.dry_run => Ok(ids.len() as u64),
                Change::Redrive => admin.redrive(now, ids).await,
                Change::Purge => admin.purge(now, ids).await,
            };
            self.changed += changed.map_err(|error| self.after_some(&error.into()))?;
            let printed = self.args.print(&queue.name(), ids);
            printed.map_err(|error| self.unprinted(error))?;
            self.pace.show(self.changed, self.of);
        }
        Ok(None)
    }

    /// What failed, with what was done before.
    fn after_some(&self, failure: &Failure) -> Failure {
        let before = match self.changed {
            0 => String::new(),
            changed => format!("; {changed} {} before", self.args.verb(self.change)),
        };
        Failure::new(failure.exit(), format!("{failure}{before}"))
    }

    fn unprinted(&self, error: io::Error) -> Failure {
        if self.args.dry_run {
            return error.into();
        }
        let (changed, verb) = (self.changed, self.args.verb(self.change));
        let so_far = format!("{changed} {verb}, and no more were looked at");
        Failure::unprinted(error, so_far)
    }
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

    fn print(&self, queue: &QueueName, ids: &[RequestId]) -> io::Result<()> {
        let mut text = Vec::new();
        for id in ids {
            if self.among.json {
                serde_json::to_writer(&mut text, &Changed { id: *id, queue })?;
                text.push(b'\n');
            } else {
                writeln!(text, "{id}")?;
            }
        }
        print(&text)
    }
}

fn unknown(id: RequestId) -> String {
    format!("{id} is no dead letter; dead ls lists them")
}

const ERROR_CHARS: usize = 60;
