//! The names of files and folders, twice: as processes see them, and as the disk has them.
//!
//! A change of names is pending until it is synced. [`Rules::Strict`]: by a sync of its folder, and a torn loss lets any
//! of the pending ones reach the disk. [`Rules::Ext4`]: by any sync, together with all that came before, and a torn loss
//! lets the first so many reach the disk. A rename reaches it as a whole or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
};

use fastrand::Rng;

use super::Rules;

/// A folder and a name in it.
pub(super) type Place = (u64, OsString);
type Folder = BTreeMap<OsString, u64>;

/// All folders, live and durable; a folder is there while it has a number, whether it has a name or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    live: BTreeMap<u64, Folder>,
    durable: BTreeMap<u64, Folder>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
struct Change {
    number: u64,
    from: Option<Place>,
    to: Option<Place>,
}

impl Names {
    /// A new folder without a name.
    pub(super) fn add_folder(&mut self, number: u64) {
        self.live.insert(number, Folder::new());
        self.durable.insert(number, Folder::new());
    }

    pub(super) fn is_folder(&self, number: u64) -> bool {
        self.live.contains_key(&number)
    }

    pub(super) fn get(&self, folder: u64, name: &OsStr) -> Option<u64> {
        self.live.get(&folder)?.get(name).copied()
    }

    /// The names in a folder.
    pub(super) fn list(&self, folder: u64) -> Vec<(OsString, u64)> {
        let names = self.live.get(&folder).into_iter().flatten();
        names
            .map(|(name, number)| (name.clone(), *number))
            .collect()
    }

    /// Gives a name, moves it, or takes it away; who had the new one loses it.
    pub(super) fn change(&mut self, number: u64, from: Option<Place>, to: Option<Place>) {
        let change = Change { number, from, to };
        change.apply(&mut self.live);
        self.pending.push(change);
    }

    /// A sync of a file or a folder.
    pub(super) fn sync(&mut self, number: u64, rules: Rules) {
        let covers = |change: &Change| match rules {
            Rules::Strict => change.is_in(number),
            Rules::Ext4 => true,
        };
        for change in self.pending.extract_if(.., |change| covers(change)) {
            change.apply(&mut self.durable);
        }
    }

    /// Only what is durable is left.
    pub(super) fn lose(&mut self) {
        self.pending.clear();
        self.live.clone_from(&self.durable);
    }

    /// Some of what was not synced reached the disk; nothing else is left.
    pub(super) fn tear(&mut self, rules: Rules, random: &mut Rng) {
        let first = random.usize(..=self.pending.len());
        for (index, change) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            let reached = match rules {
                Rules::Strict => random.bool(),
                Rules::Ext4 => index < first,
            };
            if reached {
                change.apply(&mut self.durable);
            }
        }
        self.lose();
    }

    /// The numbers of all that has a name.
    pub(super) fn live(&self) -> BTreeSet<u64> {
        let folders = self.live.values();
        folders
            .flat_map(|folder| folder.values().copied())
            .collect()
    }

    /// The numbers of all that has a name, or had one on the disk or on the way to it.
    pub(super) fn named(&self) -> BTreeSet<u64> {
        let images = self.live.values().chain(self.durable.values());
        let named = images.flat_map(|folder| folder.values().copied());
        named
            .chain(self.pending.iter().map(|change| change.number))
            .collect()
    }

    /// Forgets a folder.
    pub(super) fn remove(&mut self, number: u64) {
        self.live.remove(&number);
        self.durable.remove(&number);
    }

    /// Gives new numbers to all.
    pub(super) fn renumber(&mut self, new: &BTreeMap<u64, u64>) {
        let renumber = |number: &mut u64| *number = *new.get(number).unwrap_or(number);
        for change in &mut self.pending {
            renumber(&mut change.number);
            for (folder, _) in change.from.iter_mut().chain(&mut change.to) {
                renumber(folder);
            }
        }
        for image in [&mut self.live, &mut self.durable] {
            let old = std::mem::take(image).into_iter();
            let renamed = old.filter_map(|(number, mut folder)| {
                folder.retain(|_, number| match new.get(number) {
                    Some(new) => {
                        *number = *new;
                        true
                    }
                    None => false,
                });
                Some((*new.get(&number)?, folder))
            });
            *image = renamed.collect();
        }
    }
}

impl Change {
    fn is_in(&self, folder: u64) -> bool {
        let mut places = self.from.iter().chain(&self.to);
        places.any(|(of, _)| *of == folder)
    }

    fn apply(&self, image: &mut BTreeMap<u64, Folder>) {
        if let Some((folder, name)) = &self.from
            && let Some(folder) = image.get_mut(folder)
            && folder.get(name) == Some(&self.number)
        {
            folder.remove(name);
        }
        if let Some((folder, name)) = &self.to
            && let Some(folder) = image.get_mut(folder)
        {
            folder.insert(name.clone(), self.number);
        }
    }
}
