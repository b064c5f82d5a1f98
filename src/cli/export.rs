//! `export`: every request that the store holds, as JSON Lines.

use batchyard::{Administration, List, Queue, QueueName, State};
use clap::Args;

use super::{
    args::StoreArgs,
    entries,
    exit::{Exit, Failure},
    output::print,
    store::OpenStore,
};

/// Options of `export`.
#[derive(Debug, Args)]
#[command(
    after_help = "A payload is `payload` if it is JSON, else `payload_text`, or `payload_base64` if it is no text \
either; so are results. Done requests have no payload any more. On a server, what others change meanwhile may \
come twice or not at all.\n\n\
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
        let admin = administration(&*queue)?;
        // One time for all pages: nothing becomes due between two of them.
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
    }
    Ok(Exit::Ok)
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
