//! Moments of a store that lives at random: each stays what it was when it was taken.

use std::sync::Arc;

use fastrand::Rng;

use super::{Life, Pilot};
use crate::{
    clock::Timestamp,
    queue::{
        Queue, Store,
        transfer::{DumpFrom, Moment, Record},
    },
    request::{QueueName, RequestId},
};

/// Drives two queues of a store at random, takes moments of it meanwhile, and reads pages of them in between, from anywhere:
/// they have to be what a dump said when each was taken.
pub(in crate::testing) async fn moments(store: Arc<dyn Store>, seed: u64, steps: u32) {
    let mut dice = Rng::with_seed(seed);
    let names = ["one", "two"].map(|name| name.parse::<QueueName>().expect("a name"));
    let mut queues = Vec::new();
    for name in &names {
        queues.push(store.queue(name).await.expect("a queue"));
    }
    let mut pilots: Vec<Pilot> = queues.iter().cloned().map(Pilot::new).collect();
    let mut life = Life::new(seed, pilots[0].can(&pilots[1]));
    let mut taken: Vec<Taken> = Vec::new();
    for number in 0..steps {
        let (now, step) = life.next();
        let pilot = &mut pilots[dice.usize(..queues.len())];
        pilot.take(now, &step).await;
        pilot.look(now).await;
        if taken.len() < 3 && dice.u8(..10) == 0 {
            taken.push(Taken::new(&store, &queues, now).await);
        }
        for one in &taken {
            let told = format!("seed {seed}, after step {number}, at {now}: {step:?}");
            one.read_somewhere(&mut dice, &told).await;
        }
        if !taken.is_empty() && dice.u8(..40) == 0 {
            taken.swap_remove(dice.usize(..taken.len()));
        }
    }
    for one in &taken {
        one.read_all(&format!("seed {seed}, at the end")).await;
    }
}

/// A moment, and what it has to say.
struct Taken {
    moment: Box<dyn Moment>,
    queues: Vec<(QueueName, Vec<Page>)>,
}

/// Where it begins, and what it has.
type Page = (DumpFrom, Vec<Record>);

impl Taken {
    async fn new(store: &Arc<dyn Store>, queues: &[Arc<dyn Queue>], now: Timestamp) -> Self {
        let moment = store.moment(now).await.expect("a moment");
        let mut dumps = Vec::new();
        for queue in queues {
            let transfer = queue.transfer().expect("a store with moments has it");
            let (mut pages, mut from) = (Vec::new(), Some(DumpFrom::Start));
            while let Some(at) = from {
                let page = transfer.dump(now, at).await.expect("a page");
                pages.push((at, page.records));
                from = page.next;
            }
            dumps.push((queue.name(), pages));
        }
        Self {
            moment: moment.expect("it answered a moment ago"),
            queues: dumps,
        }
    }

    /// A page of its own, or what follows any request.
    async fn read_somewhere(&self, dice: &mut Rng, told: &str) {
        let (queue, pages) = &self.queues[dice.usize(..self.queues.len())];
        let (at, records) = &pages[dice.usize(..pages.len())];
        let id = dice.choice(records).and_then(id_of);
        let (from, expected) = match id {
            Some(id) if dice.bool() => {
                let after = records.iter().filter(|record| id_of(record) > Some(id));
                (DumpFrom::Request(id), after.cloned().collect())
            }
            _ => (*at, records.clone()),
        };
        self.compare(queue, from, &expected, told).await;
    }

    async fn read_all(&self, told: &str) {
        for (queue, pages) in &self.queues {
            for (from, records) in pages {
                self.compare(queue, *from, records, told).await;
            }
        }
    }

    async fn compare(&self, queue: &QueueName, from: DumpFrom, expected: &[Record], told: &str) {
        let page = self.moment.dump(queue, from).await.expect("a page");
        for (record, was) in page.records.iter().zip(expected) {
            assert_eq!(record, was, "{told}: queue {queue:?}, from {from:?}");
        }
        let count = page.records.len();
        assert_eq!(count, expected.len(), "{told}: queue {queue:?}, {from:?}");
    }
}

fn id_of(record: &Record) -> Option<RequestId> {
    match record {
        Record::Request(request) => Some(request.entry.id),
        _ => None,
    }
}
