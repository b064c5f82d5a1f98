//! `ls` and `peek`: the requests of queues, state by state.

use std::num::NonZeroU32;

use batchyard::{Entry, List, Queue, QueueName, State};
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};

use super::{
    args::{StoreArgs, count},
    entries,
    exit::{Exit, Failure},
    look,
    output::{print, say},
    store::OpenStore,
    table::Table,
};

/// Options of `ls`.
#[derive(Debug, Args)]
#[command(
    after_help = "Expired and cancelled requests are only counted, so stats tells of them. Done ones are \
listed as long as they are retained.\n\nExample: batchyard ls --store ./store --state in_flight --json | jq -r .id"
)]
pub(crate) struct LsArgs {
    /// Only requests in this state; may be given several times [default: all but done]
    #[arg(long = "state", value_name = "STATE", value_parser = states())]
    states: Vec<State>,
    /// Print requests with their payloads
    #[arg(long, requires = "json")]
    payloads: bool,
    #[command(flatten)]
    which: WhichArgs,
}

/// Options of `peek`.
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is changed by looking. The first are those with the smallest ids, which leave first \
unless a request came back.\n\nExample: batchyard peek --store ./store --limit 3"
)]
pub(crate) struct PeekArgs {
    #[command(flatten)]
    which: WhichArgs,
}

/// Which requests, and how they are printed.
#[derive(Debug, Args)]
struct WhichArgs {
    /// Only this queue [default: all queues]
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// The most requests of each queue and state [default: 100, or all with --json]
    #[arg(long, value_name = "N", value_parser = count)]
    limit: Option<NonZeroU32>,
    /// Print a line of JSON for each, as export does
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Lists requests.
pub(super) async fn ls(args: LsArgs) -> Result<Exit, Failure> {
    let states = match &args.states[..] {
        [] => &OPEN[..],
        states => states,
    };
    let open = args.which.store.existing().await?;
    let result = args.which.list(&open, states, args.payloads).await;
    open.close(result).await
}

/// Shows what would leave next, payloads included.
pub(super) async fn peek(args: PeekArgs) -> Result<Exit, Failure> {
    let open = args.which.store.existing().await?;
    let result = args.which.list(&open, &[State::Ready], true).await;
    open.close(result).await
}

impl WhichArgs {
    async fn list(
        &self,
        open: &OpenStore,
        states: &[State],
        payloads: bool,
    ) -> Result<Exit, Failure> {
        let last = if payloads { "payload" } else { "error" };
        let headings = ["id", "queue", "state", "at", last, "attempts", "bytes"];
        let mut table = Table::new(&headings, 5);
        for queue in open.existing(self.queue.as_ref()).await? {
            for state in states {
                self.list_state(&*queue, *state, payloads, &mut table)
                    .await?;
            }
        }
        if !self.json {
            print(table.text().as_bytes())?;
        }
        Ok(Exit::Ok)
    }

    async fn list_state(
        &self,
        queue: &dyn Queue,
        state: State,
        payloads: bool,
        table: &mut Table,
    ) -> Result<(), Failure> {
        let name = queue.name();
        let usual = if self.json { u32::MAX } else { ROWS };
        let mut left = self.limit.map_or(usual, NonZeroU32::get);
        let mut list = List {
            payloads,
            ..List::new(state)
        };
        while let Some(most) = NonZeroU32::new(left) {
            list = list.max_requests(most.min(PAGE));
            let Some(page) = look::next_page(queue, &mut list).await? else {
                return Ok(());
            };
            left = left.saturating_sub(u32::try_from(page.len()).unwrap_or(u32::MAX));
            let mut lines = Vec::new();
            for entry in &page {
                if self.json {
                    entries::write_line(&name, entry, &mut lines)?;
                } else {
                    table.row(cells(&name, entry));
                }
            }
            print(&lines)?;
        }
        let is_cut = !self.json && look::next_page(queue, &mut list).await?.is_some();
        if is_cut {
            say(&format!(
                "queue {name:?} has more requests that are {state}: give a larger --limit, or --json for all"
            ));
        }
        Ok(())
    }
}

fn cells(queue: &QueueName, entry: &Entry) -> Vec<String> {
    let last = match &entry.payload {
        Some(payload) => entries::payload(payload).1,
        None => entry.error.clone().unwrap_or_default(),
    };
    vec![
        entry.id.to_string(),
        queue.to_string(),
        entry.state.to_string(),
        entry.at.to_string(),
        entries::short(&last, LAST_CHARS),
        entry.attempts.to_string(),
        entry.bytes.to_string(),
    ]
}

/// Parses states as they are printed.
fn states() -> impl TypedValueParser<Value = State> {
    let known = |text: String| LISTED.into_iter().find(|(name, _)| *name == text);
    PossibleValuesParser::new(LISTED.map(|(name, _)| name))
        .try_map(move |text| known(text).map(|(_, state)| state).ok_or("no such state"))
}

const LISTED: [(&str, State); 5] = [
    ("delayed", State::Delayed),
    ("ready", State::Ready),
    ("in_flight", State::InFlight),
    ("done", State::Done),
    ("dead", State::Dead),
];
const OPEN: [State; 4] = [State::Delayed, State::Ready, State::InFlight, State::Dead];
const ROWS: u32 = 100;
const PAGE: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");
const LAST_CHARS: usize = 60;
