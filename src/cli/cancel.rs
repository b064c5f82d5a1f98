//! `cancel`: requests that are not to be handled any more.

use std::{collections::BTreeMap, sync::Arc};

use batchyard::{Cancelled, Queue, QueueName, RequestId};
use clap::Args;
use serde::Serialize;

use super::{
    args::StoreArgs,
    exit::{Exit, Failure},
    look,
    output::{print, print_json, say},
    show,
    store::OpenStore,
};

/// Options of `cancel`.
#[derive(Debug, Args)]
#[command(
    after_help = "A request that waits is cancelled at once. One in flight stays with its batch, whose members never change, \
and is cancelled if it would come back. What is done or dead is not changed; the exit code is 5 then, or 3 if there was nothing \
to cancel.\n\nExample: batchyard cancel --store ./store 18a3c0de5f00a1b2"
)]
pub(crate) struct CancelArgs {
    /// The ids of the requests, as push printed them
    #[arg(value_name = "ID", value_parser = look::id, required = true)]
    ids: Vec<RequestId>,
    /// Only this queue [default: all queues]
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Change nothing, and print the state of each
    #[arg(long)]
    dry_run: bool,
    /// Print a line of JSON for each
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// What became of one.
#[derive(Serialize)]
struct Line<'a> {
    id: RequestId,
    queue: &'a QueueName,
    cancelled: &'a str,
}

/// Cancels them.
pub(super) async fn cancel(args: CancelArgs) -> Result<Exit, Failure> {
    let open = args.store.existing().await?;
    let result = cancel_all(&args, &open).await;
    open.close(result).await
}

async fn cancel_all(args: &CancelArgs, open: &OpenStore) -> Result<Exit, Failure> {
    let queues = open.existing(args.queue.as_ref()).await?;
    let mut picked: BTreeMap<QueueName, (&Arc<dyn Queue>, Vec<RequestId>)> = BTreeMap::new();
    let (mut cancelled, mut not) = (0, 0);
    for id in &args.ids {
        let Some((queue, entry)) = look::find(&queues, *id, |_| true).await? else {
            say(&show::unknown(*id));
            not += 1;
            continue;
        };
        if args.dry_run {
            args.print(*id, &queue.name(), &format!("is {}", entry.state))?;
            continue;
        }
        let ids = &mut picked.entry(queue.name()).or_insert((queue, Vec::new())).1;
        if !ids.contains(id) {
            ids.push(*id);
        }
    }
    for (name, (queue, ids)) in &picked {
        let admin = look::administration(&***queue)?;
        let what = admin.cancel(queue.now(), ids).await?;
        for (id, what) in ids.iter().zip(what) {
            let text = match what {
                Cancelled::Now => "now",
                Cancelled::IfItComesBack => "if it comes back",
                Cancelled::No => "no",
            };
            args.print(*id, name, text)?;
            if what == Cancelled::No {
                not += 1;
            } else {
                cancelled += 1;
            }
        }
    }
    Ok(match (cancelled, not) {
        (_, 0) => Exit::Ok,
        (0, _) if !args.dry_run => Exit::NotFound,
        _ => Exit::Partial,
    })
}

impl CancelArgs {
    fn print(&self, id: RequestId, queue: &QueueName, cancelled: &str) -> Result<(), Failure> {
        if self.json {
            print_json(&Line {
                id,
                queue,
                cancelled,
            })?;
        } else {
            print(format!("{id}  {cancelled}\n").as_bytes())?;
        }
        Ok(())
    }
}
