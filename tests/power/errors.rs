//! The n-th write, sync, create and so on fails, once or for good.
//!
//! Then nothing is answered that is not durable: what the disk holds is what was answered, with all lost that was not
//! synced; and with nothing lost, what is shown after the store was opened again stays so when the power goes then.

use std::collections::BTreeMap;

use batchyard::{
    Error, ErrorKind, NewRequest, Queue,
    testing::proof,
    torture::forgetful::{Call, DiskError, FailPlan, Loss},
};

use crate::{
    Disk,
    fresh::check,
    life::{self, Life, Side},
    seed,
    store::{Backend, Held, in_time},
    stride,
};

#[tokio::test]
async fn no_error_of_the_disk_costs_what_sled_answered() {
    fail_everywhere(Backend::Sled).await;
}

#[tokio::test]
async fn no_error_of_the_disk_costs_what_the_journal_answered() {
    fail_everywhere(Backend::Journal).await;
}

async fn fail_everywhere(backend: Backend) {
    let Some(disk) = Disk::new() else { return };
    crate::planted::begin();
    let life = life::short().await;
    let empty = disk.forgetful.keep();
    let seed = seed();
    let (mut failures, mut tally) = (0, BTreeMap::<String, u32>::new());
    for (index, plan) in plans().into_iter().enumerate() {
        let stride = one_of(plan.call);
        let mut skip = (seed + index as u64) % stride;
        loop {
            let plan = FailPlan { skip, ..plan };
            disk.forgetful.go_back(&empty);
            disk.forgetful.fail(Some(plan));
            let before = disk.forgetful.failures();
            let (answered, error) = live(&disk, backend, &life).await;
            disk.forgetful.fail(None);
            if disk.forgetful.failures() == before {
                break;
            }
            let how = error.as_ref().map_or_else(
                || "goes on".to_owned(),
                |error| format!("{:?}", error.kind()),
            );
            *tally
                .entry(format!("{:?} {:?}: {how}", plan.call, plan.error))
                .or_default() += 1;
            let case = Case {
                disk: &disk,
                backend,
                life: &life,
                answered,
                context: format!("{plan:?}, then {error:?}"),
            };
            let kept = disk.forgetful.keep();
            case.loses_power().await;
            disk.forgetful.go_back(&kept);
            case.opens_again_and_loses_power_then().await;
            failures += 1;
            skip += stride;
        }
    }
    println!("{tally:#?}");
    proof(
        "G1 G8 G10",
        backend.name(),
        format!("{failures} errors of the disk"),
        crate::planted::caught_by_errors(backend),
    );
}

/// All kinds of errors; a full disk is told by what needs space.
fn plans() -> Vec<FailPlan> {
    let mut plans = Vec::new();
    for call in Call::ALL {
        let takes_space = !matches!(
            call,
            Call::Open | Call::Read | Call::Remove | Call::SyncFolder
        );
        for error in [DiskError::Broken, DiskError::Full] {
            if error == DiskError::Full && !takes_space {
                continue;
            }
            for once in [true, false] {
                plans.push(FailPlan {
                    call,
                    skip: 0,
                    once,
                    error,
                });
            }
        }
    }
    plans
}

/// Lives until the first error that tells of the disk; how many steps were answered, and what it was.
async fn live(disk: &Disk, backend: Backend, life: &Life) -> (usize, Option<Error>) {
    let opened = match in_time("opening", backend.open(&disk.store())).await {
        Ok(opened) => opened,
        Err(error) => return (0, Some(error)),
    };
    let mut side = Side::new(opened.queue.clone());
    let (mut answered, mut failed) = (0, None);
    for moment in &life.moments {
        match side.take(moment.now, &moment.step).await {
            Err(error) if Some(error.kind()) != moment.refused => {
                if error.kind() == ErrorKind::Poisoned {
                    is_poisoned(&*opened.queue, life).await;
                }
                failed = Some(error);
                break;
            }
            result => assert_eq!(result.err().map(|error| error.kind()), moment.refused),
        }
        answered += 1;
    }
    drop(side);
    let ended = opened.end().await;
    (answered, failed.or(ended.err()))
}

/// It says so, whatever it is asked for.
pub(crate) async fn is_poisoned(queue: &dyn Queue, life: &Life) {
    let pushed = in_time("a push", queue.push(life.now, vec![NewRequest::new("x")])).await;
    let error = pushed.expect_err("the store is poisoned");
    assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    let stats = in_time("stats", queue.stats(life.now)).await;
    assert_eq!(
        stats.expect_err("the store is poisoned").kind(),
        ErrorKind::Poisoned
    );
}

struct Case<'a> {
    disk: &'a Disk,
    backend: Backend,
    life: &'a Life,
    answered: usize,
    context: String,
}

impl Case<'_> {
    /// The machine goes down, and the disk is sound again.
    async fn loses_power(&self) {
        self.disk.forgetful.restore(Loss::All);
        let found = check(self.disk, self.backend, self.life, self.answered).await;
        let (opened, _) = found.unwrap_or_else(|why| self.fails(&why));
        let ended = opened.end().await;
        ended.unwrap_or_else(|error| self.fails(&error.to_string()));
    }

    /// Only the process ends; what the next one shows is answered.
    async fn opens_again_and_loses_power_then(&self) {
        let found = check(self.disk, self.backend, self.life, self.answered).await;
        let (opened, _) = found.unwrap_or_else(|why| self.fails(&why));
        let now = self.life.now;
        let new = opened.queue.push(now, vec![NewRequest::new("after")]).await;
        new.unwrap_or_else(|error| self.fails(&format!("a push after it: {error}")));
        let shown = Held::of(&*opened.queue, now).await;
        let shown = shown.unwrap_or_else(|error| self.fails(&error.to_string()));
        self.disk.forgetful.cut();
        let _ = opened.end().await;
        self.disk.forgetful.restore(Loss::All);
        let opened = in_time("opening", self.backend.open(&self.disk.store())).await;
        let opened = opened.unwrap_or_else(|error| {
            self.fails(&format!("readable, not durable: it does not open: {error}"))
        });
        let held = Held::of(&*opened.queue, now).await;
        let held = held.unwrap_or_else(|error| self.fails(&error.to_string()));
        if held != shown {
            self.fails(&format!(
                "readable, not durable: {}",
                shown.difference(&held)
            ));
        }
        let _ = opened.end().await;
    }

    fn fails(&self, why: &str) -> ! {
        let answered = self.answered;
        let under_way = self.life.moments.get(answered).map(|moment| &moment.step);
        panic!(
            "{}: {}: {answered} steps were answered, {under_way:?} was not: {why}",
            self.backend.name(),
            self.context
        );
    }
}

/// One operation of so many fails: there are many of some kinds, and of others there are few.
fn one_of(call: Call) -> u64 {
    match call {
        Call::Write | Call::Sync | Call::Read => stride(23, 9),
        _ => stride(7, 1),
    }
}
