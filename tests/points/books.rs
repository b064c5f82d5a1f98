//! The books of a life: what a store must show, from what its children told before they were killed.
//!
//! What was answered is in effect. What was asked for and not answered is in effect as a whole, or not at all; which of
//! both is seen at the next look, and holds from then on.

use std::collections::{BTreeMap, BTreeSet};

use batchyard::{State, torture::event::Counts};

use crate::{
    life::{self, Length, kind},
    told::{SeenEntry, Told},
};

/// What is known so far, and what was wrong.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// By name: the id of each request that is known to be there.
    ids: BTreeMap<String, String>,
    /// By id: results of requests that are known to be done.
    done: BTreeMap<String, String>,
    /// By id: the batch that a request is or was in last.
    places: BTreeMap<String, String>,
    batches: BTreeMap<String, Batch>,
    fence: u64,
    /// Pushes without an answer.
    pushes: BTreeMap<u64, Vec<String>>,
    cancel: Forgotten,
    purge: Forgotten,
    /// Dead letters that were to be redriven: they may be in a batch again.
    redriven: BTreeSet<String>,
    to_redrive: u64,
    pub(crate) kills: u32,
    pub(crate) is_closed: bool,
    pub(crate) wrong: Vec<String>,
    /// What the last look saw.
    last: Option<(Counts, Vec<SeenEntry>)>,
}

/// Requests that are only counted from some time on.
#[derive(Debug, Default)]
struct Forgotten {
    asked: Vec<String>,
    answered: BTreeSet<String>,
}

impl Forgotten {
    fn may_be(&self, id: &str) -> bool {
        self.answered.contains(id) || self.asked.iter().any(|asked| asked == id)
    }
}

#[derive(Debug, Default)]
struct Batch {
    /// Id and name of each, in order; empty before its handler has told them.
    members: Vec<(String, String)>,
    requests: u32,
    outcomes: BTreeMap<String, String>,
    checkpoint: Option<String>,
    /// What is on its way.
    asked: Option<Asked>,
    end: Option<String>,
    /// It was claimed, and its members have not told their outcomes yet; with this checkpoint.
    is_claimed: bool,
    offered: Option<String>,
}

#[derive(Clone, Debug)]
struct Asked {
    outcomes: Vec<(String, String)>,
    checkpoint: Option<String>,
    end: Option<String>,
}

impl Batch {
    /// The outcomes and the checkpoint once what was asked for is in effect.
    fn after(&self) -> (BTreeMap<String, String>, Option<String>) {
        let (mut outcomes, mut checkpoint) = (self.outcomes.clone(), self.checkpoint.clone());
        if let Some(asked) = &self.asked {
            for (id, outcome) in &asked.outcomes {
                // The first one of a member wins.
                outcomes
                    .entry(id.clone())
                    .or_insert_with(|| outcome.clone());
            }
            checkpoint = asked.checkpoint.clone().or(checkpoint);
            if let Some(rest) = asked.end.as_ref().filter(|end| end.starts_with("done")) {
                for (id, _) in &self.members {
                    outcomes.entry(id.clone()).or_insert_with(|| rest.clone());
                }
            }
        }
        (outcomes, checkpoint)
    }

    fn may_have_ended(&self) -> bool {
        self.end.is_some() || self.asked.as_ref().is_some_and(|asked| asked.end.is_some())
    }

    fn how_it_ended(&self) -> Option<&str> {
        let asked = self.asked.as_ref().and_then(|asked| asked.end.as_deref());
        self.end.as_deref().or(asked)
    }
}

impl Books {
    fn wrong(&mut self, what: String) {
        self.wrong.push(what);
    }

