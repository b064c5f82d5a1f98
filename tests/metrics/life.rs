//! A dispatcher that goes through everything, and the page it leaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use batchyard::{
    Administration, Batch, DeadReason, Dispatcher, ErrorKind, Event, HandlerError, MemoryQueue,
    MemoryStore, Metrics, NewRequest, Outcome, Policy, Queue, QueueExt, QueueName, QueueOptions,
    Report, RequestId, RunningDispatcher,
    testing::{Faulty, Verb},
};
use tokio::sync::broadcast;

use crate::exposition::Page;

fn count(requests: u32) -> NonZeroU32 {
    NonZeroU32::new(requests).unwrap()
}

/// Batches of two at once, else after an hour; two attempts, and no wait between them.
fn policy() -> Policy {
    Policy {
        queue_threshold: count(2),
        time_threshold: Duration::from_secs(3600),
        max_in_flight: count(1),
        max_attempts: count(2),
        initial_backoff: Duration::from_nanos(1),
        max_backoff: Duration::from_nanos(1),
        ..Policy::default()
    }
}

/// Does with each request what its payload says.
async fn obey(batch: Batch, outages: &AtomicU32) -> Result<Report, HandlerError> {
    let members = batch.load().await?;
    let says = |word: &str| {
        members
            .iter()
            .any(|member| &member.payload[..] == word.as_bytes())
    };
    if says("outage") && outages.fetch_add(1, Ordering::SeqCst) == 0 {
        return Err(HandlerError::outage("it is down"));
    }
    if says("poison") {
        return Err(HandlerError::permanent("it can't be"));
    }
    if says("twice") && batch.attempt() == 1 {
        return Err(HandlerError::transient("not yet"));
    }
    let outcomes = members.iter().map(|member| {
        let outcome = match &member.payload[..] {
            b"reject" => Outcome::reject("no"),
            b"retry" => Outcome::retry("once more"),
            _ => Outcome::done(),
        };
        (member.id, outcome)
    });
    Ok(Report::outcomes(outcomes.collect()))
}

struct Yard {
    metrics: Metrics,
    queue: Arc<dyn Queue>,
    running: RunningDispatcher,
    events: broadcast::Receiver<Event>,
}

impl Yard {
    async fn new(policy: Policy) -> Self {
        let metrics = Metrics::new();
        let store = metrics.observe_store(Arc::new(MemoryStore::new(QueueOptions::default())));
        let queue = store.queue(&"orders".parse().unwrap()).await.unwrap();
        let outages = Arc::new(AtomicU32::new(0));
        let handler = move |batch| {
            let outages = Arc::clone(&outages);
            async move { obey(batch, &outages).await }
        };
        let dispatcher = Dispatcher::over(store, "").policy(policy).handler(handler);
        let dispatcher = dispatcher.on_event(metrics.observer()).build().unwrap();
        let (running, events) = dispatcher.start_observed();
        metrics.watch_dispatcher(running.handle());
        metrics.watch_folder(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metrics"),
            Duration::from_secs(1),
        );
        Self {
            metrics,
            queue,
            running,
            events,
        }
    }

