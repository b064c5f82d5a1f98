//! `repair`: saves what can be read of a damaged store into a new one.

use std::path::PathBuf;

use batchyard::{Repaired, SledStore};
use clap::{Args, ValueHint};
use serde::Serialize;

use super::{
    exit::{Exit, Failure},
    output::{print_json, say},
    store::{Backend, Turn},
};

/// Options of `repair`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: batchyard repair ./store ./store.repaired\nThe damaged store is only read: keep it until you have looked at the new one.\nExit 5 means that something was not saved, or that nobody can tell.\n\
Only sled stores need it. A journal opens with what is left of it: any verb that opens it tells what is damaged of its own \
records, a damaged payload becomes a dead letter once it is read, and JournalOptions::verify of the library reads all at once."
)]
pub(crate) struct RepairArgs {
    /// The damaged store
    #[arg(value_name = "FROM", value_hint = ValueHint::DirPath)]
    from: PathBuf,
    /// The new store: a folder that is empty or does not exist
    #[arg(value_name = "TO", value_hint = ValueHint::DirPath)]
    to: PathBuf,
    /// Print what was saved as a line of JSON
    #[arg(long)]
    json: bool,
}

/// What was saved and what was not, as it is printed.
#[derive(Serialize)]
struct Line {
    queues: u64,
    held: u64,
    dead: u64,
    damaged: u64,
    torn: u64,
    absent: u64,
    /// `null` if it can't be told.
    lost_changes: Option<u64>,
    missing: u64,
    whole: bool,
}

/// Repairs it. Exit 5 if something was not saved, or if nobody can tell; a journal store needs no repair.
pub(super) async fn repair(args: RepairArgs) -> Result<Exit, Failure> {
    if Backend::of_remains(&args.from) == Some(Backend::Journal) {
        let from = args.from.display();
        let text = format!(
            "{from} is a journal store, which needs none: it opens with what is left of it, and tells what is damaged; run \
batchyard stats --store {from}"
        );
        return Err(Failure::new(Exit::Usage, text));
    }
    let is_url = |path: &&PathBuf| path.to_string_lossy().contains("://");
    if let Some(url) = [&args.from, &args.to].into_iter().find(is_url) {
        let text = format!(
            "{} is a server; repair is about sled stores in folders, and what a server lost it tells itself",
            url.display()
        );
        return Err(Failure::new(Exit::Usage, text));
    }
    // Nobody opens it meanwhile; who has it open is told of by its lock.
    let _turn = Turn::take(&args.from);
    let repaired = SledStore::repair(&args.from, &args.to).await?;
    let Repaired {
        queues,
        held,
        dead,
        damaged,
        torn,
        absent,
        lost_changes,
        missing,
        ..
    } = repaired;
    say(&format!(
        "saved into {}: {held} requests to be handled and {dead} dead letters, in {queues} queues",
        args.to.display()
    ));
    for loss in losses(&repaired) {
        say(&loss);
    }
    let whole = repaired.is_whole();
    if !whole {
        say(&format!("{} is as it was: keep it", args.from.display()));
    }
    if args.json {
        print_json(&Line {
            queues,
            held,
            dead,
            damaged,
            torn,
            absent,
            lost_changes,
            missing,
            whole,
        })?;
    }
    Ok(if whole { Exit::Ok } else { Exit::Partial })
}

/// What was not saved, a sentence for each kind.
fn losses(repaired: &Repaired) -> Vec<String> {
    let Repaired {
        damaged,
        torn,
        absent,
        lost_changes,
        missing,
        ..
    } = *repaired;
    let mut losses = Vec::new();
    match lost_changes {
        Some(0) => {}
        Some(lost) => losses.push(format!(
            "not saved: the log ends early, and the last {lost} changes are not there: what was pushed, claimed and \
settled then"
        )),
        None => losses.push(
            "it can't be told whether the end of the log is missing, because the store was not closed".to_owned(),
        ),
    }
    if damaged > 0 || torn > 0 {
        losses.push(format!(
            "not saved: {damaged} damaged entries, and what {torn} trees hold beyond their damage"
        ));
    }
    if absent > 0 {
        losses.push(format!(
            "not saved: {absent} entries that the store counted and that are not there"
        ));
    }
    if missing > 0 {
        let bound = if lost_changes == Some(0) {
            ""
        } else {
            "up to "
        };
        losses.push(format!(
            "missing: {bound}{missing} requests that waited, were in flight or were dead letters"
        ));
    }
    losses
}
