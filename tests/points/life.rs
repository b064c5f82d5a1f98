//! The life that a child leads: whatever is left of it, from any moment on.
//!
//! ```text
//!  open ─▶ look ─▶ waves of pushes, each handled until nothing is left ─▶ redrive, purge, cancel ─▶ close ─▶ open, look
//! ```
//! What a request's name begins with says what becomes of it, so that who reads the books knows it, too. A child that
//! finds a part of it done already goes on with the rest.

use std::{collections::BTreeSet, num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use batchyard::{
    Batch, BatchOptions, Claim, Dispatcher, Entry, HandlerError, JournalStore, List, Member,
    NewRequest, Outcome, Page, Policy, Queue, QueueName, QueueOptions, RedisQueue, Report,
    RequestId, Retries, RunningDispatcher, SledStore, State, Store, Then, Update,
};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};

use crate::told::{NAME, Plant, SeenEntry, Telling, Told, tell, word};

/// Where the life is led, and how long it is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// `sled`, `journal` or `redis`.
    pub(crate) backend: &'static str,
    /// The folder of the store, or the address of the server.
    pub(crate) store: PathBuf,
    pub(crate) queue: String,
    pub(crate) length: Length,
}

/// How much there is to a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Length {
    Short,
    /// With large pushes and batches, and enough to fill segments.
    Long,
    /// A short one that pauses until it is killed.
    Idle,
}

/// Requests that are pushed together.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) names: Vec<String>,
    pub(crate) bytes: usize,
}

fn group(kinds: &[(&str, u32)], bytes: usize) -> Group {
    let names = kinds
        .iter()
        .flat_map(|(kind, count)| (0..*count).map(move |number| format!("{kind}-{number}")));
    Group {
        names: names.collect(),
        bytes,
    }
}

/// Waves of groups: those of a wave are pushed one after another, or at the same time if there are more than five.
pub(crate) fn waves(length: Length) -> Vec<Vec<Group>> {
    let many = |kind: &str, count, of, bytes| {
        let names = (0..count).map(|number| format!("{kind}{number}"));
        names
            .map(|kind| group(&[(&kind, of)], bytes))
            .collect::<Vec<_>>()
    };
    let mut waves = vec![
        vec![
            group(&[("single", 1)], 10),
            group(&[("keyed", 2)], 10),
            group(&[("late", 1)], 10),
            group(&[("cancel", 1)], 2_000),
        ],
        many("crowd", 8, 1, 100),
        vec![group(
            &[
                ("ok", 4),
                ("retry", 2),
                ("reject", 1),
                ("redrive", 2),
                ("purge", 1),
            ],
            100,
        )],
        vec![group(&[("outage", 1), ("sound", 3)], 100)],
        vec![group(&[("mixed", 4), ("poison", 1)], 100)],
    ];
    if length == Length::Long {
        waves.push(vec![group(&[("taken", 300)], 20)]);
        waves.push(vec![group(&[("many", 1_300)], 20)]);
        waves.push(vec![group(&[("huge", 5)], 1 << 20)]);
        waves.extend((0..6).map(|number| many(&format!("churn{number}x"), 5, 8, 16 << 10)));
    }
    waves.push(vec![group(&[(LAST, 1)], 10)]);
    waves
}

/// Nothing was cancelled or purged before this one was pushed.
const LAST: &str = "last";

pub(crate) fn kind(name: &str) -> &str {
    name.split('-').next().unwrap_or_default()
}

/// What the handler says of a request; whether it came back once.
pub(crate) fn outcome(name: &str, came_back: bool) -> Outcome {
    match kind(name) {
        "retry" if !came_back => Outcome::retry("once more"),
        "redrive" if !came_back => Outcome::reject("not yet"),
        "reject" | "purge" => Outcome::reject("never"),
        "taken" => Outcome::result("of taken"),
        _ => Outcome::result(format!("of {name}")),
    }
}

