//! `results --follow`: goes on as more are settled, whoever has the store open.

use std::{sync::Arc, time::Duration};

use batchyard::Queue;
use futures_util::future::select_all;
use tokio::{sync::watch, time::sleep};

use super::Printer;
use crate::cli::{
    exit::{Exit, Failure},
    output::say,
    stop::Stop,
    store::OpenStore,
};

/// Prints what is settled until it is asked to stop, or nobody reads it any more.
pub(super) async fn follow(printer: &mut Printer<'_>) -> Result<Exit, Failure> {
    let (args, mut stop) = (printer.args, Stop::new()?);
    let mut open = args.store.existing().await?;
    loop {
        let is_in_folder = args.store.path().is_some();
        let opened = if is_in_folder && open.owner.is_none() {
            let result = printer.print_all(&open).await;
            open.close(result).await?;
            say("nobody serves the store; what is settled is printed as soon as somebody does");
            until_open(
                async || args.store.served().await,
                Exit::NotFound,
                &mut stop,
            )
            .await?
        } else {
            match watch(printer, &open, &mut stop).await {
                Err(failure) if is_in_folder && failure.exit() == Exit::Remote => {
                    say(&format!("{failure}; going on without it"));
                    // Who opens it now serves it in a moment, or closes it.
                    let again = async || args.store.existing().await;
                    until_open(again, Exit::Conflict, &mut stop).await?
                }
                result => return open.close(result).await,
            }
        };
        open = match opened {
            Ok(open) => open,
            Err(exit) => return Ok(exit),
        };
    }
}

/// Tries again and again as long as it ends in this way; or how it was asked to stop.
async fn until_open(
    open: impl AsyncFn() -> Result<OpenStore, Failure>,
    not_yet: Exit,
    stop: &mut Stop,
) -> Result<Result<OpenStore, Exit>, Failure> {
    loop {
        tokio::select! {
            exit = stop.asked() => return Ok(Err(exit)),
            opened = open() => match opened {
                Err(failure) if failure.exit() == not_yet => {}
                opened => return opened.map(Ok),
            },
        }
        tokio::select! {
            exit = stop.asked() => return Ok(Err(exit)),
            () = sleep(LOOK) => {}
        }
    }
}

/// Prints what is settled as long as the store can be asked.
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
            // Marked before looking, so that nothing that happens meanwhile is missed.
            if let Some(changes) = &mut one.changes {
                changes.mark_unchanged();
            }
            printer.print_queue(&*one.queue).await?;
        }
        tokio::select! {
            exit = stop.asked() => return Ok(exit),
            () = changed(&mut watched) => sleep(PAUSE).await,
            // For queues that are new, and for those that tell of no changes.
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
