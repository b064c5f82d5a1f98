//! `snapshot`: a store as it is at one moment, in a new folder.
//!
//! ```text
//!   STORE ─▶ moment ─▶ copy ─▶ .NEWDIR.part ─▶ closed, so synced ─▶ NEWDIR
//! ```
//! The new store has its name only when it is whole. Until then the process that makes it has the turn of its folder, which ends
//! with the process: so the next snapshot beside it knows what one that was killed has left, and removes it.

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use batchyard::{fault::point, transfer::copy};
use clap::{Args, ValueHint};
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use serde::Serialize;

use super::{
    args::StoreArgs,
    exit::{Exit, Failure, no_folder},
    output::{Steps, print_json, say},
    scratch,
    stop::Stop,
    store::{self, Backend, NewAs, OpenStore, Turn},
};

/// Options of `snapshot`.
#[derive(Debug, Args)]
#[command(
    after_help = "All queues are copied as they are at one moment, with ids, open batches, outcomes, checkpoints, idempotency keys, \
bookmarks and counters: an export of the copy is the one of that moment. Whoever has the store open goes on meanwhile. Batches that \
are held then are offered at once when the copy is opened: their holders have leases of the other store. NEWDIR is there only once \
it is whole and synced.\n\n\
Example: batchyard snapshot --store ./store --to /mnt/backup/store-monday"
)]
pub(crate) struct SnapshotArgs {
    /// The folder of the new store, which must not exist
    #[arg(long, value_name = "NEWDIR", value_hint = ValueHint::DirPath)]
    to: PathBuf,
    /// Print a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// What was copied, as it is printed.
#[derive(Serialize)]
struct Line<'a> {
    to: &'a Path,
    as_of: batchyard::Timestamp,
    queues: usize,
    records: u64,
    /// Of the new folder.
    bytes: u64,
}

/// Copies it.
pub(super) async fn snapshot(args: SnapshotArgs) -> Result<Exit, Failure> {
    let folder = folder_of(&args.store)?;
    let backend = Backend::of_remains(&folder);
    let part = part_of(&folder, &args.to)?;
    let open = args.store.existing().await?;
    let result = copy_all(&args, backend, &open, &part).await;
    open.close(result).await
}

async fn copy_all(
    args: &SnapshotArgs,
    backend: Option<Backend>,
    open: &OpenStore,
    part: &Path,
) -> Result<Exit, Failure> {
    let as_of = batchyard::now();
    let damages = open.store.damages().await?;
    let mut stop = Stop::new()?;
    clear(part)?;
    sweep(parent_of(part));
    let copied = tokio::select! {
        copied = copy_into(part, backend, open, as_of) => copied,
        stopped = stop.asked() => {
            // Files that are being written go with this program, and the rest with the next snapshot.
            scratch::remove(part)?;
            return Ok(stopped);
        }
    };
    let (queues, records, turn) = match copied {
        Ok(copied) => copied,
        Err(failure) => {
            scratch::remove(part)?;
            return Err(failure);
        }
    };
    point("snapshot.copied");
    if let Err(error) = name(part, &args.to) {
        scratch::remove(part)?;
        return Err(match error.kind() {
            io::ErrorKind::AlreadyExists => exists(&args.to),
            _ => Failure::io(args.to.display(), &error),
        });
    }
    drop(turn);
    let line = Line {
        to: &args.to,
        as_of,
        queues,
        records,
        bytes: bytes_in(&args.to),
    };
    say(&format!(
        "{}: {records} records of {queues} queues, as of {as_of}, in {}",
        args.to.display(),
        bytesize::ByteSize::b(line.bytes)
    ));
    if args.json {
        print_json(&line)?;
    }
    if damages > 0 {
        say(&format!(
            "{damages} damages were told when the store was opened: what was lost by them is not in the snapshot"
        ));
        return Ok(Exit::Damaged);
    }
    Ok(Exit::Ok)
}

/// Makes a new store of what there is; how many queues and records that are, and its turn, to be kept until it has its name.
async fn copy_into(
    part: &Path,
    backend: Option<Backend>,
    open: &OpenStore,
    as_of: batchyard::Timestamp,
) -> Result<(usize, u64, Option<Turn>), Failure> {
    let moment = open.store.moment(as_of).await?.ok_or_else(no_moment)?;
    let queues = moment.queues();
    let mut about = 0;
    for name in &queues {
        let stats = open.store.queue(name).await?.stats(as_of).await?;
        about += stats.delayed + stats.ready + stats.in_flight + stats.dead;
    }
    let kind = NewAs {
        backend: backend.unwrap_or_default(),
        insisted: false,
    };
    let new = OpenStore::own_folder(part, kind, store::keep_all()).await?;
    let steps = Steps::of_verifying();
    let tell = |copied: u64| {
        let line = format!("copied: {copied} records of about {}", about.max(copied));
        steps.set(copied, about.max(copied), &line, &line);
    };
    let copied = copy(&*moment, &*new.store, tell).await;
    let turn = new.take_turn();
    let records = new.close(copied.map_err(Failure::from)).await?;
    Ok((queues.len(), records, turn))
}

