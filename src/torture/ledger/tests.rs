//! The ledger as a function: lines in, damage out.

use std::sync::LazyLock;

use super::{Kind::*, *};
use crate::{
    request::{Position, State},
    torture::event::{Claimed, Counts, Next, Step, Whole},
};

/// A time at which nothing that was done before is kept any more.
const LATE: Timestamp = Timestamp::from_millis(100_000);
const FIRST: u64 = 1000;
const BATCH: BatchId = BatchId::new(1, 7);

/// A ledger, and who tells it.
#[derive(Default)]
struct Told {
    ledger: Ledger,
    calls: u64,
    gone: Counts,
}

fn id(number: u64) -> RequestId {
    RequestId::from_u64(FIRST + number)
}

fn seen(number: u64) -> Seen {
    let index = u32::try_from(number).unwrap();
    Seen {
        id: id(number),
        name: Some(Name { push: *PUSH, index }),
        intact: true,
        fate: None,
    }
}

/// A push of which none of the first requests expires.
static PUSH: LazyLock<u64> = LazyLock::new(|| {
    let lasts = |push: &u64| (0..10).all(|index| Name { push: *push, index }.ttl().is_none());
    (0..1_000).find(lasts).unwrap()
});

fn found(number: u64, state: State) -> FoundRequest {
    let fate = (state == State::Done).then_some(Fate::Plain);
    FoundRequest {
        seen: Seen {
            fate,
            ..seen(number)
        },
        state,
        member: None,
        damaged: false,
    }
}

fn member(number: u64, fate: Option<Fate>) -> FoundRequest {
    let state = match fate {
        Some(fate) if fate.is_done() => State::Done,
        _ => State::InFlight,
    };
    FoundRequest {
        seen: Seen {
            fate,
            ..seen(number)
        },
        state,
        member: Some((BATCH, Position::from_u64(FIRST + number))),
        damaged: false,
    }
}

fn batch(note: Option<Note>) -> FoundBatch {
    FoundBatch {
        batch: BATCH,
        parent: None,
        note,
        context: "context".to_owned(),
    }
}

fn step(note: Note, outcomes: &[(u64, Fate)], then: Next) -> Verb {
    Verb::Update(Step {
        batch: BATCH,
        note,
        outcomes: outcomes
            .iter()
            .map(|(number, fate)| (id(*number), *fate))
            .collect(),
        then,
    })
}

impl Told {
    /// With a push of so many requests that was answered.
    fn pushed(requests: u32) -> Self {
        let mut told = Self::default();
        let push = told.push(requests);
        let ids = (0..u64::from(requests)).map(|number| (id(number), false));
        told.answer(push, Answer::Pushed(ids.collect()));
        told
    }

    /// And all of them claimed as a batch.
    fn claimed(requests: u32) -> Self {
        let mut told = Self::pushed(requests);
        told.claim(1, None, requests);
        told
    }

    fn call(&mut self, verb: Verb) -> u64 {
        self.calls += 1;
        let (call, now) = (self.calls, Timestamp::from_millis(self.calls));
        self.ledger.hear(Event::Call { call, now, verb });
        call
    }

    fn answer(&mut self, call: u64, answer: Answer) {
        self.ledger.hear(Event::Answer { call, answer });
    }

    fn did(&mut self, verb: Verb, answer: Answer) {
        let call = self.call(verb);
        self.answer(call, answer);
    }

    fn push(&mut self, requests: u32) -> u64 {
        self.call(Verb::Push {
            push: *PUSH,
            requests,
            keyed: true,
        })
    }

    fn claim(&mut self, fence: u64, note: Option<Note>, requests: u32) {
        let claimed = Claimed {
            batch: BATCH,
            parent: None,
            fence,
            note,
            context: "context".to_owned(),
            members: (0..requests.into()).map(seen).collect(),
        };
        self.did(Verb::Claim, Answer::Claimed(Some(claimed)));
    }

