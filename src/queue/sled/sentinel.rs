//! Wakes a flush that sled 0.34.7 has forgotten.
//!
//! sled's threads write its log, and a flush waits for them. One that fails to write notes the error and, in one of
//! two places, wakes nobody: the flush would wait for ever, and with it everybody who waits for an answer. Whoever else
//! is about to write or to flush wakes it, for it finds the error noted.
//!
//! ```text
//! store A   flush: has the lock of sled for reading, waits for a write that failed      ◀─┐
//! store B   transaction: waits for that lock for writing                                  │ wakes
//! sentinel  of A: another flush waits behind that transaction, so a tree is opened as well┘
//! ```
//! All databases of a process share that lock. To open a tree takes another one, which a drop of a tree may have in turn; nobody
//! waits with both.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use crate::error::{Error, Result};

/// How long a flush may be forgotten.
const PERIOD: Duration = Duration::from_secs(1);

/// Looks after a database until its handle is dropped. What sled flushes by itself after that would wait unseen, so all is
/// flushed before.
#[derive(Debug)]
pub(super) struct Sentinel {
    _alive: Vec<Sender<()>>,
}

/// What wakes those who wait, once an error is noted: it fails at once, and changes nothing.
type Wake = fn(&sled::Db);

const WAKES: [(&str, Wake); 2] = [
    ("batchyard-sentinel", |sled| drop(sled.flush())),
    ("batchyard-waker", |sled| drop(sled.open_tree(NO_TREE))),
];
/// The name of a tree that is not there.
const NO_TREE: &[u8] = b"none";

impl Sentinel {
    pub(super) fn start(sled: &Arc<sled::Db>, config: &sled::Config) -> Result<Self> {
        let start = |(name, wake): (&str, Wake)| {
            let (alive, ended) = channel();
            let (sled, config) = (Arc::downgrade(sled), config.clone());
            let watch = move |ended: Receiver<()>| {
                while ended.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                    let Some(sled) = sled.upgrade().filter(|_| config.global_error().is_err())
                    else {
                        continue;
                    };
                    let _ = catch_unwind(AssertUnwindSafe(|| wake(&sled)));
                }
            };
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || watch(ended))
                .map_err(|error| {
                    Error::unavailable(format!("no thread can be started: {error}"))
                        .with_source(error)
                })?;
            Ok(alive)
        };
        let alive = WAKES.into_iter().map(start).collect::<Result<_>>()?;
        Ok(Self { _alive: alive })
    }
}
