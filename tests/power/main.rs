//! Power loss and broken disks, for real: the stores live on a file system that forgets what was not synced.
//!
//! ```text
//!   a life: steps ─┬─▶ the store, on the disk that forgets ── cut at its n-th change ── what was lost is gone ─┐
//!                  └─▶ MemoryQueue: what must be there after each step ◀── opened again: all records equal? ◀─┘
//! ```
//! What is compared is the whole dump of a queue, record by record: it must be that after the last step that was
//! answered, or that after the one under way. `BATCHYARD_LONG=1` takes more time, `BATCHYARD_STRIDE=1` goes to every n,
//! `BATCHYARD_CYCLES` sets the number of random cycles, `BATCHYARD_SEED` the seed.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod errors;
mod ext4;
mod forgets;
mod fresh;
mod full;
mod grown;
mod life;
mod long;
mod moved;
mod neighbours;
mod planted;
mod program;
mod reads;
mod store;

use std::{
    env,
    path::{Path, PathBuf},
};

use batchyard::torture::forgetful::Forgetful;
use tempfile::TempDir;

/// A mounted disk and the folder that it is mounted at.
struct Disk {
    // Unmounted before its folder is removed.
    forgetful: Forgetful,
    folder: TempDir,
}

impl Disk {
    /// One, unless it can't be had here: then why is said, and it is a failure if `fuse` is required.
    fn new() -> Option<Self> {
        if !is_alone() {
            return None;
        }
        if let Err(why) = Forgetful::available() {
            skip("fuse", &why);
            return None;
        }
        let folder = TempDir::new().unwrap();
        let forgetful = Forgetful::mount(folder.path()).unwrap();
        Some(Self { forgetful, folder })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where the store is.
    fn store(&self) -> PathBuf {
        self.path().join("store")
    }
}

/// Whether this test has the process for itself, which is said if not. All stores of a process share a lock of sled's, and one
/// whose disk is gone may hold it for ever: then those of other tests wait.
fn is_alone() -> bool {
    let alone = env::var_os("BATCHYARD_ALONE").is_some();
    if !alone {
        println!(
            "skipped: it needs a process of its own; name it with --exact, and set BATCHYARD_ALONE=1, as .ci/run does"
        );
    }
    alone
}

/// Says that a test is skipped; `BATCHYARD_REQUIRE` makes that a failure.
fn skip(what: &str, why: &str) {
    let required = env::var("BATCHYARD_REQUIRE").is_ok_and(|names| names.contains(what));
    assert!(!required, "{what} is required, and {why}");
    println!("skipped: {why}");
}

/// Whether there is time for more.
fn is_long() -> bool {
    env::var("BATCHYARD_LONG").is_ok_and(|value| value == "1")
}

/// One of so many operations is tried; all of them with `BATCHYARD_STRIDE=1`.
fn stride(short: u64, long: u64) -> u64 {
    let set = env::var("BATCHYARD_STRIDE").ok();
    let set = set.map(|text| text.parse().unwrap());
    set.unwrap_or(if is_long() { long } else { short })
}

/// How many random cycles there are.
fn cycles(short: u64, long: u64) -> u64 {
    let set = env::var("BATCHYARD_CYCLES").ok();
    let set = set.map(|text| text.parse().unwrap());
    set.unwrap_or(if is_long() { long } else { short })
}

/// The seed of `BATCHYARD_SEED`, or a new one; it is printed.
fn seed() -> u64 {
    let set = env::var("BATCHYARD_SEED").ok();
    let seed = set.map_or_else(|| fastrand::u64(..1 << 32), |text| text.parse().unwrap());
    println!("BATCHYARD_SEED={seed}");
    seed
}
