//! A file system in memory that forgets: what was not synced is gone when its power is cut.
//!
//! ```text
//!  the program under test ── system calls ── kernel ── FUSE ── serve ── disk ┬ names    live │ durable
//!                                                                           └ content  live │ durable
//!  the proof ── cut, kill the program, restore, open again, check
//! ```
//! Nothing is cached by the kernel: each write is one of ours, in the size in which it was asked for, and a sync is one
//! only if the program asked for it; `sync_file_range` does not reach us, so that it makes nothing durable, as on a disk
//! with a cache. `fsync` of a file covers its bytes and its size, not its name; names are synced by their folder. What was
//! written through a shared mapping is not supported (files are opened for direct I/O, so `mmap` for writing fails).
//! `flock` is the kernel's own. Whatever was open when the power was cut answers EIO for ever.
//!
//! It is mounted by `mount(2)` where that is allowed, else by `fusermount3`.

mod content;
mod disk;
mod names;
mod serve;

use std::{
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fuser::{BackgroundSession, Config, MountOption};
use rustix::{io::Errno, mount::UnmountFlags};

use self::disk::Disk;

/// What becomes of that which was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It is all there: only the programs were killed.
    Nothing,
    /// It is gone.
    All,
    /// Any part of it reached the disk: sectors of 512 bytes, sizes, names, in any order that the rules allow.
    Torn {
        /// Which part.
        seed: u64,
    },
}

/// When names are durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rules {
    /// As POSIX has it: when their folder is synced; each on its own.
    #[default]
    Strict,
    /// As on ext4: a sync of anything covers every change of names before it, in order.
    Ext4,
}

/// Operations that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Opening what is there.
    Open,
    /// Reading a file.
    Read,
    /// Writing to a file.
    Write,
    /// Syncing a file. What it would have covered is never durable, unless it is written again.
    Sync,
    /// Creating a file or a folder.
    Create,
    /// Renaming.
    Rename,
    /// Removing a file or a folder.
    Remove,
    /// Changing a file's size, or taking space for it.
    Allocate,
    /// Syncing a folder.
    SyncFolder,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Open,
        Self::Read,
        Self::Write,
        Self::Sync,
        Self::Create,
        Self::Rename,
        Self::Remove,
        Self::Allocate,
        Self::SyncFolder,
    ];
}

/// What an operation that fails says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// EIO.
    Broken,
    /// ENOSPC.
    Full,
}

impl From<DiskError> for Errno {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Broken => Self::IO,
            DiskError::Full => Self::NOSPC,
        }
    }
}

/// Which operations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailPlan {
    /// Of this kind.
    pub call: Call,
    /// So many succeed before.
    pub skip: u64,
    /// Only one fails; else all from then on.
    pub once: bool,
    /// With this error.
    pub error: DiskError,
}

/// All that a disk held at one moment.
#[derive(Debug)]
pub struct Kept(Disk);

/// A mounted file system; dropped, it is unmounted.
#[derive(Debug)]
pub struct Forgetful {
    disk: Arc<Mutex<Disk>>,
    at: PathBuf,
    _session: BackgroundSession,
}

impl Forgetful {
    /// Whether it can be mounted here.
    ///
    /// # Errors
    /// Why not.
    pub fn available() -> Result<(), String> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        device.map_err(|error| format!("/dev/fuse can't be opened: {error}"))?;
        let search = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = std::env::split_paths(&search);
        if rustix::process::geteuid().is_root()
            || folders.any(|folder| folder.join("fusermount3").exists())
        {
            return Ok(());
        }
        Err("only root mounts without fusermount3 (package fuse3)".to_owned())
    }

    /// Mounts an empty file system at an empty folder, with [`Rules::Strict`].
    ///
    /// # Errors
    /// What the system says.
    pub fn mount(at: &Path) -> io::Result<Self> {
        let disk = Arc::new(Mutex::new(Disk::new()));
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("forgetful".to_owned()),
            MountOption::NoAtime,
        ];
        let session = fuser::spawn_mount(serve::Served::new(disk.clone()), at, &config)?;
        Ok(Self {
            disk,
            at: at.to_owned(),
            _session: session,
        })
    }

    /// From now on names are durable by these rules.
    pub fn set_rules(&self, rules: Rules) {
        self.disk().rules = rules;
    }

    /// The power is cut: every call fails with EIO. Kill who writes after this, not before.
    pub fn cut(&self) {
        self.disk().cut();
    }

    /// Cuts the power at the `operations`-th operation from now that changes something; that one does not happen.
    pub fn cut_after(&self, operations: u64) {
        self.disk().cut_after(operations);
    }

    /// At which operation [`cut_after`](Self::cut_after) has cut it.
    pub fn cut_was_at(&self) -> Option<String> {
        self.disk().cut_was_at.clone()
    }

    /// The power comes back, and all works again, without what was lost.
    pub fn restore(&self, loss: Loss) {
        self.disk().restore(loss);
    }

    /// What the disk holds now, to [go back](Self::go_back) to.
    pub fn keep(&self) -> Kept {
        Kept(self.disk().clone())
    }

    /// All is as it was when that was kept, but nothing is open.
    pub fn go_back(&self, kept: &Kept) {
        self.disk().go_back(&kept.0);
    }

    /// How many operations there were that change something (write, sync, create, rename, remove, resize).
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// Makes operations fail from now on, or none any more.
    pub fn fail(&self, plan: Option<FailPlan>) {
        self.disk().fail(plan);
    }

    /// How many operations have failed because of [`fail`](Self::fail).
    pub fn failures(&self) -> u64 {
        self.disk().failures
    }

    /// Makes it a disk of this size.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.disk().set_space(bytes);
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        // Whoever still waits for an answer gets an error: a process whose own thread serves it could not end otherwise.
        // Without the right to do this, the session asks fusermount3.
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(&self.at, flags);
    }
}
