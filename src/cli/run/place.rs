//! The folder of a run, and how it goes.
//!
//! A folder that was not named by the user is removed once nobody needs it: renamed to `….removing`, so that
//! half a store is never in the way, then emptied, with the note that the run has ended last. One whose run
//! is started over is renamed to `….discarded` instead: nobody may take what it holds for the end of a run.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Failure, RunArgs,
    ended::{ENDED, Ended, is_missing, sync_folder},
};

/// Where the store of a run is.
pub(super) struct Place {
    pub(super) folder: PathBuf,
    /// The folder was not named by the user, and goes when all is done.
    pub(super) own: bool,
}

impl Place {
    pub(super) fn of(args: &RunArgs) -> Self {
        let named = args.store.folder().map(Path::to_owned);
        Self {
            own: named.is_none(),
            folder: named.unwrap_or_else(|| with_suffix(&args.out, ".batchyard")),
        }
    }

    /// The end of a run all of whose requests are done, and whose folder is still to be removed, or the rest of it.
    pub(super) fn being_removed(&self) -> Result<Option<Ended>, Failure> {
        if !self.own {
            return Ok(None);
        }
        let folder = if self.folder.exists() {
            &self.folder
        } else {
            &self.removing()
        };
        let ended = Ended::read(folder)?;
        Ok(ended.filter(|ended| ended.summary.failed == 0))
    }

    /// Removes the folder, or what is left of it.
    pub(super) fn remove(&self) -> Result<(), Failure> {
        let removing = self.removing();
        if self.folder.exists() {
            remove_all(&removing)?;
            rename(&self.folder, &removing)?;
        }
        let remove = || -> io::Result<()> {
            for entry in fs::read_dir(&removing)? {
                let entry = entry?;
                if entry.file_name() == ENDED {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            sync_folder(&removing)?;
            fs::remove_dir_all(&removing)
        };
        remove().map_err(|error| Failure::io(removing.display(), &error))
    }

    /// Removes the folder of a run that is started over.
    pub(super) fn discard(&self) -> Result<(), Failure> {
        let discarded = self.discarded();
        remove_all(&discarded)?;
        rename(&self.folder, &discarded)?;
        remove_all(&discarded)
    }

    /// Removes what a run that was killed while it removed its folder left, once that is no longer of use.
    pub(super) fn remove_leftovers(&self) -> Result<(), Failure> {
        if self.own {
            remove_all(&self.removing())?;
            remove_all(&self.discarded())?;
        }
        Ok(())
    }

    fn removing(&self) -> PathBuf {
        with_suffix(&self.folder, ".removing")
    }

    fn discarded(&self) -> PathBuf {
        with_suffix(&self.folder, ".discarded")
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// In one step, and durably.
fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    let renamed = fs::rename(from, to)
        .and_then(|()| sync_folder(from.parent().unwrap_or_else(|| Path::new(""))));
    renamed.map_err(|error| Failure::io(from.display(), &error))
}

fn remove_all(folder: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(folder) {
        Err(error) if !is_missing(&error) => Err(Failure::io(folder.display(), &error)),
        _ => Ok(()),
    }
}
