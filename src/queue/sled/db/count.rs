//! Counting what is there, and comparing it with what was written.

use super::{Db, held};
use crate::{
    error::{Error, Result},
    queue::sled::{
        keys::{self, Tree},
        progress::{Pulse, VerifyPhase},
        rows,
    },
};

impl Db {
    /// Counts every entry and compares.
    pub(in crate::queue::sled) fn verify_counts(&self, pulse: &Pulse) -> Result<()> {
        let expected = held(&self.counts).entries.clone();
        pulse.begin(VerifyPhase::Counting, self.entries());
        for (tree, name) in Tree::ALL {
            let mut found = 0;
            if tree == Tree::Requests {
                for window in self.windows.all().values() {
                    let chunks = self.guard("a read", || rows::count(window))?;
                    found += chunks;
                    pulse.add(chunks)?;
                }
            }
            for key in self.guard("a read", || Ok(self.tree(tree).iter().keys()))? {
                let key = self.guard("a read", || key)?;
                let own = tree == Tree::Meta && key.as_ref() == keys::COUNTS;
                found += u64::from(!own);
                pulse.add(1)?;
            }
            if found != expected[tree as usize] {
                return Err(Error::corrupt(format!(
                    "{name:?} holds {found} entries where {} were written; run `repair` to save what can be read",
                    expected[tree as usize]
                )));
            }
        }
        Ok(())
    }
}
