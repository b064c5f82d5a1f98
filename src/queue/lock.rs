//! The lock of an embedded store: who has it open, and who looks at it.
//!
//! ```text
//! STORE/LOCK   locked by the process that has the store open, with its pid; shared by those who only look
//! ```

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write as _},
    path::Path,
    thread,
    time::Duration,
};

use crate::error::{Error, Result, is_full};

/// The name of the file.
pub(crate) const LOCK: &str = "LOCK";
/// For how long an opener waits for this very process to let go of the store.
pub(crate) const OWN_LOCK_WAIT: Duration = Duration::from_secs(2);
pub(crate) const LOCK_POLL: Duration = Duration::from_millis(5);

/// Locks the store for this process.
pub(crate) fn take(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options
        .open(path.join(LOCK))
        .map_err(|error| unusable(path, "can't be written", error))?;
    wait_for(&mut file, path, File::try_lock)?;
    let mut write = || -> io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes())
    };
    // Its pid is there to be named: a full disk is no reason not to open.
    if let Err(error) = write()
        && !is_full(&error)
    {
        return Err(unusable(path, "can't be written", error));
    }
    Ok(file)
}

/// Keeps others from opening the store while it is looked at, and changes nothing of it: it may lie on a file system that
/// is read only, and many may look at once. `None` if it has no such file, as a copy may.
pub(crate) fn share(path: &Path, name: &str) -> Result<Option<File>> {
    let mut file = match File::open(path.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| unusable(path, "has a lock that can't be read", error))?,
    };
    wait_for(&mut file, path, File::try_lock_shared)?;
    Ok(Some(file))
}

fn wait_for(
    file: &mut File,
    path: &Path,
    lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
) -> Result<()> {
    let mut waited = Duration::ZERO;
    loop {
        match lock(file) {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => {
                return Err(unusable(path, "can't be locked", error));
            }
            Err(TryLockError::WouldBlock) => {}
        }
        let owner = owner(path);
        // The last handle of this process may have been dropped a moment ago.
        if owner != std::process::id().to_string() || waited >= OWN_LOCK_WAIT {
            return Err(Error::locked(format!(
                "{} is open in the process with pid {owner}, or is being verified; stop that, or use another store",
                path.display()
            )));
        }
        thread::sleep(LOCK_POLL);
        waited += LOCK_POLL;
    }
}

/// The pid that the lock names.
fn owner(path: &Path) -> String {
    let mut owner = String::new();
    // One that is damaged or gone names nobody.
    let _ = File::open(path.join(LOCK)).and_then(|mut file| file.read_to_string(&mut owner));
    owner.trim().to_owned()
}

/// What the system says about a folder or a file in it.
pub(crate) fn unusable(path: &Path, what: &str, error: io::Error) -> Error {
    Error::invalid(format!("{} {what}: {error}", path.display())).with_source(error)
}
