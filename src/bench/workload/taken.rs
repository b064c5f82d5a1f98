//! Batches: claimed, read, finished.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    KIB, Point, Site, Unit,
    enqueue::{fill, fill_by},
    grouped,
};
use crate::{
    bench::{
        contestant::Reopens,
        machine::drop_caches,
        payload::Payloads,
        statistics::{Latency, as_f64},
        yard::{Tally, Yard},
    },
    error::{Error, Result},
};

/// How what is claimed was pushed.
#[derive(Clone, Copy, Debug)]
pub(super) struct PushedBy {
    /// How many at once.
    pub(super) each: u64,
    words: &'static str,
}

pub(super) const PUSHED: [PushedBy; 2] = [
    PushedBy {
        each: 64,
        words: "pushed 64 at once",
    },
    PushedBy {
        each: 1,
        words: "pushed one by one",
    },
];

/// Takes a small and a large batch of what was pushed in groups, or one by one.
pub(super) async fn claim(site: &Site<'_>) -> Result<Vec<Point>> {
    let pushed = PUSHED[site.part.piece];
    let payloads = Payloads::of(KIB);
    let sizes = [site.count(5_000, 64), site.count(50_000, 640)];
    let requests: u64 = sizes.iter().sum();
    let yard = site.open(requests * KIB as u64).await?;
    fill_by(&*yard, &payloads, requests, pushed.each).await?;
    let mut points = Vec::new();
    for size in sizes {
        let written = site.start_counting().await;
        let start = Instant::now();
        let held = yard.claim(most(size)).await?;
        let took = start.elapsed();
        let device = written.so_far();
        let held = held.ok_or_else(|| Error::internal("nothing to claim"))?;
        // A backend may end a batch earlier: then this is what was measured.
        let case = format!("{}, {}", grouped(held.requests()), pushed.words);
        let mut point = site.point(case, Unit::Microseconds, micros(took));
        point.device_bytes = device;
        points.push(point);
        yard.finish(held).await?;
    }
    yard.close().await?;
    Ok(points)
}

/// One way to empty a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    batch: u64,
    /// Whether nothing of it is in a cache at first.
    pub(super) cold: bool,
}

pub(super) const DRAINS: [Drain; 3] = [
    Drain {
        batch: 10_000,
        cold: false,
    },
    Drain {
        batch: 50_000,
        cold: false,
    },
    Drain {
        batch: 10_000,
        cold: true,
    },
];

/// Claims, reads and finishes until nothing is left.
pub(super) async fn drain(site: &Site<'_>) -> Result<Vec<Point>> {
    let drain = DRAINS[site.part.piece];
    let payloads = Payloads::of(KIB);
    let requests = site.count(200_000, 1000);
    let batch = site.count(drain.batch, 100);
    let bytes = requests * KIB as u64;
    let mut yard = site.open(bytes).await?;
    fill(&*yard, &payloads, requests).await?;
    if drain.cold {
        if site.contestant.reopens == Reopens::Yes {
            yard.close().await?;
            drop(yard);
            drop_caches(site.folder());
            yard = site.open(bytes).await?;
        } else {
            drop_caches(site.folder());
        }
    }
    let written = site.start_counting().await;
    let (tally, elapsed, nanos) = empty(&*yard, batch).await?;
    let device = written.all();
    if (tally.requests, tally.bytes) != (requests, bytes) {
        let text = format!("{requests} were pushed, and {} drained", tally.requests);
        return Err(Error::internal(text));
    }
    let cache = if drain.cold { "cold" } else { "page cache" };
    let case = format!("batches of {}, {cache}", grouped(batch));
    let rate = as_f64(requests) / elapsed.as_secs_f64();
    let mut point = site.point(case, Unit::RequestsPerSecond, rate);
    point.latency = Latency::of(nanos);
    point.device_bytes = device.map(|bytes| bytes / as_f64(requests));
    point.resident_bytes = site.resident(&*yard);
    point.disk_bytes = Some(site.disk());
    yard.close().await?;
    Ok(vec![point])
}

/// Drains it: what was read, how long that took, and how long each batch.
///
/// # Errors
/// As the claim, the read and the finish.
pub async fn empty(yard: &dyn Yard, batch: u64) -> Result<(Tally, Duration, Vec<u64>)> {
    let mut tally = Tally::default();
    let mut nanos = Vec::new();
    let start = Instant::now();
    loop {
        let begun = Instant::now();
        let Some(held) = yard.claim(most(batch)).await? else {
            return Ok((tally, start.elapsed(), nanos));
        };
        tally.add(yard.read(&held).await?);
        yard.finish(held).await?;
        nanos.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
}

pub(super) fn most(size: u64) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

pub(super) fn micros(took: Duration) -> f64 {
    took.as_secs_f64() * 1e6
}
