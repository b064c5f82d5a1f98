//! A store on a simulated disk without a writer thread: a lone caller writes its own group, and what the writer
//! tends to is called by hand. So the same calls give the same operations.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{runtime::Runtime, sync::watch};

use super::{
    JournalOptions, JournalQueue, JournalStore, Keeper,
    core::{Core, Inner},
    disk::Disk,
    open::{Identity, open},
    simulated::SimDisk,
    tend::Tend,
};
use crate::{error::Result, queue::QueueOptions, request::QueueName};

/// An open store whose writer is this thread.
pub(super) struct Rig {
    pub(super) core: Arc<Core>,
    pub(super) tend: Tend,
    pub(super) queue: JournalQueue,
    pub(super) report: Vec<String>,
    _ended: watch::Sender<bool>,
}

impl Rig {
    pub(super) fn open_with(disk: &SimDisk, options: JournalOptions) -> Result<Self> {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let opened = open(shared, IDENTITY, "simulated".into(), &options)?;
        let core = Arc::new(opened.core);
        core.publish_all(options.offer_held)?;
        let ended = watch::Sender::new(false);
        let keeper = Arc::new(Keeper {
            core: core.clone(),
            ended: ended.subscribe(),
        });
        let store = JournalStore {
            keeper: keeper.clone(),
            report: Vec::new(),
        };
        let live = wait(&core, store.live(&QueueName::default(), None))?;
        Ok(Self {
            core,
            tend: opened.tend,
            queue: JournalQueue::new(keeper, live),
            report: opened.report,
            _ended: ended,
        })
    }
}

/// Runs this on a runtime of this thread alone, and writes what a lone caller leaves to the writer.
pub(super) fn wait<T>(core: &Core, future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime of one thread needs nothing");
    }
    let writer = async {
        loop {
            tokio::task::yield_now().await;
            let is_left = core.lock().is_ok_and(|inner| !inner.sealed.is_empty());
            if is_left {
                // Whoever waits is told if it fails.
                let _ = core.log_now(Inner::seal);
            }
        }
    };
    let either = async {
        tokio::select! {
            biased;
            done = future => done,
            () = writer => unreachable!("the writer ended"),
        }
    };
    RUNTIME.with(|runtime| runtime.block_on(either))
}

/// Small segments, so that a short life fills and frees many.
pub(super) fn options() -> JournalOptions {
    let queues = QueueOptions::default()
        .retention(Duration::from_secs(120))
        .idempotency_window(Duration::from_secs(200));
    JournalOptions::default()
        .segment_bytes(16 * 1024)
        .low_space_mark(0)
        .queues(queues)
}

pub(crate) const SALT: u64 = 0x5eed_ba7c;
pub(super) const IDENTITY: Identity = Identity {
    salt: SALT,
    is_used: false,
};
