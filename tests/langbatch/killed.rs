//! Their section 3.5: killed at each step of a batch's life, and started again.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use batchyard::{
    Batch, BatchHandler, HandlerError, Member, MemoryQueue, Outcome, Queue, Report, RequestId,
};
use tokio::sync::mpsc;

use crate::{World, ids, push, queue, settle, start, stats};

/// Where a handler is going to be killed.
#[derive(Clone)]
struct Point(mpsc::Sender<()>);

impl Point {
    async fn reach(&self) {
        let _ = self.0.send(()).await;
        std::future::pending::<()>().await;
    }
}

/// Starts a dispatcher and kills it at the point that its handler is given.
async fn kill_at<H: BatchHandler>(queue: &Arc<MemoryQueue>, handler: impl FnOnce(Point) -> H) {
    let (point, mut reached) = mpsc::channel(1);
    let dispatcher = start(queue, handler(Point(point)));
    reached.recv().await.expect("the handler reaches the point");
    drop(dispatcher);
    // The other end is gone when nothing of the dispatcher is left.
    while reached.recv().await.is_some() {}
}

/// Writes a file named after the batch.
async fn write_file(files: &World<Vec<RequestId>>, batch: &Batch) -> Result<(), HandlerError> {
    let members = ids(batch).await?;
    files.lock().unwrap().insert(batch.id(), members);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn w1_killed_after_the_pop_loses_nothing() {
    let queue = queue();
    let pushed = push(&*queue, 10).await;
    kill_at(&queue, |point| {
        move |_| {
            let point = point.clone();
            async move {
                point.reach().await;
                Ok::<_, HandlerError>(Report::done())
            }
        }
    })
    .await;
    let files = World::default();
    let written = files.clone();
    let stats = settle(&queue, move |batch: Batch| {
        let files = written.clone();
        async move {
            write_file(&files, &batch).await?;
            Ok(Report::done())
        }
    })
    .await;
    assert_eq!(stats.done, 10);
    let files: Vec<_> = files.lock().unwrap().values().cloned().collect();
    assert_eq!(files, [pushed]);
}

#[tokio::test(start_paused = true)]
async fn w2_killed_after_the_file_writes_the_same_file_again() {
    let queue = queue();
    let pushed = push(&*queue, 10).await;
    let files = World::default();
    let handler = |point: Option<Point>| {
        let files = files.clone();
        move |batch: Batch| {
            let (files, point) = (files.clone(), point.clone());
            async move {
                write_file(&files, &batch).await?;
                if let Some(point) = point {
                    point.reach().await;
                }
                Ok::<_, HandlerError>(Report::done())
            }
        }
    };
    kill_at(&queue, |point| handler(Some(point))).await;
    assert_eq!(settle(&queue, handler(None)).await.done, 10);
    let files: Vec<_> = files.lock().unwrap().values().cloned().collect();
    assert_eq!(files, [pushed], "one file, not an orphan and another");
}

#[tokio::test(start_paused = true)]
async fn w3_killed_after_saving_goes_on_from_what_was_saved() {
    let queue = queue();
    push(&*queue, 10).await;
    let saves = Arc::new(AtomicU32::new(0));
    let handler = |point: Option<Point>| {
        let saves = saves.clone();
        move |batch: Batch| {
            let (saves, point) = (saves.clone(), point.clone());
            async move {
                if batch.checkpoint().is_none() {
                    saves.fetch_add(1, Ordering::SeqCst);
                    batch.save_checkpoint("saved").await?;
                }
                if let Some(point) = point {
                    point.reach().await;
                }
                Ok::<_, HandlerError>(Report::done())
            }
        }
    };
    kill_at(&queue, |point| handler(Some(point))).await;
    assert_eq!(settle(&queue, handler(None)).await.done, 10);
    assert_eq!(saves.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn w4_killed_while_recording_keeps_whole_pages_and_starts_again() {
    let queue = queue();
    let pushed = push(&*queue, 10).await;
    let handler = |point: Option<Point>| {
        move |batch: Batch| {
            let point = point.clone();
            async move {
                let members = batch.load().await?;
                let outcomes = |members: &[Member]| {
                    let done =
                        |member: &Member| (member.id, Outcome::result(member.payload.clone()));
                    members.iter().map(done).collect()
                };
                if let Some(point) = point {
                    batch
                        .update(outcomes(&members[..6]), Some("6".into()))
                        .await?;
                    point.reach().await;
                }
                assert_eq!(batch.checkpoint().as_deref(), Some(&b"6"[..]));
                assert_eq!(members.len(), 4, "what has an outcome is not handled again");
                batch.record(outcomes(&members)).await?;
                Ok::<_, HandlerError>(Report::recorded())
            }
        }
    };
    kill_at(&queue, |point| handler(Some(point))).await;
    assert_eq!(stats(&*queue).await.done, 6);
    assert_eq!(settle(&queue, handler(None)).await.done, 10);
    for (n, id) in pushed.into_iter().enumerate() {
        let entry = queue
            .admin()
            .unwrap()
            .status(queue.now(), id)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(entry.result.unwrap(), format!("{{\"input\":{n}}}"));
    }
}

/// A provider that is paid for each job, and can be asked for the job of a batch.
#[derive(Clone, Default)]
struct Provider {
    jobs: World<u32>,
    submitted: Arc<AtomicU32>,
}

impl Provider {
    fn submit(&self, batch: &Batch) -> String {
        let job = self.submitted.fetch_add(1, Ordering::SeqCst);
        self.jobs.lock().unwrap().insert(batch.id(), job);
        format!("job-{job}")
    }

    fn find(&self, batch: &Batch) -> Option<String> {
        let jobs = self.jobs.lock().unwrap();
        jobs.get(&batch.id()).map(|job| format!("job-{job}"))
    }
}

/// Submits unless the checkpoint or the provider knows the batch; may be killed before or after the
/// provider's id is saved.
fn submitter(
    provider: &Provider,
    before_save: Option<Point>,
    after_save: Option<Point>,
) -> impl BatchHandler {
    let provider = provider.clone();
    move |batch: Batch| {
        let (provider, before, after) = (provider.clone(), before_save.clone(), after_save.clone());
        async move {
            if batch.checkpoint().is_none() {
                let found = provider.find(&batch);
                let job = found.unwrap_or_else(|| provider.submit(&batch));
                if let Some(point) = before {
                    point.reach().await;
                }
                batch.save_checkpoint(job).await?;
            }
            if let Some(point) = after {
                point.reach().await;
            }
            Ok::<_, HandlerError>(Report::rest(Outcome::result(batch.checkpoint().unwrap())))
        }
    }
}

#[tokio::test(start_paused = true)]
async fn w5_killed_after_the_submission_finds_it_again_and_pays_once() {
    let (queue, provider) = (queue(), Provider::default());
    push(&*queue, 10).await;
    kill_at(&queue, |point| submitter(&provider, Some(point), None)).await;
    assert_eq!(
        settle(&queue, submitter(&provider, None, None)).await.done,
        10
    );
    assert_eq!(provider.submitted.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn w5b_killed_after_the_id_was_saved_fetches_the_results_of_that_job() {
    let (queue, provider) = (queue(), Provider::default());
    let pushed = push(&*queue, 10).await;
    kill_at(&queue, |point| submitter(&provider, None, Some(point))).await;
    // Even if the provider could not be asked for it.
    provider.jobs.lock().unwrap().clear();
    assert_eq!(
        settle(&queue, submitter(&provider, None, None)).await.done,
        10
    );
    assert_eq!(provider.submitted.load(Ordering::SeqCst), 1);
    let admin = queue.admin().unwrap();
    let entry = admin.status(queue.now(), pushed[0]).await.unwrap().unwrap();
    assert_eq!(entry.result.unwrap(), "job-0");
}

/// Their process function: `on_results`, with an effect, a point to be killed at and failures.
struct Process {
    effects: World<u32>,
    handled: Arc<AtomicU32>,
    point: Option<Point>,
    failures: u32,
}

#[async_trait]
impl BatchHandler for Process {
    async fn handle(&self, _: Batch) -> Result<Report, HandlerError> {
        self.handled.fetch_add(1, Ordering::SeqCst);
        Ok(Report::done())
    }

    fn wants_results(&self) -> bool {
        true
    }

    async fn on_results(&self, batch: Batch) -> Result<(), HandlerError> {
        let calls = {
            let mut effects = self.effects.lock().unwrap();
            let calls = effects.entry(batch.id()).or_default();
            *calls += 1;
            *calls
        };
        if let Some(point) = &self.point {
            point.reach().await;
        }
        if calls <= self.failures {
            return Err(HandlerError::transient("the database is locked"));
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn w6_killed_in_the_process_function_runs_it_again_under_the_same_id() {
    let queue = queue();
    push(&*queue, 10).await;
    let (effects, handled) = (World::default(), Arc::new(AtomicU32::new(0)));
    let process = |point| Process {
        effects: effects.clone(),
        handled: handled.clone(),
        point,
        failures: 0,
    };
    kill_at(&queue, |point| process(Some(point))).await;
    assert_eq!(settle(&queue, process(None)).await.done, 10);
    let effects: Vec<_> = effects.lock().unwrap().values().copied().collect();
    assert_eq!(effects, [2], "twice, under one id to know it by");
    assert_eq!(
        handled.load(Ordering::SeqCst),
        1,
        "the results were not made again"
    );
}
