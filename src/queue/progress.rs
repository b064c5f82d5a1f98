//! How far a verification has come, for whoever waits for it: it may take as long as it likes, but not stand still.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::verified::{VerifyPhase, VerifyProgress};
use crate::error::{Error, Result};

/// Tells how far it is, if there is anybody to tell.
#[derive(Debug, Default)]
pub(crate) struct Pulse(Option<Teller>);

#[derive(Debug)]
struct Teller {
    progress: watch::Sender<VerifyProgress>,
    /// What is done and not told yet: not every entry is worth a word.
    untold: AtomicU64,
}

/// A verification that goes on by itself, beside whoever waits for it.
pub(crate) async fn telling<T: Send + 'static>(
    tell: impl FnMut(VerifyProgress),
    verify: impl FnOnce(&Pulse) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (pulse, progress) = Pulse::new();
    let verify = tokio::task::spawn_blocking(move || verify(&pulse));
    let verify = async {
        let verified = verify.await;
        verified.map_err(|error| Error::internal("verifying was cut off").with_source(error))?
    };
    while_it_goes_on(verify, progress, tell).await
}

impl Pulse {
    fn new() -> (Self, watch::Receiver<VerifyProgress>) {
        let (progress, receiver) = watch::channel(VerifyProgress {
            phase: VerifyPhase::Copying,
            done: 0,
            of: 0,
        });
        let untold = AtomicU64::new(0);
        (Self(Some(Teller { progress, untold })), receiver)
    }

    /// The next phase, in which there is so much to do.
    pub(crate) fn begin(&self, phase: VerifyPhase, of: u64) {
        if let Some(Teller { progress, untold }) = &self.0 {
            untold.store(0, Ordering::Relaxed);
            progress.send_replace(VerifyProgress { phase, done: 0, of });
        }
    }

    /// Something more is done.
    ///
    /// # Errors
    /// If nobody waits for it any more.
    pub(crate) fn add(&self, done: u64) -> Result<()> {
        let Some(Teller { progress, untold }) = &self.0 else {
            return Ok(());
        };
        let done = untold.fetch_add(done, Ordering::Relaxed) + done;
        let of = progress.borrow().of;
        if done <= (of / STEPS).min(MOST_UNTOLD) {
            return Ok(());
        }
        untold.store(0, Ordering::Relaxed);
        progress.send_modify(|progress| progress.done += done);
        if progress.is_closed() {
            return Err(Error::closed("nobody waits for this verification any more"));
        }
        Ok(())
    }
}

/// Waits for what tells how far it is, unless it stands still.
async fn while_it_goes_on<T>(
    work: impl Future<Output = Result<T>>,
    mut progress: watch::Receiver<VerifyProgress>,
    mut tell: impl FnMut(VerifyProgress),
) -> Result<T> {
    let mut work = std::pin::pin!(work);
    loop {
        let now = *progress.borrow_and_update();
        tell(now);
        let patience = patience(now);
        let changed = async {
            if progress.changed().await.is_err() {
                // It tells no more, and answers at once.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            done = &mut work => return done,
            changed = timeout(patience, changed) => if changed.is_err() {
                return Err(Error::unavailable(format!(
                    "nothing has gone on for {patience:?} while it was {:?}: {} of {}; try again, or run `repair` to save \
                     what can be read of a sled store", now.phase, now.done, now.of
                )));
            },
        }
    }
}

/// How long nothing may go on.
fn patience(progress: VerifyProgress) -> Duration {
    let silent = match progress.phase {
        VerifyPhase::Opening | VerifyPhase::Recovering | VerifyPhase::Replaying => {
            progress.of / SILENT_BYTES_PER_SECOND
        }
        _ => 0,
    };
    PATIENCE + Duration::from_secs(silent)
}

/// A phase is told in so many steps, if there are not many more.
const STEPS: u64 = 1000;
/// So many entries, or less than what is copied at a time.
const MOST_UNTOLD: u64 = 1024;
const PATIENCE: Duration = Duration::from_mins(10);
/// sled, which tells nothing meanwhile, is hundreds of times as fast.
const SILENT_BYTES_PER_SECOND: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::error::ErrorKind;

    /// How it ends if so many steps take so long each; how often it was told how far it is.
    async fn ends(phase: VerifyPhase, bytes: u64, steps: u64, each: Duration) -> (Result<()>, u32) {
        let (pulse, progress) = Pulse::new();
        let mut told = 0;
        let work = async move {
            pulse.begin(phase, bytes);
            for _ in 0..steps {
                sleep(each).await;
                pulse.add(bytes / steps)?;
            }
            Ok(())
        };
        let ended = while_it_goes_on(work, progress, |_| told += 1).await;
        (ended, told)
    }

    #[tokio::test(start_paused = true)]
    async fn it_may_take_as_long_as_it_goes_on() {
        let day = 24 * 60;
        let (ended, told) = ends(VerifyPhase::Reading, 1 << 40, day, Duration::from_mins(9)).await;
        ended.unwrap();
        assert!(told > 900, "{told}");
        let (ended, _) = ends(VerifyPhase::Opening, 1 << 40, 1, Duration::from_hours(24)).await;
        ended.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_given_up_when_nothing_goes_on() {
        for phase in [VerifyPhase::Copying, VerifyPhase::Opening] {
            let (ended, _) = ends(phase, 5, 1, Duration::from_mins(11)).await;
            let error = ended.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.to_string().contains(&format!("{phase:?}")), "{error}");
        }
    }

    #[test]
    fn what_nobody_waits_for_ends() {
        let (pulse, progress) = Pulse::new();
        pulse.begin(VerifyPhase::Copying, 10);
        pulse.add(1).unwrap();
        drop(progress);
        assert_eq!(pulse.add(1).unwrap_err().kind(), ErrorKind::Closed);
        Pulse::default().add(1).unwrap();
    }
}
