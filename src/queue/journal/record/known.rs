//! What memory holds of requests that may be illegible where they lie.

use std::collections::BTreeSet;

use crate::queue::journal::state::{QueueState, Stretch};

/// What is known of the requests of some stretches without reading them.
#[derive(Debug, Default)]
pub(in crate::queue::journal) struct Known {
    pub(in crate::queue::journal) salt: u64,
    /// Ids that were pushed, which is known because they don't stand where they say, or have an outcome.
    pub(in crate::queue::journal) real: BTreeSet<u64>,
    /// Ids of which nothing is kept any more, and positions of members that were moved there: no id is like them.
    pub(in crate::queue::journal) gone: BTreeSet<u64>,
    /// Up to here nothing is ready where its id says.
    pub(in crate::queue::journal) cursor: u64,
}

impl Known {
    pub(super) fn is_elsewhere(&self, id: u64) -> bool {
        self.real.contains(&id) || self.gone.contains(&id)
    }
}

impl QueueState {
    /// What is known of the requests of these stretches without reading them.
    pub(in crate::queue::journal) fn known<'s>(
        &self,
        stretches: impl IntoIterator<Item = &'s Stretch>,
        salt: u64,
    ) -> Known {
        let stored = &self.stored;
        let mut known = Known {
            salt,
            cursor: stored.cursor,
            ..Known::default()
        };
        for stretch in stretches {
            let range = stretch.first..=stretch.last.max(stretch.first);
            let places = stored.places.range(range.clone());
            known.real.extend(places.map(|(id, _)| *id));
            let recorded = stored.open.values().flat_map(|open| {
                let members = &open.members;
                let natural =
                    |at: &&u64| members.has_natural(**at) && !members.moved.contains_key(*at);
                let positions = open.recorded.range(range.clone()).map(|(at, _)| at);
                positions.filter(natural)
            });
            known.real.extend(recorded.copied());
            let open = stored.open.values().map(|open| &open.members);
            let ended = self.ended_at.range((stretch.first, 0)..);
            let ended = ended.filter_map(|(_, batch)| stored.ended.get(batch));
            let ended = ended.map(|ended| &ended.members);
            let ended = ended.take_while(|members| members.root < stretch.last);
            let members = open.chain(ended);
            let moved = members
                .clone()
                .flat_map(|members| members.moved.range(range.clone()));
            known.gone.extend(moved.map(|(at, _)| *at));
            let holes = members.flat_map(|members| members.holes.range(range.clone()));
            let left = holes.chain(stored.absent.range(range.clone()));
            // Of those that were carried only what is needed is there.
            if stretch.carried {
                let left = left.filter(|id| !stored.places.contains_key(id));
                known.gone.extend(left);
            } else {
                known.real.extend(left);
            }
        }
        known
    }
}
