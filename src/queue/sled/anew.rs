//! What can be read of a database is made durable before sled builds on it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use super::open::{database, unusable};
use crate::{error::Result, fault::step, queue::lock};

/// Makes durable what can be read of the database, before sled reads it and builds on it.
pub(super) fn prepare(path: &Path, lock: &File) -> Result<()> {
    let is_unsynced = lock::is_unsynced(lock);
    let prepare = || -> io::Result<()> {
        for entry in fs::read_dir(database(path))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let mut options = OpenOptions::new();
                let file = options.read(true).write(true).open(entry.path())?;
                if is_unsynced && step("sled.write_anew")? {
                    write_anew(&file)?;
                }
                file.sync_all()?;
            }
        }
        Ok(())
    };
    match prepare() {
        // A lost database is told by who opens it.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let _ = lock::note(lock, true);
            Err(unusable(path, "can't be synced", error))
        }
        _ => Ok(()),
    }
}

/// Writes every byte of a file over itself, so that the next sync covers it.
fn write_anew(file: &File) -> io::Result<()> {
    let mut buffer = vec![0; ANEW_BYTES];
    let mut at = 0;
    loop {
        let length = file.read_at(&mut buffer, at)?;
        if length == 0 {
            return Ok(());
        }
        file.write_all_at(&buffer[..length], at)?;
        at += length as u64;
    }
}

/// How much is written anew at a time.
const ANEW_BYTES: usize = 1 << 20;
