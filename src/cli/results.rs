//! `results`: what was settled, in the order in which it was, also as it is settled.
//!
//! With `--follow` it has the store open as long as nobody else does, and lets in who comes to dispatch.

mod cursor;
mod follow;

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};

use batchyard::{Entry, Queue, QueueName, State};
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};

use self::cursor::{Cursor, Place};
use super::{
    args::StoreArgs,
    entries,
    exit::{Exit, Failure},
    look,
    output::print,
    store::OpenStore,
};

/// Options of `results`.
#[derive(Debug, Args)]
#[command(
    after_help = "The first is the first that is still kept; dead letters that were redriven or purged are left out. Each line has a \
cursor: with --since it goes on behind that line. A line may come again after that, if what was before it is not kept any more; none is \
left out. With --follow it goes on until it is stopped, also when the process ends that has the store open.\n\n\
Example: batchyard results --store ./store --follow --json | jq -c '{id, result}'"
)]
pub(crate) struct ResultsArgs {
    /// Only this queue [default: all queues]
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Only those behind the line with this cursor; of one queue
    #[arg(long, value_name = "CURSOR")]
    since: Option<Cursor>,
    /// Only requests that are in this state
    #[arg(long, value_name = "STATE", value_parser = states())]
    state: Option<State>,
    /// Go on as more are settled
    #[arg(long)]
    follow: bool,
    /// Print a line of JSON for each, as export does, with its cursor
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Prints them.
pub(super) async fn results(args: ResultsArgs) -> Result<Exit, Failure> {
    let mut printer = Printer {
        places: BTreeMap::new(),
        args: &args,
    };
    if args.follow {
        return follow::follow(&mut printer).await;
    }
    let open = args.store.existing().await?;
    let result = printer.print_all(&open).await;
    open.close(result.map(|()| Exit::Ok)).await
}

/// Prints what was settled, and knows how far it is in each queue.
struct Printer<'a> {
    args: &'a ResultsArgs,
    places: BTreeMap<QueueName, Place>,
}

impl Printer<'_> {
    /// The queues of a store that are looked at.
    async fn queues(&mut self, open: &OpenStore) -> Result<Vec<Arc<dyn Queue>>, Failure> {
        let queues = open.existing(self.args.queue.as_ref()).await?;
        if let Some(since) = self.args.since
            && self.places.is_empty()
        {
            let [queue] = &queues[..] else {
                let text = "a cursor is a place in one queue: say in which with --queue";
                return Err(Failure::new(Exit::Usage, text));
            };
            self.places.insert(queue.name(), since.place());
        }
        Ok(queues)
    }

    async fn print_all(&mut self, open: &OpenStore) -> Result<(), Failure> {
        for queue in self.queues(open).await? {
            self.print_queue(&*queue).await?;
        }
        Ok(())
    }

    /// Prints what was settled since the last time, to the end. Cancel safe.
    async fn print_queue(&mut self, queue: &dyn Queue) -> Result<(), Failure> {
        let (name, admin) = (queue.name(), look::administration(queue)?);
        let place = self.places.entry(name.clone()).or_default();
        loop {
            let page = admin.results(queue.now(), place.after, PAGE).await?;
            let Some(next) = page.next else {
                return Ok(());
            };
            let mut lines = Vec::new();
            let begins = place.after;
            for entry in place.unseen(&page.entries) {
                if self.args.state.is_none_or(|state| state == entry.state) {
                    let cursor = Cursor::new(begins, entry);
                    write_line(self.args.json, &name, entry, cursor, &mut lines)?;
                }
            }
            print(&lines)?;
            place.after = Some(next);
            // A page may have been there at once: a signal is heard between two of them.
            tokio::task::yield_now().await;
        }
    }
}

fn write_line(
    json: bool,
    queue: &QueueName,
    entry: &Entry,
    cursor: Cursor,
    lines: &mut Vec<u8>,
) -> Result<(), Failure> {
    if json {
        entries::write_line(queue, entry, lines)?;
        // Behind the last field, before the brace and the line break.
        lines.truncate(lines.len() - 2);
        lines.extend_from_slice(format!(",\"cursor\":\"{cursor}\"}}\n").as_bytes());
        return Ok(());
    }
    let what = match (&entry.result, &entry.error) {
        (Some(result), _) => entries::payload(result).1,
        (None, error) => error.clone().unwrap_or_default(),
    };
    let (id, state, at) = (entry.id, entry.state, entry.at);
    let what = entries::short(&what, WHAT_CHARS);
    let line = format!("{at}  {queue}  {id}  {state}  {what}");
    lines.extend_from_slice(format!("{}  {cursor}\n", line.trim_end()).as_bytes());
    Ok(())
}

/// Parses the states of what is settled.
fn states() -> impl TypedValueParser<Value = State> {
    PossibleValuesParser::new(["done", "dead"]).map(|text| match &*text {
        "done" => State::Done,
        _ => State::Dead,
    })
}

/// A cursor names its page by where that begins, so pages are always of this size.
const PAGE: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");
const WHAT_CHARS: usize = 60;
