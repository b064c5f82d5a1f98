//! What the `FORMAT` of a folder says: whether it is a store, and on which backend.

use std::{fs, io, path::Path};

use super::lock::unusable;
use crate::error::Result;

/// The name of the file.
pub(crate) const FORMAT: &str = "FORMAT";
/// Its first line, by backend.
pub(crate) const SLED: &str = "batchyard sled store";
pub(crate) const JOURNAL: &str = "batchyard journal store";

/// The text of the `FORMAT` in a folder; `None` if there is none. Bytes that are no text are for whoever parses it.
///
/// # Errors
/// What the system says: that is no damage.
pub(crate) fn read(folder: &Path) -> Result<Option<String>> {
    match fs::read(folder.join(FORMAT)) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(folder, "has a FORMAT that can't be read", error)),
    }
}

/// Whether it begins as that of a store does, on whatever backend and in whatever version.
pub(crate) fn names_a_store(text: &str) -> bool {
    [SLED, JOURNAL].contains(&text.lines().next().unwrap_or_default())
}
