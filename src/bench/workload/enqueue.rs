//! Pushes.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Barrier, task::JoinSet, time::Instant};

use super::{FILL, KIB, Point, Site, Unit, grouped, size};
use crate::{
    bench::{
        machine,
        payload::Payloads,
        statistics::{Latency, as_f64},
        yard::Yard,
    },
    error::{Error, Result},
};

/// Who pushes what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// How many callers at the same time, each waiting for its answer.
    producers: usize,
    /// How many requests a push.
    each: u64,
    /// How many bytes a payload.
    bytes: usize,
}

/// What is measured; `1 KiB` by 1 to 256 producers makes the curve.
#[rustfmt::skip]
pub(super) const LOADS: [Load; 13] = [
    Load { producers: 1, each: 1, bytes: KIB },
    Load { producers: 8, each: 1, bytes: KIB },
    Load { producers: 64, each: 1, bytes: KIB },
    Load { producers: 256, each: 1, bytes: KIB },
    Load { producers: 1, each: 100, bytes: KIB },
    Load { producers: 1, each: 1000, bytes: KIB },
    Load { producers: 64, each: 1, bytes: 200 },
    Load { producers: 256, each: 1, bytes: 200 },
    Load { producers: 1, each: 1000, bytes: 200 },
    Load { producers: 64, each: 1, bytes: 16 * KIB },
    Load { producers: 256, each: 1, bytes: 16 * KIB },
    Load { producers: 1, each: 1000, bytes: 16 * KIB },
    Load { producers: 64, each: 1, bytes: KIB * KIB },
];

impl Load {
    /// Producers that push requests of so many bytes one by one.
    pub(super) const fn one_by_one(producers: usize, bytes: usize) -> Self {
        Self {
            producers,
            each: 1,
            bytes,
        }
    }

    pub(super) fn name(self) -> String {
        let size = size(self.bytes);
        match self.each {
            1 => format!("{} producers, {size}", self.producers),
            each => format!("bulk of {}, {size}", grouped(each)),
        }
        .replacen(
            "1 producers",
            "1 producer",
            usize::from(self.producers == 1),
        )
    }
}

/// Pushes until the time is over.
pub(super) async fn enqueue(site: &Site<'_>) -> Result<Vec<Point>> {
    let load = LOADS[site.part.piece];
    let payloads = Payloads::of(load.bytes);
    let yard: Arc<dyn Yard> = Arc::from(site.open(0).await?);
    let seconds = site.part.seconds;
    produce(&yard, load, &payloads, seconds / WARM_UP).await?;
    let written = site.start_counting().await;
    let (pushed, elapsed, nanos) = produce(&yard, load, &payloads, seconds).await?;
    let device = written.all();
    let requests = as_f64(pushed);
    let mut point = site.point(
        load.name(),
        Unit::RequestsPerSecond,
        requests / elapsed.as_secs_f64(),
    );
    point.latency = Latency::of(nanos);
    point.device_bytes = device.map(|bytes| bytes / requests);
    point.resident_bytes = site.resident(&*yard);
    point.disk_bytes = Some(site.disk());
    yard.close().await?;
    Ok(vec![point])
}

/// Has producers push for so many seconds: how many requests, in what time, and how long each push took.
pub(super) async fn produce(
    yard: &Arc<dyn Yard>,
    load: Load,
    payloads: &Payloads,
    seconds: f64,
) -> Result<(u64, Duration, Vec<u64>)> {
    let start_line = Arc::new(Barrier::new(load.producers + 1));
    let mut producers = JoinSet::new();
    for number in 0..load.producers as u64 {
        let (yard, payloads) = (Arc::clone(yard), payloads.clone());
        let start_line = Arc::clone(&start_line);
        producers.spawn(async move {
            let mut nanos = Vec::new();
            let mut next = number * 7;
            start_line.wait().await;
            let start = Instant::now();
            let mut before = start;
            while before.duration_since(start).as_secs_f64() < seconds {
                yard.push(payloads.many(next, load.each)).await?;
                next += load.each;
                let after = Instant::now();
                let took = after.duration_since(before).as_nanos();
                nanos.push(u64::try_from(took).unwrap_or(u64::MAX));
                before = after;
                // One that never has to wait would not let the others begin.
                tokio::task::consume_budget().await;
            }
            Ok::<_, Error>(nanos)
        });
    }
    start_line.wait().await;
    let start = Instant::now();
    let mut all = Vec::new();
    while let Some(produced) = producers.join_next().await {
        let produced = produced.map_err(|error| Error::internal("a producer").with_source(error));
        all.append(&mut produced??);
    }
    Ok((all.len() as u64 * load.each, start.elapsed(), all))
}

/// Pushes so many requests at once, by one caller.
pub(super) async fn fill(yard: &dyn Yard, payloads: &Payloads, requests: u64) -> Result<()> {
    fill_by(yard, payloads, requests, FILL).await
}

/// Pushes so many requests, so many at once, by one caller.
///
/// # Errors
/// As the push.
pub async fn fill_by(yard: &dyn Yard, payloads: &Payloads, requests: u64, each: u64) -> Result<()> {
    let mut pushed = 0;
    while pushed < requests {
        let more = each.min(requests - pushed);
        yard.push(payloads.many(pushed, more)).await?;
        pushed += more;
    }
    Ok(())
}

/// Pushes so many requests one by one, by so many producers at the same time.
///
/// # Errors
/// As the push.
pub async fn fill_with(
    yard: &Arc<dyn Yard>,
    payloads: &Payloads,
    requests: u64,
    producers: u64,
) -> Result<()> {
    let mut pushing = JoinSet::new();
    for number in 0..producers {
        let (yard, payloads) = (Arc::clone(yard), payloads.clone());
        let own = requests / producers + u64::from(number < requests % producers);
        pushing.spawn(async move { fill_by(&*yard, &payloads, own, 1).await });
    }
    while let Some(pushed) = pushing.join_next().await {
        pushed.map_err(|error| Error::internal("a producer").with_source(error))??;
    }
    Ok(())
}

/// The disk alone: what one sync takes, and how fast it reads what is in no cache.
pub(super) fn device(site: &Site<'_>) -> Result<Vec<Point>> {
    let bytes = site.count(1 << 30, 8 << 20);
    let nanos = machine::sync_times(site.folder(), KIB)?;
    let latency = Latency::of(nanos);
    let half = latency.map_or(0.0, |latency| latency.p50);
    let mut sync = site.point(
        "pwrite and fdatasync of 1 KiB, written before",
        Unit::Microseconds,
        half,
    );
    sync.latency = latency;
    let read = machine::cold_read(site.folder(), bytes)?;
    let read = site.point("read, in no cache", Unit::BytesPerSecond, read);
    Ok(vec![sync, read])
}

/// How many times as long the measured run is as the one before it.
const WARM_UP: f64 = 4.0;
