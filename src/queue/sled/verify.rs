//! Reading all that a store holds, to tell what of it is damaged.
//!
//! sled writes to a database when it opens it: it cuts off what it takes for torn, and makes snapshots. So a copy is
//! opened, as the store itself would be, every entry of it is counted and read, and it is removed again. One that is open is
//! read beside its writer.

mod beside;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub(super) use self::beside::verify_open;
use super::{
    clean, copy,
    db::Db,
    keys::{self, Tree},
    open::{self, Format},
    plan::REDO,
    repair::is_right,
    synced::SYNCED,
};
use crate::{
    error::{Error, ErrorKind, Result},
    queue::{
        QueueOptions, lock,
        progress::Pulse,
        verified::{Finding, FindingKind, Verified, VerifyPhase},
    },
};

/// Reads all of the store in this folder; a copy of it is made within `scratch` meanwhile.
pub(super) fn verify(path: &Path, scratch: &Path, pulse: &Pulse) -> Result<Verified> {
    let locks = [
        lock::share(path, lock::LOCK)?,
        lock::share(path, "sled/db")?,
    ];
    let format = match open::look_at_format(path) {
        Ok(Some(format)) => format,
        Ok(None) => return Err(Error::not_found(format!("no store in {}", path.display()))),
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            return Ok(Verified::refused(&error, REFUSED));
        }
        Err(error) => return Err(error),
    };
    let mut verified = Verified::default();
    if !format.made {
        // Nothing was answered yet.
        return Ok(verified);
    }
    let copy = Copy::make(path, scratch, pulse)?;
    verified.bytes = copy.bytes;
    if clean::read(path).is_none() {
        verified.findings.push(Finding {
            kind: FindingKind::Unconfirmed,
            ..Finding::damaged(
                "it was not closed: what was begun and never answered when it stopped is not told from damage at the end of its log",
                "it is opened as it was last synced, and all its entries are counted",
            )
        });
    }
    // From here on others may have it.
    drop(locks);
    match look(&copy, &format, &mut verified, pulse) {
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            let what = copy.in_terms_of(path, &error);
            let finding = Finding::damaged(what, REFUSED);
            verified.findings.push(finding.in_file(Some("sled".into())));
        }
        Err(error) if error.kind() == ErrorKind::Poisoned => {
            return Err(Error::unavailable(format!(
                "the copy in {} could not be written to: {error}",
                scratch.display()
            )));
        }
        looked => looked?,
    }
    Ok(verified)
}

/// Opens the copy as the store would be, and reads every entry.
fn look(copy: &Copy, format: &Format, verified: &mut Verified, pulse: &Pulse) -> Result<()> {
    let lock = lock::take(&copy.path)?;
    pulse.begin(VerifyPhase::Opening, copy.bytes);
    let db = open::open_database((&copy.path, &lock), format, CACHE_BYTES, pulse)?;
    db.verify_counts(pulse)?;
    pulse.begin(VerifyPhase::Reading, db.entries());
    let findings = &mut verified.findings;
    let (first, last) = ((0, 0), (u32::MAX, u64::MAX));
    for chunk in db.chunks(first, last) {
        let chunk = chunk.map_err(|error| error.context("reading \"requests\""))?;
        for (key, value) in chunk.rows_within(first, last) {
            findings.extend(check(Tree::Requests, (&key, &value)));
        }
        pulse.add(1)?;
    }
    for (tree, _) in Tree::ALL {
        if tree != Tree::Requests {
            check_entries(&db, tree, findings, pulse)?;
        }
    }
    pulse.begin(VerifyPhase::Recovering, copy.bytes);
    let (queues, _) = open::recover(&db, QueueOptions::default())?;
    verified.queues = queues.len() as u64;
    let held = queues.values().map(|queue| &queue.record);
    verified.held = held
        .map(|held| held.delayed + held.ready + held.in_flight + held.dead)
        .sum();
    Ok(())
}

fn check_entries(db: &Db, tree: Tree, findings: &mut Vec<Finding>, pulse: &Pulse) -> Result<()> {
    let (from, to) = match tree {
        Tree::Meta => (keys::queue_record(0), keys::queue_record(u32::MAX)),
        _ => (keys::key(0, &[]), keys::key(u32::MAX, &[u64::MAX; 80])),
    };
    for entry in db.range(tree, from, to) {
        let (key, value) =
            entry.map_err(|error| error.context(format!("reading {:?}", tree.name())))?;
        findings.extend(check(tree, (&key, &value)));
        pulse.add(1)?;
    }
    Ok(())
}

/// What is amiss with an entry, if anything is.
fn check(tree: Tree, (key, value): (&[u8], &[u8])) -> Option<Finding> {
    if is_right(tree, key, value) {
        return None;
    }
    let queue = match tree {
        Tree::Meta => keys::queue(&key[1..]),
        _ => keys::queue(key),
    };
    let name = tree.name();
    let finding = Finding::damaged(
        format!("an entry of {name:?} of queue {queue} does not match its checksum"),
        NEEDED,
    );
    Some(Finding {
        bytes: Some(value.len() as u64),
        ..finding.in_file(Some("sled/db".into()))
    })
}

/// A copy of a store, which is removed again.
struct Copy {
    path: PathBuf,
    bytes: u64,
}

impl Copy {
    fn make(store: &Path, scratch: &Path, pulse: &Pulse) -> Result<Self> {
        let unusable = |error| lock::unusable(scratch, "can't be written", error);
        let bytes = bytes_of(&open::database(store))
            .map_err(|error| lock::unusable(store, "can't be read", error))?;
        let found = rustix::fs::statvfs(scratch).map_err(|error| unusable(error.into()))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if free < bytes.saturating_add(SPARE_BYTES) {
            return Err(Error::invalid(format!(
                "a copy of {bytes} bytes is needed to verify {}, and {} has {free} bytes free; give a folder with more room",
                store.display(),
                scratch.display()
            )));
        }
        let number = fastrand::u64(..);
        let path = scratch.join(format!("batchyard-verify-{number:016x}"));
        fs::create_dir(&path).map_err(unusable)?;
        let copy = Self { path, bytes };
        pulse.begin(VerifyPhase::Copying, bytes);
        copy::database(store, &open::database(&copy.path), true, pulse)?;
        for note in [clean::CLEAN, SYNCED, REDO] {
            match fs::copy(store.join(note), copy.path.join(note)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(unusable(error));
                }
                _ => {}
            }
        }
        Ok(copy)
    }

    /// What an error says of the copy, said of the store that it is a copy of.
    fn in_terms_of(&self, store: &Path, error: &Error) -> String {
        let [copy, store] = [&self.path, store].map(|path| path.display().to_string());
        error.to_string().replace(&copy, &store)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.path.display(), "a copy can't be removed");
            }
            _ => {}
        }
    }
}

fn bytes_of(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.metadata()?;
        bytes += if found.is_dir() {
            bytes_of(&entry.path())?
        } else {
            found.len()
        };
    }
    Ok(bytes)
}

/// What is done about an entry that is damaged.
const NEEDED: &str = "who needs it is refused, and so are all after it; `repair` saves the rest";
/// What opening does about a store that is damaged like this.
const REFUSED: &str = "it is refused, and left as it is; `repair` saves what can be read";
/// What opening may add to a copy.
const SPARE_BYTES: u64 = 32 << 20;
/// Everything is read once.
const CACHE_BYTES: u64 = 32 << 20;
