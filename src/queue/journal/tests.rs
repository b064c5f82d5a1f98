//! Tests of the whole store on a simulated disk.
//!
//! ```text
//! life ── verbs, answers, what is seen after each ──► history
//!   │ operations of the disk                            │
//!   ▼                                                   ▼
//! crash after k of them ──► open ──► what is seen is what was answered by then, or with what was under way
//!                             └──► crash inside that, open again
//! ```
//! There is no writer thread here: a lone caller writes its own group, and what the writer tends to is called
//! by hand. So the same seed gives the same operations.

mod crash;
mod damage;
mod failing;
mod fold;
mod full;
#[cfg(shuttle)]
mod interleavings;
mod life;
mod moments;
mod places;
mod reads;
mod script;
mod sweep;
mod tidying;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::mpsc,
    thread,
    time::Duration,
};

use bytes::Bytes;

use super::{
    JournalQueue, JournalStore,
    codec::Codec,
    rig::{IDENTITY, Rig, SALT, options, wait},
    simulated::SimDisk,
    state::Open,
};
use crate::{
    batch::{Claim, Lease, Member, Outcome, Page, Retries, Then, Update},
    clock::Timestamp,
    error::Result,
    queue::{Entry, List, Queue, QueueExt, QueueOptions, Store},
    request::{NewRequest, QueueName, RequestId, State},
    stats::Stats,
};

impl Rig {
    fn open(disk: &SimDisk, offer_held: bool) -> Result<Self> {
        Self::open_with(disk, options().offer_held(offer_held))
    }

    /// Another queue of the store.
    fn another(&self, name: &str) -> JournalQueue {
        let store = JournalStore {
            keeper: self.queue.keeper.clone(),
            report: Vec::new(),
        };
        let live = wait(&self.core, store.live(&name.parse().unwrap(), None));
        JournalQueue::new(self.queue.keeper.clone(), live.unwrap())
    }

    /// All that is kept in memory, as a baseline would hold it.
    fn encoded(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.core.lock().unwrap().state.put(&mut bytes);
        bytes
    }

    /// What is queued, and of these leases what their holders see.
    fn see(&self, now: Timestamp, leases: &[Lease]) -> Result<View> {
        let queue = &self.queue;
        let admin = queue.admin().unwrap();
        wait(&self.core, async {
            let mut view = View {
                bookmark: queue.bookmark(SOURCE).await?,
                ..View::default()
            };
            for state in State::ALL {
                let mut list = List::new(state).with_payloads();
                loop {
                    let entries = admin.list(now, &list).await?;
                    let Some(end) = entries.last() else { break };
                    list = list.after(end.id);
                    for entry in entries {
                        let twice = view.entries.insert(entry.id, entry);
                        assert!(twice.is_none(), "in two states: {twice:?}");
                    }
                }
            }
            let settled = admin.results(now, None, 1000.try_into().unwrap()).await?;
            view.results = settled.entries;
            view.stats = Stats {
                oldest_ready_at: None,
                ..queue.stats(now).await?
            };
            for lease in leases {
                let members = queue.read(lease, Page::first()).await?;
                view.held.insert(lease.batch.as_u128(), members);
            }
            let inner = self.core.lock()?;
            let open = inner.state.queues.values();
            let open = open.flat_map(|queue| &queue.stored.open);
            view.open = open.map(|(batch, open)| (*batch, bare(open))).collect();
            Ok(view)
        })
    }
}

/// A batch without where anything of it lies in the log.
fn bare(open: &Open) -> Open {
    let mut open = Open {
        pages: Vec::new(),
        ..open.clone()
    };
    for moved in open.members.moved.values_mut() {
        moved.error = None;
    }
    open
}

/// What can be seen of a queue.
#[derive(Clone, Debug, Default, PartialEq)]
struct View {
    stats: Stats,
    entries: BTreeMap<RequestId, Entry>,
    results: Vec<Entry>,
    open: BTreeMap<u64, Open>,
    held: BTreeMap<u128, Vec<Member>>,
    bookmark: Option<Bytes>,
}