/// In which state a request ends; none if it is forgotten.
pub(crate) fn end(name: &str) -> Option<State> {
    match kind(name) {
        "reject" | "poison" => Some(State::Dead),
        "purge" | "cancel" => None,
        _ => Some(State::Done),
    }
}

/// An open queue, and what it lies in.
pub(crate) struct Site {
    queue: Arc<dyn Queue>,
    store: Option<Arc<dyn Store>>,
}

impl Site {
    pub(crate) async fn open(place: &Place, ahead: Duration, plant: Plant) -> Self {
        let options = QueueOptions::default()
            .retention(YEARS)
            .idempotency_window(YEARS);
        let name: QueueName = place.queue.parse().unwrap();
        match place.backend {
            "sled" => {
                let store = SledStore::options().cache_bytes(16 << 20);
                let store = store.open_timeout(Duration::from_mins(5));
                let store = store.open(&place.store).await.unwrap();
                let queue = store.queue_with(&name, options).await.unwrap();
                Self::of(queue, Some(Arc::new(store)), ahead, plant)
            }
            "journal" => {
                let store = JournalStore::options().segment_bytes(SEGMENT_BYTES);
                let store = store.open(&place.store).await.unwrap();
                let damage = store.report().iter();
                let damage: Vec<_> = damage.filter(|line| !line.starts_with("unconf")).collect();
                assert!(damage.is_empty(), "{damage:?}");
                let queue = store.queue_with(&name, options).await.unwrap();
                Self::of(queue, Some(Arc::new(store)), ahead, plant)
            }
            _ => {
                let url = place.store.to_str().unwrap();
                let queue = RedisQueue::connect_with(url, &name, options).await.unwrap();
                Self::of(queue, None, ahead, plant)
            }
        }
    }

    fn of(queue: impl Queue, store: Option<Arc<dyn Store>>, ahead: Duration, plant: Plant) -> Self {
        let queue = Telling {
            queue,
            ahead,
            plant,
            pushes: 0.into(),
            late: Vec::new().into(),
        };
        let queue = Arc::new(queue);
        Self { queue, store }
    }

    async fn close(self) {
        self.queue.close().await.unwrap();
        if let Some(store) = self.store {
            store.close().await.unwrap();
        }
    }
}

/// Leads the life to its end.
pub(crate) async fn live(place: &Place, ahead: Duration, plant: Plant) {
    tell(&Told::Opening);
    let site = Site::open(place, ahead, plant).await;
    tell(&Told::Opened);
    let queue = &site.queue;
    let seen = look(&**queue).await;
    let names: BTreeSet<&str> = seen.iter().map(|entry| &*entry.attributes[NAME]).collect();
    let is_all_pushed = names.iter().any(|name| kind(name) == LAST);
    for wave in waves(place.length) {
        let missing = |group: &&Group| {
            // Its second push must be answered as the first one was.
            let again = kind(&group.names[0]) == "keyed";
            again || (!is_all_pushed && !names.contains(&*group.names[0]))
        };
        push(&**queue, wave.iter().filter(missing)).await;
        if kind(&wave[0].names[0]) == "taken" {
            take(queue).await;
        }
        settle(queue).await;
    }
    if place.length == Length::Idle {
        tokio::time::sleep(PAUSE).await;
    }
    let admin = queue.admin().unwrap();
    redrive_and_purge(&**queue).await;
    settle(queue).await;
    let cancel = of_kind(&**queue, State::Delayed, "cancel").await;
    if !cancel.is_empty() {
        admin.cancel(queue.now(), &cancel).await.unwrap();
    }
    tell(&Told::Closing);
    site.close().await;
    tell(&Told::Closed);
    // A clean end opens as it was left.
    tell(&Told::Opening);
    let site = Site::open(place, ahead, plant).await;
    tell(&Told::Opened);
    look(&*site.queue).await;
    tell(&Told::Closing);
    site.close().await;
    tell(&Told::Closed);
}

