//! `verify`: reads all that a store holds, and says what of it is damaged.

use std::{
    borrow::Cow,
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use batchyard::{
    ControlStore, ErrorKind, Finding, FindingKind, OwnerGone, SledStore, Store, Verified,
    VerifyPhase, VerifyProgress,
};
use clap::{Args, ValueHint};
use serde::Serialize;

use super::{
    args::StoreArgs,
    exit::{Exit, Failure},
    output::{Steps, print, print_json, say},
    scratch,
    stop::Stop,
    store::{Backend, Turn, Waited},
};

/// Options of `verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: batchyard verify --store ./store\nNothing of the store is changed. Exit 8 means that something is damaged; what was begun \
and never answered, as a crash leaves it, is shown as unconfirmed and is no damage.\n\
A store that is open is read by the process that has it open, beside its work, and what only a store that nobody has open shows is \
named. sled can't open a database without writing to it: of a sled store that nobody has open a copy is opened, for which --scratch \
must have room; once that is made, others may use the store. A journal that nobody has open is kept from others meanwhile: they wait."
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
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_looked_at: Vec<Cow<'static, str>>,
}

/// Verifies it. Exit 8 if anything is damaged.
pub(super) async fn verify(args: VerifyArgs) -> Result<Exit, Failure> {
    let folder = &args.store.folder()?;
    let mut stop = Stop::new()?;
    let verified = match verify_anywhere(&args, folder, &mut stop).await? {
        Ok(verified) => verified,
        Err(stopped) => return Ok(stopped),
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

/// What was found, or the signal that ended it.
type Ended = Result<Verified, Exit>;

/// Verifies it here, if nobody has it open, or has who has it open do it.
async fn verify_anywhere(
    args: &VerifyArgs,
    folder: &Path,
    stop: &mut Stop,
) -> Result<Ended, Failure> {
    let mut waited = Waited::default();
    loop {
        let mut locked = None;
        if let Some(turn) = Turn::take(folder) {
            match verify_here(args, folder, turn, stop).await {
                Err(failure) if failure.exit() == Exit::Conflict => locked = Some(failure),
                ended => return ended,
            }
        }
        match ControlStore::connect(folder).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            owner => {
                let mut shown = Shown::begin();
                let verified = {
                    let mut tell = |progress| shown.tell(progress);
                    let owner = owner?;
                    tokio::select! {
                        verified = owner.verify(&mut tell) => verified,
                        stopped = stop.asked() => return Ok(Err(stopped)),
                    }
                };
                match verified {
                    Err(error) if OwnerGone::of(&error).is_some() => {
                        say("the process that verified the store is gone: it is begun again");
                    }
                    verified => return Ok(Ok(verified?)),
                }
            }
        }
        tokio::select! {
            waited = waited.for_a_moment(folder, locked) => waited?,
            stopped = stop.asked() => return Ok(Err(stopped)),
        }
    }
}

/// Verifies a store that nobody has open, nor opens as long as it is this one's turn.
async fn verify_here(
    args: &VerifyArgs,
    folder: &Path,
    turn: Turn,
    stop: &mut Stop,
) -> Result<Ended, Failure> {
    match Backend::of_remains(folder) {
        #[cfg(feature = "journal")]
        Some(Backend::Journal) => {
            let mut shown = Shown::begin();
            let tell = |progress| shown.tell(progress);
            let verified = tokio::select! {
                verified = batchyard::JournalStore::verify_telling(folder, tell) => verified?,
                stopped = stop.asked() => return Ok(Err(stopped)),
            };
            drop(turn);
            Ok(Ok(verified))
        }
        #[cfg(not(feature = "journal"))]
        Some(Backend::Journal) => {
            let text =
                "it is a journal store, and this batchyard was built without the feature journal";
            Err(Failure::new(Exit::Usage, text))
        }
        Some(Backend::Sled) | None => {
            let scratch = args.scratch.clone().unwrap_or_else(env::temp_dir);
            verify_sled(folder, &scratch, turn, stop).await
        }
    }
}

/// The bar, or lines now and then.
struct Shown(Steps);

impl Shown {
    fn begin() -> Self {
        Self(Steps::of_verifying())
    }

    fn tell(&mut self, progress: VerifyProgress) {
        let line = told(progress);
        self.0.set(progress.done, progress.of, &line, &line);
    }
}

/// Verifies a sled store in a folder of its own within `scratch`, which is removed however this ends.
async fn verify_sled(
    store: &Path,
    scratch: &Path,
    turn: Turn,
    stop: &mut Stop,
) -> Result<Ended, Failure> {
    let folder = scratch::folder(scratch, "batchyard-verify-")?;
    let mut shown = Shown::begin();
    let mut turn = Some(turn);
    let tell = |progress: VerifyProgress| {
        if progress.phase != VerifyPhase::Copying {
            // The copy is all that is looked at.
            turn = None;
        }
        shown.tell(progress);
    };
    let verified = tokio::select! {
        verified = SledStore::verify_telling(store, folder.path(), tell) => verified.map(Ok),
        stopped = stop.asked() => Ok(Err(stopped)),
    };
    drop(shown);
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
        VerifyPhase::Log => format!("reading the log: {} of {}", bytes(done), bytes(of)),
        VerifyPhase::Replaying => "putting together what happened".to_owned(),
        VerifyPhase::Requests => format!("looking at {done} of {of} requests"),
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
        not_looked_at: verified.not_looked_at.clone(),
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
    if !sum.not_looked_at.is_empty() {
        let open = sum.not_looked_at.join("; ");
        let _ = write!(text, "\nnot looked at because it is open: {open}");
    }
    text
}
