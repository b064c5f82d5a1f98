//! Whether there is space to try anything: a disk without is no verdict on a store.

use std::path::Path;

use super::Plan;
use crate::error::{Error, Result};

/// Refuses a disk on which nothing would be acknowledged.
pub(super) fn check(plan: &Plan) -> Result<()> {
    let needed = MARK_BYTES + STORE_BYTES * plan.backends.len() as u64;
    match free(&plan.folder) {
        Some(free) if free < needed => Err(Error::queue_full(format!(
            "the disk of {} has {free} bytes free, and {needed} are needed to try {} stores on it, so nothing was tried: free \
             some, or give a folder on another disk",
            plan.folder.display(),
            plan.backends.len()
        ))),
        _ => Ok(()),
    }
}

/// That the disk of a store is full, if so, after something failed that said this.
pub(super) fn is_full(store: &Path, said: &str) -> Option<Error> {
    let free = store.ancestors().find_map(free);
    let is_full = free.is_some_and(|free| free < LEAST_BYTES) || said.contains("No space left");
    is_full.then(|| {
        let free = free.map_or(String::new(), |free| format!(" ({free} bytes are free)"));
        Error::queue_full(format!(
            "no space is left on the disk of {}{free}, so it ended without a verdict: free some, or give a folder on another disk; \
             what failed said {said:?}",
            store.display()
        ))
    })
}

fn free(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Below so much, pushes get `QueueFull`.
const MARK_BYTES: u64 = 64 << 20;
/// What a store grows to, with room to spare.
const STORE_BYTES: u64 = 128 << 20;
/// With less, a store that is settled may run out of space.
const LEAST_BYTES: u64 = 16 << 20;