    pub(crate) fn hear(&mut self, told: Told) {
        match told {
            Told::Opening => self.is_closed = false,
            Told::Opened | Told::Closing => {}
            Told::Closed => self.is_closed = true,
            Told::Seen { stats, entries } => self.seen(stats, entries),
            Told::Push { number, names } => {
                self.pushes.insert(number, names);
            }
            Told::Pushed { number, ids } => {
                for (name, id) in self.pushes.remove(&number).unwrap().into_iter().zip(ids) {
                    self.is_there(name, id);
                }
            }
            Told::Claimed {
                batch,
                parent,
                fence,
                requests,
                checkpoint,
                ..
            } => self.claimed(&batch, parent, fence, requests, checkpoint),
            Told::Members { batch, members } => self.members(&batch, members),
            Told::Update {
                batch,
                outcomes,
                checkpoint,
                end,
            } => {
                let batch = self.batches.entry(batch).or_default();
                batch.asked = Some(Asked {
                    outcomes,
                    checkpoint,
                    end,
                });
            }
            Told::Updated { batch } => self.updated(&batch),
            Told::Cancel(ids) => self.cancel.asked = ids,
            Told::Cancelled(at_once) => {
                let asked = std::mem::take(&mut self.cancel.asked);
                let cancelled = asked.into_iter().zip(at_once).filter(|(_, now)| *now);
                self.cancel.answered.extend(cancelled.map(|(id, _)| id));
            }
            Told::Redrive(ids) => {
                self.to_redrive = ids.len() as u64;
                self.redriven.extend(ids);
            }
            Told::Redriven(count) => {
                if count != self.to_redrive {
                    self.wrong(format!("{count} of {} were redriven", self.to_redrive));
                }
            }
            Told::Purge(ids) => self.purge.asked = ids,
            Told::Purged(count) => {
                let asked = std::mem::take(&mut self.purge.asked);
                if count != asked.len() as u64 {
                    self.wrong(format!("{count} of {} were purged", asked.len()));
                }
                self.purge.answered.extend(asked);
            }
        }
    }

    fn is_there(&mut self, name: String, id: String) {
        if let Some(known) = self.ids.get(&name)
            && *known != id
        {
            self.wrong(format!("{name} is pushed twice, as {known} and as {id}"));
        }
        self.ids.insert(name, id);
    }

    fn claimed(
        &mut self,
        id: &str,
        parent: Option<String>,
        fence: u64,
        requests: u32,
        checkpoint: Option<String>,
    ) {
        if fence <= self.fence {
            let before = self.fence;
            self.wrong(format!("fence {fence} of batch {id} is not above {before}"));
        }
        self.fence = fence;
        if let Some(parent) = parent {
            let how = self.batches.get(&parent).and_then(Batch::how_it_ended);
            if how != Some("split") {
                self.wrong(format!(
                    "batch {id} is a half of {parent}, which was not split"
                ));
            }
        }
        let batch = self.batches.entry(id.to_owned()).or_default();
        let known = (batch.end.clone(), batch.requests);
        batch.requests = requests;
        (batch.is_claimed, batch.offered) = (true, checkpoint);
        if let (Some(end), _) = &known {
            self.wrong(format!("batch {id} had ended ({end}) and is offered again"));
        }
        if known.1 != 0 && known.1 != requests {
            self.wrong(format!(
                "batch {id} had {} members and has {requests}",
                known.1
            ));
        }
    }

    fn members(&mut self, id: &str, told: Vec<(String, String, Option<String>)>) {
        let mut batch = self.batches.remove(id).unwrap_or_default();
        let mut wrong = Vec::new();
        let outcomes = told
            .iter()
            .filter_map(|(id, _, outcome)| Some((id.clone(), outcome.clone()?)));
        let outcomes: BTreeMap<String, String> = outcomes.collect();
        let members: Vec<_> = told.into_iter().map(|(id, name, _)| (id, name)).collect();
        if members.len() != batch.requests as usize {
            wrong.push(format!(
                "batch {id} has {} members, not {}",
                members.len(),
                batch.requests
            ));
        }
        if batch.members.is_empty() {
            for (member, name) in &members {
                wrong.extend(self.may_be_in(id, member, name));
                self.places.insert(member.clone(), id.to_owned());
            }
            batch.members = members;
        } else if batch.members != members {
            wrong.push(format!("batch {id} has other members, or in another order"));
        }
        if std::mem::take(&mut batch.is_claimed) {
            let before = (batch.outcomes.clone(), batch.checkpoint.clone());
            let found = (outcomes, batch.offered.take());
            if found != before && found != batch.after() {
                wrong.push(format!(
                    "batch {id} has {found:?}; answered were {before:?}, asked for {:?}",
                    batch.asked
                ));
            }
            (batch.outcomes, batch.checkpoint) = found;
            batch.asked = None;
            let done = batch.outcomes.iter().filter_map(|(id, outcome)| {
                Some((id.clone(), outcome.strip_prefix("done ")?.to_owned()))
            });
            self.done.extend(done);
        } else if outcomes != batch.outcomes {
            wrong.push(format!(
                "batch {id} shows other outcomes than were answered"
            ));
        }
        self.batches.insert(id.to_owned(), batch);
        self.wrong.append(&mut wrong);
    }

