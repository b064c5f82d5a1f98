//! Counting what is there, and comparing it with what was written.

use super::{Db, held};
use crate::{
    error::{Error, Result},
    queue::{
        progress::Pulse,
        sled::{
            keys::{self, Tree},
            rows,
        },
        verified::VerifyPhase,
    },
};

impl Db {
    /// How many commits there were, and how many entries of a tree were written.
    pub(in crate::queue::sled) fn counted(&self, tree: Tree) -> (u64, u64) {
        let counts = held(&self.counts);
        (counts.commits, counts.entries[tree as usize])
    }

    /// How many entries of a tree are none that a range has: notes of windows that are dropped.
    pub(in crate::queue::sled) fn noted(&self, tree: Tree) -> Result<u64> {
        if tree != Tree::Requests {
            return Ok(0);
        }
        let notes = self.guard("a read", || Ok(self.tree(tree).iter().keys()))?;
        let mut found = 0;
        for key in notes {
            self.guard("a read", || key)?;
            found += 1;
        }
        Ok(found)
    }

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
