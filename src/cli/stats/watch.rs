//! `stats --watch`: what queues hold and how fast that changes, again and again.

use std::{
    collections::HashMap,
    fs,
    io::{self, IsTerminal},
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use batchyard::{Explanation, QueueName, Stats};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{StatsArgs, age};
use crate::cli::{
    exit::{Exit, Failure},
    explain::explain_queue,
    output::{print, print_json},
    stop::Stop,
    store::OpenStore,
    table::Table,
};

/// One queue at one time.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    explanation: &'a Explanation,
    /// Since the line before, from the second on.
    pushed_per_second: Option<f64>,
    settled_per_second: Option<f64>,
    /// What the folder of the store takes, all queues together.
    disk_bytes: Option<u64>,
}

/// How much was pushed and settled, and when that was.
struct Before {
    at: Instant,
    pushed: u64,
    settled: u64,
}

/// Shows it until it is asked to stop, or nobody reads it any more.
pub(super) async fn watch(
    args: &StatsArgs,
    open: &OpenStore,
    every: Duration,
    stop: &mut Stop,
) -> Result<Exit, Failure> {
    let mut before = HashMap::new();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => show(args, open, &mut before).await?,
            exit = stop.asked() => return Ok(exit),
        }
    }
}

async fn show(
    args: &StatsArgs,
    open: &OpenStore,
    before: &mut HashMap<QueueName, Before>,
) -> Result<(), Failure> {
    let disk_bytes = open.folder.as_deref().map(size_of);
    let mut table = Table::new(&HEADINGS, 1);
    for queue in open.existing(args.queue.as_ref()).await? {
        let explanation = explain_queue(open, &*queue).await?;
        let (pushed, settled) = rates(before, &queue.name(), &explanation.stats);
        if args.json {
            print_json(&Line {
                explanation: &explanation,
                pushed_per_second: pushed,
                settled_per_second: settled,
                disk_bytes,
            })?;
        } else {
            table.row(cells(&explanation, pushed, settled));
        }
    }
    if args.json {
        return Ok(());
    }
    let clear = if io::stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    let disk = disk_bytes.map_or_else(String::new, |bytes| {
        format!("on disk: {}\n", bytesize::ByteSize::b(bytes))
    });
    print(format!("{clear}{}{disk}\n", table.text()).as_bytes())?;
    Ok(())
}

/// How many a second were pushed and settled since the last time.
fn rates(
    before: &mut HashMap<QueueName, Before>,
    queue: &QueueName,
    stats: &Stats,
) -> (Option<f64>, Option<f64>) {
    let now = Before {
        at: Instant::now(),
        pushed: stats.pushed,
        settled: stats.pushed.saturating_sub(stats.held()),
    };
    let (at, pushed, settled) = (now.at, now.pushed, now.settled);
    let Some(then) = before.insert(queue.clone(), now) else {
        return (None, None);
    };
    let seconds = at.duration_since(then.at).as_secs_f64();
    let rate = |now: u64, then: u64| {
        #[expect(clippy::cast_precision_loss, reason = "a rate is rounded anyway")]
        let count = now.saturating_sub(then) as f64;
        (seconds > 0.0).then(|| count / seconds)
    };
    (rate(pushed, then.pushed), rate(settled, then.settled))
}

fn cells(explanation: &Explanation, pushed: Option<f64>, settled: Option<f64>) -> Vec<String> {
    let Explanation {
        queue,
        at,
        stats,
        next,
        queue_threshold,
        time_threshold_seconds,
        ..
    } = explanation;
    let of =
        |is: String, most: Option<String>| most.map_or(is.clone(), |most| format!("{is}/{most}"));
    let oldest = stats.oldest_ready_at.map(|oldest| age(at.since(oldest)));
    let threshold = time_threshold_seconds
        .map(|seconds| age(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)));
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".into(), |rate| format!("{rate:.0}"));
    let next = match (stats.paused_at, next) {
        (Some(_), _) => "paused".to_owned(),
        (None, Some(next)) => age(next.since(*at)),
        (None, None) => "-".to_owned(),
    };
    vec![
        queue.to_string(),
        of(
            stats.ready.to_string(),
            queue_threshold.map(|most| most.to_string()),
        ),
        oldest.map_or_else(|| "-".to_owned(), |oldest| of(oldest, threshold)),
        next,
        rate(pushed),
        rate(settled),
        stats.delayed.to_string(),
        stats.in_flight.to_string(),
        stats.done.to_string(),
        stats.dead.to_string(),
        bytesize::ByteSize::b(stats.held_bytes).to_string(),
    ]
}

/// What a folder takes on its disk; what can't be read counts as nothing.
fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => size_of(&entry.path()),
        Ok(found) => found.blocks() * BLOCK_BYTES,
        Err(_) => 0,
    });
    sizes.sum()
}

/// Of what `blocks` counts, whatever the file system's are.
const BLOCK_BYTES: u64 = 512;
const HEADINGS: [&str; 11] = [
    "queue",
    "ready",
    "oldest",
    "next",
    "pushed/s",
    "settled/s",
    "delayed",
    "in flight",
    "done",
    "dead",
    "held",
];
