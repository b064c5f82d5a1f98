//! Files of a log, damaged in any way, and opened.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    batch::{Claim, Member, Outcome, Page, Retries, Then, Update},
    clock::Timestamp,
    error::Result,
    queue::{
        Entry, List, Queue, QueueOptions,
        journal::fuzzing::{Image, SALT, Simulated, reseal},
    },
    request::{NewRequest, RequestId, State},
    stats::Stats,
};

/// ```text
/// store  flags  then, each: what  file  at (3)  length  bytes ...
/// ```
/// With `flags & 1` all checksums are made right again behind the damage.
pub fn journal_recovery(data: &[u8]) {
    let [store, flags, rest @ ..] = data else {
        return;
    };
    let sound = &SOUND[usize::from(*store) % SOUND.len()];
    let mut image = sound.image.clone();
    let is_forged = flags & 1 == 1;
    damage(&mut image, rest);
    if is_forged {
        for file in image.values_mut() {
            reseal(file, SALT);
        }
    }
    let opened = Simulated::open(image, options());
    // All of it may be gone, or of a newer version.
    let Ok(mut store) = opened else { return };
    let first = see(&mut store).map_err(|error| error.kind());
    // Reading all of it finds something or not, and changes nothing.
    let verified = store.verify();
    let mut again = Simulated::open(store.image(), options()).expect("it could be opened before");
    let again = see(&mut again).map_err(|error| error.kind());
    // A header that lies about which segments are needed has them freed: that is no damage.
    assert!(is_forged || again == first, "{again:?} after {first:?}");
    let Ok(seen) = first else {
        assert!(is_forged, "what is damaged can still be looked at");
        return;
    };
    let verified = verified.unwrap_or_else(|error| vec![error.to_string()]);
    let told = [store.report(), &verified].concat();
    seen.check(sound, is_forged, &told);
    let settled = settle(&mut store);
    if is_forged {
        return;
    }
    for member in settled.expect("what is damaged can still be settled") {
        let is_bare = member.outcome.is_some() && member.payload.is_empty();
        let pushed = sound.payloads.get(&member.id);
        assert!(is_bare || pushed == Some(&member.payload), "{member:?}");
    }
}

/// What each damage does to the files, one after the other.
fn damage(image: &mut Image, mut script: &[u8]) {
    let mut left = DAMAGES;
    while let [what, file, low, middle, high, length, rest @ ..] = script
        && left > 0
    {
        left -= 1;
        let names: Vec<String> = image.keys().cloned().collect();
        let Some(name) = names.get(usize::from(*file) % names.len().max(1)) else {
            return;
        };
        let at = usize::from(*low) | usize::from(*middle) << 8 | usize::from(*high & 3) << 16;
        let length = usize::from(*length);
        let (bytes, behind) = rest.split_at(rest.len().min(if what % 8 < 2 { length } else { 0 }));
        script = behind;
        let other = names[length % names.len()].clone();
        let copy = image[&other].clone();
        let file = image.get_mut(name).expect("it is there");
        let from = at.min(file.len());
        let whole = |length: usize| from..(from + length).min(file.len());
        match what % 8 {
            // Other bytes.
            0 => {
                let range = whole(bytes.len());
                let bytes = &bytes[..range.len()];
                file[range].copy_from_slice(bytes);
            }
            // Flipped bits.
            1 => {
                let range = whole(bytes.len());
                file[range]
                    .iter_mut()
                    .zip(bytes)
                    .for_each(|(one, flip)| *one ^= flip);
            }
            // Sectors that are gone.
            2 => {
                let range = whole(512 * length);
                file[range].fill(0);
            }
            // A file that ends early.
            3 => file.truncate(from),
            4 => drop(image.remove(name)),
            // A file that is another one, or goes on as that.
            5 => *file = copy,
            6 => {
                let end = file.len().min(copy.len());
                let from = from.min(end);
                file[from..end].copy_from_slice(&copy[from..end]);
            }
            // Sectors that were written elsewhere.
            _ => {
                let to = (at ^ length << 9).min(file.len()) & !511;
                let range = whole(512);
                let some = range.len().min(file.len() - to);
                file.copy_within(from..from + some, to);
            }
        }
    }
}

