//! `export`: all that the store holds, as JSON Lines.

use batchyard::{
    Administration, List, Queue, QueueName, State,
    transfer::{DumpFrom, Transfer, lines},
};
use clap::Args;

use super::{
    args::StoreArgs,
    entries,
    exit::{Exit, Failure},
    output::{print, say},
    store::OpenStore,
};

/// Options of `export`.
#[derive(Debug, Args)]
#[command(
    after_help = "A payload is `payload` if it is JSON, else `payload_text`, or `payload_base64` if it is no text \
either, or so that its white space comes through; so are results. Done requests have no payload any more. Lines \
that are no requests have a `record`: batches, the order of results, idempotency keys, bookmarks and, last of each \
queue, its counters; `batchyard import` takes all of it to another store, without loss. Not so from sled and Redis \
yet: from there come requests alone, and on a server, what others change meanwhile may come twice or not at all.\n\n\
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
        if let Some(transfer) = queue.transfer() {
            print_dump(&*queue, transfer).await?;
        } else {
            say(&format!(
                "queue {:?}: requests alone are exported; open batches, idempotency keys, bookmarks and counters are \
left out, and import takes no such file",
                queue.name()
            ));
            print_lists(&*queue).await?;
        }
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

/// Prints the requests of a queue.
async fn print_lists(queue: &dyn Queue) -> Result<(), Failure> {
    let admin = administration(queue)?;
    let now = queue.now();
    for state in STATES {
        let mut list = List::new(state).with_payloads();
        loop {
            let page = admin.list(now, &list).await?;
            let Some(end) = page.last() else { break };
            list = list.after(end.id);
            let mut lines = Vec::new();
            for entry in &page {
                entries::write_line(&queue.name(), entry, &mut lines)?;
            }
            print(&lines)?;
        }
    }
    Ok(())
}

/// The verbs that look into a queue.
///
/// # Errors
/// If this backend has none.
pub(super) fn administration(queue: &dyn Queue) -> Result<&dyn Administration, Failure> {
    queue.admin().ok_or_else(|| {
        let text = "this store can't list its requests; use another backend";
        Failure::new(Exit::Usage, text)
    })
}

/// In the order in which a request passes through them: one that moves on is rather told twice than
/// left out.
const STATES: [State; 5] = [
    State::Delayed,
    State::Ready,
    State::InFlight,
    State::Done,
    State::Dead,
];