    /// What is wrong with a request being in a batch that is new to the books.
    fn may_be_in(&self, batch: &str, id: &str, name: &str) -> Option<String> {
        let known = self.ids.get(name);
        if known.is_some_and(|known| known != id) {
            return Some(format!(
                "{name} is {id} in batch {batch}, and was pushed as {known:?}"
            ));
        }
        if let Some(result) = self.done.get(id) {
            return Some(format!(
                "{name} is done ({result}) and handled again in batch {batch}"
            ));
        }
        let before = self.batches.get(self.places.get(id)?)?;
        let left = before.after().0.get(id).cloned();
        let may_come_back = match (before.how_it_ended(), left.as_deref()) {
            (None, _) => false,
            (Some(_), Some("reject")) => self.redriven.contains(id),
            _ => true,
        };
        (!may_come_back).then(|| {
            format!(
                "{name} is in batch {batch}, though it was left to batch {} as {left:?}, which ended as {:?}",
                self.places[id],
                before.how_it_ended()
            )
        })
    }

    fn updated(&mut self, id: &str) {
        let batch = self.batches.get_mut(id).unwrap();
        (batch.outcomes, batch.checkpoint) = batch.after();
        if let Some(asked) = batch.asked.take() {
            batch.end = asked.end;
        }
        let done = batch.outcomes.iter();
        let done = done.filter_map(|(id, outcome)| {
            Some((id.clone(), outcome.strip_prefix("done ")?.to_owned()))
        });
        self.done.extend(done);
    }

    /// A child looks at everything before it asks for anything.
    fn seen(&mut self, stats: Counts, entries: Vec<SeenEntry>) {
        if !stats.adds_up {
            self.wrong(format!("the counts do not add up: {stats:?}"));
        }
        let count = |state| entries.iter().filter(|entry| entry.state == state).count() as u64;
        let listed = [
            State::Delayed,
            State::Ready,
            State::InFlight,
            State::Done,
            State::Dead,
        ];
        let listed = listed.map(count);
        let counted = [
            stats.delayed,
            stats.ready,
            stats.in_flight,
            stats.done,
            stats.dead,
        ];
        if listed != counted {
            self.wrong(format!(
                "{counted:?} are counted, and {listed:?} are listed"
            ));
        }
        let mut names = BTreeMap::new();
        let mut found = BTreeMap::new();
        for entry in &entries {
            if let Some(other) = names.insert(entry.name.clone(), entry.state) {
                self.wrong(format!("{} is {} and {other}", entry.name, entry.state));
            }
            if let Some(other) = found.insert(entry.id.clone(), entry.state) {
                self.wrong(format!(
                    "request {} is {} and {other}",
                    entry.id, entry.state
                ));
            }
        }
        for (name, id) in &self.ids.clone() {
            let gone = self.cancel.answered.contains(id) || self.purge.answered.contains(id);
            let may_be_gone = self.cancel.may_be(id) || self.purge.may_be(id);
            match names.contains_key(name) {
                true if gone => self.wrong(format!("{name} is forgotten, and there again")),
                false if !may_be_gone => {
                    self.wrong(format!("{name} ({id}) was acknowledged, and is gone"));
                }
                _ => {}
            }
        }
        for push in std::mem::take(&mut self.pushes).into_values() {
            let there = push.iter().filter(|name| names.contains_key(*name)).count();
            if there != 0 && there != push.len() {
                self.wrong(format!(
                    "{there} of a push of {} are there: {push:?}",
                    push.len()
                ));
            }
        }
        self.settle_forgotten(&found, stats);
        for entry in &entries {
            self.is_there(entry.name.clone(), entry.id.clone());
            self.check_entry(entry);
        }
        self.last = Some((stats, entries));
    }

