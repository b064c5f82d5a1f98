//! `queues`: which queues there are.

use batchyard::QueueName;
use clap::Args;
use serde::Serialize;

use super::{
    args::StoreArgs,
    exit::{Exit, Failure},
    output::{print, print_json},
    store::OpenStore,
};

/// Options of `queues`.
#[derive(Debug, Args)]
#[command(after_help = "Example: batchyard queues --store ./store --prefix tenant-")]
pub(crate) struct QueuesArgs {
    /// Only queues whose name begins so
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Print each as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Serialize)]
struct Line {
    queue: QueueName,
}

/// Prints their names.
pub(super) async fn queues(args: QueuesArgs) -> Result<Exit, Failure> {
    let open = args.store.existing().await?;
    let result = print_names(&args, &open).await;
    open.close(result).await
}

async fn print_names(args: &QueuesArgs, open: &OpenStore) -> Result<Exit, Failure> {
    for queue in open.store.queues(&args.prefix).await? {
        if args.json {
            print_json(&Line { queue })?;
        } else {
            print(format!("{queue}\n").as_bytes())?;
        }
    }
    Ok(Exit::Ok)
}
