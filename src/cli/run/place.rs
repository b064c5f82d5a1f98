//! The folder of a run, and how it goes.
//!
//! ```text
//! OUTPUT.batchyard            the store; ENDED in it says that its last run is over
//! OUTPUT.batchyard.removing   what is left of a folder that is removed: half a store is never in the way
//! OUTPUT.batchyard.ended      all of the run is done, and what there is of both only waits for its removal
//! ```
//! A folder that was named by the user stays.

use std::{
    fs,
    path::{Path, PathBuf},
};

use batchyard::fault::point;

use super::{
    Failure, RunArgs,
    ended::{Ended, is_missing, sync_folder_of},
};

/// Where the store of a run is.
pub(super) struct Place {
    pub(super) folder: PathBuf,
    /// The folder was not named by the user, and goes when all is done.
    pub(super) own: bool,
}

impl Place {
    pub(super) fn of(args: &RunArgs) -> Self {
        let named = args.store.clone();
        Self {
            own: named.is_none(),
            folder: named.unwrap_or_else(|| with_suffix(&args.out, ".batchyard")),
        }
    }

    /// Where it is noted that the last run is over.
    pub(super) fn ended(&self) -> PathBuf {
        self.folder.join("ENDED")
    }

    /// The end of a run whose folder is still to be removed, or the rest of it.
    pub(super) fn being_removed(&self) -> Result<Option<Ended>, Failure> {
        if self.own {
            Ended::read(&self.going())
        } else {
            Ok(None)
        }
    }

    /// Notes that the run has ended, and removes what nobody needs any more.
    pub(super) fn end(&self, ended: &Ended) -> Result<(), Failure> {
        if !self.own || ended.summary.failed > 0 {
            return ended.write(&self.ended());
        }
        ended.write(&self.going())?;
        self.end_removal()
    }

    /// Removes the folder or what is left of it, and then the note of that.
    pub(super) fn end_removal(&self) -> Result<(), Failure> {
        if self.folder.exists() {
            self.remove()?;
        }
        point("run.removed");
        self.forget_removal()
    }

    /// Removes the folder: at once, for whoever looks for a store in it.
    pub(super) fn remove(&self) -> Result<(), Failure> {
        let removing = self.removing();
        remove_all(&removing)?;
        let renamed =
            fs::rename(&self.folder, &removing).and_then(|()| sync_folder_of(&self.folder));
        match renamed {
            // Whoever told the end of this run after us has removed it.
            Err(error) if !is_missing(&error) => Err(Failure::io(self.folder.display(), &error)),
            _ => {
                point("run.removing");
                remove_all(&removing)
            }
        }
    }

    /// Removes what a run left that was killed while it removed its folder.
    pub(super) fn forget_removal(&self) -> Result<(), Failure> {
        if self.own {
            remove_all(&self.removing())?;
            Ended::forget(&self.going())?;
        }
        Ok(())
    }

    fn removing(&self) -> PathBuf {
        with_suffix(&self.folder, ".removing")
    }

    fn going(&self) -> PathBuf {
        with_suffix(&self.folder, ".ended")
    }
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn remove_all(folder: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(folder) {
        Err(error) if !is_missing(&error) => Err(Failure::io(folder.display(), &error)),
        _ => Ok(()),
    }
}
