//! The seam to the disk: all that the log asks of a folder and of the files in it.
//!
//! ```text
//!     Log ──► dyn Disk / dyn DiskFile ──┬──► Folder       the operating system
//!                                       └──► SimDisk      tests: loses, tears and reorders what was not synced
//! ```
//!
//! Rules
//! - Names are plain file names in one folder.
//! - Nothing written is durable before [`DiskFile::sync_data`] or [`DiskFile::sync_all`] of its file has answered
//!   `Ok`; no created, removed or renamed name before [`Disk::sync_folder`] has.
//! - After a failed sync nothing is known of the bytes written since the one before: what can be read back may
//!   not be on the disk, and a sync that succeeds later says nothing of it.

mod folder;

use std::{
    fmt,
    io::{self, IoSlice},
    sync::Arc,
};

pub(super) use folder::Folder;

/// A folder of files.
pub(super) trait Disk: Send + Sync + fmt::Debug + 'static {
    /// The names of all files, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A file that is there, for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// A new, empty file; `AlreadyExists` if there is one.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Removes a name; whoever has the file open keeps it.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames a file, over another one if need be.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes every name created, removed or renamed so far durable.
    fn sync_folder(&self) -> io::Result<()>;
    /// How many bytes the file system has left for us.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Whether the log may work on it from a thread of its own. A simulated disk says no: then all is done where
    /// it becomes due, and a run can be repeated.
    fn in_background(&self) -> bool {
        true
    }
}

/// An open file.
pub(super) trait DiskFile: Send + Sync + fmt::Debug {
    /// How long it is.
    fn len(&self) -> io::Result<u64>;
    /// Makes it `len` bytes long, with space for all of them: a full disk shows here and not at a later write.
    /// What was not written reads as zeros. It never gets shorter.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Writes all the parts, one behind the other.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Reads exactly as much as fits into the buffer.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// The same if it can be had without waiting for the disk, else `WouldBlock`.
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// These bytes will be read soon: they may be fetched meanwhile.
    fn will_read(&self, offset: u64, bytes: u64);
    /// Makes all bytes written so far durable, and what is needed to find them.
    fn sync_data(&self) -> io::Result<()>;
    /// The same, with all metadata.
    fn sync_all(&self) -> io::Result<()>;
}
