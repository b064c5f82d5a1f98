//! Stores of each kind, by the words and the environment that name them.

use std::{cell::Cell, process::Command};

use batchyard::{
    Bookmark, Claim, MemoryQueue, NewRequest, Outcome, Queue, QueueName, QueueOptions, Retries,
    Then, Timestamp, Update,
    transfer::{DumpFrom, Transfer, lines},
};
use std::{num::NonZeroU32, time::Duration};

use crate::{Yard, run};

/// Where new stores of a kind are made.
pub(crate) enum Kind {
    /// In folders, on the backend of this name.
    Folder(&'static str),
    /// In databases of this server.
    #[cfg(feature = "redis")]
    Server(crate::server::Server),
}

/// All kinds that there are on this machine.
pub(crate) struct Kinds {
    pub(crate) kinds: Vec<Kind>,
    made: Cell<u32>,
}

/// A store of its own.
pub(crate) struct Place {
    backend: &'static str,
    /// As `--store` or `--from` takes it.
    pub(crate) address: String,
}

impl Kinds {
    pub(crate) fn all() -> Self {
        let kinds = vec![Kind::Folder("sled"), Kind::Folder("journal")];
        #[cfg(feature = "redis")]
        let kinds = {
            let server = crate::server::Server::start().map(Kind::Server);
            kinds.into_iter().chain(server).collect()
        };
        #[cfg(not(feature = "redis"))]
        println!("skipped: Redis, which this was built without");
        Self {
            kinds,
            made: Cell::new(0),
        }
    }

    /// A store that is not there yet.
    pub(crate) fn new_place(&self, kind: &Kind) -> Place {
        let number = self.made.replace(self.made.get() + 1);
        match kind {
            Kind::Folder(backend) => Place {
                backend,
                address: format!("{backend}-{number}"),
            },
            #[cfg(feature = "redis")]
            Kind::Server(server) => Place {
                backend: "",
                address: format!("{}?db={number}", server.url()),
            },
        }
    }
}

impl Place {
    /// A verb on this store, made on its backend if it is new.
    pub(crate) fn command(&self, yard: &Yard, verb: &str) -> Command {
        if self.backend.is_empty() {
            let mut command = yard.command(verb);
            command.env("BATCHYARD_REDIS_URL", &self.address);
            return command;
        }
        let mut command = yard.command(&format!("{verb} --store {}", self.address));
        command.env("BATCHYARD_BACKEND", self.backend);
        command
    }

