//! `health`: whether a store is served, and its service is well.

use std::{
    fs::{self, File, TryLockError},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use batchyard::{Error, ErrorKind, Explanation, Queue, QueueName, Stats};
use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use super::{
    args::{StoreArgs, duration},
    exit::{Exit, Failure},
    explain::explain_queue,
    output::{print, print_json},
    service::PROBE,
    store::OpenStore,
};

/// Options of `health`.
#[derive(Debug, Args)]
#[command(
    after_help = "It is well if the store is open, its recovery is done, every queue can be read, and the dispatcher is at work: its loop \
answers, and what is due is claimed. That a queue is paused, its handler down, all slots taken or the dispatcher shutting down is told, and is well. Exit 0 if it is, 3 if \
no dispatcher or run serves the store, 7 if who does can't be asked or does not answer in time, 8 if it was found damaged when it was opened, 1 else. For a store on a \
server: if that can be reached and read.\n\nExample: batchyard health --store ./store --json"
)]
pub(crate) struct HealthArgs {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    /// How long to wait for answers [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Serialize)]
struct Health {
    well: bool,
    /// Who serves the store, if it is in a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// How much was found to be damaged when the store was opened.
    damages: u64,
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
    let limit = args.timeout.unwrap_or(TIMEOUT);
    let begun = Instant::now();
    let late = |_| {
        let text = format!(
            "no answer within {limit:?}: who has the store open, its dispatcher or its disk hangs"
        );
        Failure::new(Exit::Remote, text)
    };
    let open = match timeout(limit, args.store.served()).await.map_err(late)? {
        Err(failure) if failure.exit() == Exit::NotFound => {
            let folder = args.store.folder().ok();
            let elsewhere = folder.and_then(|folder| open_elsewhere(&folder));
            return Err(elsewhere.unwrap_or(failure));
        }
        open => open?,
    };
    let left = limit.saturating_sub(begun.elapsed());
    let result = timeout(left, tell(&args, &open, limit)).await;
    let result = result.map_err(late).flatten();
    open.close(result).await
}

/// That somebody has the store open and serves it to nobody, if so.
fn open_elsewhere(folder: &Path) -> Option<Failure> {
    // Who answers there has said what it is.
    if UnixStream::connect(folder.join("control.sock")).is_ok() {
        return None;
    }
    let path = folder.join("LOCK");
    let lock = File::open(&path).ok()?;
    let Err(TryLockError::WouldBlock) = lock.try_lock_shared() else {
        return None;
    };
    let owner = fs::read_to_string(path).unwrap_or_default();
    let pid = owner.lines().next().unwrap_or("unknown");
    let text = format!(
        "{} is open in the process with pid {pid}, which serves it to nobody: it is still opening it, or it can't \
make control.sock; try again, or ask that process",
        folder.display()
    );
    Some(Failure::new(Exit::Remote, text))
}

async fn tell(args: &HealthArgs, open: &OpenStore, limit: Duration) -> Result<Exit, Failure> {
    let damages = open.store.damages().await?;
    let mut exit = match damages {
        0 => Exit::Ok,
        _ => Exit::Damaged,
    };
    let mut queues = Vec::new();
    for name in open.store.queues("").await? {
        let explained = look(open, &name, limit).await;
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
        print_json(&Health {
            well,
            pid,
            damages,
            queues,
        })?;
        return Ok(exit);
    }
    let by = pid.map_or_else(String::new, |pid| {
        format!(", served by the process with pid {pid}")
    });
    let mut text = format!("{}{by}\n", if well { "well" } else { "not well" });
    if damages > 0 {
        let told = format!(
            "  damaged: {damages} damages were told in its log when it was opened; verify names them, and export prints the rest\n"
        );
        text.push_str(&told);
    }
    for Line { queue, summary, .. } in &queues {
        text.extend(["  queue ", queue.as_str(), ": ", summary, "\n"]);
    }
    print(text.as_bytes())?;
    Ok(exit)
}

/// Looks at a queue in memory and, past that, at what is stored.
async fn look(open: &OpenStore, name: &QueueName, limit: Duration) -> Result<Explanation, Failure> {
    let queue = open.store.queue(name).await?;
    let explanation = watch(open, &*queue, STUCK_AFTER.min(limit / 2)).await?;
    // A store that is poisoned still has its last reading, and nothing to read from.
    match queue.bookmark(PROBE).await {
        Err(error) if error.kind() == ErrorKind::Invalid => {}
        looked => drop(looked?),
    }
    if !explanation.stats.adds_up() {
        let text = "the counts of its states do not add up; look with verify";
        return Err(Error::corrupt(text).into());
    }
    Ok(explanation)
}

/// Explains a queue; one that is due has to be claimed from soon.
async fn watch(
    open: &OpenStore,
    queue: &dyn Queue,
    patience: Duration,
) -> Result<Explanation, Failure> {
    let begun = Instant::now();
    let first = explain_queue(open, queue).await?;
    let mut explanation = first.clone();
    while is_due(&explanation) && held(&explanation.stats) == held(&first.stats) {
        if begun.elapsed() >= patience {
            let text = format!(
                "its dispatcher is stuck: nothing was claimed for {patience:?}, although {}",
                explanation.summary
            );
            return Err(Failure::new(Exit::Failure, text));
        }
        sleep(POLL).await;
        explanation = explain_queue(open, queue).await?;
    }
    Ok(explanation)
}

fn is_due(explanation: &Explanation) -> bool {
    explanation.next.is_some_and(|next| next <= explanation.at)
}

/// What a claim changes.
fn held(stats: &Stats) -> impl PartialEq {
    (
        stats.oldest_ready_at,
        stats.offered,
        stats.batches,
        stats.ready,
    )
}

/// How long to wait for all answers.
const TIMEOUT: Duration = Duration::from_secs(10);
/// For how long a queue may be due without being claimed from.
const STUCK_AFTER: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(50);
