//! The power goes at each change of a short life on a new store; and again while that is opened.

use batchyard::{
    Claim, NewRequest, Outcome, Queue, Retries, Then, Timestamp, Update,
    testing::proof,
    torture::forgetful::{Kept, Loss, Rules},
};
use std::{num::NonZeroU32, time::Duration};

use crate::{
    Disk,
    life::{self, Life, Side},
    seed,
    store::{Backend, Opened, in_time},
    stride,
};

#[tokio::test]
async fn no_power_cut_on_sled_loses_or_changes_what_was_answered() {
    cut_everywhere(Backend::Sled).await;
}

#[tokio::test]
async fn no_power_cut_on_the_journal_loses_or_changes_what_was_answered() {
    cut_everywhere(Backend::Journal).await;
}

async fn cut_everywhere(backend: Backend) {
    let Some(disk) = Disk::new() else { return };
    crate::planted::begin();
    let life = life::short().await;
    let empty = disk.forgetful.keep();
    let seed = seed();
    let stride = stride(29, 5);
    let (mut cuts, mut again) = (0, 0);
    for rules in [Rules::Strict, Rules::Ext4] {
        let mut at = 1 + seed % stride;
        loop {
            disk.forgetful.go_back(&empty);
            disk.forgetful.set_rules(rules);
            disk.forgetful.cut_after(at);
            let answered = live(&disk, backend, &life).await;
            let Some(what) = disk.forgetful.cut_was_at() else {
                break;
            };
            let dark = disk.forgetful.keep();
            let seeds = [0, 1].map(|more| seed + 1_000 * at + more);
            for loss in [Loss::Nothing, Loss::All]
                .into_iter()
                .chain(seeds.map(|seed| Loss::Torn { seed }))
            {
                let context = format!("{rules:?}, cut at change {at} ({what}), then {loss:?}");
                let case = Case {
                    disk: &disk,
                    backend,
                    life: &life,
                    answered,
                    context,
                };
                let changes = case.recover(&dark, loss).await;
                cuts += 1;
                let inner = 1 + (seed + 7 * at) % changes.max(1);
                case.recover_cut(&dark, loss, inner).await;
                again += 1;
            }
            at += stride;
        }
    }
    let cycles = format!("{cuts} power cuts, {again} more while opening");
    proof(
        "G1 G2 G3 G5 G8",
        backend.name(),
        cycles,
        crate::planted::caught(backend),
    );
}

/// Lives until the disk fails; how many steps were answered.
pub(crate) async fn live(disk: &Disk, backend: Backend, life: &Life) -> usize {
    let Ok(opened) = in_time("opening", backend.open(&disk.store())).await else {
        return 0;
    };
    let mut side = Side::new(opened.queue.clone());
    let mut answered = 0;
    for moment in &life.moments {
        if !side.goes_on(moment).await {
            break;
        }
        answered += 1;
    }
    drop(side);
    let _ = opened.end().await;
    answered
}

/// A cut, and what was answered before.
struct Case<'a> {
    disk: &'a Disk,
    backend: Backend,
    life: &'a Life,
    answered: usize,
    context: String,
}

impl Case<'_> {
    /// Opens what is left and goes on with it; how many changes opening took.
    async fn recover(&self, dark: &Kept, loss: Loss) -> u64 {
        let forgetful = &self.disk.forgetful;
        forgetful.go_back(dark);
        forgetful.restore(loss);
        let before = forgetful.operations();
        let opened = self.check().await;
        let changes = forgetful.operations() - before;
        self.go_on(&opened).await;
        opened
            .end()
            .await
            .unwrap_or_else(|error| self.fails(&error.to_string()));
        changes
    }

    /// Cuts the power while it is opened, and opens it again.
    async fn recover_cut(&self, dark: &Kept, loss: Loss, at: u64) {
        let forgetful = &self.disk.forgetful;
        forgetful.go_back(dark);
        forgetful.restore(loss);
        forgetful.cut_after(at);
        let path = self.disk.store();
        if let Ok(opened) = in_time("opening", self.backend.open(&path)).await {
            let _ = opened.end().await;
        }
        let what = forgetful.cut_was_at();
        forgetful.restore(match loss {
            // The program was killed, and the power goes while the next one opens the store.
            Loss::Nothing => Loss::All,
            loss => loss,
        });
        let context = format!("{}, cut again at {at} ({what:?})", self.context);
        let again = Case { context, ..*self };
        let opened = again.check().await;
        again.go_on(&opened).await;
        opened
            .end()
            .await
            .unwrap_or_else(|error| again.fails(&error.to_string()));
    }

    /// Opens it: what is there is what was answered, or that and the step under way as a whole.
    async fn check(&self) -> Opened {
        match check(self.disk, self.backend, self.life, self.answered).await {
            Ok((opened, _)) => opened,
            Err(why) => self.fails(&why),
        }
    }

    /// It goes on: a new request gets a new id, and everything that waits is handed out and ends.
    async fn go_on(&self, opened: &Opened) {
        let drained = in_time("draining", drain(&*opened.queue, self.life)).await;
        drained.unwrap_or_else(|why| self.fails(&format!("going on: {why}")));
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

/// Opens a store and finds out as of when it is.
pub(crate) async fn check(
    disk: &Disk,
    backend: Backend,
    life: &Life,
    answered: usize,
) -> Result<(Opened, Timestamp), String> {
    let opened = in_time("opening", backend.open(&disk.store())).await;
    let opened = opened.map_err(|error| format!("it does not open: {error}"))?;
    let now = life.find(&*opened.queue, answered).await?;
    Ok((opened, now))
}

/// Pushes a request and settles everything that waits.
pub(crate) async fn drain(queue: &dyn Queue, life: &Life) -> Result<(), String> {
    let failed = |error: batchyard::Error| error.to_string();
    let later = life.now.after(Duration::from_hours(24));
    let before = queue.stats(later).await.map_err(failed)?;
    let new = queue
        .push(later, vec![NewRequest::new("after")])
        .await
        .map_err(failed)?;
    if queue
        .admin()
        .unwrap()
        .status(later, new[0].id)
        .await
        .map_err(failed)?
        .is_none()
    {
        return Err("a new request is not there".to_owned());
    }
    let finish = Then::Finish {
        rest: Outcome::done(),
        retries: Retries {
            at: later,
            max_attempts: NonZeroU32::MIN,
        },
    };
    while let Some(lease) = queue.claim(later, &Claim::new()).await.map_err(failed)? {
        let members = queue
            .read(&lease, batchyard::Page::first())
            .await
            .map_err(failed)?;
        if members.is_empty() {
            return Err(format!("batch {} has no members", lease.batch));
        }
        queue
            .update(later, &lease, Update::then(finish.clone()))
            .await
            .map_err(failed)?;
    }
    let stats = queue.stats(later).await.map_err(failed)?;
    if !stats.adds_up() || stats.held() != 0 || stats.pushed != before.pushed + 1 {
        return Err(format!("counts don't add up: {before:?}, then {stats:?}"));
    }
    Ok(())
}