async fn redrive_and_purge(queue: &dyn Queue) {
    let admin = queue.admin().unwrap();
    let redrive = of_kind(queue, State::Dead, "redrive").await;
    if !redrive.is_empty() {
        admin.redrive(queue.now(), &redrive).await.unwrap();
    }
    let purge = of_kind(queue, State::Dead, "purge").await;
    if !purge.is_empty() {
        admin.purge(queue.now(), &purge).await.unwrap();
    }
}

/// Tells everything that the queue shows.
async fn look(queue: &dyn Queue) -> Vec<Entry> {
    let mut all = Vec::new();
    for state in [
        State::Delayed,
        State::Ready,
        State::InFlight,
        State::Done,
        State::Dead,
    ] {
        all.extend(list(queue, state).await);
    }
    let entries = all.iter().map(|entry| SeenEntry {
        id: entry.id.to_string(),
        name: entry.attributes[NAME].clone(),
        state: entry.state,
        result: entry
            .result
            .as_ref()
            .map(|result| String::from_utf8_lossy(result).into_owned()),
    });
    tell(&Told::Seen {
        entries: entries.collect(),
        stats: queue.stats(queue.now()).await.unwrap().into(),
    });
    all
}

async fn list(queue: &dyn Queue, state: State) -> Vec<Entry> {
    let (admin, mut list) = (queue.admin().unwrap(), List::new(state));
    let mut all = Vec::new();
    loop {
        let page = admin.list(queue.now(), &list).await.unwrap();
        let Some(end) = page.last() else { return all };
        list = list.after(end.id);
        all.extend(page);
    }
}

async fn of_kind(queue: &dyn Queue, state: State, wanted: &str) -> Vec<RequestId> {
    let entries = list(queue, state).await;
    let entries = entries.iter();
    let wanted = entries.filter(|entry| kind(&entry.attributes[NAME]) == wanted);
    wanted.map(|entry| entry.id).collect()
}

async fn push(queue: &dyn Queue, groups: impl Iterator<Item = &Group>) {
    let now = queue.now();
    let pushes = groups.map(|group| {
        let requests = group.names.iter().map(|name| {
            let payload = vec![name.as_bytes()[0]; group.bytes];
            let request = NewRequest::new(payload).attribute(NAME, name);
            match kind(name) {
                "late" => request.not_before(now.after(Duration::from_millis(1))),
                "cancel" => request.not_before(now.after(YEARS)),
                "keyed" => request.idempotency_key(name),
                _ => request,
            }
        });
        queue.push(now, requests.collect())
    });
    let pushes: Vec<_> = pushes.collect();
    if pushes.len() > 5 {
        try_join_all(pushes).await.unwrap();
    } else {
        for push in pushes {
            push.await.unwrap();
        }
    }
}

/// Takes a batch and ends it at once, all of it done.
async fn take(queue: &Arc<dyn Queue>) {
    let now = queue.now();
    let claim = Claim {
        lease_duration: LEASE,
        ..Claim::new()
    };
    let Some(lease) = queue.claim(now, &claim).await.unwrap() else {
        return;
    };
    let batch = Batch::new(queue.clone(), lease, BatchOptions::default()).unwrap();
    members(&batch).await.unwrap();
    let rest = Outcome::result("of taken");
    let retries = Retries {
        at: now,
        max_attempts: NonZeroU32::MAX,
    };
    let end = Update::then(Then::Finish { rest, retries });
    queue.update(now, batch.lease(), end).await.unwrap();
    // Time for what is settled after the answer, between the groups of others.
    for _ in 0..4 {
        queue.push(now, Vec::new()).await.unwrap();
    }
}