    fn settle_forgotten(&mut self, found: &BTreeMap<String, State>, stats: Counts) {
        for (forgotten, count, what) in [
            (&mut self.cancel, stats.cancelled, "cancelled"),
            (&mut self.purge, stats.purged, "purged"),
        ] {
            let asked = std::mem::take(&mut forgotten.asked);
            let gone = asked.iter().filter(|id| !found.contains_key(*id));
            let gone: Vec<_> = gone.cloned().collect();
            if !gone.is_empty() && gone.len() != asked.len() {
                self.wrong.push(format!("{what}: {gone:?} of {asked:?}"));
            }
            forgotten.answered.extend(gone);
            if count != forgotten.answered.len() as u64 {
                self.wrong
                    .push(format!("{count} are {what}, not {:?}", forgotten.answered));
            }
        }
    }

    fn check_entry(
        &mut self,
        SeenEntry {
            id,
            name,
            state,
            result,
        }: &SeenEntry,
    ) {
        let is_done = *state == State::Done;
        match self.done.get(id) {
            Some(known) if !is_done || result.as_ref() != Some(known) => {
                let what = format!("{name} was done ({known}), and is {state} ({result:?})");
                self.wrong(what);
            }
            None if is_done => {
                let batch = self
                    .places
                    .get(id)
                    .and_then(|batch| self.batches.get(batch));
                let after = batch.map(Batch::after);
                let asked = after.and_then(|(outcomes, _)| outcomes.get(id).cloned());
                let result = result.clone().unwrap_or_default();
                if asked != Some(format!("done {result}")) {
                    self.wrong(format!(
                        "{name} is done ({result}), and nobody said so: {asked:?}"
                    ));
                }
                self.done.insert(id.clone(), result);
            }
            _ => {}
        }
        let batch = self
            .places
            .get(id)
            .and_then(|batch| self.batches.get(batch));
        let must_be_held = batch.is_some_and(|batch| !batch.may_have_ended());
        if must_be_held && !matches!(state, State::InFlight | State::Done) {
            self.wrong(format!("{name} is {state}, though its batch has not ended"));
        }
    }

    /// After the clean end of the last child: everything is settled once.
    pub(crate) fn close(&mut self, length: Length) {
        if !self.is_closed {
            self.wrong("the last child did not come to its end".into());
        }
        let open = self
            .batches
            .iter()
            .filter(|(_, batch)| !batch.may_have_ended());
        let open: Vec<_> = open.map(|(id, _)| id.clone()).collect();
        if !open.is_empty() {
            self.wrong(format!(
                "batches were claimed, and neither ended nor offered again: {open:?}"
            ));
        }
        let Some((stats, entries)) = self.last.take() else {
            return self.wrong("nobody looked".into());
        };
        let ends: BTreeMap<&str, State> = entries
            .iter()
            .map(|entry| (&*entry.name, entry.state))
            .collect();
        let groups = life::waves(length).into_iter().flatten();
        let names: Vec<String> = groups.flat_map(|group| group.names).collect();
        for name in &names {
            let (ended, wanted) = (ends.get(&**name).copied(), life::end(name));
            // A half of a split batch whose holder dies twice counts as what killed it.
            let may_be_dead = kind(name) == "mixed" && self.kills > 1;
            if ended != wanted && !(may_be_dead && ended == Some(State::Dead)) {
                self.wrong(format!("{name} ended as {ended:?}, not as {wanted:?}"));
            }
        }
        let all = names.len() as u64;
        let forgotten = |wanted| names.iter().filter(|name| kind(name) == wanted).count() as u64;
        let counted = [
            stats.pushed,
            stats.cancelled,
            stats.purged,
            stats.batches,
            stats.expired,
        ];
        let wanted = [all, forgotten("cancel"), forgotten("purge"), 0, 0];
        if counted != wanted {
            self.wrong(format!(
                "pushed, cancelled, purged, batches and expired are {counted:?}, not {wanted:?}"
            ));
        }
    }
}
