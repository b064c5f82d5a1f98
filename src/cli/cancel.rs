//! `cancel`: requests that are not to be handled any more.

use batchyard::{Cancelled, Entry, QueueName, RequestId, State};
use clap::Args;
use serde::Serialize;

use super::{
    among::Among,
    exit::{Exit, Failure},
    look,
    output::{print, print_json},
    pick::{self, Picked},
    show,
    store::OpenStore,
};

/// Options of `cancel`.
#[derive(Debug, Args)]
#[command(
    after_help = "A request that waits is cancelled at once. One in flight stays with its batch, whose members never change, \
and is cancelled if it would come back. What is done or dead is not changed; the exit code is 5 then, or 3 if there was nothing \
to cancel. As JSON: the state that it was in, and `cancelled` with `now`, `if_it_comes_back` or `no`; with --dry-run what it would be.\
\n\nExample: batchyard cancel --store ./store 18a3c0de5f00a1b2"
)]
pub(crate) struct CancelArgs {
    /// The ids of the requests, as push printed them
    #[arg(value_name = "ID", value_parser = look::id, required = true)]
    ids: Vec<RequestId>,
    /// Change nothing, and print what would become of each
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    among: Among,
}

/// What became of one.
#[derive(Serialize)]
struct Line<'a> {
    id: RequestId,
    queue: &'a QueueName,
    state: State,
    cancelled: &'a str,
}

/// Cancels them.
pub(super) async fn cancel(args: CancelArgs) -> Result<Exit, Failure> {
    let open = args.among.store.existing().await?;
    let result = cancel_all(&args, &open).await;
    open.close(result).await
}

async fn cancel_all(args: &CancelArgs, open: &OpenStore) -> Result<Exit, Failure> {
    let queues = open.existing(args.among.queue.as_ref()).await?;
    let find = async |id| look::find(&queues, id, |_| true).await;
    let picked = Picked::find(&args.ids, find, show::unknown).await?;
    let (mut cancelled, mut not) = (0, picked.missing);
    for (name, (queue, entries)) in &picked.found {
        let what = if args.dry_run {
            entries.iter().map(would_be).collect()
        } else {
            let ids: Vec<RequestId> = entries.iter().map(|entry| entry.id).collect();
            let admin = look::administration(&***queue)?;
            admin.cancel(queue.now(), &ids).await?
        };
        for (entry, what) in entries.iter().zip(what) {
            args.print(entry, name, what)?;
            if what == Cancelled::No {
                not += 1;
            } else {
                cancelled += 1;
            }
        }
    }
    Ok(pick::exit(cancelled, not))
}

/// What would become of a request as things stand.
fn would_be(entry: &Entry) -> Cancelled {
    match entry.state {
        State::Delayed | State::Ready => Cancelled::Now,
        State::InFlight => Cancelled::IfItComesBack,
        _ => Cancelled::No,
    }
}

impl CancelArgs {
    fn print(&self, entry: &Entry, queue: &QueueName, what: Cancelled) -> Result<(), Failure> {
        let (word, text) = match what {
            Cancelled::Now => ("now", "now"),
            Cancelled::IfItComesBack => ("if_it_comes_back", "if it comes back"),
            Cancelled::No => ("no", "no"),
        };
        let (id, state) = (entry.id, entry.state);
        if self.among.json {
            print_json(&Line {
                id,
                queue,
                state,
                cancelled: word,
            })?;
        } else {
            print(format!("{id}  {text}\n").as_bytes())?;
        }
        Ok(())
    }
}
