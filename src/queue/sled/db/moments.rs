//! What of the database is kept for moments.

use std::{collections::BTreeSet, sync::Arc};

use super::{Db, held};
use crate::{
    error::Result,
    queue::sled::{moment::Past, plan::Plan},
};

impl Db {
    /// Keeps all that is there now for this moment, until it ends.
    pub(in crate::queue::sled) fn hold(&self, past: Arc<Past>) {
        held(&self.pasts).push(past);
    }

    /// Ends all moments.
    pub(in crate::queue::sled) fn end_moments(&self, why: &str) {
        held(&self.pasts).iter().for_each(|past| past.give_way(why));
        self.forget_moments();
    }

    /// Drops what only moments have needed that have ended.
    pub(in crate::queue::sled) fn forget_moments(&self) {
        let mut pasts = held(&self.pasts);
        pasts.retain(|past| !past.has_ended());
        let mut kept = held(&self.kept);
        let is_needed = |window| pasts.iter().any(|past| past.has_window(window));
        let (needed, free) = kept.iter().partition(|window| is_needed(**window));
        let free: BTreeSet<(u32, u64)> = free;
        *kept = needed;
        drop((kept, pasts));
        for window in free {
            // It is noted, and dropped by the next opening if not now.
            let _ = self.guard("a write", || self.windows.drop_tree(window));
        }
    }

    /// Whether there are any moments.
    pub(in crate::queue::sled) fn has_moments(&self) -> bool {
        !held(&self.pasts).is_empty()
    }

    /// Saves for them what is about to be changed.
    pub(super) fn save(&self, plan: &Plan) -> Result<()> {
        let pasts = held(&self.pasts);
        for (at, tree, key) in plan.changed().filter(|_| !pasts.is_empty()) {
            for past in pasts.iter() {
                past.save(at, key, || self.guard("a read", || tree.get(key)))?;
            }
        }
        Ok(())
    }

    /// Drops a window, or only takes it out if a moment needs it.
    pub(super) fn drop_or_keep(&self, window: (u32, u64)) -> Result<()> {
        let is_needed = held(&self.pasts).iter().any(|past| past.has_window(window));
        if is_needed {
            self.windows.take_out(window);
            held(&self.kept).insert(window);
            return Ok(());
        }
        self.guard("a write", || self.windows.drop_window(window))
    }
}
