//! A new store of what is left, in the place of this one.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::PoisonError,
    time::Duration,
};

use async_trait::async_trait;

use super::{JournalStore, identity::LOG};
use crate::{
    error::{Error, Result},
    queue::{
        QueueOptions,
        compact::{self, Compact, Compacted},
        folder::unusable,
    },
    sync::Mutex,
};

/// The locks of the folder of a store, until it is closed.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<Vec<File>>);

impl Locks {
    /// Holds these and no others.
    pub(super) fn hold(&self, locks: Vec<File>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = locks;
    }

    /// The same locks once more, to be held for longer.
    fn again(&self) -> io::Result<Vec<File>> {
        let locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.iter().map(File::try_clone).collect()
    }
}

impl JournalStore {
    /// Makes the store in this folder anew from what is left in it, on as few segments as that needs. A journal recycles and
    /// removes segments by itself, so that is of use after a busy time only, such as for the segments that one large push left, or for
    /// the bytes of done requests that are kept. `tell` hears how many records there are in the new one so far, again and again.
    ///
    /// Nothing is lost: see [`Transfer`](crate::transfer::Transfer). It needs room for the new store beside the old one, and
    /// nobody may have that open. Whenever it is cut off, there is the old store or the new one, whole; what is left beside
    /// it, the next compaction removes. What else lies in the folder is kept.
    ///
    /// # Errors
    /// [`Locked`](crate::ErrorKind::Locked): it is open. [`NotFound`](crate::ErrorKind::NotFound): there is none.
    /// [`Unavailable`](crate::ErrorKind::Unavailable): the file system can't exchange two folders in one step.
    /// [`Corrupt`](crate::ErrorKind::Corrupt): it is damaged, or what was damaged lies in quarantine in its log. Then, and if it fails
    /// otherwise, the old store is as it was.
    pub async fn compact(
        path: impl AsRef<Path>,
        tell: impl FnMut(u64) + Send,
    ) -> Result<Compacted> {
        compact::compact::<Self>(path.as_ref(), tell).await
    }
}

#[async_trait]
impl Compact for JournalStore {
    const LEFT: &[&str] = &[];

    async fn open_at(path: &Path) -> Result<Self> {
        let kept = QueueOptions::default().retention(Duration::MAX);
        Self::options().queues(kept).open(path).await
    }

    async fn locks(&self) -> Result<Vec<File>> {
        let locks = self.keeper.core.locks.again();
        locks.map_err(|error| unusable(&self.keeper.core.path, "can't be locked", error))
    }

    fn check(&self, path: &Path) -> Result<()> {
        if let Some(damage) = self.report.iter().find(|line| line.starts_with("damaged")) {
            return Err(Error::corrupt(format!(
                "{damage}; export tells what is damaged, and prints the rest"
            )));
        }
        let log = path.join(LOG);
        let names = fs::read_dir(&log).map_err(|error| unusable(&log, "can't be read", error))?;
        for entry in names.flatten() {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with("quarantine-")
            {
                return Err(Error::corrupt(format!(
                    "{} was set aside since it is damaged; move it elsewhere first, or remove it",
                    entry.path().display()
                )));
            }
        }
        Ok(())
    }
}
