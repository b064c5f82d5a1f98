//! `show`: all that is known of one request.

use batchyard::{QueueName, RequestId};
use clap::Args;

use super::{
    args::StoreArgs,
    exit::{Exit, Failure},
    look,
    store::OpenStore,
};

/// Options of `show`.
#[derive(Debug, Args)]
#[command(
    after_help = "A request that expired, was cancelled or purged, or was done longer ago than its results are retained, is \
only counted, and not found.\n\nExample: batchyard show --store ./store 18a3c0de5f00a1b2"
)]
pub(crate) struct ShowArgs {
    /// The id of the request, as push printed it
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

/// Shows it.
pub(super) async fn show(args: ShowArgs) -> Result<Exit, Failure> {
    let open = args.store.existing().await?;
    let result = print_request(&args, &open).await;
    open.close(result).await
}

async fn print_request(args: &ShowArgs, open: &OpenStore) -> Result<Exit, Failure> {
    let queues = open.existing(args.queue.as_ref()).await?;
    let Some((queue, entry)) = look::find(&queues, args.id, |_| true).await? else {
        return Err(Failure::new(Exit::NotFound, unknown(args.id)));
    };
    look::print_whole(&**queue, entry, args.json).await?;
    Ok(Exit::Ok)
}

/// What is said of an id that no queue has.
pub(super) fn unknown(id: RequestId) -> String {
    format!(
        "no request {id} is known: it was never pushed, or has expired, or was cancelled, purged, or done longer ago than its results are kept"
    )
}
