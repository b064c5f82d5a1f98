//! What a request costs over its whole life, and what is left of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    KIB, Point, Site, Unit, bounded,
    enqueue::{fill, fill_with},
    grouped,
    queued::no_queue,
    taken::{empty, most},
};
use crate::{
    bench::{
        contestant::Reopens,
        payload::Payloads,
        statistics::{Spread, as_f64},
        yard::Yard,
    },
    error::Result,
};

/// Bytes that reach the device for each payload byte: push, claim, read, finish; again and again in one
/// store, since room that was used before may cost less.
pub(super) async fn life(site: &Site<'_>) -> Result<Vec<Point>> {
    let payloads = Payloads::of(KIB);
    let requests = site.count(200_000, 1000);
    let bytes = requests * KIB as u64;
    let yard = site.open(bytes).await?;
    let mut later = Vec::new();
    let mut points = Vec::new();
    for life in 0..LIVES {
        let written = site.start_counting().await;
        fill(&*yard, &payloads, requests).await?;
        empty(&*yard, site.count(10_000, 100)).await?;
        let Some(device) = written.all() else {
            return Ok(Vec::new());
        };
        let each = device / as_f64(bytes);
        if life == 0 {
            points.push(site.point("first round of a store", Unit::BytesPerByte, each));
        } else {
            later.push(each);
        }
    }
    let later = Spread::of(later).map_or(0.0, |spread| spread.median);
    points.push(site.point("later rounds", Unit::BytesPerByte, later));
    yard.close().await?;
    Ok(points)
}

/// What is allocated at rest, after a drain, and after a drain that followed a reopen.
pub(super) async fn disk(site: &Site<'_>) -> Result<Vec<Point>> {
    let payloads = Payloads::of(KIB);
    let requests = site.count(500_000, 1000);
    let batch = site.count(10_000, 100);
    let bytes = requests * KIB as u64;
    let mut yard = site.open(bytes).await?;
    fill(&*yard, &payloads, requests).await?;
    let case = format!("at rest, {} x 1 KiB queued", grouped(requests));
    let each = site.disk() / as_f64(bytes);
    let mut points = vec![site.point(case, Unit::BytesPerByte, each)];
    empty(&*yard, batch).await?;
    points.push(site.point("after a drain", Unit::Bytes, site.disk_at_rest().await));
    if site.contestant.reopens == Reopens::Yes {
        fill(&*yard, &payloads, requests).await?;
        yard.close().await?;
        drop(yard);
        yard = site.open(bytes).await?;
        empty(&*yard, batch).await?;
        let case = "after a drain that followed a reopen";
        points.push(site.point(case, Unit::Bytes, site.disk_at_rest().await));
    }
    yard.close().await?;
    Ok(points)
}

/// Has many requests pass through a bounded queue, and looks at what it takes meanwhile.
pub(super) async fn churn(site: &Site<'_>) -> Result<Vec<Point>> {
    let payloads = Payloads::of(KIB);
    let requests = site.count(10_000_000, 4000);
    let bound = site.count(100_000, 2000);
    let yard = site.open_with(bound * KIB as u64, bounded(bound)).await?;
    let yard: Arc<dyn Yard> = Arc::from(yard);
    let batch = site.count(10_000, 100);
    let over = AtomicBool::new(false);
    let (mut disk, mut resident) = (Vec::new(), Vec::new());
    let start = Instant::now();
    let taken = async {
        let taken = take(&*yard, batch, requests).await;
        over.store(true, Ordering::Relaxed);
        taken
    };
    let looked = async {
        while !over.load(Ordering::Relaxed) {
            disk.push(site.disk());
            resident.extend(site.resident(&*yard));
            sleep(LOOK).await;
        }
        Ok(start.elapsed())
    };
    let pushed = fill_with(&yard, &payloads, requests, 256);
    let ((), (), elapsed) = tokio::try_join!(pushed, taken, looked)?;
    let rate = as_f64(requests) / elapsed.as_secs_f64();
    let through = format!(
        "{} through a queue of {}",
        grouped(requests),
        grouped(bound)
    );
    let mut points = vec![site.point(&through, Unit::RequestsPerSecond, rate)];
    for (what, looks) in [("disk", &disk), ("resident", &resident)] {
        let most = Spread::of(looks.iter().copied());
        let quarter = looks.get(looks.len() / 4).copied();
        let seen = [
            ("after a quarter of the time", quarter),
            ("at the end", looks.last().copied()),
            ("at most", most.map(|spread| spread.max)),
        ];
        for (when, bytes) in seen {
            let case = format!("{through}: {what} {when}");
            points.extend(bytes.map(|bytes| site.point(case, Unit::Bytes, bytes)));
        }
    }
    yard.close().await?;
    Ok(points)
}

/// Drains what comes until so many have come.
async fn take(yard: &dyn Yard, batch: u64, requests: u64) -> Result<()> {
    let queue = yard.queue().ok_or_else(no_queue)?;
    let mut taken = 0;
    while taken < requests {
        // Full batches, as a dispatcher would take them, except at the end.
        let ready = queue.stats(queue.now()).await?.ready;
        if ready < batch.min(requests - taken) {
            sleep(WAIT).await;
            continue;
        }
        let Some(held) = yard.claim(most(batch)).await? else {
            continue;
        };
        taken += held.requests();
        yard.read(&held).await?;
        yard.finish(held).await?;
    }
    Ok(())
}

const LIVES: u32 = 4;
const LOOK: Duration = Duration::from_millis(100);
const WAIT: Duration = Duration::from_millis(1);
