//! `stats`: what queues hold.

mod watch;

use std::time::Duration;

use batchyard::{Queue, QueueName, Stats, Timestamp};
use clap::Args;
use serde::Serialize;

use super::{
    args::{StoreArgs, duration},
    exit::{Exit, Failure},
    output::{print, print_json, say},
    stop::Stop,
    store::OpenStore,
    table::Table,
};

/// Options of `stats`.
#[derive(Debug, Args)]
#[command(
    after_help = "With --watch: what is ready and how old the oldest is, each beside what lets a batch leave; when something \
happens at the latest; how much was pushed and settled a second; and what the folder takes on its disk.\n\n\
Example: batchyard stats --store ./store --json | jq 'select(.dead > 0) | .queue'"
)]
pub(crate) struct StatsArgs {
    /// Only this queue [default: all queues]
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Print a line of JSON for each queue
    #[arg(long)]
    json: bool,
    /// Show them again and again [default: every 1s]
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "1s", value_parser = duration)]
    watch: Option<Duration>,
    #[command(flatten)]
    store: StoreArgs,
}

/// A reading as it is printed.
#[derive(Serialize)]
struct Line {
    queue: QueueName,
    #[serde(flatten)]
    stats: Stats,
}

/// Shows them.
pub(super) async fn stats(args: StatsArgs) -> Result<Exit, Failure> {
    if let Some(every) = args.watch {
        let mut stop = Stop::new()?;
        let open = args.store.existing().await?;
        let result = watch::watch(&args, &open, every, &mut stop).await;
        return open.close(result).await;
    }
    let open = args.store.existing().await?;
    let result = show(&args, &open).await;
    open.close(result).await
}

async fn show(args: &StatsArgs, open: &OpenStore) -> Result<Exit, Failure> {
    let mut table = Table::new(&HEADINGS, 1);
    let queues = open.existing(args.queue.as_ref()).await?;
    for queue in &queues {
        let now = queue.now();
        let stats = queue.stats(now).await?;
        if args.json {
            let queue = queue.name();
            print_json(&Line { queue, stats })?;
        } else {
            table.row(cells(&**queue, &stats, now));
        }
    }
    if queues.is_empty() {
        say("the store has no queues yet");
    } else if !args.json {
        print(table.text().as_bytes())?;
    }
    Ok(Exit::Ok)
}

fn cells(queue: &dyn Queue, stats: &Stats, now: Timestamp) -> Vec<String> {
    let oldest = stats
        .oldest_ready_at
        .map_or_else(|| "-".to_owned(), |oldest| age(now.since(oldest)));
    let counts = [
        stats.pushed,
        stats.delayed,
        stats.ready,
        stats.in_flight,
        stats.done,
        stats.dead,
        stats.expired,
        stats.cancelled,
        stats.purged,
    ];
    let mut cells = vec![queue.name().to_string()];
    cells.extend(counts.map(|count| count.to_string()));
    cells.push(bytesize::ByteSize::b(stats.held_bytes).to_string());
    cells.push(oldest);
    cells
}

/// An age in its two largest units.
pub(super) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let units = [("d", seconds / 86400), ("h", seconds / 3600 % 24)];
    let units = units
        .into_iter()
        .chain([("m", seconds / 60 % 60), ("s", seconds % 60)]);
    let mut shown: Vec<String> = units
        .skip_while(|(unit, count)| *count == 0 && *unit != "s")
        .map(|(unit, count)| format!("{count}{unit}"))
        .collect();
    shown.truncate(2);
    shown.join(" ")
}

const HEADINGS: [&str; 12] = [
    "queue",
    "pushed",
    "delayed",
    "ready",
    "in flight",
    "done",
    "dead",
    "expired",
    "cancelled",
    "purged",
    "held",
    "oldest",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_its_two_largest_units() {
        for (seconds, want) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m 0s"),
            (7265, "2h 1m"),
            (90_061, "1d 1h"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), want);
        }
    }
}
