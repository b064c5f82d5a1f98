//! The workloads of `batchyard bench`, timed by criterion: `cargo bench --bench queue --features bench`, or
//! `-- sled/` for one of the contestants.
//!
//! Short by default; criterion's own flags make it longer (`-- --measurement-time 30`). Each sample
//! begins with a fresh store, so that none is measured at a depth which the one before has left. What
//! is durable lies in `TMPDIR`: point it at the disk that is to be measured.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::{sync::Arc, time::Duration};

use batchyard::bench::{
    contestant::{Contestant, Role, Setup},
    payload::Payloads,
    plan::Plan,
    workload::{empty, fill_by, fill_with},
    yard::Yard,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::{runtime::Runtime, time::Instant};

const PAYLOAD_BYTES: usize = 1024;
const BULK: u64 = 1_000;
const DRAIN: u64 = 10_000;
const PRODUCERS: u64 = 64;
const DEPTHS: [u64; 3] = [1, 1_000, 100_000];

/// An open store, and the folder that has to live as long.
struct Site {
    yard: Arc<dyn Yard>,
    _folder: tempfile::TempDir,
}

impl Site {
    async fn open(contestant: &Contestant) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup::new(folder.path().to_owned());
        Self {
            yard: Arc::from(contestant.open(setup).await.unwrap()),
            _folder: folder,
        }
    }

    async fn holding(contestant: &Contestant, payloads: &Payloads, requests: u64) -> Self {
        let site = Self::open(contestant).await;
        let filled = fill_by(&*site.yard, payloads, requests, BULK).await;
        filled.unwrap();
        site
    }

    async fn close(self) {
        self.yard.close().await.unwrap();
    }
}

fn pushes(c: &mut Criterion, runtime: &Runtime, contestant: &Contestant) {
    let payloads = Payloads::of(PAYLOAD_BYTES);
    let mut group = c.benchmark_group(format!("{}/push", contestant.name));
    for (name, each) in [("one at a time", 1), ("1000 at a time", BULK)] {
        group.throughput(Throughput::Elements(each));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                runtime.block_on(async {
                    let site = Site::open(contestant).await;
                    let start = Instant::now();
                    let filled = fill_by(&*site.yard, &payloads, times * each, each).await;
                    let took = start.elapsed();
                    filled.unwrap();
                    site.close().await;
                    took
                })
            });
        });
    }
    // One iteration is one request of each producer: they share syncs where there are any.
    group.throughput(Throughput::Elements(PRODUCERS));
    group.bench_function("64 producers", |bencher| {
        bencher.iter_custom(|times| {
            runtime.block_on(async {
                let site = Site::open(contestant).await;
                let start = Instant::now();
                let requests = times * PRODUCERS;
                let filled = fill_with(&site.yard, &payloads, requests, PRODUCERS).await;
                let took = start.elapsed();
                filled.unwrap();
                site.close().await;
                took
            })
        });
    });
    group.finish();
}

fn drains(c: &mut Criterion, runtime: &Runtime, contestant: &Contestant) {
    let payloads = Payloads::of(PAYLOAD_BYTES);
    let mut group = c.benchmark_group(format!("{}/claim, read, finish", contestant.name));
    group.throughput(Throughput::Elements(DRAIN));
    group.bench_function("10000 in batches of 1000", |bencher| {
        bencher.iter_custom(|times| {
            runtime.block_on(async {
                let mut total = Duration::ZERO;
                for _ in 0..times {
                    let site = Site::holding(contestant, &payloads, DRAIN).await;
                    let (tally, took, _) = empty(&*site.yard, BULK).await.unwrap();
                    assert_eq!(tally.requests, DRAIN);
                    site.close().await;
                    total += took;
                }
                total
            })
        });
    });
    group.finish();
}

fn stats(c: &mut Criterion, runtime: &Runtime, contestant: &Contestant) {
    let payloads = Payloads::of(PAYLOAD_BYTES);
    let mut group = c.benchmark_group(format!("{}/stats", contestant.name));
    for depth in DEPTHS {
        let site = runtime.block_on(Site::holding(contestant, &payloads, depth));
        let queue = site.yard.queue().unwrap();
        group.bench_function(format!("at depth {depth}"), |bencher| {
            bencher.iter(|| runtime.block_on(queue.stats(queue.now())).unwrap());
        });
        drop(queue);
        runtime.block_on(site.close());
    }
    group.finish();
}

fn all(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let plan = Plan::full(std::env::temp_dir()).without_missing();
    let other_log = |one: &&Contestant| one.role == Role::RawLog && !one.is_yardstick();
    for contestant in plan.contestants.iter().filter(|one| !other_log(one)) {
        pushes(c, &runtime, contestant);
        drains(c, &runtime, contestant);
        if contestant.role == Role::Backend {
            stats(c, &runtime, contestant);
        }
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
    targets = all
}
criterion_main!(benches);