    async fn push(&self, payloads: &[&'static str]) -> Vec<RequestId> {
        let requests = payloads
            .iter()
            .map(|payload| NewRequest::new(*payload))
            .collect();
        let pushed = self.queue.push(self.queue.now(), requests).await.unwrap();
        pushed.into_iter().map(|pushed| pushed.id).collect()
    }

    /// Waits for this many events of a name, attempts that are over if it is empty.
    async fn wait(&mut self, name: &str, mut times: usize) {
        while times > 0 {
            let event = serde_json::to_value(self.events.recv().await.unwrap()).unwrap();
            times -= usize::from(event["event"] == name);
        }
    }

    async fn page(&self) -> Page {
        Page::parse(&self.metrics.render().await)
    }

    fn admin(&self) -> &dyn Administration {
        self.queue.admin().unwrap()
    }

    /// One of each state and transition.
    async fn live(&mut self) {
        self.push(&["done", "done"]).await;
        self.wait("attempt_ended", 1).await;
        self.push(&["reject", "done"]).await;
        self.wait("attempt_ended", 1).await;
        // Retried until its attempts are used up, beside one more each time.
        self.push(&["retry", "done"]).await;
        self.wait("attempt_ended", 1).await;
        self.push(&["done"]).await;
        self.wait("attempt_ended", 1).await;
        self.push(&["twice", "done"]).await;
        self.wait("attempt_ended", 2).await;
        // Split, then each half alone: one is rejected, the other is done.
        self.push(&["poison", "done"]).await;
        self.wait("attempt_ended", 3).await;
        self.push(&["outage", "done"]).await;
        self.wait("attempt_ended", 2).await;
        self.flush_one().await;
        self.mend().await;
    }

    async fn flush_one(&mut self) {
        self.push(&["done"]).await;
        self.running.flush().await.unwrap();
        self.wait("attempt_ended", 1).await;
    }

    /// What operators do, and what time does.
    async fn mend(&self) {
        let now = self.queue.now();
        let request = |payload| NewRequest::new(payload);
        let later = now.after(Duration::from_secs(3600));
        let delayed = request("later").not_before(later);
        let brief = request("brief")
            .not_before(later)
            .ttl(Duration::from_nanos(1));
        let pushed = self.queue.push(now, vec![delayed, brief]).await.unwrap();
        assert_eq!(pushed.len(), 2);
        let ids = self.push(&["left"]).await;
        let cancelled = self.admin().cancel(self.queue.now(), &ids).await.unwrap();
        assert_eq!(cancelled.len(), 1);
        let list = batchyard::List::new(batchyard::State::Dead);
        let dead = self.admin().list(self.queue.now(), &list).await.unwrap();
        let ids: Vec<RequestId> = dead.iter().map(|entry| entry.id).collect();
        assert_eq!(ids.len(), 3, "{dead:?}");
        assert_eq!(
            self.admin()
                .purge(self.queue.now(), &ids[..1])
                .await
                .unwrap(),
            1
        );
        assert_eq!(
            self.admin()
                .redrive(self.queue.now(), &ids[1..2])
                .await
                .unwrap(),
            1
        );
    }
}

/// The rows of the guide's table: name, type, labels.
fn table() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let guide = include_str!("../../src/_documentation/metrics.md");
    let rows = guide.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 8, "{row}");
        let ticked = |cell: &str| {
            cell.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        };
        let name = cells[1].trim_matches('`').to_owned();
        let unit = ["seconds", "bytes", "ratio"].into_iter().find(|unit| {
            name.trim_end_matches("_total")
                .ends_with(&format!("_{unit}"))
        });
        assert!(
            unit.is_none_or(|unit| cells[3] == unit),
            "the unit of {row}"
        );
        let counter = name.ends_with("_total") || cells[2] == "histogram";
        assert_eq!(counter, !cells[5].is_empty(), "who counts {row}");
        (name, (cells[2].to_owned(), ticked(cells[4])))
    })
    .collect()
}

#[tokio::test]
async fn the_page_has_every_metric_of_the_guide_and_no_other() {
    let mut yard = Yard::new(policy()).await;
    yard.live().await;
    let page = yard.page().await;
    let table = table();
    assert!(table.len() > 40, "the table was not found");
    let on_page: BTreeMap<_, _> = page
        .0
        .iter()
        .map(|(name, family)| {
            let labels = family.labels().into_iter().map(str::to_owned).collect();
            (name.clone(), (family.kind.clone(), labels))
        })
        .collect();
    for (name, row) in &table {
        assert_eq!(
            on_page.get(name),
            Some(row),
            "{name}: the guide, and not the page"
        );
    }
    for name in on_page.keys() {
        assert!(table.contains_key(name), "{name} is not in the guide");
    }
    let guide = include_str!("../../src/_documentation/metrics.md").replace('`', "");
    for (name, family) in &page.0 {
        let help = family.help.trim_end_matches('.');
        assert!(
            guide.contains(&format!("| {help} |")),
            "{name}: the guide says something else than {help:?}"
        );
    }
}

