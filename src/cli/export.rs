//! `export`: all that the store holds, as JSON Lines.

use batchyard::{
    Queue, QueueName, RequestId, State,
    transfer::{DumpFrom, Record, Transfer, lines},
};
use clap::Args;

use super::{
    args::StoreArgs,
    dumped::Dumped,
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
queue, its counters; `batchyard import` takes all of it to another store, on whatever backend, without loss. A store in a \
folder is exported as it was at one moment, all queues of it, also while a dispatcher has it open and goes on. On a \
server, let nothing else use the queue meanwhile: what others change may come twice or not at all, and import \
refuses what does not add up. What is damaged and can't be printed is told on stderr, and the exit code is 8 then.\n\n\
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
    let mut missing = Missing::default();
    for queue in Dumped::all(open, args.queue.as_ref()).await? {
        print_dump(&queue, &mut missing).await?;
    }
    let damages = open.store.damages().await?;
    if damages > 0 {
        say(&format!(
            "{damages} damages were told when the store was opened: what was lost by them is not exported"
        ));
    }
    if let Some(text) = missing.text() {
        say(&text);
    }
    let is_whole = damages == 0 && missing.count == 0;
    Ok(if is_whole { Exit::Ok } else { Exit::Damaged })
}

/// Prints all that is stored of a queue.
async fn print_dump(queue: &Dumped, missing: &mut Missing) -> Result<(), Failure> {
    let mut from = Some(DumpFrom::Start);
    while let Some(at) = from {
        let page = queue.page(at).await?;
        let mut text = Vec::new();
        for record in &page.records {
            lines::encode(&queue.name, record, &mut text)?;
            missing.note(&queue.name, record, &page.damaged);
        }
        print(&text)?;
        from = page.next;
    }
    Ok(())
}

/// Requests whose payload or result is damaged, and not on their lines.
#[derive(Default)]
struct Missing {
    count: u64,
    /// The first of them.
    named: Vec<String>,
}

impl Missing {
    fn note(&mut self, queue: &QueueName, record: &Record, damaged: &[RequestId]) {
        let Record::Request(request) = record else {
            return;
        };
        let entry = &request.entry;
        // A done request has a payload as long as its batch is open.
        let has_payload = entry.payload.is_some();
        let is_whole = match entry.state {
            State::Done => {
                !damaged.contains(&entry.id) && (has_payload || request.member.is_none())
            }
            _ => has_payload,
        };
        if is_whole {
            return;
        }
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(format!("{} of queue {queue:?}", entry.id));
        }
    }

    /// What is said of them, if there are any.
    fn text(&self) -> Option<String> {
        let (count, named) = (self.count, self.named.join(", "));
        let more = match count - self.named.len() as u64 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (count > 0).then(|| {
            format!(
                "not exported: the payloads or results of {count} requests, which are damaged, as their lines say: {named}{more}; \
import takes in their queues once they are dead letters, which they become when they are read, and purged"
            )
        })
    }
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

/// So many are named.
const NAMED: usize = 20;
