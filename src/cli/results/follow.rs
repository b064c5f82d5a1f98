//! `results --follow`: goes on as more are settled, whoever has the store open.

use std::{sync::Arc, time::Duration};

use batchyard::Queue;
use futures_util::future::select_all;
use tokio::{sync::watch, time::sleep};

use super::Printer;
use crate::cli::{
    exit::{Exit, Failure},
    output,
    stop::Stop,
    store::OpenStore,
};

/// Prints what is settled until it is asked to stop, or nobody reads it any more.
pub(super) async fn follow(printer: &mut Printer<'_>) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let open = printer.args.store.existing().await?;
    let result = watch(printer, &open, &mut stop).await;
    open.close(result).await
}

/// Whoever has the store open, which may change.
async fn watch(
    printer: &mut Printer<'_>,
    open: &OpenStore,
    stop: &mut Stop,
) -> Result<Exit, Failure> {
    let mut watched: Vec<Watched> = Vec::new();
    loop {
        for queue in printer.queues(open).await? {
            let name = queue.name();
            if watched.iter().all(|known| known.queue.name() != name) {
                let changes = queue.pushed();
                watched.push(Watched { queue, changes });
            }
        }
        for one in &mut watched {
            // Those of an owner that is gone have ended.
            one.changes = one.changes.take().or_else(|| one.queue.pushed());
            // Marked before looking, so that nothing that happens meanwhile is missed.
            if let Some(changes) = &mut one.changes {
                changes.mark_unchanged();
            }
            tokio::select! {
                biased;
                exit = stop.asked() => return Ok(exit),
                ended = printer.print_queue(&*one.queue) => ended?,
            }
        }
        if output::is_unread() {
            return Ok(Exit::Ok);
        }
        tokio::select! {
            exit = stop.asked() => return Ok(exit),
            () = changed(&mut watched) => sleep(PAUSE).await,
            // For queues that are new, for those that tell of no changes, and for a reader that is gone.
            () = sleep(LOOK) => {}
        }
    }
}

/// A queue whose results are followed.
struct Watched {
    queue: Arc<dyn Queue>,
    changes: Option<watch::Receiver<u64>>,
}

impl Watched {
    async fn changed(&mut self) {
        let Some(changes) = &mut self.changes else {
            return std::future::pending().await;
        };
        if changes.changed().await.is_err() {
            // It tells no more; the next look says why.
            self.changes = None;
        }
    }
}

/// Waits until something happens in any of them.
async fn changed(watched: &mut [Watched]) {
    let all = watched.iter_mut().map(|one| Box::pin(one.changed()));
    let mut all = all.peekable();
    if all.peek().is_none() {
        return std::future::pending().await;
    }
    select_all(all).await;
}

/// How often it is looked whether there is something new that nobody told.
const LOOK: Duration = Duration::from_secs(1);
/// One look for many changes: each costs a read of the store.
const PAUSE: Duration = Duration::from_millis(50);