impl View {
    /// Fails unless every request is in one state, and is what was pushed.
    fn check(&self, payloads: &BTreeMap<RequestId, Bytes>) -> Result<(), String> {
        self.check_payloads(payloads)?;
        let count = |state: State| {
            let entries = self.entries.values();
            entries.filter(|entry| entry.state == state).count() as u64
        };
        let counted = [State::Delayed, State::Ready, State::InFlight, State::Dead].map(count);
        let stats = &self.stats;
        let told = [stats.delayed, stats.ready, stats.in_flight, stats.dead];
        if counted != told {
            return Err(format!("{counted:?} are listed, {told:?} counted"));
        }
        Ok(())
    }

    /// Fails unless it adds up, and all that is served is what was pushed.
    fn check_payloads(&self, payloads: &BTreeMap<RequestId, Bytes>) -> Result<(), String> {
        if !self.stats.adds_up() {
            return Err(format!("it does not add up: {:?}", self.stats));
        }
        for entry in self.entries.values() {
            let pushed = payloads.get(&entry.id);
            let is_it = match (&entry.payload, pushed) {
                (Some(payload), _) => pushed == Some(payload),
                (None, Some(_)) => true,
                // Of some that are damaged not even the id is known.
                (None, None) => entry
                    .error
                    .as_ref()
                    .is_some_and(|error| error.contains("id")),
            };
            if !is_it {
                return Err(format!("this was never pushed: {entry:?}"));
            }
        }
        for member in self.held.values().flatten() {
            // One that has an outcome and is damaged since keeps that alone.
            let is_bare = member.outcome.is_some() && member.payload.is_empty();
            if payloads.get(&member.id) != Some(&member.payload) && !is_bare {
                return Err(format!("this was never pushed: {member:?}"));
            }
        }
        Ok(())
    }

    /// What differs, in a few words.
    fn difference(&self, other: &Self) -> String {
        let ids = self.entries.keys().chain(other.entries.keys());
        let ids: BTreeSet<_> = ids.collect();
        let differs = |id: &&&RequestId| self.entries.get(id) != other.entries.get(id);
        let entry = ids.iter().find(differs);
        let entry = entry.map(|id| (self.entries.get(id), other.entries.get(id)));
        let open = (self.open != other.open).then_some((&self.open, &other.open));
        format!(
            "{:?} and {:?}, first entry {entry:?}, open {open:?}, results {} and {}, held {}, bookmark {}",
            self.stats,
            other.stats,
            self.results.len(),
            other.results.len(),
            self.held == other.held,
            self.bookmark == other.bookmark,
        )
    }
}

/// A lone caller that writes its group holds the log and then wants the state; looking what there is to tidy up
/// must not hold the state and want the log.
#[test]
fn looking_what_is_to_be_tidied_does_not_wait_for_a_group_that_is_written() {
    let mut rig = Rig::open(&SimDisk::new(), false).unwrap();
    let core = rig.core.clone();
    let writing = core.log.lock().unwrap();
    let (looked, has_looked) = mpsc::channel();
    let looking = thread::spawn(move || {
        rig.tend.look(&rig.core, false);
        // Nobody listens any more if it took too long.
        let _ = looked.send(());
    });
    let in_time = has_looked.recv_timeout(Duration::from_secs(60));
    drop(writing);
    looking.join().unwrap();
    in_time.expect("it waits for the log");
}

