//! `health`: whether a store is served, and its service is well.

use batchyard::{Error, ErrorKind, Explanation, QueueName};
use clap::Args;
use serde::Serialize;

use super::{
    args::StoreArgs,
    exit::{Exit, Failure},
    explain::explain_queue,
    output::{print, print_json},
    store::OpenStore,
};

/// Options of `health`.
#[derive(Debug, Args)]
#[command(
    after_help = "It is well if the store is open, its recovery is done, every queue can be read, and nothing has failed for \
good: exit 0. Exit 3 if no dispatcher or run serves the store, 7 if who does can't be asked, 8 if it is damaged, 1 else. For a store on a \
server: if that can be reached and read.\n\nExample: batchyard health --store ./store --json"
)]
pub(crate) struct HealthArgs {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Serialize)]
struct Health {
    well: bool,
    /// Who serves the store, if it is in a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    queues: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    queue: QueueName,
    well: bool,
    summary: String,
}

/// Asks and tells.
pub(super) async fn health(args: HealthArgs) -> Result<Exit, Failure> {
    let open = args.store.served().await?;
    let result = tell(&args, &open).await;
    open.close(result).await
}

async fn tell(args: &HealthArgs, open: &OpenStore) -> Result<Exit, Failure> {
    let mut exit = Exit::Ok;
    let mut queues = Vec::new();
    for name in open.store.queues("").await? {
        let explained = look(open, &name).await;
        if let Err(failure) = &explained {
            // Of several the worst, which has the largest code.
            exit = [exit, failure.exit()]
                .into_iter()
                .max_by_key(|exit| *exit as u8)
                .unwrap_or(exit);
        }
        queues.push(Line {
            queue: name,
            well: explained.is_ok(),
            summary: match explained {
                Ok(explanation) => explanation.summary,
                Err(failure) => failure.to_string(),
            },
        });
    }
    let well = exit == Exit::Ok;
    let pid = open.pid();
    if args.json {
        print_json(&Health { well, pid, queues })?;
        return Ok(exit);
    }
    let by = pid.map_or_else(String::new, |pid| {
        format!(", served by the process with pid {pid}")
    });
    let mut text = format!("{}{by}\n", if well { "well" } else { "not well" });
    for Line { queue, summary, .. } in &queues {
        text.extend(["  queue ", queue.as_str(), ": ", summary, "\n"]);
    }
    print(text.as_bytes())?;
    Ok(exit)
}

/// Looks at a queue in memory and, past that, at what is stored.
async fn look(open: &OpenStore, name: &QueueName) -> Result<Explanation, Failure> {
    let queue = open.store.queue(name).await?;
    let explanation = explain_queue(open, &*queue).await?;
    // A store that is poisoned still has its last reading, and nothing to read from.
    match queue.bookmark("batchyard:health").await {
        Err(error) if error.kind() == ErrorKind::Invalid => {}
        looked => drop(looked?),
    }
    if !explanation.stats.adds_up() {
        let text = "the counts of its states do not add up; look with verify";
        return Err(Error::corrupt(text).into());
    }
    Ok(explanation)
}