/// All that can be seen without changing anything.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    stats: Stats,
    entries: BTreeMap<RequestId, Entry>,
    results: Vec<Entry>,
}

impl Seen {
    fn check(&self, sound: &Sound, is_forged: bool, told: &[String]) {
        assert!(self.stats.adds_up(), "{:?}", self.stats);
        if is_forged {
            return;
        }
        // Of requests whose ids are gone it is known how many there are of each kind, but not which.
        let is_known = !told.iter().any(|line| line.contains("even its id"));
        let count = |state: State| {
            let entries = self.entries.values();
            entries.filter(|entry| entry.state == state).count() as u64
        };
        let stats = &self.stats;
        let counted = [stats.delayed, stats.ready, stats.in_flight, stats.dead];
        let listed = [State::Delayed, State::Ready, State::InFlight, State::Dead].map(count);
        assert!(
            !is_known || listed == counted,
            "{told:?}: {listed:?} of {stats:?}"
        );
        for entry in self.entries.values().chain(&self.results) {
            let pushed = sound.payloads.get(&entry.id);
            assert!(
                entry.payload.is_none() || entry.payload.as_ref() == pushed,
                "never pushed: {entry:?}"
            );
        }
    }
}

fn see(store: &mut Simulated) -> Result<Seen> {
    let queue = store.queue();
    store.wait(async {
        let admin = queue.admin().expect("the journal has it");
        let mut entries = BTreeMap::new();
        for state in STATES {
            let mut wanted = List::new(state).with_payloads();
            loop {
                let page = admin.list(NOW, &wanted).await?;
                let Some(last) = page.last() else { break };
                assert!(wanted.after < Some(last.id), "a list goes on and on");
                wanted = wanted.after(last.id);
                entries.extend(page.into_iter().map(|entry| (entry.id, entry)));
            }
        }
        Ok(Seen {
            stats: queue.stats(NOW).await?,
            results: admin.results(NOW, None, MANY).await?.entries,
            entries,
        })
    })
}

/// Claims and finishes all there is; the members of all batches.
fn settle(store: &mut Simulated) -> Result<Vec<Member>> {
    let queue = store.queue();
    let later = NOW.after(Duration::from_secs(3600));
    store.wait(async {
        let mut all = Vec::new();
        let mut fences = BTreeSet::new();
        while let Some(lease) = queue.claim(later, &Claim::new()).await? {
            assert!(fences.insert(lease.fence), "a fence is given again");
            let mut page = Page::first();
            loop {
                let members = queue.read(&lease, page).await?;
                let Some(last) = members.last() else { break };
                page = page.after(last.position);
                all.extend(members);
            }
            let finish = Update::then(Then::Finish {
                rest: Outcome::done(),
                retries: Retries {
                    at: later,
                    max_attempts: NonZeroU32::MIN,
                },
            });
            queue.update(later, &lease, finish).await?;
        }
        let stats = queue.stats(later).await?;
        assert!(stats.adds_up() && stats.ready == 0, "{stats:?}");
        Ok(all)
    })
}

/// A store that nothing has damaged yet.
struct Sound {
    image: Image,
    payloads: BTreeMap<RequestId, Bytes>,
}

/// Of several lives, closed and not.
static SOUND: LazyLock<Vec<Sound>> = LazyLock::new(|| (0..STORES).map(sound).collect());

fn sound(seed: u64) -> Sound {
    // The salts of queues are rolled with the dice of the thread.
    fastrand::seed(seed);
    let mut store = Simulated::open(Image::new(), options()).expect("an empty disk");
    let mut life = Life {
        queue: store.queue(),
        dice: fastrand::Rng::with_seed(seed),
        now: NOW.before(Duration::from_secs(ROUNDS)),
        payloads: BTreeMap::new(),
    };
    for round in 0..ROUNDS {
        store.wait(life.round(round)).expect("nothing is amiss");
    }
    let payloads = life.payloads;
    drop(life.queue);
    let image = if seed.is_multiple_of(2) {
        store.image()
    } else {
        store.close().expect("it is sound")
    };
    Sound { image, payloads }
}

