//! What time alone brings: expiry first, then promotion; results and keys are forgotten.

use std::collections::BTreeMap;

use super::{SLICE, Step};
use crate::{
    clock::Timestamp,
    error::Result,
    fault::point,
    queue::sled::{
        db,
        keys::{self, Note, Tree},
        record::{KeyExpiryV1, KeyV1, OutcomeV1, RequestV1},
        state,
    },
};

impl Step<'_> {
    /// Brings the queue to `now`, in slices that are each a step of their own.
    pub(in crate::queue::sled) fn advance(&mut self, now: Timestamp) -> Result<()> {
        let now_nanos = now.as_nanos();
        if self.queue.next.first() > now_nanos {
            return Ok(());
        }
        self.commit()?;
        while self.queue.next.expiry <= now_nanos && self.expire(now_nanos)? {}
        while self.queue.next.due <= now_nanos && self.promote(now)? {}
        while self.queue.next.kept <= now_nanos && self.forget_results()? {}
        while self.queue.next.key <= now_nanos && self.forget_keys(now_nanos)? {}
        self.queue.wake = true;
        Ok(())
    }

    /// The first entries of a tree up to a time.
    fn slice(&self, tree: Tree, until: u64, most: usize) -> Result<Vec<(sled::IVec, sled::IVec)>> {
        let (from, to) = (self.key(&[0]), self.key(&[until, u64::MAX, u64::MAX]));
        self.db.range(tree, from, to).take(most).collect()
    }

    /// Ends a slice; whether it had anything.
    fn finish_slice(&mut self, entries: usize) -> Result<bool> {
        self.commit()?;
        point("sled.advanced");
        self.queue.find_oldest(self.db)?;
        self.queue.find_next(self.db)?;
        Ok(entries > 0)
    }

    fn expire(&mut self, until: u64) -> Result<bool> {
        let entries = self.slice(Tree::Expiry, until, SLICE)?;
        for (key, _) in &entries {
            self.write.delete(Tree::Expiry, key.to_vec());
            let (at, id) = (keys::number(key, 0), keys::number(key, 1));
            let Some(waiting) = self.waiting(id)? else {
                continue;
            };
            // A redriven request has no end any more; the entry of its first life is still here.
            if waiting.request.expires_at == Some(at) {
                self.take_waiting(waiting)?;
                self.queue.record.expired += 1;
            }
            if self.write.is_large() {
                self.commit()?;
            }
        }
        self.finish_slice(entries.len())
    }

    fn promote(&mut self, now: Timestamp) -> Result<bool> {
        let entries = self.slice(Tree::Delayed, now.as_nanos(), SLICE)?;
        for (key, value) in &entries {
            let (request, body) = db::read::<RequestV1>(Tree::Delayed, key, value)?;
            self.write.delete(Tree::Delayed, key.to_vec());
            self.queue.record.delayed -= 1;
            self.make_ready(now, keys::number(key, 0), request, &body)?;
        }
        self.finish_slice(entries.len())
    }

    fn forget_results(&mut self) -> Result<bool> {
        let entries = self.slice(Tree::Kept, u64::MAX, 1)?;
        for (key, value) in &entries {
            let mut gone: BTreeMap<u64, u32> = BTreeMap::new();
            for id in state::kept_ids(key, value)? {
                let outcome = self.load::<OutcomeV1>(Tree::Outcomes, &self.key(&[id]))?;
                if let Some((outcome, _)) = outcome {
                    *gone.entry(outcome.sequence).or_default() += 1;
                    let note = keys::note(self.queue.id, outcome.batch, Note::KeptUntil);
                    self.write.delete(Tree::Notes, note);
                    self.delete_outcome(id, &outcome);
                }
            }
            self.unsettle(gone)?;
            self.write.delete(Tree::Kept, key.to_vec());
        }
        self.finish_slice(entries.len())
    }

    fn forget_keys(&mut self, until: u64) -> Result<bool> {
        let entries = self.slice(Tree::KeyExpiry, until, SLICE)?;
        for (key, value) in &entries {
            let (expiry, _) = db::read::<KeyExpiryV1>(Tree::KeyExpiry, key, value)?;
            self.write.delete(Tree::KeyExpiry, key.to_vec());
            let known = keys::text(self.queue.id, &expiry.key);
            // A key that was pushed again since has a later end and another request.
            let record = self.load::<KeyV1>(Tree::Keys, &known)?;
            if record.is_some_and(|(record, _)| record.id == keys::number(key, 1)) {
                self.write.delete(Tree::Keys, known);
            }
        }
        self.finish_slice(entries.len())
    }
}