#[tokio::test]
async fn the_page_says_what_happened_and_what_stats_say() {
    let mut yard = Yard::new(policy()).await;
    yard.live().await;
    let page = yard.page().await;
    let stats = yard.queue.stats(yard.queue.now()).await.unwrap();
    let of =
        |name: &str, more: &str| page.value(&format!("batchyard_{name}{{queue=\"orders\"{more}}}"));
    for (state, count) in [
        ("delayed", stats.delayed),
        ("ready", stats.ready),
        ("in_flight", stats.in_flight),
        ("dead", stats.dead),
    ] {
        let on_page = of("requests", &format!(",state=\"{state}\""));
        assert_eq!(on_page, f64::from(u32::try_from(count).unwrap()), "{state}");
    }
    let held = page.sum("batchyard_requests", "queue", "orders");
    let settled = ["done", "expired", "cancelled", "purged"];
    let settled = settled.map(|name| of(&format!("requests_{name}_total"), ""));
    assert_eq!(
        of("requests_pushed_total", ""),
        held + settled.iter().sum::<f64>()
    );
    let done = [2., 1., 1., 1., 2., 1., 2., 1.].iter().sum::<f64>();
    assert_eq!(settled[0], done);

    for (trigger, count) in [
        ("count", 7.),
        ("flush", 1.),
        ("offered", 4.),
        ("age", 0.),
        ("bytes", 0.),
    ] {
        let on_page = of("batches_claimed_total", &format!(",trigger=\"{trigger}\""));
        assert_eq!(on_page, count, "{trigger}");
    }
    for (end, count) in [
        ("finished", 8.),
        ("deferred", 1.),
        ("released", 1.),
        ("split", 1.),
        ("rejected", 1.),
        ("lease_lost", 0.),
    ] {
        assert_eq!(
            of("attempts_total", &format!(",end=\"{end}\"")),
            count,
            "{end}"
        );
    }
    for (outcome, count) in [
        ("done", done),
        ("retried", 1.),
        ("rejected", 2.),
        ("exhausted", 1.),
        ("undecodable", 0.),
    ] {
        let on_page = of("outcomes_total", &format!(",outcome=\"{outcome}\""));
        assert_eq!(on_page, count, "{outcome}");
    }
    for (kind, errors) in [("outage", 1.), ("transient", 1.), ("permanent", 2.)] {
        let on_page = of("handler_errors_total", &format!(",kind=\"{kind}\""));
        assert_eq!(on_page, errors, "{kind}");
    }
    assert_eq!(of("requests_redriven_total", ""), 1.);
    assert_eq!(of("breaker_opened_total", ""), 1.);
    assert_eq!(of("batch_requests_count", ""), 8.);
    assert_eq!(of("batch_requests_sum", ""), 15.);
    assert_eq!(of("handler_duration_seconds_count", ""), 12.);
    assert_eq!(of("queue_threshold_requests", ""), 2.);
    assert_eq!(of("max_batch_bytes", ""), f64::INFINITY);
    assert_eq!(of("next_batch_fill_ratio", ""), 0.5, "one was redriven");
    assert_eq!(page.value("batchyard_push_duration_seconds_count"), 10.);
    assert!(page.value("batchyard_store_disk_bytes") > 0.);
    assert_eq!(page.value("batchyard_dispatcher_up"), 1.);
}

/// A handler that waits until it is let go, and is seen meanwhile.
#[tokio::test]
async fn slots_pauses_and_a_dispatcher_that_stopped_are_on_the_page() {
    let metrics = Metrics::new();
    let queue = metrics.observe_queue(Arc::new(MemoryQueue::new(QueueOptions::default())));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let handler = move |_: Batch| {
        let held = Arc::clone(&held);
        async move {
            held.acquire().await.unwrap().forget();
            Ok::<_, HandlerError>(Report::done())
        }
    };
    let dispatcher = Dispatcher::builder(Arc::clone(&queue)).policy(policy());
    let dispatcher = dispatcher.handler(handler).on_event(metrics.observer());
    let (running, mut events) = dispatcher.build().unwrap().start_observed();
    metrics.watch_dispatcher(running.handle());
    let requests = || vec![NewRequest::new("a"), NewRequest::new("b")];
    queue.push(queue.now(), requests()).await.unwrap();
    while !matches!(events.recv().await.unwrap(), Event::Claimed { .. }) {}
    queue.pause().await.unwrap();
    let page = Page::parse(&metrics.render().await);
    assert_eq!(page.value("batchyard_slots_used{queue=\"default\"}"), 1.);
    assert_eq!(page.value("batchyard_dispatcher_slots_used"), 1.);
    assert_eq!(page.value("batchyard_queue_paused{queue=\"default\"}"), 1.);
    assert_eq!(
        page.value("batchyard_batches{queue=\"default\",state=\"open\"}"),
        1.
    );
    gate.add_permits(1);
    running.shut_down().await.unwrap();
    let page = Page::parse(&metrics.render().await);
    assert_eq!(page.value("batchyard_dispatcher_up"), 0.);
    assert_eq!(
        page.value("batchyard_requests_done_total{queue=\"default\"}"),
        2.
    );
    assert_eq!(page.value("batchyard_queue_served{queue=\"default\"}"), 0.);
}

