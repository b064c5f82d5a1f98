//! Every backend through the trait: `cargo bench --bench queue`, or `-- memory/` for one of them.
//!
//! Short by default; criterion's own flags make it longer (`-- --measurement-time 30`). Each sample
//! begins with a fresh queue, so that none is measured at a depth which the one before has left. What
//! is durable lies in `TMPDIR`: point it at the disk that is to be measured.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::{future::Future, hint::black_box, num::NonZeroU32, sync::Arc, time::Duration};

use batchyard::{
    Claim, MemoryStore, NewRequest, Outcome, Page, Queue, QueueName, QueueOptions, Retries, Store,
    Then, Update,
};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::{runtime::Runtime, task::JoinSet, time::Instant};

const BACKENDS: &[&str] = &[
    "memory",
    #[cfg(feature = "sled")]
    "sled",
];
const PAYLOAD_BYTES: usize = 1024;
const BULK: u64 = 1_000;
const DRAIN: u64 = 10_000;
const BATCH_REQUESTS: u32 = 1_000;
const PRODUCERS: u64 = 64;
const DEPTHS: [u64; 3] = [0, 1_000, 100_000];

/// A queue, and what has to live as long as it does.
struct Yard {
    queue: Arc<dyn Queue>,
    _store: Box<dyn Store>,
    _folder: Option<tempfile::TempDir>,
}

impl Yard {
    /// The one place that knows the backends by name.
    async fn open(backend: &str) -> Self {
        let folder = (backend != "memory").then(|| tempfile::tempdir().unwrap());
        let store: Box<dyn Store> = match (backend, &folder) {
            ("memory", None) => Box::new(MemoryStore::new(QueueOptions::default())),
            #[cfg(feature = "sled")]
            ("sled", Some(folder)) => Box::new(batchyard::SledStore::open(folder).await.unwrap()),
            _ => unreachable!("{backend} is not a backend of this benchmark"),
        };
        Self {
            queue: store.queue(&QueueName::default()).await.unwrap(),
            _store: store,
            _folder: folder,
        }
    }

    async fn holding(backend: &str, requests: u64) -> Self {
        let yard = Self::open(backend).await;
        for start in (0..requests).step_by(1_000) {
            yard.push(1_000.min(requests - start)).await;
        }
        yard
    }

    async fn push(&self, requests: u64) {
        push(&*self.queue, requests).await;
    }

    /// Claims, reads and finishes batches until nothing is left; how many members there were.
    async fn drain(&self) -> u64 {
        let queue = &self.queue;
        let claim = Claim {
            max_requests: NonZeroU32::new(BATCH_REQUESTS).unwrap(),
            ..Claim::new()
        };
        let mut members = 0;
        while let Some(lease) = queue.claim(queue.now(), &claim).await.unwrap() {
            let mut page = Page::first();
            while let Some(last) = queue.read(&lease, page).await.unwrap().last() {
                page = page.after(last.position);
            }
            let now = queue.now();
            let retries = Retries {
                at: now,
                max_attempts: NonZeroU32::MIN,
            };
            let rest = Outcome::done();
            let finish = Update::then(Then::Finish { rest, retries });
            queue.update(now, &lease, finish).await.unwrap();
            members += u64::from(lease.requests);
        }
        members
    }
}

async fn push(queue: &dyn Queue, requests: u64) {
    let request = || NewRequest::new(Bytes::from_static(&[b'x'; PAYLOAD_BYTES]));
    let requests = (0..requests).map(|_| request()).collect();
    black_box(queue.push(queue.now(), requests).await.unwrap());
}

async fn timed(work: impl Future<Output = ()>) -> Duration {
    let start = Instant::now();
    work.await;
    start.elapsed()
}

fn pushes(c: &mut Criterion, runtime: &Runtime, backend: &str) {
    let mut group = c.benchmark_group(format!("{backend}/push"));
    for (name, each) in [("one at a time", 1), ("1000 at a time", BULK)] {
        group.throughput(Throughput::Elements(each));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                runtime.block_on(async {
                    let yard = Yard::open(backend).await;
                    let pushes = async {
                        for _ in 0..times {
                            yard.push(each).await;
                        }
                    };
                    timed(pushes).await
                })
            });
        });
    }
    // One iteration is one request of each producer: they share syncs where there are any.
    group.throughput(Throughput::Elements(PRODUCERS));
    group.bench_function("64 producers", |bencher| {
        bencher.iter_custom(|times| {
            runtime.block_on(async {
                let yard = Yard::open(backend).await;
                let pushes = async {
                    let mut producers = JoinSet::new();
                    for _ in 0..PRODUCERS {
                        let queue = Arc::clone(&yard.queue);
                        producers.spawn(async move {
                            for _ in 0..times {
                                push(&*queue, 1).await;
                            }
                        });
                    }
                    producers.join_all().await;
                };
                timed(pushes).await
            })
        });
    });
    group.finish();
}

fn drains(c: &mut Criterion, runtime: &Runtime, backend: &str) {
    let mut group = c.benchmark_group(format!("{backend}/claim, read, finish"));
    group.throughput(Throughput::Elements(DRAIN));
    group.bench_function("10000 in batches of 1000", |bencher| {
        bencher.iter_custom(|times| {
            runtime.block_on(async {
                let mut total = Duration::ZERO;
                for _ in 0..times {
                    let yard = Yard::holding(backend, DRAIN).await;
                    let drain = async { assert_eq!(yard.drain().await, DRAIN) };
                    total += timed(drain).await;
                }
                total
            })
        });
    });
    group.finish();
}

fn stats(c: &mut Criterion, runtime: &Runtime, backend: &str) {
    let mut group = c.benchmark_group(format!("{backend}/stats"));
    for depth in DEPTHS {
        let yard = runtime.block_on(Yard::holding(backend, depth));
        group.bench_function(format!("at depth {depth}"), |bencher| {
            bencher.iter(|| {
                runtime
                    .block_on(yard.queue.stats(yard.queue.now()))
                    .unwrap()
            });
        });
    }
    group.finish();
}

fn backends(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    for backend in BACKENDS {
        pushes(c, &runtime, backend);
        drains(c, &runtime, backend);
        stats(c, &runtime, backend);
    }
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
}

criterion_group! {
    name = benches;
    config = short();
    targets = backends
}
criterion_main!(benches);