/// Pushes and batches of all kinds, in which each payload is another one.
struct Life {
    queue: Arc<dyn Queue>,
    dice: fastrand::Rng,
    now: Timestamp,
    payloads: BTreeMap<RequestId, Bytes>,
}

impl Life {
    async fn round(&mut self, round: u64) -> Result<()> {
        self.now = self.now.after(SECOND);
        let requests: Vec<NewRequest> = (0..self.dice.u64(1..6))
            .map(|number| self.request(round, number))
            .collect();
        let payloads: Vec<Bytes> = requests.iter().map(|new| new.payload.clone()).collect();
        let pushed = self.queue.push(self.now, requests).await?;
        self.payloads
            .extend(pushed.iter().map(|new| new.id).zip(payloads));
        if round.is_multiple_of(2) {
            self.batch().await?;
        }
        Ok(())
    }

    fn request(&mut self, round: u64, number: u64) -> NewRequest {
        let more = "x".repeat(self.dice.usize(..80));
        let mut request = NewRequest::new(format!("request {number} of round {round} {more}"));
        let rarely = |dice: &mut fastrand::Rng| dice.u8(..6) == 0;
        if rarely(&mut self.dice) {
            request = request.attribute("round", round.to_string());
        }
        if rarely(&mut self.dice) {
            request = request.idempotency_key(format!("{round} {number}"));
        }
        if rarely(&mut self.dice) {
            request = request.not_before(self.now.after(20 * SECOND));
        }
        if rarely(&mut self.dice) {
            request = request.ttl(5 * SECOND);
        }
        request
    }

    async fn batch(&mut self) -> Result<()> {
        let claim = Claim {
            max_requests: NonZeroU32::new(self.dice.u32(1..8)).unwrap_or(NonZeroU32::MIN),
            ..Claim::new()
        };
        let Some(lease) = self.queue.claim(self.now, &claim).await? else {
            return Ok(());
        };
        let members = self.queue.read(&lease, Page::first()).await?;
        let open = members.iter().filter(|member| member.outcome.is_none());
        let (named, others): (Vec<_>, Vec<_>) = open.partition(|_| self.dice.bool());
        let outcomes = named.iter();
        let outcomes: Vec<_> = outcomes
            .enumerate()
            .map(|(index, member)| match index % 3 {
                0 => (member.id, Outcome::result(format!("of {}", member.id))),
                1 => (member.id, Outcome::retry("later")),
                _ => (member.id, Outcome::reject("never")),
            })
            .collect();
        let retries = Retries {
            at: self.now.after(SECOND),
            max_attempts: NonZeroU32::MIN.saturating_add(2),
        };
        let until = self.now.after(30 * SECOND);
        let then = match self.dice.u8(..8) {
            0 => Then::Hold { until },
            1 => Then::Release,
            2 => Then::Defer { until },
            3 if others.len() > 1 => Then::Split { retries },
            _ => Then::Finish {
                rest: Outcome::result("the rest"),
                retries,
            },
        };
        let update = Update {
            outcomes,
            checkpoint: self.dice.bool().then(|| "so far".into()),
            then,
        };
        self.queue.update(self.now, &lease, update).await
    }
}

fn options() -> QueueOptions {
    QueueOptions::default().retention(60 * SECOND)
}

const NOW: Timestamp = Timestamp::from_millis(10_000_000);
const SECOND: Duration = Duration::from_secs(1);
const MANY: NonZeroU32 = NonZeroU32::new(10_000).expect("not zero");
/// Lives, and for how many rounds each goes on.
const STORES: u64 = 4;
const ROUNDS: u64 = 60;
/// So many at most.
const DAMAGES: usize = 16;
const STATES: [State; 5] = [
    State::Delayed,
    State::Ready,
    State::InFlight,
    State::Done,
    State::Dead,
];