#[tokio::test]
async fn errors_of_the_store_are_counted_by_kind_and_one_that_is_poisoned_is_told() {
    let metrics = Metrics::new();
    let memory = Arc::new(MemoryQueue::new(QueueOptions::default()));
    let faulty = Arc::new(Faulty::new(memory));
    let queue = metrics.observe_queue(Arc::clone(&faulty) as _);
    for kind in [
        ErrorKind::Unavailable,
        ErrorKind::QueueFull,
        ErrorKind::Invalid,
    ] {
        faulty.fail_next(Verb::Push, kind);
        queue.push_one(NewRequest::new("a")).await.unwrap_err();
    }
    let page = Page::parse(&metrics.render().await);
    assert_eq!(page.value("batchyard_store_poisoned"), 0.);
    faulty.fail_next(Verb::Push, ErrorKind::Poisoned);
    queue.push_one(NewRequest::new("a")).await.unwrap_err();
    let page = Page::parse(&metrics.render().await);
    assert_eq!(page.value("batchyard_store_poisoned"), 1.);
    let errors = |kind| {
        page.value(&format!(
            "batchyard_storage_errors_total{{kind=\"{kind}\"}}"
        ))
    };
    assert_eq!(
        [
            errors("unavailable"),
            errors("queue_full"),
            errors("poisoned")
        ],
        [1.; 3]
    );
    assert_eq!(
        page.value("batchyard_push_duration_seconds_count"),
        0.,
        "only what was answered"
    );
    faulty.fail_next(Verb::Stats, ErrorKind::Unavailable);
    let page = Page::parse(&metrics.render().await);
    assert_eq!(
        page.value("batchyard_queue_readable{queue=\"default\"}"),
        0.
    );
}

#[tokio::test]
async fn queues_beyond_the_hundredth_share_a_label_and_nothing_is_lost() {
    let metrics = Metrics::new();
    let store = metrics.observe_store(Arc::new(MemoryStore::new(QueueOptions::default())));
    for number in 0..130 {
        let name: QueueName = format!("tenant-{number}").parse().unwrap();
        let queue = store.queue(&name).await.unwrap();
        queue.push_one(NewRequest::new("a")).await.unwrap();
    }
    let handler = |_: Batch| async { Ok::<_, HandlerError>(Report::done()) };
    let dispatcher = Dispatcher::over(store, "tenant-").handler(handler);
    let dispatcher = dispatcher.on_event(metrics.observer()).build().unwrap();
    let running = dispatcher.start();
    metrics.watch_dispatcher(running.handle());
    running.drain().await.unwrap();
    let page = Page::parse(&metrics.render().await);
    let pushed = &page.0["batchyard_requests_pushed_total"].samples;
    assert_eq!(pushed.len(), 101);
    assert_eq!(pushed.iter().map(|sample| sample.value).sum::<f64>(), 130.);
    assert_eq!(
        page.value("batchyard_requests_pushed_total{queue=\"_other\"}"),
        30.
    );
    assert_eq!(
        page.value("batchyard_outcomes_total{queue=\"_other\",outcome=\"done\"}"),
        30.
    );
    assert_eq!(
        page.sum("batchyard_batches_claimed_total", "trigger", "flush"),
        130.
    );
}

/// What a handler records itself, what it leaves to the rest, and what `request_kwargs` can't be merged under.
#[tokio::test]
async fn outcomes_are_counted_once_whoever_gives_them() {
    let metrics = Metrics::new();
    let queue: Arc<dyn Queue> = Arc::new(MemoryQueue::new(QueueOptions::default()));
    let handler = |batch: Batch| async move {
        let members = batch.load().await?;
        let first = members[0].id;
        batch.record(vec![(first, Outcome::done())]).await?;
        let reason = DeadReason::Damaged;
        let error = "bits".to_owned();
        // The second time it is ignored.
        let twice = vec![
            (first, Outcome::reject("no")),
            (members[1].id, Outcome::Reject { reason, error }),
        ];
        Ok::<_, HandlerError>(Report::outcomes(twice).with(members[2].id, Outcome::done()))
    };
    let dispatcher = Dispatcher::builder(Arc::clone(&queue)).handler(handler);
    let dispatcher = dispatcher
        .request_kwargs("{\"a\":1}")
        .on_event(metrics.observer());
    let running = dispatcher.build().unwrap().start();
    metrics.watch_dispatcher(running.handle());
    let requests = ["{}", "{}", "{}", "not json"].map(NewRequest::new);
    queue.push(queue.now(), requests.into()).await.unwrap();
    running.drain().await.unwrap();
    let page = Page::parse(&metrics.render().await);
    for (outcome, count) in [
        ("done", 2.),
        ("damaged", 1.),
        ("undecodable", 1.),
        ("rejected", 0.),
    ] {
        let series = format!("batchyard_outcomes_total{{queue=\"default\",outcome=\"{outcome}\"}}");
        assert_eq!(page.value(&series), count, "{outcome}");
    }
}