    /// The next child finds this; what kinds of damage that is.
    fn finds(mut self, requests: &[FoundRequest], batches: &[FoundBatch]) -> Vec<Kind> {
        let of = |state| requests.iter().filter(|found| found.state == state).count() as u64;
        let held = self.ledger.counted.pushed.max(requests.len() as u64);
        let counts = Counts {
            pushed: held,
            delayed: of(State::Delayed),
            ready: of(State::Ready),
            in_flight: of(State::InFlight),
            batches: batches.len() as u64,
            done: of(State::Done) + self.gone.done,
            dead: of(State::Dead),
            adds_up: true,
            ..self.gone
        };
        let requests = requests.iter().cloned().map(Event::Request);
        let batches = batches.iter().cloned().map(Event::Batch);
        requests
            .chain(batches)
            .for_each(|found| self.ledger.hear(found));
        self.ledger.hear(Event::Surveyed(Whole {
            now: LATE,
            fence: 100,
            counts,
        }));
        self.kinds()
    }

    fn kinds(self) -> Vec<Kind> {
        let damage = self.ledger.damage.iter();
        // A count that differs follows from nearly everything.
        let mut kinds: Vec<_> = damage
            .filter(|damage| !damage.what.starts_with("the store counts"))
            .map(|damage| damage.kind)
            .collect();
        kinds.dedup();
        kinds
    }
}

const NOTHING: [Kind; 0] = [];

#[test]
fn what_was_pushed_is_there_once_as_it_was() {
    use State::{Dead, Ready};
    let (zero, one) = (found(0, Ready), found(1, Ready));
    let both = [zero.clone(), one.clone()];
    assert_eq!(Told::pushed(2).finds(&both, &[]), NOTHING);
    assert_eq!(
        Told::pushed(2).finds(&[found(0, Dead), one.clone()], &[]),
        NOTHING
    );
    assert_eq!(Told::pushed(2).finds(&both[..1], &[]), [Lost]);

    let mut other = zero.clone();
    other.seen.intact = false;
    assert_eq!(Told::pushed(2).finds(&[other, one.clone()], &[]), [Lost]);
    let mut twice = found(5, Ready);
    twice.seen.name = zero.seen.name;
    assert_eq!(
        Told::pushed(2).finds(&[zero.clone(), one.clone(), twice], &[]),
        [Duplicated]
    );
    let mut nobodys = found(5, Ready);
    nobodys.seen.name = Some(Name { push: 9, index: 0 });
    assert_eq!(
        Told::pushed(2).finds(&[zero, one, nobodys], &[]),
        [Duplicated]
    );
}

#[test]
fn a_push_without_an_answer_is_there_as_a_whole_or_not_at_all() {
    let both = [found(0, State::Ready), found(1, State::Ready)];
    for (there, kinds) in [(0, &[][..]), (1, &[Lost]), (2, &[])] {
        let mut told = Told::default();
        told.push(2);
        assert_eq!(told.finds(&both[..there], &[]), kinds, "{there} of 2");
    }
}

#[test]
fn a_push_that_is_made_again_adds_nothing() {
    let again = |known: bool, first: u64| {
        let mut told = Told::pushed(2);
        let push = told.push(2);
        let ids = [(id(first), known), (id(first + 1), known)];
        told.answer(push, Answer::Pushed(ids.to_vec()));
        told.kinds()
    };
    assert_eq!(again(true, 0), NOTHING);
    assert_eq!(again(false, 10), [Duplicated]);
    // One that was never there can't be known.
    let mut told = Told::default();
    let push = told.push(1);
    told.answer(push, Answer::Pushed(vec![(id(0), true)]));
    assert_eq!(told.kinds(), [Lost]);
}