    pub(crate) fn ok(&self, yard: &Yard, verb: &str, input: &str) -> String {
        let ran = run(&mut self.command(yard, verb), input.as_bytes());
        assert_eq!(ran.code, Some(0), "{verb} at {}: {}", self.address, ran.err);
        ran.out
    }
}

/// The lines of all that is stored of a queue.
pub(crate) async fn dump(queue: &MemoryQueue, name: &str) -> String {
    let name: QueueName = name.parse().unwrap();
    let now = queue.now();
    let (mut text, mut from) = (Vec::new(), Some(DumpFrom::Start));
    while let Some(at) = from {
        let page = queue.dump(now, at).await.unwrap();
        for record in &page.records {
            lines::encode(&name, record, &mut text).unwrap();
        }
        from = page.next;
    }
    String::from_utf8(text).unwrap()
}

/// A queue with `count` requests of each kind that there is, which lived in the last half hour.
pub(crate) async fn lived_in(count: usize) -> MemoryQueue {
    let queue = MemoryQueue::new(QueueOptions::default());
    let start = queue.now().before(Duration::from_mins(30));
    let at = |seconds| start.after(Duration::from_secs(seconds));
    settled(&queue, count, at).await;
    open(&queue, count, at).await;
    let hour = Duration::from_hours(1);
    for number in 0..count {
        let text = format!("{{\"waits\": {number}}}\n");
        let new = vec![
            NewRequest::new(text).attribute("tenant", "7").ttl(2 * hour),
            NewRequest::new(vec![0xff, 0]).not_before(at(3600)),
            NewRequest::new("late").not_before(at(7200)).ttl(3 * hour),
            NewRequest::new(number.to_string()).idempotency_key(format!("key {number}")),
            NewRequest::new("expired").ttl(Duration::from_nanos(1)),
            NewRequest::new("cancelled"),
        ];
        let pushed = queue.push(at(100), new).await.unwrap();
        let admin = queue.admin().unwrap();
        admin.cancel(at(100), &[pushed[5].id]).await.unwrap();
    }
    let bookmark = Bookmark {
        source: "a \"file\"".into(),
        value: "[7, 8]".into(),
    };
    let pushed = queue.push_from(at(101), Vec::new(), bookmark).await;
    pushed.unwrap();
    queue
}

fn retries(at: Timestamp) -> Retries {
    let max_attempts = NonZeroU32::new(3).unwrap();
    Retries { at, max_attempts }
}

/// Done requests, dead letters, some of them purged or redriven, and what came back.
async fn settled(queue: &MemoryQueue, count: usize, at: impl Fn(u64) -> Timestamp) {
    let large = vec![b'x'; 100_000];
    let new = (0..count).flat_map(|number| {
        let payload = if number == 0 { &large[..] } else { b"back" };
        [
            NewRequest::new("done"),
            NewRequest::new("dead"),
            NewRequest::new(payload.to_vec()),
            NewRequest::new("back later"),
            NewRequest::new("the rest"),
            NewRequest::new("purged"),
            NewRequest::new("redriven"),
        ]
    });
    let pushed = queue.push(at(0), new.collect()).await.unwrap();
    let lease = queue.claim(at(1), &Claim::new()).await.unwrap().unwrap();
    let mut outcomes = Vec::new();
    for few in pushed.chunks(7) {
        let result = if outcomes.is_empty() {
            &large
        } else {
            "[1,  2]\n".as_bytes()
        };
        outcomes.extend([
            (few[0].id, Outcome::result(result.to_vec())),
            (few[1].id, Outcome::reject("never\nthis")),
            (few[2].id, Outcome::retry("again")),
            (
                few[3].id,
                Outcome::Retry {
                    error: "in two hours".into(),
                    not_before: Some(at(9000)),
                },
            ),
            (few[5].id, Outcome::reject("to be purged")),
            (few[6].id, Outcome::reject("to be redriven")),
        ]);
    }
    outcomes.reverse();
    let update = Update {
        outcomes,
        checkpoint: None,
        then: Then::Finish {
            rest: Outcome::result(vec![0, 255]),
            retries: retries(at(2)),
        },
    };
    queue.update(at(2), &lease, update).await.unwrap();
    let admin = queue.admin().unwrap();
    let every = |of: usize| -> Vec<_> { pushed.chunks(7).map(|few| few[of].id).collect() };
    admin.purge(at(3), &every(5)).await.unwrap();
    admin.redrive(at(3), &every(6)).await.unwrap();
}

/// A deferred batch with members of each kind, two that were split, and one that is held.
async fn open(queue: &MemoryQueue, count: usize, at: impl Fn(u64) -> Timestamp) {
    let claim = Claim {
        context: "{\"in\":\"force\"}".into(),
        ..Claim::new()
    };
    let new = (0..6 * count).map(|number| NewRequest::new(format!("member {number}")));
    let pushed = queue.push(at(10), new.collect()).await.unwrap();
    let lease = queue.claim(at(10), &claim).await.unwrap().unwrap();
    let outcomes = pushed.chunks(6).flat_map(|few| {
        let not_before = Some(at(8000));
        let error = "later".to_owned();
        [
            (few[0].id, Outcome::result("\"done\"")),
            (few[1].id, Outcome::Retry { error, not_before }),
            (few[2].id, Outcome::retry("soon")),
            (few[3].id, Outcome::reject("no")),
        ]
    });
    let update = Update {
        outcomes: outcomes.collect(),
        checkpoint: Some("a \"note\"".into()),
        then: Then::Defer { until: at(5000) },
    };
    queue.update(at(11), &lease, update).await.unwrap();
    let marked: Vec<_> = pushed.chunks(6).map(|few| few[5].id).collect();
    let admin = queue.admin().unwrap();
    admin.cancel(at(11), &marked).await.unwrap();

    let new = (0..3 * count).map(|number| NewRequest::new(format!("half {number}")));
    queue.push(at(20), new.collect()).await.unwrap();
    let lease = queue.claim(at(20), &claim).await.unwrap().unwrap();
    let retries = retries(at(21));
    let split = Update::then(Then::Split { retries });
    queue.update(at(21), &lease, split).await.unwrap();

    queue
        .push(at(30), vec![NewRequest::new("held")])
        .await
        .unwrap();
    let halves = Claim {
        form: false,
        ..claim.clone()
    };
    let long = Duration::from_hours(2);
    for claim in [&halves, &halves, &claim] {
        let lease_duration = long;
        let claim = Claim {
            lease_duration,
            ..claim.clone()
        };
        queue.claim(at(30), &claim).await.unwrap().unwrap();
    }
}
