//! Copying a database, which is not opened where it lies: sled writes to what it opens.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

use super::{
    open::{self, unusable},
    recovery,
};
use crate::{error::Result, queue::progress::Pulse};

/// Copies a database, with its snapshots or without, over what is there.
pub(super) fn database(from: &Path, copy: &Path, snapshots: bool, pulse: &Pulse) -> Result<()> {
    let copy_folder = |from: &Path, to: &Path| copy_folder((from, to), snapshots, pulse);
    let all = || match fs::remove_dir_all(copy) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => copy_folder(&open::database(from), copy),
    };
    all().map_err(|error| unusable(from, "can't be copied", error))
}

fn copy_folder((from, to): (&Path, &Path), snapshots: bool, pulse: &Pulse) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder((&entry.path(), &target), snapshots, pulse)?;
        } else if snapshots || !recovery::is_snapshot(&entry.file_name()) {
            let (mut from, mut to) = (File::open(entry.path())?, File::create(target)?);
            loop {
                let copied = io::copy(&mut (&mut from).take(COPIED_BYTES), &mut to)?;
                pulse.add(copied).map_err(io::Error::other)?;
                if copied == 0 {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// How much is copied at a time.
const COPIED_BYTES: u64 = 16 << 20;