#[test]
fn a_batch_comes_back_as_it_was() {
    let note = Some(Note(1, 1));
    let held = || {
        let mut told = Told::claimed(3);
        told.did(
            step(Note(1, 1), &[(0, Fate::Plain), (1, Fate::Retry)], Next::On),
            Answer::Updated,
        );
        told
    };
    let members = [
        member(0, Some(Fate::Plain)),
        member(1, Some(Fate::Retry)),
        member(2, None),
    ];
    assert_eq!(held().finds(&members, &[batch(note)]), NOTHING);
    for (what, requests, note) in [
        ("an older checkpoint", members.to_vec(), None),
        ("a checkpoint of nobody", members.to_vec(), Some(Note(1, 2))),
        (
            "a lost outcome",
            [&members[..1], &[member(1, None)], &members[2..]].concat(),
            note,
        ),
        (
            "another outcome",
            [
                &members[..1],
                &[member(1, Some(Fate::Reject))],
                &members[2..],
            ]
            .concat(),
            note,
        ),
        (
            "an outcome of nobody",
            [&members[..2], &[member(2, Some(Fate::Reject))]].concat(),
            note,
        ),
    ] {
        assert_eq!(held().finds(&requests, &[batch(note)]), [Changed], "{what}");
    }
    let mut moved = members.clone();
    moved[0].member = Some((BATCH, Position::from_u64(FIRST + 9)));
    assert_eq!(
        held().finds(&moved, &[batch(note)]),
        [Changed],
        "another order"
    );
    let free = [
        found(0, State::Done),
        found(1, State::Ready),
        found(2, State::Ready),
    ];
    assert_eq!(held().finds(&free, &[]), [Changed], "it is gone");
}

#[test]
fn an_update_without_an_answer_happened_if_its_checkpoint_is_there_and_then_wholly() {
    let held = || {
        let mut told = Told::claimed(2);
        told.call(step(Note(1, 1), &[(0, Fate::Done)], Next::On));
        told
    };
    let (before, after) = (
        [member(0, None), member(1, None)],
        [member(0, Some(Fate::Done)), member(1, None)],
    );
    let note = Some(Note(1, 1));
    assert_eq!(held().finds(&before, &[batch(None)]), NOTHING);
    assert_eq!(held().finds(&after, &[batch(note)]), NOTHING);
    // One without the other.
    assert!(held().finds(&before, &[batch(note)]).contains(&Changed));
    assert!(held().finds(&after, &[batch(None)]).contains(&Changed));
}

#[test]
fn what_ended_stays_ended() {
    use State::{Dead, Done, Ready};
    let ended = |fate, at: fn(&mut Told)| {
        let mut told = Told::claimed(2);
        told.did(
            step(Note(1, 1), &[(0, Fate::Done)], Next::Finish(fate)),
            Answer::Updated,
        );
        at(&mut told);
        told
    };
    let mut zero = found(0, Done);
    zero.seen.fate = Some(Fate::Done);
    let done = [zero.clone(), found(1, Done)];
    assert_eq!(ended(Fate::Plain, |_| ()).finds(&done, &[]), NOTHING);
    let forgotten = ended(Fate::Plain, |told| told.gone.done = 2);
    assert_eq!(forgotten.finds(&[], &[]), NOTHING, "kept for long enough");
    let back = [member(0, Some(Fate::Done)), member(1, None)];
    assert!(
        ended(Fate::Plain, |_| ())
            .finds(&back, &[batch(Some(Note(1, 1)))])
            .contains(&Changed)
    );
    assert_eq!(
        ended(Fate::Plain, |_| ()).finds(&[zero.clone(), found(1, Ready)], &[]),
        [Lost]
    );
    let other = [found(0, Done), found(1, Done)];
    assert_eq!(
        ended(Fate::Plain, |_| ()).finds(&other, &[]),
        [Lost],
        "its result"
    );

    let dead = [zero.clone(), found(1, Dead)];
    assert_eq!(ended(Fate::Reject, |_| ()).finds(&dead, &[]), NOTHING);
    assert_eq!(
        ended(Fate::Reject, |_| ()).finds(&[zero.clone(), found(1, Ready)], &[]),
        [Lost]
    );
    let purge = |told: &mut Told| told.did(Verb::Purge(vec![id(1)]), Answer::Count(1));
    assert_eq!(ended(Fate::Reject, purge).finds(&dead, &[]), [Duplicated]);
    let redrive = |told: &mut Told| told.did(Verb::Redrive(vec![id(1)]), Answer::Count(1));
    assert_eq!(
        ended(Fate::Reject, redrive).finds(&[zero, found(1, Ready)], &[]),
        NOTHING
    );
}

