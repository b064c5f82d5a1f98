//! The parent's book: what was promised to its children, told from their lines alone.
//!
//! ```text
//!   Call    ─▶ open: from now on it may have happened
//!   Answer  ─▶ it did, or did not: what it did is owed
//!   survey  ─▶ each open call is decided by one witness, whole: it did all of it, or nothing
//!              then all that is owed must be there, and nothing else; what is settled and gone leaves the book
//! ```
//! The order of lines is not quite that of events: an answer may be told late. So a request is only known to be held,
//! dead, done, cancelled or purged, whichever was promised last; batches, with one holder at a time, are known exactly.

mod batches;
mod compare;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{
    event::{Answer, Event, Fate, FoundBatch, FoundRequest, Mark, Note, Seen, Verb},
    name::Name,
};
use crate::{batch::BatchId, clock::Timestamp, request::RequestId};

/// What was promised.
#[derive(Debug, Default)]
pub struct Ledger {
    requests: BTreeMap<RequestId, Request>,
    pushes: BTreeMap<u64, Push>,
    batches: BTreeMap<BatchId, Batch>,
    /// Of batches that were split: the members of the halves that nobody has seen yet.
    halves: BTreeMap<BatchId, Vec<Vec<RequestId>>>,
    /// Calls without an answer, by their number.
    open: BTreeMap<u64, Open>,
    /// The largest fence that was given.
    fence: u64,
    counted: Counted,
    /// What the store is found to hold, until all of it is told.
    found: (Vec<FoundRequest>, Vec<FoundBatch>),
    calls_heard: u64,
    /// Whether calls may fail, because the disk does.
    disk_fails: bool,
    damage: Vec<Damage>,
}

/// What is not as promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Of which kind it is.
    pub kind: Kind,
    /// What was expected, and what was seen.
    pub what: String,
}

/// A kind of [`Damage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A request is gone, or what was recorded of it.
    Lost,
    /// A request is there twice, or again after it was settled.
    Duplicated,
    /// A batch is another one than before.
    Changed,
    /// Anything else.
    Wrong,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Lost => "lost",
            Kind::Duplicated => "duplicated",
            Kind::Changed => "changed",
            Kind::Wrong => "wrong",
        };
        write!(f, "{kind}: {}", self.what)
    }
}

#[derive(Clone, Debug)]
struct Request {
    name: Name,
    pushed_at: Timestamp,
    standing: Standing,
    /// A cancel may hit it if it comes back.
    is_marked: bool,
    /// When it was last taken from the dead letters, as the number of the call.
    revived: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Delayed, ready, in flight or dead.
    Held,
    Dead,
    Done(Fate, Timestamp),
    Cancelled,
    Purged,
}

impl Standing {
    fn is_settled(self) -> bool {
        !matches!(self, Self::Held | Self::Dead)
    }
}

#[derive(Clone, Debug)]
struct Push {
    /// The id of its first request, once it is known.
    first: Option<RequestId>,
    requests: u32,
    keyed: bool,
    at: Timestamp,
    /// How many of its requests are in the book.
    left: u32,
}

#[derive(Clone, Debug, Default)]
struct Batch {
    members: Vec<RequestId>,
    outcomes: BTreeMap<RequestId, Fate>,
    note: Option<Note>,
    context: String,
    fence: u64,
    has_ended: bool,
}

#[derive(Clone, Debug)]
struct Open {
    at: Timestamp,
    verb: Verb,
    /// The largest fence, and the number of calls, when it was made.
    fence: u64,
    number: u64,
    /// What was found out before its answer: whether it happened.
    decided: Option<bool>,
}

/// Requests that left the book, by what became of them, and all that ever came in.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    pushed: u64,
    done: u64,
    purged: u64,
    cancelled: u64,
    expired: u64,
}

impl Ledger {
    /// From now on calls may fail: the disk does.
    pub fn expect_failures(&mut self, disk_fails: bool) {
        self.disk_fails = disk_fails;
    }

    /// Takes in a line of the child.
    pub fn hear(&mut self, event: Event) {
        match event {
            Event::Opened { report, .. } => {
                // A child that opens it begins to tell what is there.
                self.found = Default::default();
                let damaged = |line: &&String| !line.starts_with("unconfirmed");
                for line in report.iter().filter(damaged) {
                    self.damaged(Kind::Lost, format!("opening it told {line:?}"));
                }
            }
            Event::Request(request) => self.found.0.push(request),
            Event::Batch(batch) => self.found.1.push(batch),
            Event::Surveyed(whole) => self.compare(whole),
            Event::Call { call, now, verb } => self.called(call, now, verb),
            Event::Answer { call, answer } => self.answered(call, answer),
            Event::Failed(_) if self.disk_fails => {}
            Event::Failed(error) => self.damaged(Kind::Wrong, format!("a reader got {error:?}")),
            Event::Closed => {}
        }
    }

