//! The note that a run has ended, written when nothing else is left to be done.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use batchyard::{QueueName, fault::point};
use serde::{Deserialize, Serialize};

use super::{Exit, Failure, Summary, ledger::Ledger, place::with_suffix};

/// How the last run of a store ended.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    /// Its queue; a later run has another one.
    pub(super) queue: QueueName,
    pub(super) ledger: Ledger,
    pub(super) summary: Summary,
}

impl Ended {
    /// The note in this file, if there is one.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, Failure> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(Failure::io(path.display(), &error)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            let text = format!(
                "{} can't be read ({error}); start over with --fresh",
                path.display()
            );
            Failure::new(Exit::Damaged, text)
        })
    }

    /// Writes it, whole and durably.
    pub(super) fn write(&self, path: &Path) -> Result<(), Failure> {
        let new = with_suffix(path, ".new");
        let text = serde_json::to_vec(self).expect("numbers and strings are always writable");
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            point("run.note");
            fs::rename(&new, path)?;
            point("run.noted");
            sync_folder_of(path)
        };
        write().map_err(|error| Failure::io(new.display(), &error))
    }

    /// Takes it back, durably.
    pub(super) fn forget(path: &Path) -> Result<(), Failure> {
        let forgotten = match fs::remove_file(path) {
            Err(error) if is_missing(&error) => return Ok(()),
            removed => removed.and_then(|()| sync_folder_of(path)),
        };
        forgotten.map_err(|error| Failure::io(path.display(), &error))
    }
}

/// Syncs the folder that a file or a folder is in.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

pub(super) fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
