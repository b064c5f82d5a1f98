//! The note that a run has ended: in the folder of its store, written when nothing else is left to be done.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use batchyard::QueueName;
use serde::{Deserialize, Serialize};

use super::{Exit, Failure, Summary, ledger::Ledger};

/// How the last run of a store ended.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    /// Its queue; a later run has another one.
    pub(super) queue: QueueName,
    pub(super) ledger: Ledger,
    pub(super) summary: Summary,
}

impl Ended {
    /// The note in a folder, if there is one.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, Failure> {
        let path = folder.join(ENDED);
        let text = match fs::read(&path) {
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

    /// Writes it into a folder, whole and durably.
    pub(super) fn write(&self, folder: &Path) -> Result<(), Failure> {
        let new = folder.join(ENDED_NEW);
        let text = serde_json::to_vec(self).expect("numbers and strings are always writable");
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, folder.join(ENDED))?;
            sync_folder(folder)
        };
        write().map_err(|error| Failure::io(new.display(), &error))
    }

    /// Takes it back, durably: the run goes on.
    pub(super) fn forget(folder: &Path) -> Result<(), Failure> {
        let path = folder.join(ENDED);
        let forgotten = match fs::remove_file(&path) {
            Err(error) if is_missing(&error) => return Ok(()),
            removed => removed.and_then(|()| sync_folder(folder)),
        };
        forgotten.map_err(|error| Failure::io(path.display(), &error))
    }
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = match folder {
        empty if empty == Path::new("") => Path::new("."),
        folder => folder,
    };
    File::open(folder)?.sync_all()
}

pub(super) fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

pub(super) const ENDED: &str = "ENDED";
const ENDED_NEW: &str = "ENDED.new";
