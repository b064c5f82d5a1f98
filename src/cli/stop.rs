//! SIGINT, SIGTERM and SIGHUP: the first asks to stop, the second insists.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::{Exit, Failure};

/// The signals that ask this program to stop.
pub(crate) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    /// None if it was started to go on when its terminal is gone, as by `nohup`.
    hang_up: Option<Signal>,
}

impl Stop {
    /// From now on these signals no longer end the program by themselves.
    pub(crate) fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(Exit::Failure, format!("no signals: {error}")))
        };
        let ignores = ignores_hang_up();
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: (!ignores)
                .then(|| listen(SignalKind::hangup()))
                .transpose()?,
        })
    }

    /// Waits for the next one; the exit code that it stands for. Cancel safe.
    pub(crate) async fn asked(&mut self) -> Exit {
        let hang_up = async {
            match &mut self.hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Terminated,
            _ = hang_up => Exit::HungUp,
        }
    }
}

/// Whether SIGHUP is ignored: whoever started this program wants it to. Where nothing tells, it is left to do what it did.
fn ignores_hang_up() -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return true;
    };
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The first signal is the lowest bit.
    ignored.is_none_or(|mask| mask & 1 != 0)
}