#[test]
fn a_cancelled_request_is_gone() {
    let cancelled = |mark, gone| {
        let mut told = Told::pushed(1);
        told.did(Verb::Cancel(vec![id(0)]), Answer::Cancelled(vec![mark]));
        told.gone.cancelled = gone;
        told
    };
    let there = [found(0, State::Ready)];
    assert_eq!(cancelled(Mark::Now, 1).finds(&[], &[]), NOTHING);
    assert_eq!(cancelled(Mark::Now, 0).finds(&there, &[]), [Duplicated]);
    assert_eq!(cancelled(Mark::IfItComesBack, 1).finds(&[], &[]), NOTHING);
    assert_eq!(cancelled(Mark::No, 1).finds(&[], &[]), [Lost]);
}

#[test]
fn a_late_holder_is_let_in_by_nobody() {
    let late = |answer| {
        let mut told = Told::claimed(2);
        told.claim(2, None, 2);
        told.did(step(Note(1, 1), &[], Next::On), answer);
        told.kinds()
    };
    assert_eq!(late(Answer::Lost), NOTHING);
    assert_eq!(late(Answer::Updated), [Wrong]);
    let mut told = Told::claimed(2);
    told.claim(1, None, 2);
    assert_eq!(told.kinds(), [Wrong], "the same fence again");
    let mut told = Told::claimed(2);
    told.did(step(Note(1, 1), &[], Next::On), Answer::Lost);
    assert_eq!(told.kinds(), [Wrong], "it was nobody else's");
}

#[test]
fn a_split_batch_has_two_halves() {
    let split = || {
        let mut told = Told::claimed(3);
        told.did(step(Note(1, 1), &[], Next::Split), Answer::Updated);
        told
    };
    let halves = [BatchId::new(2, 7), BatchId::new(3, 7)];
    let half = |half: usize| FoundBatch {
        batch: halves[half],
        parent: Some(BATCH),
        note: None,
        context: "context".to_owned(),
    };
    let of = |number: u64, half: usize| FoundRequest {
        member: Some((halves[half], Position::from_u64(number))),
        ..member(number, None)
    };
    let whole = [of(0, 0), of(1, 0), of(2, 1)];
    assert_eq!(split().finds(&whole, &[half(0), half(1)]), NOTHING);
    let uneven = [of(0, 0), of(1, 1), of(2, 1)];
    assert_eq!(split().finds(&uneven, &[half(0), half(1)]), [Changed]);
    let one = [of(0, 0), of(1, 0), found(2, State::Ready)];
    assert_eq!(split().finds(&one, &[half(0)]), [Changed]);
    // The same without an answer, and a half that is claimed before the store is looked at.
    let mut told = Told::claimed(3);
    told.call(step(Note(1, 1), &[], Next::Split));
    assert_eq!(told.finds(&whole, &[half(0), half(1)]), NOTHING);
}

#[test]
fn a_count_that_differs_is_told() {
    let mut told = Told::pushed(2);
    told.gone.purged = 1;
    let both = [found(0, State::Ready), found(1, State::Ready)];
    for found in both {
        told.ledger.hear(Event::Request(found));
    }
    told.ledger.hear(Event::Surveyed(Whole {
        now: LATE,
        fence: 1,
        counts: Counts {
            pushed: 2,
            ready: 2,
            purged: 1,
            adds_up: false,
            ..Counts::default()
        },
    }));
    assert_eq!(told.ledger.damage.len(), 1);
    assert_eq!(told.ledger.damage[0].kind, Wrong);
}

#[test]
fn what_has_no_room_changes_nothing() {
    let mut told = Told::pushed(1);
    let again = told.call(Verb::Push {
        push: *PUSH + 1,
        requests: 1,
        keyed: false,
    });
    told.answer(again, Answer::Full);
    told.did(Verb::Redrive(vec![id(0)]), Answer::Full);
    assert_eq!(told.finds(&[found(0, State::Ready)], &[]), NOTHING);
}

#[test]
fn a_failure_is_one_unless_the_disk_fails() {
    for (disk_fails, kinds) in [(false, &[Wrong][..]), (true, &[])] {
        let mut told = Told::default();
        told.ledger.expect_failures(disk_fails);
        let push = told.push(1);
        told.answer(push, Answer::Failed("no disk".to_owned()));
        assert_eq!(told.kinds(), kinds, "it may be there or not");
    }
}
