//! The lock of an embedded store: who has it open, who looks at it, and whether all that can be read is on the disk.
//!
//! ```text
//! STORE/LOCK   locked by the process that has the store open; shared by those who only look
//!
//! 4711         the process that has it open, or had it last
//! unsynced     a sync has failed since: what can be read may be in memory only
//! ```
//! After a failed sync the kernel takes what it could not write for clean: it can be read until the machine goes down,
//! and no later sync writes it. Whoever opens the store next has to write it anew, so that is noted where a broken or
//! full disk can still take a note, in a page that is there already. The note has to last no longer than that memory.

use std::{
    fs::{File, Metadata, OpenOptions, TryLockError},
    io,
    os::unix::fs::{FileExt, MetadataExt as _},
    path::Path,
    thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

use crate::error::{Error, Result, is_full};

/// The name of the file.
pub(crate) const LOCK: &str = "LOCK";
const UNSYNCED: &str = "unsynced";
/// For how long an opener waits for a process that ends, this very one or a dead one, to let go of the store.
pub(crate) const OWN_LOCK_WAIT: Duration = Duration::from_secs(2);
pub(crate) const LOCK_POLL: Duration = Duration::from_millis(5);

/// Locks the store for this process.
pub(crate) fn take(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options
        .open(path.join(LOCK))
        .map_err(|error| unusable(path, "can't be written", error))?;
    take_from(path, &file, File::try_lock)?;
    if !is_of(path, &file)? {
        // The store was made anew meanwhile: this lock is the old one's.
        return take(path);
    }
    // Its pid is there to be named: a full disk is no reason not to open.
    if let Err(error) = note(&file, is_unsynced(&file))
        && !is_full(&error)
    {
        return Err(unusable(path, "can't be written", error));
    }
    Ok(file)
}

/// Whether this file is still the lock of the store.
fn is_of(path: &Path, lock: &File) -> Result<bool> {
    let file_of = |metadata: io::Result<Metadata>| {
        let metadata =
            metadata.map_err(|error| unusable(path, "has a lock that can't be read", error))?;
        Ok((metadata.dev(), metadata.ino()))
    };
    match std::fs::metadata(path.join(LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        there => Ok(file_of(there)? == file_of(lock.metadata())?),
    }
}

/// Whether a sync has failed, and what could be read then was not written anew.
pub(crate) fn is_unsynced(lock: &File) -> bool {
    read(lock).lines().any(|line| line == UNSYNCED)
}

/// Notes it, or that it was written anew.
pub(crate) fn note(lock: &File, unsynced: bool) -> io::Result<()> {
    let mut text = format!("{}\n", std::process::id());
    if unsynced {
        text.extend([UNSYNCED, "\n"]);
    }
    // The note is never gone for a moment.
    lock.write_all_at(text.as_bytes(), 0)?;
    lock.set_len(text.len() as u64)
}

/// Keeps others from opening the store while it is looked at, and changes nothing of it: it may lie on a file system that
/// is read only, and many may look at once. `None` if it has no such file, as a copy may.
pub(crate) fn share(path: &Path, name: &str) -> Result<Option<File>> {
    let file = match File::open(path.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| unusable(path, "has a lock that can't be read", error))?,
    };
    take_from(path, &file, File::try_lock_shared)?;
    Ok(Some(file))
}

/// Locks the file of a store; whoever else has it is named.
fn take_from(
    path: &Path,
    file: &File,
    lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
) -> Result<()> {
    // The last handle of this process may have been dropped a moment ago; and what a process that was killed had just
    // begun to start holds the lock until it is another program.
    let is_ending = || {
        let owner = owner(path);
        owner == std::process::id().to_string() || !is_alive(&owner)
    };
    match take_soon(file, lock, is_ending) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::locked(format!(
            "{} is open in the process with pid {}, or is being verified; stop it, or use another store",
            path.display(),
            owner(path)
        ))),
        Err(error) => Err(unusable(path, "can't be locked", error)),
    }
}

/// Locks a file, if need be after waiting for a while for who has it and is ending; false if they keep it.
pub(crate) fn take_soon(
    file: &File,
    lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
    is_ending: impl Fn() -> bool,
) -> io::Result<bool> {
    let mut waited = Duration::ZERO;
    loop {
        match lock(file) {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if waited < OWN_LOCK_WAIT && is_ending() => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
        }
        thread::sleep(LOCK_POLL);
        waited += LOCK_POLL;
    }
}

/// The pid that the lock names; one that is damaged or gone names nobody.
fn owner(path: &Path) -> String {
    let text = File::open(path.join(LOCK)).map(|file| read(&file));
    let text = text.unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

fn is_alive(owner: &str) -> bool {
    let pid = owner.parse().ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

fn read(lock: &File) -> String {
    let mut text = [0; 64];
    let length = lock.read_at(&mut text, 0).unwrap_or_default();
    String::from_utf8_lossy(&text[..length]).into_owned()
}

/// What the system says about a folder or a file in it.
pub(crate) fn unusable(path: &Path, what: &str, error: io::Error) -> Error {
    let path = path.display();
    let text = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => format!(
            "{path} {what}: its file system is mounted read-only, and whoever opens a store writes to it, if only to look; mount it \
writable, or copy the folder and use the copy; batchyard verify reads it where it is"
        ),
        _ => format!("{path} {what}: {error}"),
    };
    Error::invalid(text).with_source(error)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, process::Command};

    use super::*;

    /// A lock that somebody keeps until it was tried so often, by this process; how it ends.
    fn taken(owner: u32, kept: u32) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        std::fs::write(&path, format!("{owner}\n")).unwrap();
        let tried = Cell::new(0);
        take_from(folder.path(), &File::open(&path).unwrap(), |_| {
            tried.set(tried.get() + 1);
            if tried.get() > kept {
                Ok(())
            } else {
                Err(TryLockError::WouldBlock)
            }
        })
    }

    #[test]
    fn who_has_ended_or_is_this_very_process_is_waited_for_and_nobody_else() {
        let mut child = Command::new("true").spawn().unwrap();
        let gone = child.id();
        child.wait().unwrap();
        taken(gone, 3).unwrap();
        taken(std::process::id(), 3).unwrap();
        let error = taken(1, 1).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Locked);
        assert!(error.to_string().contains("with pid 1,"), "{error}");
    }
}
