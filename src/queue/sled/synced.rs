//! The note of what is durable: how many commits the database had at its last sync.
//!
//! ```text
//! STORE/SYNCED   the number of commits, and its checksum: 8 and 4 bytes, little-endian
//! ```
//! It is written after every sync and not synced itself, which costs next to nothing. It outlives the process, and power
//! loss leaves an older one at worst: a database with fewer commits than it says has lost some that were answered.
//! sled alone can't tell, since it takes damage in the middle of its log for the end.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use crate::error::is_full;

/// The name of the file.
pub(super) const SYNCED: &str = "SYNCED";

/// The note of an open store.
#[derive(Debug)]
pub(super) struct Synced {
    /// None where a full disk has no room for it.
    file: Option<File>,
    /// What it said when the store was opened.
    pub(super) found: Option<u64>,
}

impl Synced {
    /// Opens the note of a store; that of one that is being made says nothing yet.
    pub(super) fn open(path: &Path, is_new: bool) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(is_new);
        let file = match options.open(path.join(SYNCED)) {
            Err(error) if is_full(&error) => None,
            file => Some(file?),
        };
        let found = file.as_ref().and_then(decode);
        Ok(Self { file, found })
    }

    /// Notes that so many commits are durable. If that fails, an older note says less.
    pub(super) fn note(&self, commits: u64) {
        let Some(file) = &self.file else { return };
        let mut bytes = [0; BYTES];
        let number = commits.to_le_bytes();
        bytes[..8].copy_from_slice(&number);
        bytes[8..].copy_from_slice(&crc32fast::hash(&number).to_le_bytes());
        if let Err(error) = file.write_all_at(&bytes, 0) {
            tracing::debug!(%error, "what is durable can't be noted");
        }
    }
}

/// What the note of a store says; `None` if there is none, or if it is damaged.
pub(super) fn read(path: &Path) -> Option<u64> {
    decode(&File::open(path.join(SYNCED)).ok()?)
}

fn decode(file: &File) -> Option<u64> {
    let mut bytes = [0; BYTES];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let (number, check) = bytes.split_first_chunk::<8>()?;
    let is_whole = crc32fast::hash(number).to_le_bytes() == *check;
    is_whole.then(|| u64::from_le_bytes(*number))
}

const BYTES: usize = 12;
