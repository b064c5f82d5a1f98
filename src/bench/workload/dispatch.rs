//! Through a dispatcher.

use std::{num::NonZeroU32, sync::Arc};

use tokio::{sync::mpsc, time::Instant};

use super::{
    KIB, Point, Site, Unit,
    enqueue::fill_with,
    grouped,
    queued::no_queue,
    taken::{micros, most},
};
use crate::{
    bench::{
        payload::Payloads,
        statistics::{Latency, as_f64},
        yard::Yard,
    },
    dispatcher::{Dispatcher, Event},
    error::{Error, Result},
    handler::{Batch, HandlerError, Report},
};

/// From the answer to the push that reaches the threshold until the handler is called.
pub(super) async fn dispatch(site: &Site<'_>) -> Result<Vec<Point>> {
    let payloads = Payloads::of(KIB);
    let yard = site.open(0).await?;
    let queue = yard.queue().ok_or_else(no_queue)?;
    let (called, mut calls) = mpsc::unbounded_channel();
    let handler = move |_: Batch| {
        // Told as soon as it is called; whoever waits for it outlives it.
        let _ = called.send(Instant::now());
        async { Ok::<_, HandlerError>(Report::done()) }
    };
    let (dispatcher, mut events) = Dispatcher::builder(queue)
        .queue_threshold(THRESHOLD)
        .handler(handler)
        .build()?
        .start_observed();
    let below = u64::from(THRESHOLD.get()) - 1;
    let (mut answered, mut asked) = (Vec::new(), Vec::new());
    for number in 0..site.count(500, 20) {
        yard.push(payloads.many(number, below)).await?;
        let ask = Instant::now();
        yard.push(payloads.many(number, 1)).await?;
        let answer = Instant::now();
        let call = calls.recv().await;
        let call = call.ok_or_else(|| Error::internal("the dispatcher is gone"))?;
        // A handler may be called before the caller has heard of its push.
        answered.push(nanos(answer, call));
        asked.push(nanos(ask, call));
        finished(&mut events).await?;
    }
    dispatcher.shut_down().await?;
    yard.close().await?;
    let points = [
        ("from the answer of the push to the handler", answered),
        ("from the call of the push to the handler", asked),
    ];
    let points = points.into_iter().map(|(case, nanos)| {
        let latency = Latency::of(nanos);
        let half = latency.map_or(0.0, |latency| latency.p50);
        let mut point = site.point(case, Unit::Microseconds, half);
        point.latency = latency;
        point
    });
    Ok(points.collect())
}

fn nanos(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

async fn finished(events: &mut tokio::sync::broadcast::Receiver<Event>) -> Result<()> {
    loop {
        match events.recv().await {
            Ok(Event::Finished { .. }) => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                return Err(Error::internal("the dispatcher is gone").with_source(error));
            }
        }
    }
}

/// From the first push until all is settled, with a handler that does nothing.
pub(super) async fn end_to_end(site: &Site<'_>) -> Result<Vec<Point>> {
    let payloads = Payloads::of(KIB);
    let requests = site.count(200_000, 1000);
    let threshold = NonZeroU32::new(most(site.count(10_000, 100))).unwrap_or(NonZeroU32::MIN);
    let yard: Arc<dyn Yard> = Arc::from(site.open(requests * KIB as u64).await?);
    let queue = yard.queue().ok_or_else(no_queue)?;
    let handler = |_: Batch| async { Ok::<_, HandlerError>(Report::done()) };
    let dispatcher = Dispatcher::builder(Arc::clone(&queue))
        .queue_threshold(threshold)
        .handler(handler)
        .build()?
        .start();
    let start = Instant::now();
    fill_with(&yard, &payloads, requests, 64).await?;
    let pushed = start.elapsed();
    dispatcher.drain().await?;
    let settled = start.elapsed();
    let stats = queue.stats(queue.now()).await?;
    if stats.done != requests {
        let text = format!("{requests} were pushed, and {} are done", stats.done);
        return Err(Error::internal(text));
    }
    dispatcher.shut_down().await?;
    yard.close().await?;
    let rate = as_f64(requests) / settled.as_secs_f64();
    let case = format!(
        "64 producers, batches of {}",
        grouped(threshold.get().into())
    );
    let all = site.point(case, Unit::RequestsPerSecond, rate);
    let tail = site.point(
        "from the last answer until all is settled",
        Unit::Microseconds,
        micros(settled.saturating_sub(pushed)),
    );
    Ok(vec![all, tail])
}

const THRESHOLD: NonZeroU32 = NonZeroU32::new(100).expect("not zero");
