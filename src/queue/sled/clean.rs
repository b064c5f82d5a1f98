//! The note of a clean close: in which state the store was closed, so that an older one is not taken for it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use super::open::unusable;
use crate::error::Result;

const CLEAN: &str = "CLEAN";

/// Notes that a store was closed after so many commits, all of them durable.
pub(super) fn mark(path: &Path, commits: u64) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path.join(CLEAN))?;
        file.write_all(format!("commits {commits}\n").as_bytes())?;
        file.sync_all()?;
        File::open(path)?.sync_all()
    };
    write().map_err(|error| unusable(path, "can't be marked as closed", error))
}

/// After how many commits the store was closed; `None` if it was not, or if nobody can tell.
pub(super) fn read(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path.join(CLEAN)).ok()?;
    text.strip_prefix("commits ")?
        .strip_suffix('\n')?
        .parse()
        .ok()
}

/// From here on, only another clean close makes the store clean.
pub(super) fn unmark(path: &Path) -> Result<()> {
    let remove = || match fs::remove_file(path.join(CLEAN)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::open(path)?.sync_all(),
    };
    remove().map_err(|error| unusable(path, "can't be written", error))
}
