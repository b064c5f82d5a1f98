//! Opening sled, in an order that a power cut can't spoil.
//!
//! sled 0.34.7 recovers like this: it reads `snap.<LSN>`, which says where the pages are, and the log behind it; writes the
//! snapshot of the new end, renames it into place, removes the old one; and fills every segment of `db` that holds no page
//! with zeros. It never syncs the folder. If the zeros reach the disk and the names do not, or the removal does
//! and the rename does not, then what is left is an older snapshot or none. From there sled looks for the end of its log in
//! a segment before the last one, finds zeros, and takes all that was ever written for never written.
//!
//! So it is opened twice:
//! ```text
//! keep      a copy of the snapshot that is there, synced        KEPT: lost with none of sled's renames and removals
//! advance   sled writes the new snapshot, and no zeros yet      `blobs` is a file: sled lists it right between the two
//!           the folder is synced
//! open      the snapshot is that of the end: sled makes none, and writes its zeros
//! ```

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::{db, open::unusable};
use crate::{
    error::{Error, Result},
    fault::{point, step},
    queue::lock::{LOCK_POLL, OWN_LOCK_WAIT},
};

/// Pages over a quarter of a segment go to files that sled never syncs, so segments are large.
pub(super) const SEGMENT_BYTES: usize = 8 << 20;

/// Opens it; its configuration tells which error its threads met.
pub(super) fn open_sled(folder: &Path, cache_bytes: u64) -> Result<(sled::Db, sled::Config)> {
    tidy(folder).map_err(|error| unusable(folder, "can't be written", error))?;
    let config = config(folder, cache_bytes);
    match attempt(&config) {
        Ok(Ok(db)) => Ok((db, config)),
        failed => Err(refusal(folder, failed)),
    }
}

/// Has sled write the snapshot of the end of its log, and makes that durable, before anything is built on it; whether it did.
pub(super) fn advance(folder: &Path) -> Result<bool> {
    let io = |error| unusable(folder, "can't be written", error);
    if !step("sled.snapshot").map_err(io)? {
        return Ok(false);
    }
    tidy(folder).and_then(|()| keep(folder)).map_err(io)?;
    point("sled.snapshot_kept");
    match attempt(&config(folder, ADVANCING_CACHE_BYTES)) {
        // An empty log has no snapshot, and sled goes on.
        Ok(Ok(db)) => drop(db),
        Ok(Err(sled::Error::Io(error))) if error.kind() == io::ErrorKind::NotADirectory => {}
        failed => return Err(refusal(folder, failed)),
    }
    point("sled.snapshot_made");
    sync(folder).and_then(|()| tidy(folder)).map_err(io)?;
    Ok(true)
}

/// Removes what an opening left that was cut off, and brings a lost snapshot back.
fn tidy(folder: &Path) -> io::Result<()> {
    let snapshots = snapshots(folder)?;
    for (name, path) in &snapshots {
        // sled would take the last one for a damaged one.
        if name.ends_with(UNFINISHED) {
            fs::remove_file(path)?;
        }
    }
    let is_lost = !snapshots
        .iter()
        .any(|(name, _)| !name.ends_with(UNFINISHED));
    for (name, path) in files(folder, KEPT)? {
        match name.strip_prefix(KEPT) {
            Some(snapshot) if is_lost => fs::rename(&path, folder.join(snapshot))?,
            _ => fs::remove_file(&path)?,
        }
    }
    let blobs = folder.join(BLOBS);
    if blobs.is_file() {
        fs::remove_file(&blobs)?;
    }
    Ok(())
}

/// Copies the snapshot for as long as sled replaces it, and sees to it that sled stops after that.
fn keep(folder: &Path) -> io::Result<()> {
    if let Some((name, path)) = snapshots(folder)?.into_iter().max() {
        let copy = folder.join(format!("{KEPT}{name}"));
        fs::copy(path, &copy)?;
        File::open(copy)?.sync_all()?;
    }
    let blobs = folder.join(BLOBS);
    match fs::remove_dir(&blobs) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => File::create(&blobs)?,
    };
    sync(folder)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Whether a file of this name says where pages are.
