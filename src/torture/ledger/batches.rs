//! Batches: what each claim must find, and what each update leaves.

use std::collections::BTreeMap;

use super::{Batch, Kind, Ledger, Open, Standing};
use crate::{
    batch::BatchId,
    clock::Timestamp,
    request::RequestId,
    torture::event::{Claimed, Fate, Next, Note, Step, Verb},
};

impl Ledger {
    pub(super) fn claimed(&mut self, open: &Open, claimed: Claimed) {
        if claimed.fence <= open.fence {
            let what = format!(
                "batch {} was claimed with fence {}, after {} had been given",
                claimed.batch, claimed.fence, open.fence
            );
            self.damaged(Kind::Wrong, what);
        }
        self.fence = self.fence.max(claimed.fence);
        for seen in &claimed.members {
            self.saw(seen);
        }
        if let Some(known) = self.batches.get(&claimed.batch) {
            let is_news = claimed.fence > known.fence;
            if is_news {
                self.decide(claimed.batch, claimed.fence, claimed.note);
            }
            self.like(&claimed, is_news);
            return;
        }
        self.begins(claimed);
    }

    /// A batch that nobody has seen before has no past, and its members are free, or it is a half of another.
    pub(super) fn begins(&mut self, claimed: Claimed) {
        let id = claimed.batch;
        let members: Vec<_> = claimed.members.iter().map(|seen| seen.id).collect();
        let settled = |id: &&RequestId| {
            let request = self.requests.get(id);
            request.is_some_and(|request| request.standing.is_settled())
        };
        let settled: Vec<_> = members.iter().filter(settled).collect();
        if !settled.is_empty() {
            let what = format!("the new batch {id} has {settled:?}, which were settled before");
            self.damaged(Kind::Duplicated, what);
        }
        if claimed.note.is_some() || claimed.members.iter().any(|seen| seen.fate.is_some()) {
            let what = format!("the new batch {id} has outcomes or a checkpoint of an older one");
            self.damaged(Kind::Changed, what);
        }
        if let Some(parent) = claimed.parent {
            self.is_half(id, parent, &members);
        }
        let batch = Batch {
            members,
            note: None,
            outcomes: BTreeMap::new(),
            context: claimed.context,
            fence: claimed.fence,
            has_ended: false,
        };
        self.batches.insert(id, batch);
    }

    /// A batch that was split has two halves, each of which is seen once.
    fn is_half(&mut self, id: BatchId, parent: BatchId, members: &[RequestId]) {
        // The split may not have been answered, though it happened.
        self.decide_split(parent);
        let halves = self.halves.get_mut(&parent);
        let at = halves
            .as_ref()
            .and_then(|halves| halves.iter().position(|half| half == members));
        if let (Some(halves), Some(at)) = (halves, at) {
            halves.remove(at);
            return;
        }
        let halves = self.halves.get(&parent);
        let what = format!(
            "batch {id} with {members:?} is no half of {parent}, of which are left: {halves:?}"
        );
        self.damaged(Kind::Changed, what);
    }

    /// A batch that is known must be as it was.
    pub(super) fn like(&mut self, claimed: &Claimed, is_news: bool) {
        let id = claimed.batch;
        let Some(known) = self.batches.get_mut(&id) else {
            return;
        };
        let members = claimed.members.iter().map(|seen| seen.id);
        let fates = claimed.members.iter();
        let fates = fates.filter_map(|seen| Some((seen.id, seen.fate?)));
        let mut what = Vec::new();
        if !members.eq(known.members.iter().copied()) {
            let now: Vec<_> = claimed.members.iter().map(|seen| seen.id).collect();
            what.push(format!("had members {:?}, and has {now:?}", known.members));
        }
        if known.context != claimed.context {
            what.push(format!(
                "had context {:?}, and has {:?}",
                known.context, claimed.context
            ));
        }
        if is_news && known.has_ended {
            what.push("had ended, and is back".to_owned());
        } else if is_news {
            if known.note != claimed.note {
                what.push(format!(
                    "had checkpoint {:?}, and has {:?}",
                    known.note, claimed.note
                ));
            }
            let fates: BTreeMap<_, _> = fates.collect();
            let gone = known
                .outcomes
                .iter()
                .filter(|(id, fate)| fates.get(id) != Some(fate));
            let gone: Vec<_> = gone.collect();
            let new = fates
                .iter()
                .filter(|(id, _)| !known.outcomes.contains_key(id));
            let new: Vec<_> = new.collect();
            if !gone.is_empty() || !new.is_empty() {
                what.push(format!("lost the outcomes {gone:?}, and got {new:?}"));
            }
            known.fence = known.fence.max(claimed.fence);
        }
        for what in what {
            self.damaged(Kind::Changed, format!("batch {id} {what}"));
        }
    }

    /// Decides updates of earlier holders of a batch by the checkpoint that a later one found.
    fn decide(&mut self, batch: BatchId, fence: u64, note: Option<Note>) {
        let earlier = |step: &Step| step.batch == batch && step.note.0 < fence;
        let happened = |step: &Step| step.then == Next::On && Some(step.note) <= note;
        self.decide_if(earlier, happened);
    }

    /// Nobody else can have begun a half.
    fn decide_split(&mut self, parent: BatchId) {
        let splits = |step: &Step| step.batch == parent && step.then == Next::Split;
        self.decide_if(splits, |_| true);
    }

    pub(super) fn decide_if(
        &mut self,
        which: impl Fn(&Step) -> bool,
        happened: impl Fn(&Step) -> bool,
    ) {
        let mut steps = Vec::new();
        for open in self.open.values_mut() {
            if let Verb::Update(step) = &open.verb
                && open.decided.is_none()
                && which(step)
            {
                let happened = happened(step);
                open.decided = Some(happened);
                if happened {
                    steps.push((step.clone(), open.at, open.number));
                }
            }
        }
        steps.sort_by_key(|(step, ..)| step.note);
        for (step, at, number) in steps {
            self.take(&step, at, number);
        }
    }

    /// A step was taken: all of it is owed.
    pub(super) fn take(&mut self, step: &Step, at: Timestamp, number: u64) {
        let Some(batch) = self.batches.get_mut(&step.batch) else {
            return;
        };
        batch.note = batch.note.max(Some(step.note));
        for (id, fate) in &step.outcomes {
            batch.outcomes.entry(*id).or_insert(*fate);
        }
        batch.has_ended = step.then != Next::On;
        let (mut settled, mut rest) = (Vec::new(), Vec::new());
        for id in &batch.members {
            match (batch.outcomes.get(id).copied(), step.then) {
                (Some(fate), _) | (None, Next::Finish(fate)) => settled.push((*id, fate)),
                (None, _) => rest.push(*id),
            }
        }
        let has_ended = batch.has_ended;
        for (id, fate) in settled {
            match fate {
                Fate::Reject if has_ended => self.rejected(id, number),
                Fate::Reject | Fate::Retry => {}
                done => self.done(id, done, at),
            }
        }
        if step.then == Next::Split {
            let second = rest.split_off(rest.len().div_ceil(2));
            self.halves.insert(step.batch, vec![rest, second]);
        }
    }

    /// It is dead, unless it was taken from the dead letters since that call was made.
    fn rejected(&mut self, id: RequestId, number: u64) {
        if let Some(request) = self.requests.get_mut(&id)
            && request.revived < number
            && request.standing == Standing::Held
        {
            request.standing = Standing::Dead;
        }
    }
}