    /// What is not as promised; nothing, as long as all is well.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// How many requests it was promised to keep.
    pub fn pushed(&self) -> u64 {
        self.counted.pushed
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        self.calls_heard
    }

    /// Keyed pushes that may be made again: they were pushed after this time, answered or not.
    pub fn repeatable(&self, after: Timestamp, most: usize) -> Vec<(u64, u32)> {
        let keyed = self.pushes.iter().rev();
        let keyed = keyed.filter(|(_, push)| push.keyed && push.at > after);
        keyed
            .map(|(number, push)| (*number, push.requests))
            .take(most)
            .collect()
    }

    /// Adds what was seen beside the lines of a child.
    pub fn wrong(&mut self, what: String) {
        self.damaged(Kind::Wrong, what);
    }

    fn damaged(&mut self, kind: Kind, what: String) {
        self.damage.push(Damage { kind, what });
    }

    fn called(&mut self, call: u64, at: Timestamp, verb: Verb) {
        self.calls_heard += 1;
        let number = self.calls_heard;
        let mut decided = None;
        match &verb {
            Verb::Push {
                push,
                requests,
                keyed,
            } => {
                let new = || Push {
                    first: None,
                    requests: *requests,
                    keyed: *keyed,
                    at,
                    left: 0,
                };
                self.pushes.entry(*push).or_insert_with(new);
            }
            Verb::Update(step) => {
                let known = self.batches.get(&step.batch);
                let is_late = known.is_some_and(|batch| step.note.0 < batch.fence);
                decided = is_late.then_some(false);
            }
            Verb::Redrive(ids) | Verb::Purge(ids) => {
                for id in ids {
                    if let Some(request) = self.requests.get_mut(id) {
                        request.revived = number;
                    }
                }
            }
            Verb::Claim | Verb::Cancel(_) => {}
        }
        let open = Open {
            at,
            verb,
            fence: self.fence,
            number,
            decided,
        };
        self.open.insert(call, open);
    }

    fn answered(&mut self, call: u64, answer: Answer) {
        let Some(open) = self.open.remove(&call) else {
            return self.damaged(Kind::Wrong, format!("call {call:x} was answered twice"));
        };
        match (&open.verb, answer) {
            (_, Answer::Failed(error)) => {
                if !self.disk_fails {
                    let what = format!("{:?} failed: {error}", open.verb);
                    self.damaged(Kind::Wrong, what);
                }
                self.open.insert(call, open);
            }
            (Verb::Push { .. } | Verb::Redrive(_), Answer::Full) | (Verb::Claim, Answer::Lost) => {}
            (Verb::Push { push, .. }, Answer::Pushed(ids)) => self.pushed_as(*push, &ids),
            (Verb::Claim, Answer::Claimed(claimed)) => {
                if let Some(claimed) = claimed {
                    self.claimed(&open, claimed);
                }
            }
            (Verb::Update(step), Answer::Updated) => match open.decided {
                None => self.take(step, open.at, open.number),
                Some(true) => {}
                Some(false) => {
                    let what = format!(
                        "batch {} took an update with fence {}, after a claim of it had given a larger one",
                        step.batch, step.note.0
                    );
                    self.damaged(Kind::Wrong, what);
                }
            },
            (Verb::Update(step), Answer::Lost) => {
                let holds = self.batches.get(&step.batch);
                let holds =
                    holds.is_some_and(|batch| !batch.has_ended && batch.fence == step.note.0);
                let others = self
                    .open
                    .values()
                    .any(|open| matches!(open.verb, Verb::Claim));
                if open.decided == Some(true) || (holds && !others) {
                    let what = format!("the holder of batch {} lost it to nobody", step.batch);
                    self.damaged(Kind::Wrong, what);
                }
            }
            (Verb::Cancel(ids), Answer::Cancelled(marks)) => {
                for (id, mark) in ids.iter().zip(marks) {
                    self.cancelled(*id, mark);
                }
            }
            (Verb::Redrive(ids), Answer::Count(count)) => {
                self.all_of("redriven", ids, count);
                self.redriven(ids);
            }
            (Verb::Purge(ids), Answer::Count(count)) => {
                self.all_of("purged", ids, count);
                self.purged(ids);
            }
            (verb, answer) => {
                let what = format!("{verb:?} was answered {answer:?}");
                self.damaged(Kind::Wrong, what);
            }
        }
    }