pub(super) fn is_snapshot(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with(SNAPSHOT) || name.starts_with(KEPT)
}

/// sled's snapshots: their names and paths.
pub(super) fn snapshots(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    files(folder, SNAPSHOT)
}

fn files(folder: &Path, prefix: &str) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) && entry.file_type()?.is_file() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

pub(super) fn config(folder: &Path, cache_bytes: u64) -> sled::Config {
    sled::Config::new()
        .path(folder)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(cache_bytes)
        .mode(sled::Mode::HighThroughput)
        .flush_every_ms(None)
}

/// What comes of opening it, or the panic.
type Attempt = thread::Result<sled::Result<sled::Db>>;

fn attempt(config: &sled::Config) -> Attempt {
    let mut waited = Duration::ZERO;
    loop {
        match catch_unwind(AssertUnwindSafe(|| config.open())) {
            // The store is locked for us, so whoever has sled's own lock is a thread of ours that ends.
            Ok(Err(sled::Error::Io(error))) if is_locked(&error) && waited < OWN_LOCK_WAIT => {
                thread::sleep(LOCK_POLL);
                waited += LOCK_POLL;
            }
            other => return other,
        }
    }
}

fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || error.to_string().contains("could not acquire lock")
}

/// Why it did not open.
fn refusal(folder: &Path, failed: Attempt) -> Error {
    let damaged = |why: &dyn std::fmt::Display| {
        Error::corrupt(format!(
            "the database in {} does not open ({why}); run `repair` to save what can be read",
            folder.display()
        ))
    };
    match failed {
        Ok(Ok(_)) => Error::internal("a database that opened was taken for one that did not"),
        // The system refused to read or write: that is no damage.
        Ok(Err(sled::Error::Io(error))) if error.raw_os_error().is_some() => {
            unusable(folder, "can't be read or written", error)
        }
        Ok(Err(error)) => damaged(&error).with_source(error),
        Err(panic) => damaged(&db::panic_text(&*panic)),
    }
}

/// sled writes pages over a quarter of a segment to `blobs/` and never syncs them. Ours never are.
pub(super) fn refuse_blobs(folder: &Path) -> Result<()> {
    let blobs = folder.join(BLOBS);
    let any = fs::read_dir(&blobs).is_ok_and(|mut entries| entries.next().is_some());
    if any {
        return Err(Error::corrupt(format!(
            "{} is not empty, and what sled keeps there does not survive power loss; run `repair` to move to a new store",
            blobs.display()
        )));
    }
    Ok(())
}

const BLOBS: &str = "blobs";
/// How the names of sled's snapshots begin; the one that sorts last counts.
const SNAPSHOT: &str = "snap.";
/// How the name of one ends that sled has not finished.
const UNFINISHED: &str = ".generating";
/// What comes before the name of the snapshot that is kept while sled replaces it.
const KEPT: &str = "kept-";
/// sled stops before it reads a page.
const ADVANCING_CACHE_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What is left of files of these names.
    fn tidied(names: &[&str]) -> BTreeSet<String> {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(folder.path().join(name), name).unwrap();
        }
        tidy(folder.path()).unwrap();
        let left = files(folder.path(), "").unwrap().into_iter();
        left.map(|(name, _)| name).collect()
    }

    #[test]
    fn a_kept_snapshot_comes_back_if_there_is_no_other_that_is_whole() {
        let left = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let lost = ["db", "kept-snap.1", "snap.2.generating", "blobs"];
        assert_eq!(tidied(&lost), left(&["db", "snap.1"]));
        let there = ["db", "kept-snap.1", "snap.2", "snap.3.generating"];
        assert_eq!(tidied(&there), left(&["db", "snap.2"]));
        assert_eq!(tidied(&["db"]), left(&["db"]));
    }
}
