//! `verify`: reads all that a store holds, and says what of it is damaged.

use std::{
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use batchyard::{Finding, FindingKind, SledStore, Verified, VerifyPhase, VerifyProgress};
use clap::{Args, ValueHint};
use serde::Serialize;

use super::{
    args::StoreArgs,
    exit::{Exit, Failure},
    output::{Steps, print, print_json},
    scratch,
    stop::Stop,
    store::Backend,
};

/// Options of `verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: batchyard verify --store ./store\nNothing of the store is changed, and nobody may have it open. Exit 8 means that something is damaged; what was begun \
and never answered, as a crash leaves it, is shown as unconfirmed and is no damage.\n\
sled can't open a database without writing to it: of a sled store a copy is opened, for which --scratch must have room."
)]
pub(crate) struct VerifyArgs {
    /// Print each finding as a line of JSON, and then what they come to
    #[arg(long)]
    json: bool,
    /// Where the copy of a sled store is made, and removed again [default: the folder for temporary files]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    scratch: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
}

/// What the findings come to, as it is printed.
#[derive(Serialize)]
struct Sum {
    kind: &'static str,
    clean: bool,
    damaged: usize,
    unconfirmed: usize,
    queues: u64,
    held: u64,
    bytes: u64,
}

/// Verifies it. Exit 8 if anything is damaged.
pub(super) async fn verify(args: VerifyArgs) -> Result<Exit, Failure> {
    let folder = &args.store.folder()?;
    let verified = match Backend::of_remains(folder) {
        #[cfg(feature = "journal")]
        Some(Backend::Journal) => batchyard::JournalStore::verify(folder).await?,
        #[cfg(not(feature = "journal"))]
        Some(Backend::Journal) => {
            let text =
                "it is a journal store, and this batchyard was built without the feature journal";
            return Err(Failure::new(Exit::Usage, text));
        }
        Some(Backend::Sled) | None => {
            let scratch = args.scratch.clone().unwrap_or_else(env::temp_dir);
            match verify_sled(folder, &scratch).await? {
                Ok(verified) => verified,
                Err(stopped) => return Ok(stopped),
            }
        }
    };
    let sum = sum_of(&verified);
    if args.json {
        for finding in &verified.findings {
            print_json(finding)?;
        }
        print_json(&sum)?;
    } else {
        let lines: String = verified.findings.iter().map(line).collect();
        print(format!("{lines}{}\n", verdict(&sum)).as_bytes())?;
    }
    Ok(if sum.clean { Exit::Ok } else { Exit::Damaged })
}

/// Verifies a sled store in a folder of its own within `scratch`, which is removed however this ends; or the signal that
/// ended it.
async fn verify_sled(store: &Path, scratch: &Path) -> Result<Result<Verified, Exit>, Failure> {
    let mut stop = Stop::new()?;
    let folder = scratch::folder(scratch, "batchyard-verify-")?;
    let steps = Steps::of_verifying();
    let tell = |progress: VerifyProgress| {
        let line = told(progress);
        steps.set(progress.done, progress.of, &line, &line);
    };
    let verified = tokio::select! {
        verified = SledStore::verify_telling(store, folder.path(), tell) => verified.map(Ok),
        stopped = stop.asked() => Ok(Err(stopped)),
    };
    drop(steps);
    // What is under way may have to write once more, and goes with this program.
    scratch::remove(&folder.keep())?;
    Ok(verified?)
}

/// How far it is, for people.
fn told(progress: VerifyProgress) -> String {
    let bytes = |count| bytesize::ByteSize::b(count).to_string();
    let VerifyProgress {
        phase, done, of, ..
    } = progress;
    match phase {
        VerifyPhase::Copying => format!("copying: {} of {}", bytes(done), bytes(of)),
        VerifyPhase::Opening => format!("opening the copy of {}", bytes(of)),
        VerifyPhase::Counting => format!("counting: {done} of {of} entries"),
        VerifyPhase::Reading => format!("reading: {done} of {of} entries"),
        _ => "looking at each queue".to_owned(),
    }
}

fn sum_of(verified: &Verified) -> Sum {
    let damaged = verified.damages();
    Sum {
        kind: "sum",
        clean: verified.is_clean(),
        damaged,
        unconfirmed: verified.findings.len() - damaged,
        queues: verified.queues,
        held: verified.held,
        bytes: verified.bytes,
    }
}

/// A finding for people: where it is, what it is, and what opening does about it.
fn line(finding: &Finding) -> String {
    let mut line = match finding.kind {
        FindingKind::Unconfirmed => "unconfirmed: ".to_owned(),
        _ => "damaged: ".to_owned(),
    };
    if let Some(file) = &finding.file {
        line.push_str(file);
        if let Some(offset) = finding.offset {
            // Writing to a string can't fail.
            let _ = write!(line, " at {offset}");
        }
        line.push_str(": ");
    }
    if let Some(queue) = &finding.queue {
        let _ = write!(line, "queue {queue}: ");
    }
    line.push_str(&finding.what);
    if !finding.opening.is_empty() {
        let _ = write!(line, "; when it is opened: {}", finding.opening);
    }
    line.push('\n');
    line
}

fn verdict(sum: &Sum) -> String {
    let verdict = if sum.clean { "clean" } else { "damaged" };
    let mut text = format!(
        "{verdict}: {} requests in {} queues, {} read and checked",
        sum.held,
        sum.queues,
        bytesize::ByteSize::b(sum.bytes)
    );
    for (count, what) in [(sum.damaged, "damaged"), (sum.unconfirmed, "unconfirmed")] {
        if count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    text
}