/// Handles all there is, but for what is to be cancelled.
async fn settle(queue: &Arc<dyn Queue>) {
    let mut dispatcher: Option<RunningDispatcher> = None;
    let mut changes = queue.pushed().unwrap();
    loop {
        changes.mark_unchanged();
        let stats = queue.stats(queue.now()).await.unwrap();
        let kept = of_kind(&**queue, State::Delayed, "cancel").await.len() as u64;
        if stats.held() == kept && stats.batches == 0 {
            break;
        }
        dispatcher.get_or_insert_with(|| dispatch(queue));
        // A server that was killed tells nobody of what changed.
        let _ = tokio::time::timeout(LOOK_AGAIN, changes.changed()).await;
    }
    if let Some(dispatcher) = dispatcher {
        dispatcher.shut_down().await.unwrap();
    }
}

fn dispatch(queue: &Arc<dyn Queue>) -> RunningDispatcher {
    let policy = Policy {
        queue_threshold: NonZeroU32::new(2_000).unwrap(),
        time_threshold: Duration::from_millis(1),
        time_interval: LOOK_AGAIN,
        max_in_flight: NonZeroU32::new(2).unwrap(),
        max_attempts: NonZeroU32::new(1_000).unwrap(),
        initial_backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(2),
        lease_duration: LEASE,
        heartbeat_interval: LEASE / 4,
        ..Policy::default()
    };
    let builder = Dispatcher::builder(queue.clone()).policy(policy);
    let builder = builder
        .handler(handle)
        .on_results(|batch: Batch| async move {
            members(&batch).await?;
            Ok(())
        });
    builder.build().unwrap().start()
}

/// Fails a batch as its members want, else records their outcomes in pages, with checkpoints between them.
async fn handle(batch: Batch) -> Result<Report, HandlerError> {
    let members = members(&batch).await?;
    let open = members.iter().filter(|member| member.outcome.is_none());
    let open: Vec<(RequestId, &str, Outcome)> = open
        .map(|member| {
            let name = &*member.attributes[NAME];
            let came_back = member.position.as_u64() != member.id.as_u64();
            (member.id, name, outcome(name, came_back))
        })
        .collect();
    let checkpoint = batch.checkpoint();
    let step: u32 = checkpoint.map_or(0, |step| {
        std::str::from_utf8(&step).unwrap().parse().unwrap()
    });
    let has = |wanted| open.iter().any(|(_, name, _)| kind(name) == wanted);
    if has("poison") {
        return Err(HandlerError::permanent("poison"));
    }
    batch.save_checkpoint((step + 1).to_string()).await?;
    match step {
        0 if has("outage") => return Err(HandlerError::outage("away")),
        1 if has("outage") => return Err(HandlerError::transient("stumbled")),
        _ => {}
    }
    let mut outcomes = open.iter().map(|(id, _, outcome)| (*id, outcome.clone()));
    let first = open.len() * 9 / 10;
    let second = (open.len() - first).div_ceil(2);
    batch
        .record(outcomes.by_ref().take(first).collect())
        .await?;
    let page = outcomes.by_ref().take(second).collect();
    batch
        .update(page, Some((step + 2).to_string().into()))
        .await?;
    Ok(Report::outcomes(outcomes.collect()))
}

/// All members of a batch, which it tells.
async fn members(batch: &Batch) -> batchyard::Result<Vec<Member>> {
    let (mut page, mut all) = (Page::first(), Vec::new());
    loop {
        let members = batch.page(page).await?;
        let Some(last) = members.last() else { break };
        page = page.after(last.position);
        all.extend(members);
    }
    let members = all.iter().map(|member: &Member| {
        let name = member.attributes[NAME].clone();
        let outcome = member.outcome.as_ref().map(word);
        (member.id.to_string(), name, outcome)
    });
    tell(&Told::Members {
        batch: batch.id().to_string(),
        members: members.collect(),
    });
    Ok(all)
}

/// A lease ends only because its holder did.
pub(crate) const LEASE: Duration = Duration::from_hours(1);
const YEARS: Duration = Duration::from_hours(10 * 365 * 24);
/// For how long one that pauses waits to be killed.
const PAUSE: Duration = Duration::from_mins(1);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// So small that a long life fills several.
const SEGMENT_BYTES: u32 = 256 << 10;
