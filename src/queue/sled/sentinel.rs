//! Wakes a flush that sled 0.34.7 has forgotten.
//!
//! sled's threads write its log, and a flush waits for them. One that fails to write notes the error and, in one of
//! two places, wakes nobody: the flush would wait for ever, and with it everybody who waits for an answer. Any other
//! flush wakes it, for it finds the error noted.

use std::{
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
    _alive: Sender<()>,
}

impl Sentinel {
    pub(super) fn start(sled: &Arc<sled::Db>, config: sled::Config) -> Result<Self> {
        let (alive, ended) = channel();
        let sled = Arc::downgrade(sled);
        let watch = move |ended: Receiver<()>| {
            while ended.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                let Some(sled) = sled.upgrade().filter(|_| config.global_error().is_err()) else {
                    continue;
                };
                // It fails at once, and those who wait are told.
                let _ = sled.flush();
            }
        };
        thread::Builder::new()
            .name("batchyard-sentinel".to_owned())
            .spawn(move || watch(ended))
            .map_err(|error| {
                Error::unavailable(format!("no thread can be started: {error}")).with_source(error)
            })?;
        Ok(Self { _alive: alive })
    }
}
