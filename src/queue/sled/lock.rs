//! Who has a store open, and whether all that can be read of it is on the disk.
//!
//! ```text
//! 4711           the process that has it open, or had it last
//! unsynced       a sync has failed since: what can be read may be in memory only
//! ```
//! After a failed sync the kernel takes what it could not write for clean: it can be read until the machine goes down,
//! and no later sync writes it. Whoever opens the store next has to write it anew. So that is noted where a broken or
//! full disk can still take a note, in a page that is there already; it has to last no longer than that memory.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::Path,
    thread,
    time::Duration,
};

use super::open::unusable;
use crate::error::{Error, Result, is_full};

pub(super) const LOCK: &str = "LOCK";
const UNSYNCED: &str = "unsynced";
/// For how long an opener waits for this very process to let go of the store.
pub(super) const OWN_LOCK_WAIT: Duration = Duration::from_secs(2);
pub(super) const LOCK_POLL: Duration = Duration::from_millis(5);

/// Locks the store for this process.
pub(super) fn lock(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options
        .open(path.join(LOCK))
        .map_err(|error| unusable(path, "can't be written", error))?;
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => {
                return Err(unusable(path, "can't be locked", error));
            }
            Err(TryLockError::WouldBlock) => {}
        }
        let text = read(&file);
        let owner = text.lines().next().unwrap_or_default();
        // The last handle of this process may have been dropped a moment ago.
        if owner != std::process::id().to_string() || waited >= OWN_LOCK_WAIT {
            return Err(Error::locked(format!(
                "{} is open in the process with pid {owner}; stop it, or use another store",
                path.display()
            )));
        }
        thread::sleep(LOCK_POLL);
        waited += LOCK_POLL;
    }
    // Its pid is there to be named: a full disk is no reason not to open.
    if let Err(error) = note(&file, is_unsynced(&file))
        && !is_full(&error)
    {
        return Err(unusable(path, "can't be written", error));
    }
    Ok(file)
}

/// Whether a sync has failed, and what could be read then was not written anew.
pub(super) fn is_unsynced(lock: &File) -> bool {
    read(lock).lines().any(|line| line == UNSYNCED)
}

/// Notes it, or that it was written anew.
pub(super) fn note(lock: &File, unsynced: bool) -> io::Result<()> {
    let mut text = format!("{}\n", std::process::id());
    if unsynced {
        text.extend([UNSYNCED, "\n"]);
    }
    // The note is never gone for a moment.
    lock.write_all_at(text.as_bytes(), 0)?;
    lock.set_len(text.len() as u64)
}

fn read(lock: &File) -> String {
    let mut text = [0; 64];
    let length = lock.read_at(&mut text, 0).unwrap_or_default();
    String::from_utf8_lossy(&text[..length]).into_owned()
}
