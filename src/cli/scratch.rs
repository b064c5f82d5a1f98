//! A folder of this program's own, in one that was named.

use std::{fs, io, path::Path, thread, time::Duration};

use tempfile::TempDir;

use super::exit::{Failure, no_folder};

/// Makes a folder in `dir` whose name begins so; removed when it is dropped.
///
/// # Errors
/// If `dir` is not there, or nothing can be made in it.
pub(super) fn folder(dir: &Path, prefix: &str) -> Result<TempDir, Failure> {
    if let Some(failure) = no_folder(&dir.join(prefix)) {
        return Err(failure);
    }
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in(dir)
        .map_err(|error| Failure::io(dir.display(), &error))
}

/// Removes it; again and again if a process that was just killed is not quite gone.
///
/// # Errors
/// If it is still there.
pub(super) fn remove(path: &Path) -> Result<(), Failure> {
    let mut removed = fs::remove_dir_all(path);
    for _ in 0..REMOVALS {
        match &removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {}
            _ => return Ok(()),
        }
        thread::sleep(REMOVAL_PAUSE);
        removed = fs::remove_dir_all(path);
    }
    removed.map_err(|error| Failure::io(path.display(), &error))
}

const REMOVALS: u32 = 100;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);
