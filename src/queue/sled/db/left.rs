//! Windows that a crash has left, and that nothing is in.

use super::{Db, held};
use crate::error::Result;

impl Db {
    /// Drops the windows of which a crash left the note only.
    pub(in crate::queue::sled) fn drop_noted(&self) -> Result<()> {
        for window in held(&self.dropped).iter() {
            self.guard("a write", || self.windows.drop_tree(*window))?;
        }
        Ok(())
    }

    /// Drops the windows that were made for what was then cut off: nothing is in them, and they would hide what comes to lie
    /// behind their beginning.
    pub(in crate::queue::sled) fn drop_windows_after(
        &self,
        queue: u32,
        position: u64,
    ) -> Result<()> {
        for window in self.windows.after(queue, position) {
            self.windows.end(window);
            self.guard("a write", || self.windows.drop_window(window))?;
        }
        Ok(())
    }
}
