//! Where a run is kept: its store, its queue in there, and what becomes of both at its end.
//!
//! A run ends in steps. Killed between any two of them and started again, it hands nothing to its handler:
//!
//! ```text
//!   OUTPUT.part is synced and renamed ─┐
//!   the failures are synced            ├ goes on: nothing is left to do but to write both anew, and to end
//!   the summary is told                │
//!   the store is closed ───────────────┘
//!   a folder that stays: ENDED is written in it ─ the run is over
//!   one that goes: OUTPUT.batchyard.ended ─┐
//!   the folder is renamed                  ├ tells the summary again, and removes the rest
//!   and removed ───────────────────────────┘
//!   and so is OUTPUT.batchyard.ended ──────────── the run is over
//! ```
//! A run that is over is started over by the same command; `--retry-failed` takes `ENDED` back first.

use std::{sync::Arc, time::Duration};

use batchyard::{Queue, QueueName, QueueOptions, State};

use super::{
    Exit, Failure, Plan,
    ended::Ended,
    for_each_page,
    ledger::{Identity, Ledger, Retry},
    output,
    place::Place,
};
use crate::cli::{
    output::say,
    store::{Backend, NewAs, OpenStore},
};

/// The store of a run.
pub(super) struct Site {
    pub(super) open: OpenStore,
    place: Place,
}

/// The run that goes on, or a new one.
pub(super) struct TakenUp {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) ledger: Ledger,
    /// It had ended.
    was_over: bool,
}

impl Site {
    pub(super) async fn open(plan: &Plan) -> Result<Self, Failure> {
        let place = Place::of(&plan.args);
        if plan.args.retry_failed && !place.folder.exists() {
            return Err(nothing_to_retry(&place));
        }
        let open = OpenStore::own_folder(&place.folder, plan.new_as, options()).await?;
        place.forget_removal()?;
        Ok(Self { open, place })
    }

    /// The queue of the run that goes on, or of a new one.
    pub(super) async fn take_up(&mut self, plan: &Plan) -> Result<TakenUp, Failure> {
        let (args, identity) = (&plan.args, Identity::of(plan));
        let last = self.last_run().await?;
        if let Some((queue, _)) = &last
            && !args.fresh
            && let Some(ledger) = Ledger::load(&**queue).await?
        {
            let ended = Ended::read(&self.place.ended())?;
            let was_over = ended.is_some_and(|ended| ended.queue == queue.name());
            if args.retry_failed || !was_over {
                identity.check(&ledger.identity, args.retry_failed)?;
                return Ok(TakenUp {
                    queue: Arc::clone(queue),
                    ledger,
                    was_over,
                });
            }
        }
        if args.retry_failed {
            return Err(nothing_to_retry(&self.place));
        }
        if let Some((queue, _)) = &last
            && !args.fresh
        {
            let failed = queue.stats(queue.now()).await?.dead;
            if failed > 0 {
                say(&format!(
                    "the run before ended with {failed} failed; this one starts over (--retry-failed runs only those)"
                ));
            }
        }
        self.begin(last, identity).await
    }

    async fn begin(
        &mut self,
        mut last: Option<(Arc<dyn Queue>, u32)>,
        identity: Identity,
    ) -> Result<TakenUp, Failure> {
        if self.place.own && last.take().is_some() {
            self.start_over().await?;
        }
        let number = last.as_ref().map_or(1, |(_, number)| number + 1);
        let queue = self.open.store.queue(&run_name(number)?).await?;
        let ledger = Ledger {
            identity,
            ..Ledger::default()
        };
        ledger.save(&*queue).await?;
        // Not before the new one is there: a run without its requests must never be gone on with.
        if let Some((before, _)) = last {
            clear(&*before).await?;
        }
        Ok(TakenUp {
            queue,
            ledger,
            was_over: false,
        })
    }

    /// Brings back what failed, once for each time that it is asked for, however often that is cut off.
    pub(super) async fn retry(&self, plan: &Plan, run: &mut TakenUp) -> Result<(), Failure> {
        let TakenUp { queue, ledger, .. } = run;
        if plan.args.retry_failed {
            ledger.identity = Identity::of(plan);
            if run.was_over || ledger.retry == Retry::No {
                ledger.retry = Retry::Begun;
            }
            ledger.save(&**queue).await?;
            Ended::forget(&self.place.ended())?;
        }
        if ledger.retry == Retry::Begun {
            redrive_all(&**queue).await?;
            ledger.retry = Retry::Redriven;
            ledger.save(&**queue).await?;
        }
        Ok(())
    }

    /// The queue of the latest run in this store, and its number.
    async fn last_run(&self) -> Result<Option<(Arc<dyn Queue>, u32)>, Failure> {
        let names = self.open.store.queues(QUEUE).await?;
        let last = names.iter().filter_map(run_number).max();
        match last {
            None => Ok(None),
            Some(number) => Ok(Some((
                self.open.store.queue(&run_name(number)?).await?,
                number,
            ))),
        }
    }

    async fn start_over(&mut self) -> Result<(), Failure> {
        self.open.store.close().await?;
        let backend = Backend::of(&self.place.folder).unwrap_or_default();
        let new_as = NewAs {
            backend,
            insisted: false,
        };
        self.place.remove()?;
        self.open = OpenStore::own_folder(&self.place.folder, new_as, options()).await?;
        Ok(())
    }

    /// Ends the run: nothing else is left to be done.
    pub(super) async fn finish(self, ended: &Ended) -> Result<(), Failure> {
        let Self { open, place } = self;
        open.store.close().await?;
        drop(open);
        place.end(ended)
    }
}

fn nothing_to_retry(place: &Place) -> Failure {
    let text = format!("{} holds no run to retry", place.folder.display());
    Failure::new(Exit::NotFound, text)
}

/// Results are kept as long as the store.
fn options() -> QueueOptions {
    QueueOptions::default().retention(Duration::MAX)
}

fn run_name(number: u32) -> Result<QueueName, Failure> {
    let name = match number {
        1 => QUEUE.to_owned(),
        number => format!("{QUEUE}-{number}"),
    };
    Ok(name.parse()?)
}

fn run_number(name: &QueueName) -> Option<u32> {
    match name.as_str().strip_prefix(QUEUE)? {
        "" => Some(1),
        rest => rest.strip_prefix('-')?.parse().ok(),
    }
}

/// Takes everything that waits or failed out of the queue of a run that is over.
async fn clear(queue: &dyn Queue) -> Result<(), Failure> {
    let admin = output::administration(queue)?;
    for state in [State::Ready, State::Delayed, State::InFlight] {
        for_each_page(queue, state, async |ids| {
            admin.cancel(queue.now(), ids).await.map(|_| ())
        })
        .await?;
    }
    for_each_page(queue, State::Dead, async |ids| {
        admin.purge(queue.now(), ids).await.map(|_| ())
    })
    .await
}

async fn redrive_all(queue: &dyn Queue) -> Result<(), Failure> {
    let admin = output::administration(queue)?;
    for_each_page(queue, State::Dead, async |ids| {
        admin.redrive(queue.now(), ids).await.map(|_| ())
    })
    .await
}

/// The queue of the first run in a store.
const QUEUE: &str = "run";
