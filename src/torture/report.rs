//! What came out of it.

use std::path::PathBuf;

use serde::Serialize;

use super::{
    figures::Figure,
    ledger::{Damage, Kind},
};

/// The verdict, with all that led to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Whether everything was as promised.
    pub held: bool,
    /// From which all choices follow, but not the moments at which the machine does what it does.
    pub seed: u64,
    /// How long it took.
    pub seconds: f64,
    /// How many children lived.
    pub cycles: u64,
    /// How many of them were killed.
    pub kills: u64,
    /// How many of those while they opened their store.
    pub kills_in_recovery: u64,
    /// How many lost the power of their disk.
    pub power_cuts: u64,
    /// How many were asked to close their store.
    pub closed: u64,
    /// How often a store was compared with what was promised.
    pub comparisons: u64,
    /// Calls that were made, pushes and others.
    pub calls: u64,
    /// Requests that were promised to be kept.
    pub requests: u64,
    /// Requests that were gone, or what was recorded of them.
    pub lost: u64,
    /// Requests that were there twice, or again.
    pub duplicated: u64,
    /// Batches that were other ones than before.
    pub changed_batches: u64,
    /// What else was not as promised.
    pub wrong: u64,
    /// The first of those, with what was expected and what was seen.
    pub damage: Vec<Damage>,
    /// Where the store is, if it was kept to be looked at.
    pub kept: Option<PathBuf>,
    /// The figures of each store.
    pub stores: Vec<Store>,
}

/// One store that was tortured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Store {
    /// Its backend, and how its children died.
    pub name: String,
    /// What must stay flat; none after a few cycles.
    pub figures: Vec<Figure>,
}

impl Report {
    /// Adds what is not as promised.
    pub(super) fn add(&mut self, damage: &[Damage]) {
        for damage in damage {
            *match damage.kind {
                Kind::Lost => &mut self.lost,
                Kind::Duplicated => &mut self.duplicated,
                Kind::Changed => &mut self.changed_batches,
                Kind::Wrong => &mut self.wrong,
            } += 1;
        }
        self.damage.extend(damage.iter().take(SHOWN).cloned());
        self.held &= damage.is_empty();
    }

    /// Whether memory, descriptors, disk use and opening times stayed flat.
    pub fn is_flat(&self) -> bool {
        let mut figures = self.stores.iter().flat_map(|store| &store.figures);
        figures.all(|figure| figure.is_flat)
    }

    /// One line of it.
    pub fn verdict(&self) -> String {
        let verdict = if self.held { "held" } else { "BROKEN" };
        let wrong = match self.wrong {
            0 => String::new(),
            wrong => format!(", {wrong} otherwise wrong"),
        };
        format!(
            "{verdict}: {} cycles, {} kills ({} in recovery), {} power cuts, {} requests acknowledged: \
             lost {}, duplicated {}, changed batches {}{wrong}",
            self.cycles,
            self.kills,
            self.kills_in_recovery,
            self.power_cuts,
            self.requests,
            self.lost,
            self.duplicated,
            self.changed_batches
        )
    }
}

const SHOWN: usize = 10;
