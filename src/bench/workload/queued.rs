//! Much that waits: how fast its oldest is told, and what memory it takes.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    KIB, Point, Site, Unit,
    enqueue::{fill, fill_by, fill_with},
    grouped, size, taken,
};
use crate::{
    batch::Page,
    bench::{
        payload::Payloads,
        statistics::{Latency, as_f64},
        yard::{Held, Yard},
    },
    error::{Error, Result},
};

/// Asks for the oldest at ten times the depth, again and again.
pub(super) async fn oldest(site: &Site<'_>) -> Result<Vec<Point>> {
    let payloads = Payloads::of(OLDEST_BYTES);
    let yard = site.open(0).await?;
    let queue = yard.queue().ok_or_else(no_queue)?;
    let mut points = Vec::new();
    let (mut queued, mut depth) = (0, 1000);
    // A server has all of it in memory.
    let server = site.contestant.needs_server;
    let most = site
        .part
        .most
        .min(if server { MOST_ON_A_SERVER } else { u64::MAX });
    while depth <= most {
        fill(&*yard, &payloads, depth - queued).await?;
        queued = depth;
        for round in 0..site.part.rounds {
            let mut nanos = Vec::with_capacity(LOOKS);
            for _ in 0..LOOKS {
                let now = queue.now();
                let start = Instant::now();
                let stats = queue.stats(now).await?;
                let took = start.elapsed().as_nanos();
                if stats.ready != queued || stats.oldest_ready_at.is_none() {
                    return Err(Error::internal("it does not know its oldest"));
                }
                nanos.push(u64::try_from(took).unwrap_or(u64::MAX));
            }
            let latency = Latency::of(nanos);
            let case = format!("{} queued", grouped(queued));
            let half = latency.map_or(0.0, |latency| latency.p50);
            let mut point = site.point(case, Unit::Microseconds, half);
            point.round = round;
            point.latency = latency;
            points.push(point);
        }
        depth *= 10;
    }
    yard.close().await?;
    Ok(points)
}

/// One way to fill memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Filling {
    /// By 64 producers, one by one.
    Beside,
    /// By one producer, one by one.
    Single,
    /// Large payloads in bulk, and then one batch of them is read.
    Batch,
}

pub(super) const MEMORY: [Filling; 3] = [Filling::Beside, Filling::Single, Filling::Batch];

/// What is resident while so many are queued, or while a batch is handled.
pub(super) async fn memory(site: &Site<'_>) -> Result<Vec<Point>> {
    let filling = MEMORY[site.part.piece];
    let (bytes, full) = match filling {
        Filling::Beside => (KIB, 5_000_000),
        Filling::Single => (KIB, 250_000),
        Filling::Batch => (4 * KIB, 50_000),
    };
    let payloads = Payloads::of(bytes).copied();
    let requests = site.count(full, 1000);
    let yard: Arc<dyn Yard> = Arc::from(site.open(requests * bytes as u64).await?);
    let (how, value) = match filling {
        Filling::Beside => {
            fill_with(&yard, &payloads, requests, 64).await?;
            ("queued by 64 producers", site.resident(&*yard))
        }
        Filling::Single => {
            fill_by(&*yard, &payloads, requests, 1).await?;
            ("queued one by one", site.resident(&*yard))
        }
        Filling::Batch => {
            fill(&*yard, &payloads, requests).await?;
            (
                "in one batch, read page by page",
                handled(site, &yard, requests).await?,
            )
        }
    };
    let case = format!("{} x {}, {how}", grouped(requests), size(bytes));
    let mut point = site.point(case, Unit::Bytes, value.unwrap_or_default());
    point.disk_bytes = Some(site.disk());
    yard.close().await?;
    Ok(vec![point])
}

/// The most that was resident while one batch was read page by page.
async fn handled(site: &Site<'_>, yard: &Arc<dyn Yard>, requests: u64) -> Result<Option<f64>> {
    let queue = yard.queue().ok_or_else(no_queue)?;
    let held = yard.claim(taken::most(requests)).await?;
    let held = held.ok_or_else(|| Error::internal("nothing to claim"))?;
    let Held::Lease(lease) = &held else {
        return Err(no_queue());
    };
    let mut page = Page::first();
    let mut largest = site.resident(&**yard);
    let mut read = 0;
    loop {
        let members = queue.read(lease, page).await?;
        let Some(last) = members.last() else {
            break;
        };
        read += members.len() as u64;
        page = page.after(last.position);
        let now = site.resident(&**yard);
        largest = largest.zip(now).map(|(one, other)| one.max(other));
    }
    if as_f64(read) < as_f64(held.requests()) {
        return Err(Error::internal("a batch was not read to its end"));
    }
    yard.finish(held).await?;
    Ok(largest)
}

pub(super) fn no_queue() -> Error {
    Error::internal("this contestant is no queue of ours")
}

const OLDEST_BYTES: usize = 200;
const LOOKS: usize = 20_000;
const MOST_ON_A_SERVER: u64 = 1_000_000;