fn no_moment() -> Failure {
    Failure::new(
        Exit::Usage,
        "this store can't be copied as it is at one moment; export it when nothing else uses it",
    )
}

/// The folder of the store: a snapshot is of files.
fn folder_of(store: &StoreArgs) -> Result<PathBuf, Failure> {
    store.folder().map_err(|failure| {
        if failure.exit() != Exit::Usage {
            return failure;
        }
        Failure::new(
            Exit::Usage,
            "a snapshot is of a store in a folder: give --store DIR; a Redis server makes its own (BGSAVE, or a copy of its append-only \
files), or export its queues when nothing else uses them",
        )
    })
}

/// Where the new store is made: beside its place, so that it is only named anew.
fn part_of(store: &Path, to: &Path) -> Result<PathBuf, Failure> {
    if to.symlink_metadata().is_ok() {
        return Err(exists(to));
    }
    if let Some(failure) = no_folder(to) {
        return Err(failure);
    }
    let unnamed = || Failure::new(Exit::Usage, format!("{} is no name", to.display()));
    let name = to.file_name().ok_or_else(unnamed)?;
    let parent = parent_of(to);
    let is_within = match (parent.canonicalize(), store.canonicalize()) {
        (Ok(parent), Ok(store)) => parent.starts_with(store),
        _ => false,
    };
    if is_within {
        let text = format!(
            "{} would be within the store itself; choose another folder",
            to.display()
        );
        return Err(Failure::new(Exit::Usage, text));
    }
    let mut part = OsString::from(".");
    part.push(name);
    part.push(".part");
    Ok(parent.join(part))
}

fn parent_of(path: &Path) -> &Path {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

fn exists(to: &Path) -> Failure {
    let text = format!(
        "{} exists already, and was not touched; choose another name",
        to.display()
    );
    Failure::new(Exit::Usage, text)
}

/// Removes what a snapshot of this name has left that was killed.
fn clear(part: &Path) -> Result<(), Failure> {
    let entries = match fs::read_dir(part) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| Failure::io(part.display(), &error))?,
    };
    if entries.count() > 0 && !is_part(part) {
        let text = format!(
            "{} is in the way and is no part of a snapshot; remove it, or choose another name",
            part.display()
        );
        return Err(Failure::new(Exit::Conflict, text));
    }
    let turn = Turn::take(part);
    if turn.is_none() || is_open(part) {
        let text = "another snapshot of this name is being made";
        return Err(Failure::new(Exit::Conflict, text));
    }
    scratch::remove(part)
}

/// Removes what other snapshots into this folder have left that were killed.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let part = entry.path();
        if !name.starts_with(b".") || !name.ends_with(b".part") || !is_part(&part) {
            continue;
        }
        let turn = Turn::take(&part).filter(Turn::is_locked);
        if turn.is_none() || is_open(&part) {
            continue;
        }
        match scratch::remove(&part) {
            Ok(()) => say(&format!(
                "{} is removed: a snapshot that was killed had left it",
                part.display()
            )),
            Err(failure) => say(&format!("what a killed snapshot left stays: {failure}")),
        }
    }
}

/// Whether a folder is a store that somebody had open, or began to make.
fn is_part(folder: &Path) -> bool {
    let is_dir = folder
        .symlink_metadata()
        .is_ok_and(|metadata| metadata.is_dir());
    let owner = fs::read_to_string(folder.join("LOCK"));
    let names_owner = |lock: String| lock.lines().next().map(|pid| pid.parse::<u32>().is_ok());
    is_dir && owner.is_ok_and(|lock| names_owner(lock).unwrap_or(true))
}

/// Whether a process has the store in this folder open.
fn is_open(folder: &Path) -> bool {
    let lock = File::open(folder.join("LOCK"));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Gives the new store its name, unless something has it, durably.
fn name(part: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, part, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can refuse; there a rename replaces an empty folder at most.
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(part, to)?,
        renamed => renamed?,
    }
    point("snapshot.named");
    File::open(parent_of(to))?.sync_all()
}

/// How many bytes the files in a folder take.
pub(super) fn bytes_in(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;

    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    bytes.sum()
}