    /// Nobody else touches dead letters, so each that was listed was there.
    fn all_of(&mut self, what: &str, ids: &[RequestId], count: u64) {
        if count != ids.len() as u64 {
            let what = format!("{count} of {} dead letters were {what}: {ids:?}", ids.len());
            self.damaged(Kind::Wrong, what);
        }
    }

    /// What became of one since then may have been told before.
    fn redriven(&mut self, ids: &[RequestId]) {
        for id in ids {
            if let Some(request) = self.requests.get_mut(id)
                && request.standing == Standing::Dead
            {
                request.standing = Standing::Held;
            }
        }
    }

    fn purged(&mut self, ids: &[RequestId]) {
        for id in ids {
            if let Some(request) = self.requests.get_mut(id) {
                request.standing = Standing::Purged;
            }
        }
    }

    fn done(&mut self, id: RequestId, fate: Fate, at: Timestamp) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        match request.standing {
            Standing::Done(..) => {}
            Standing::Held | Standing::Dead => request.standing = Standing::Done(fate, at),
            standing => {
                let what = format!("request {id} is done when it was {standing:?} already");
                self.damaged(Kind::Wrong, what);
            }
        }
    }

    fn pushed_as(&mut self, push: u64, ids: &[(RequestId, bool)]) {
        let Some((first, duplicate)) = ids.first().copied() else {
            return self.damaged(Kind::Wrong, format!("push {push:x} was answered nothing"));
        };
        let known = self.pushes.get(&push);
        let (was, requests) = known.map_or((None, 0), |known| (known.first, known.requests));
        let is_one = (0..).zip(ids).all(|(index, (id, known))| {
            id.as_u64() == first.as_u64() + index && *known == duplicate
        });
        let kind = match was {
            _ if !is_one || ids.len() != requests as usize => Kind::Wrong,
            None if duplicate => Kind::Lost,
            Some(was) if was != first => Kind::Duplicated,
            _ => return self.settle_push(push, first),
        };
        let what = format!(
            "push {push:x} of {requests} requests, known as {was:?}, was answered {ids:?} (id, and whether it was known)"
        );
        self.damaged(kind, what);
    }

    /// A push happened, with this first id.
    fn settle_push(&mut self, number: u64, first: RequestId) {
        let Some(push) = self.pushes.get_mut(&number) else {
            return;
        };
        if push.first.is_some() {
            return;
        }
        push.first = Some(first);
        push.left = push.requests;
        self.counted.pushed += u64::from(push.requests);
        for index in 0..push.requests {
            let id = RequestId::from_u64(first.as_u64() + u64::from(index));
            let request = Request {
                name: Name {
                    push: number,
                    index,
                },
                pushed_at: push.at,
                standing: Standing::Held,
                is_marked: false,
                revived: 0,
            };
            self.requests.insert(id, request);
        }
    }

    /// A request was seen under this id: its push happened, and it is what was pushed.
    fn saw(&mut self, seen: &Seen) {
        let id = seen.id;
        let Some(name) = seen.name else {
            return self.damaged(Kind::Wrong, format!("request {id} has no name"));
        };
        let Some(push) = self.pushes.get(&name.push) else {
            let what =
                format!("request {id} ({name}) is there, and was settled before or never pushed");
            return self.damaged(Kind::Duplicated, what);
        };
        let first = RequestId::from_u64(id.as_u64().wrapping_sub(name.index.into()));
        match push.first {
            None => self.settle_push(name.push, first),
            Some(known) if known != first => {
                let what =
                    format!("request {name} is there as {id}, and its push began at {known}");
                self.damaged(Kind::Duplicated, what);
            }
            Some(_) if !self.requests.contains_key(&id) => {
                let what = format!("request {id} ({name}) is there again after it was settled");
                self.damaged(Kind::Duplicated, what);
            }
            Some(_) => {}
        }
        if !seen.intact {
            let what = format!("request {id} ({name}) has another payload than it was pushed with");
            self.damaged(Kind::Lost, what);
        }
        if seen.fate == Some(Fate::Foreign) {
            let what = format!("request {id} ({name}) has another result than was recorded");
            self.damaged(Kind::Lost, what);
        }
    }

    fn cancelled(&mut self, id: RequestId, mark: Mark) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        match (mark, request.standing) {
            (Mark::Now, Standing::Held | Standing::Dead) => {
                request.standing = Standing::Cancelled;
            }
            (Mark::Now, standing) => {
                let what = format!("request {id} was cancelled when it was {standing:?} already");
                self.damaged(Kind::Wrong, what);
            }
            (Mark::IfItComesBack, _) => request.is_marked = true,
            (Mark::No, _) => {}
        }
    }
}
