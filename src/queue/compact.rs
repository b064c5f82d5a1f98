//! A store without what it does not need any more: a new one of what is left, in the place of the old one.
//!
//! ```text
//!   STORE, locked ─▶ moment ─▶ copy ─▶ .STORE.compact ─▶ closed, so synced
//!                                          │ exchanged in one step, both under the old one's lock
//!                                          ▼
//!                            STORE is the new one, .STORE.compact the old one, which is removed
//! ```
//! Whenever it is cut off, the folder of the store is the old one or the new one, whole. What is beside it then, the next
//! compaction removes.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use serde::Serialize;

use super::{
    Store,
    lock::{LOCK, unusable},
    stated::FORMAT,
    transfer::copy,
};
use crate::{
    clock,
    error::{Error, Result},
    fault::point,
};

/// What a compaction has done: see `SledStore::compact` and `JournalStore::compact`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Compacted {
    /// Queues.
    pub queues: usize,
    /// What they hold, in records of a dump.
    pub records: u64,
    /// Bytes of disk that the store took before.
    pub bytes_before: u64,
    /// Bytes of disk that it takes now.
    pub bytes_after: u64,
}

/// A store in a folder that can be made anew.
#[async_trait]
pub(crate) trait Compact: Store + Sized {
    /// What in its folder is of no use once it is closed.
    const LEFT: &[&str];

    /// Opens the one in this folder, made if it is missing.
    async fn open_at(path: &Path) -> Result<Self>;

    /// Its locks, which keep others from opening it for as long as they are held, also once it is closed.
    async fn locks(&self) -> Result<Vec<File>>;

    /// Fails if something would be lost with the old files that is not in any queue.
    fn check(&self, path: &Path) -> Result<()>;
}

/// Makes the store in this folder anew.
pub(crate) async fn compact<S: Compact>(
    path: &Path,
    tell: impl FnMut(u64) + Send,
) -> Result<Compacted> {
    let path = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::not_found(format!("no store in {}", path.display())));
        }
        path_found => path_found.map_err(|error| unusable(path, "can't be read", error))?,
    };
    let beside = beside(&path)?;
    let old = S::open_at(&path).await?;
    let locks = old.locks().await?;
    let bytes_before = bytes_in(&path);
    let copied = async {
        old.check(&path)?;
        clear(&beside)?;
        copy_beside::<S>(&old, &beside, tell).await
    };
    let copied = copied.await;
    let closed = old.close().await;
    drop(old);
    let (queues, records) = match copied.and_then(|copied| closed.map(|()| copied)) {
        Ok(copied) => copied,
        Err(error) => {
            let _ = clear(&beside);
            return Err(error);
        }
    };
    let bytes_after = bytes_in(&beside);
    let exchanged = tokio::task::spawn_blocking(move || {
        let exchanged = exchange(&path, &beside, S::LEFT);
        // The old one is free when it is gone.
        drop(locks);
        exchanged
    });
    exchanged
        .await
        .map_err(|error| Error::internal("the compaction was cut off").with_source(error))??;
    Ok(Compacted {
        queues,
        records,
        bytes_before,
        bytes_after,
    })
}

/// Makes a new store of all that there is; how many queues and records that are.
async fn copy_beside<S: Compact>(
    old: &S,
    beside: &Path,
    tell: impl FnMut(u64) + Send,
) -> Result<(usize, u64)> {
    let moment = old.moment(clock::now()).await?;
    let moment = moment.ok_or_else(|| Error::internal("this store has no moments"))?;
    let new = S::open_at(beside).await?;
    let copied = copy(&*moment, &new, tell).await;
    let closed = new.close().await;
    let records = copied?;
    closed.map(|()| (moment.queues().len(), records))
}

/// Puts the new store in the place of the old one, and removes that.
fn exchange(path: &Path, beside: &Path, left: &[&str]) -> Result<()> {
    let moved = || -> io::Result<()> {
        point("compact.copied");
        copy_the_rest(path, beside, left)?;
        match renameat_with(CWD, beside, CWD, path, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
            exchanged => exchanged?,
        }
        point("compact.exchanged");
        sync(parent_of(path))
    };
    match moved() {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let _ = clear(beside);
            return Err(Error::unavailable(format!(
                "the file system of {} can't exchange two folders in one step; make a snapshot, and give it the place of the store \
by hand",
                path.display()
            )));
        }
        Err(error) => {
            let _ = clear(beside);
            return Err(unusable(path, "can't be made anew", error));
        }
        Ok(()) => {}
    }
    point("compact.synced");
    clear(beside)
}

/// Copies what is in the old folder beside the store: what handlers keep there, and what others have put there.
fn copy_the_rest(from: &Path, to: &Path, left: &[&str]) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let is_left = left.iter().any(|name| entry.file_name() == *name);
        if !is_left && !target.exists() {
            copy_tree(&entry.path(), &target)?;
        }
    }
    sync(to)
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_dir() {
        fs::create_dir(to)?;
        fs::set_permissions(to, fs::metadata(from)?.permissions())?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
        sync(to)
    } else if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)
    } else if kind.is_file() {
        fs::copy(from, to)?;
        sync(to)
    } else {
        // A socket where nobody listens.
        Ok(())
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Where the new store is made, and the old one goes.
fn beside(path: &Path) -> Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::invalid(format!("{} is no folder of a store", path.display())))?;
    let mut beside = OsString::from(".");
    beside.push(name);
    beside.push(".compact");
    Ok(parent_of(path).join(beside))
}

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Removes what is beside the store, if a compaction has made it. Whoever has the lock of the store is the only one.
fn clear(beside: &Path) -> Result<()> {
    let entries = match fs::read_dir(beside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| unusable(beside, "can't be read", error))?,
    };
    let is_empty = entries.count() == 0;
    let is_store = [LOCK, FORMAT].iter().any(|name| beside.join(name).exists());
    if !is_empty && !is_store {
        return Err(Error::invalid(format!(
            "{} is in the way and is no store; remove it",
            beside.display()
        )));
    }
    // What makes it a store goes last, so that what is left of it can be cleared again.
    let removed = fs::read_dir(beside).and_then(|mut entries| {
        entries.try_for_each(|entry| {
            let entry = entry?;
            let is_last = [LOCK, FORMAT].iter().any(|name| entry.file_name() == *name);
            match entry.file_type()? {
                _ if is_last => Ok(()),
                kind if kind.is_dir() => fs::remove_dir_all(entry.path()),
                _ => fs::remove_file(entry.path()),
            }
        })?;
        fs::remove_dir_all(beside)
    });
    removed.map_err(|error| unusable(beside, "can't be removed", error))
}

/// How many bytes of disk the files in a folder take.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    bytes.sum()
}
