//! Where a run is kept: its store, its queue in there, and what becomes of both at its end.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use batchyard::{Queue, QueueName, QueueOptions, State, Store};

use super::{
    Exit, Failure, RunArgs, for_each_page,
    ledger::{Identity, Ledger},
    output,
};
use crate::cli::{
    output::say,
    store::{Backend, OpenStore},
};

/// The store of a run, and whether it is this run's own.
pub(super) struct Site {
    pub(super) store: Arc<dyn Store>,
    pub(super) commands: PathBuf,
    folder: PathBuf,
    /// The folder was not named by the user, and goes when all is done.
    own: bool,
}

impl Site {
    pub(super) async fn open(args: &RunArgs) -> Result<Self, Failure> {
        let named = args.store.folder().map(Path::to_owned);
        let own = named.is_none();
        let folder = named.unwrap_or_else(|| {
            let mut folder = args.out.as_os_str().to_owned();
            folder.push(".batchyard");
            folder.into()
        });
        let open = OpenStore::folder(&folder, args.store.backend, options()).await?;
        let site = Self {
            store: open.store,
            commands: open.commands,
            folder,
            own,
        };
        if own {
            site.remove_leftover()?;
        }
        Ok(site)
    }

    /// The queue of the run that goes on, or of a new one.
    pub(super) async fn take_up(
        &mut self,
        args: &RunArgs,
    ) -> Result<(Arc<dyn Queue>, Ledger), Failure> {
        let identity = Identity::of(args);
        let last = self.last_run().await?;
        if let Some((queue, _)) = &last
            && !args.fresh
            && let Some(ledger) = Ledger::load(&**queue).await?
            && (args.retry_failed || !ledger.finished)
        {
            identity.check(&ledger.identity, args.retry_failed)?;
            return Ok((Arc::clone(queue), ledger));
        }
        if args.retry_failed {
            let text = format!("{} holds no run to retry", self.folder.display());
            return Err(Failure::new(Exit::NotFound, text));
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
        let number = match last {
            None => 1,
            Some((queue, _)) if self.own => {
                drop(queue);
                self.start_over().await?;
                1
            }
            Some((queue, number)) => {
                clear(&*queue).await?;
                number + 1
            }
        };
        let queue = self.store.queue(&run_name(number)?).await?;
        let ledger = Ledger {
            identity,
            ..Ledger::default()
        };
        ledger.save(&*queue).await?;
        Ok((queue, ledger))
    }

    /// The queue of the latest run in this store, and its number.
    async fn last_run(&self) -> Result<Option<(Arc<dyn Queue>, u32)>, Failure> {
        let names = self.store.queues(QUEUE).await?;
        let last = names.iter().filter_map(run_number).max();
        match last {
            None => Ok(None),
            Some(number) => Ok(Some((self.store.queue(&run_name(number)?).await?, number))),
        }
    }

    async fn start_over(&mut self) -> Result<(), Failure> {
        self.store.close().await?;
        let backend = Backend::of(&self.folder);
        self.remove()?;
        let open = OpenStore::folder(&self.folder, backend, options()).await?;
        self.store = open.store;
        Ok(())
    }

    /// Notes that the run is finished, and removes what nobody needs any more.
    pub(super) async fn finish(
        self,
        queue: &dyn Queue,
        mut ledger: Ledger,
        all_done: bool,
    ) -> Result<(), Failure> {
        ledger.finished = true;
        ledger.save(queue).await?;
        self.store.close().await?;
        if self.own && all_done {
            self.remove()?;
        }
        Ok(())
    }

    /// Removes the folder in one step: half a store would be in the way of the next run.
    fn remove(&self) -> Result<(), Failure> {
        self.remove_leftover()?;
        let moved = std::fs::rename(&self.folder, self.leftover());
        moved.map_err(|error| Failure::io(self.folder.display(), &error))?;
        self.remove_leftover()
    }

    /// Where the folder goes while it is removed.
    fn leftover(&self) -> PathBuf {
        let mut leftover = self.folder.as_os_str().to_owned();
        leftover.push(".removing");
        leftover.into()
    }

    fn remove_leftover(&self) -> Result<(), Failure> {
        let leftover = self.leftover();
        match std::fs::remove_dir_all(&leftover) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::io(leftover.display(), &error))
            }
            _ => Ok(()),
        }
    }
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

/// The queue of the first run in a store.
const QUEUE: &str = "run";
