//! `compact`: a store made anew from what is left in it.

use batchyard::{Compacted, SledStore};
use clap::Args;
use serde::Serialize;

use super::{
    args::StoreArgs,
    exit::{Exit, Failure},
    output::{Steps, print_json, say},
    store::{Backend, Turn},
};

/// Options of `compact`.
#[derive(Debug, Args)]
#[command(
    after_help = "The file of a sled store shrinks only where its end is unused: freed space is used again, and not given back. A new store \
of what is left is made beside the old one, and the two change places in one step: interrupt it whenever you like, the store is the \
old one or the new one, whole, and what is beside it then the next compaction removes. There has to be room for both. Nobody may \
have the store open (exit 4).\n\
A journal gives back by itself what it does not need, but for what it keeps ready: compacting one is of use for done requests whose \
payloads it keeps, and for segments that large pushes made larger.\n\n\
Example: batchyard compact --store ./store"
)]
pub(crate) struct CompactArgs {
    /// Print a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// What was done, as it is printed.
#[derive(Serialize)]
struct Line<'a> {
    store: &'a std::path::Path,
    #[serde(flatten)]
    compacted: Compacted,
}

/// Compacts it.
pub(super) async fn compact(args: CompactArgs) -> Result<Exit, Failure> {
    let store = &args.store.folder()?;
    // Who comes meanwhile waits, instead of being refused.
    let _turn = Turn::take(store);
    let steps = Steps::of_verifying();
    let tell = move |records: u64| {
        let line = format!("copied: {records} records");
        steps.set(records, records, &line, &line);
    };
    let compacted = match Backend::of_remains(store) {
        #[cfg(feature = "journal")]
        Some(Backend::Journal) => batchyard::JournalStore::compact(store, tell).await,
        #[cfg(not(feature = "journal"))]
        Some(Backend::Journal) => {
            let text =
                "it is a journal store, and this batchyard was built without the feature journal";
            return Err(Failure::new(Exit::Usage, text));
        }
        Some(Backend::Sled) | None => SledStore::compact(store, tell).await,
    };
    let compacted = compacted?;
    let bytes = |count| bytesize::ByteSize::b(count).to_string();
    say(&format!(
        "{}: {} before, {} now; {} records of {} queues",
        store.display(),
        bytes(compacted.bytes_before),
        bytes(compacted.bytes_after),
        compacted.records,
        compacted.queues
    ));
    if args.json {
        print_json(&Line { store, compacted })?;
    }
    Ok(Exit::Ok)
}
