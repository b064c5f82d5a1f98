//! Ids that were named on the command line, and the queues that have them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use batchyard::{Queue, QueueName};

use super::{
    exit::{Exit, Failure},
    output::say,
};

/// What was named, by the queue that has it.
pub(crate) struct Picked<'q, T> {
    /// Each once, in the order in which it was named.
    pub(crate) found: BTreeMap<QueueName, (&'q Arc<dyn Queue>, Vec<T>)>,
    /// How many there are in no queue; each was told.
    pub(crate) missing: u64,
}

impl<'q, T> Picked<'q, T> {
    /// Looks each of these ids up by `find`, and says what `unknown` says of those that are not found.
    ///
    /// # Errors
    /// As `find`.
    pub(crate) async fn find<I: Copy + Ord>(
        ids: &[I],
        find: impl AsyncFn(I) -> Result<Option<(&'q Arc<dyn Queue>, T)>, Failure>,
        unknown: impl Fn(I) -> String,
    ) -> Result<Self, Failure> {
        let mut picked = Self {
            found: BTreeMap::new(),
            missing: 0,
        };
        let mut named = BTreeSet::new();
        for id in ids {
            if !named.insert(*id) {
                continue;
            }
            let Some((queue, what)) = find(*id).await? else {
                say(&unknown(*id));
                picked.missing += 1;
                continue;
            };
            let of_queue = picked.found.entry(queue.name());
            of_queue.or_insert_with(|| (queue, Vec::new())).1.push(what);
        }
        Ok(picked)
    }
}

/// How a verb ends that changed so many of those that were named, and not so many others.
pub(crate) fn exit(changed: u64, not: u64) -> Exit {
    match (changed, not) {
        (_, 0) => Exit::Ok,
        (0, _) => Exit::NotFound,
        _ => Exit::Partial,
    }
}