/// A drain logs next to nothing, and sets much free.
#[test]
fn what_a_drain_sets_free_is_given_back_while_it_goes_on() {
    let mut rig = Rig::open(&SimDisk::new(), false).unwrap();
    let keep_nothing = QueueOptions::default().retention(Duration::ZERO);
    let named = |step: &mut super::Step<'_>| {
        step.open_queue(&QueueName::default(), Some(keep_nothing))
            .map(drop)
    };
    wait(&rig.core, rig.core.call(u32::MAX, named)).unwrap();
    let now = Timestamp::from_millis(1000);
    let tend = |rig: &mut Rig| {
        while rig.core.lock().unwrap().is_to_be_tended() {
            rig.tend.look(&rig.core, false);
        }
        rig.core
            .log
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .space()
            .disk_bytes()
    };
    for _ in 0..400 {
        let requests = (0..40).map(|_| NewRequest::new(vec![7; 1000])).collect();
        wait(&rig.core, rig.queue.push(now, requests)).unwrap();
        tend(&mut rig);
    }
    let full = tend(&mut rig);
    assert!(full > 16_000_000, "{full} bytes for 16 MB");
    let mut most = Vec::new();
    loop {
        let claim = Claim {
            max_requests: 1000.try_into().unwrap(),
            ..Claim::new()
        };
        let lease = wait(&rig.core, rig.queue.claim(now, &claim)).unwrap();
        let Some(lease) = lease else { break };
        let finish = Update::then(Then::Finish {
            rest: Outcome::done(),
            retries: Retries {
                at: now,
                max_attempts: NonZeroU32::MIN,
            },
        });
        wait(&rig.core, rig.queue.update(now, &lease, finish)).unwrap();
        most.push(tend(&mut rig));
    }
    assert!(most[most.len() / 2] < full * 3 / 4, "{most:?} after {full}");
    // What is looked at in steps, and what is kept ready.
    assert!(most[most.len() - 1] < 5_000_000, "{most:?} after {full}");
    rig.tend.look(&rig.core, true);
    let rests = tend(&mut rig);
    assert_eq!(
        rests,
        ROOT + 3 * 16 * 1024,
        "an open segment and two spares"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_opening_names_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let store = JournalStore::open(folder.path()).await.unwrap();
    let queue = store.queue(&QueueName::default()).await.unwrap();
    let mut pushed = Vec::new();
    for payload in ["the first", "the second", "the third"] {
        pushed.push(queue.push_one(NewRequest::new(payload)).await.unwrap());
    }
    store.close().await.unwrap();
    drop((queue, store));
    let mut damaged = 0;
    for entry in std::fs::read_dir(folder.path().join("log")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(10).position(|some| some == b"the second");
        if let Some(at) = at {
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    let options = JournalStore::options();
    let store = options.open(folder.path()).await.unwrap();
    assert_eq!(store.report(), [""; 0], "nobody has looked");
    store.close().await.unwrap();
    drop(store);
    let store = options.verify(true).open(folder.path()).await.unwrap();
    let told = format!(
        "damaged: queue default: request {}: its stored payload is damaged",
        pushed[1].id
    );
    assert_eq!(store.report(), [told]);
    store.close().await.unwrap();
}

#[test]
fn what_is_damaged_is_named_up_to_a_hundred_times() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, false).unwrap();
    let new = vec![NewRequest::new("a payload"); 130];
    wait(&rig.core, rig.queue.push(Timestamp::from_millis(1000), new)).unwrap();
    // A last group that is damaged would be one that was never whole.
    rig.tend.finish(&rig.core).unwrap();
    let mut image = disk.image();
    for bytes in image.values_mut() {
        for at in 0..bytes.len().saturating_sub(9) {
            if bytes[at..].starts_with(b"a payload") {
                bytes[at] = b'A';
            }
        }
    }
    let rig = Rig::open(&SimDisk::from_image(image), false).unwrap();
    let told = super::verify::held_by(&rig.core).unwrap();
    let told: Vec<String> = told.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 101, "{told:?}");
    assert!(
        told[99].ends_with("its stored payload is damaged"),
        "{}",
        told[99]
    );
    assert_eq!(told[100], "damaged: queue default: 30 more like these");
}

/// More of them for a longer run, or a certain one: `BATCHYARD_SEEDS=100..200`.
fn seeds(most: u64) -> std::ops::Range<u64> {
    let wanted = std::env::var("BATCHYARD_SEEDS").unwrap_or_default();
    let range = wanted
        .split_once("..")
        .and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.unwrap_or(0..most)
}

/// The file of the root.
const ROOT: u64 = 8192;
const SOURCE: &str = "source";
