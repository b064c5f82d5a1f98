//! `export`: all that the store holds, as JSON Lines.

use batchyard::{
    Queue, QueueName,
    transfer::{DumpFrom, Transfer, lines},
};
use clap::Args;

use super::{
    args::StoreArgs,
    exit::{Exit, Failure},
    output::print,
    store::OpenStore,
};

/// Options of `export`.
#[derive(Debug, Args)]
#[command(
    after_help = "A payload is `payload` if it is JSON, else `payload_text`, or `payload_base64` if it is no text \
either, or so that its white space comes through; so are results. Done requests have no payload any more. Lines \
that are no requests have a `record`: batches, the order of results, idempotency keys, bookmarks and, last of each \
queue, its counters; `batchyard import` takes all of it to another store, on whatever backend, without loss. On a \
server, let nothing else use the queue meanwhile: what others change may come twice or not at all, and import \
refuses what does not add up.\n\n\
Example: batchyard export --store ./store | jq -c 'select(.state == \"ready\") | .payload'"
)]
pub(crate) struct ExportArgs {
    /// Only this queue [default: all queues]
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Print JSON Lines, as it does anyway
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Prints them.
pub(super) async fn export(args: ExportArgs) -> Result<Exit, Failure> {
    let open = args.store.existing().await?;
    let result = print_all(&args, &open).await;
    open.close(result).await
}

async fn print_all(args: &ExportArgs, open: &OpenStore) -> Result<Exit, Failure> {
    for queue in open.existing(args.queue.as_ref()).await? {
        print_dump(&*queue, transfer(&*queue)?).await?;
    }
    Ok(Exit::Ok)
}

/// Prints all that is stored of a queue.
async fn print_dump(queue: &dyn Queue, transfer: &dyn Transfer) -> Result<(), Failure> {
    let name = queue.name();
    // One time for all pages: nothing becomes due between two of them.
    let now = queue.now();
    let mut from = Some(DumpFrom::Start);
    while let Some(at) = from {
        let page = transfer.dump(now, at).await?;
        let mut text = Vec::new();
        for record in &page.records {
            lines::encode(&name, record, &mut text)?;
        }
        print(&text)?;
        from = page.next;
    }
    Ok(())
}

/// What takes a queue out of a backend, and into one.
///
/// # Errors
/// If this backend can't.
pub(super) fn transfer(queue: &dyn Queue) -> Result<&dyn Transfer, Failure> {
    queue.transfer().ok_or_else(|| {
        let text = format!(
            "the backend of queue {:?} can't be exported or imported without loss; use another one",
            queue.name()
        );
        Failure::new(Exit::Usage, text)
    })
}
