//! What `dispatch` and `run` tell those who watch over them.
//!
//! ```text
//!   begin ─▶ the address is taken, or nothing is started
//!   observe ─ the store is open, its recovery is done
//!   start ─▶ READY=1, and WATCHDOG=1 again and again, as long as the loop turns and the store can be read
//!   stopping ▶ STOPPING=1
//! ```

mod systemd;

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use batchyard::{
    DispatcherBuilder, DispatcherHandle, ErrorKind, Metrics, MetricsServer, Store,
    configuration::{Settings, Value},
    serve_metrics,
};
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use self::systemd::Systemd;
use super::{
    exit::{Exit, Failure},
    output::say,
    store::OpenStore,
};

/// What watches over a program that serves for long.
pub(crate) struct Service {
    metrics: Option<(Metrics, TcpListener)>,
    systemd: Option<Arc<Systemd>>,
    begun: Instant,
}

impl Service {
    /// Takes the address of the metrics, before anything is opened.
    ///
    /// # Errors
    /// If it can't be listened at.
    pub(crate) async fn begin(settings: &Settings) -> Result<Self, Failure> {
        let metrics = match settings.found("metrics").map(|found| found.value) {
            Some(Value::Address(address)) => {
                let listener = TcpListener::bind(address).await;
                let listener = listener.map_err(|error| unlistenable(address, &error))?;
                if let Ok(address) = listener.local_addr() {
                    say(&format!("metrics are at http://{address}/metrics"));
                }
                Some((Metrics::new(), listener))
            }
            _ => None,
        };
        let systemd = Systemd::of_environment().map(Arc::new);
        if let Some(systemd) = &systemd {
            systemd.tell("STATUS=opening the store");
        }
        Ok(Self {
            metrics,
            systemd,
            begun: Instant::now(),
        })
    }

    /// The store was opened: what is done with it is counted from now on.
    pub(crate) fn observe(&self, open: &mut OpenStore) {
        if let Some((metrics, _)) = &self.metrics {
            open.store = metrics.observe_store(open.store.clone());
            if let Some(folder) = open.path().map(Path::to_owned) {
                metrics.watch_folder(folder, self.took());
            }
        }
    }

    fn took(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Has the dispatcher that is built tell what it does.
    pub(crate) fn watch(&self, builder: DispatcherBuilder) -> DispatcherBuilder {
        match &self.metrics {
            Some((metrics, _)) => builder.on_event(metrics.observer()),
            None => builder,
        }
    }

    /// The dispatcher runs: whoever asks is answered from now on, until what this gives is dropped.
    pub(crate) fn start(self, dispatcher: DispatcherHandle, store: &Arc<dyn Store>) -> Watch {
        let pinging = self.systemd.clone().map(|systemd| {
            systemd.tell("READY=1\nSTATUS=serving");
            tokio::spawn(ping(systemd, dispatcher.clone(), Arc::clone(store)))
        });
        let metrics = self.metrics.map(|(metrics, listener)| {
            metrics.watch_dispatcher(dispatcher);
            serve_metrics(listener, metrics)
        });
        Watch {
            systemd: self.systemd,
            pinging,
            _metrics: metrics,
        }
    }
}

/// Watches until it is dropped.
pub(crate) struct Watch {
    systemd: Option<Arc<Systemd>>,
    pinging: Option<JoinHandle<()>>,
    _metrics: Option<MetricsServer>,
}

impl Watch {
    /// The end has begun.
    pub(crate) fn stopping(&self) {
        if let Some(systemd) = &self.systemd {
            systemd.tell("STOPPING=1\nSTATUS=stopping");
        }
        if let Some(pinging) = &self.pinging {
            pinging.abort();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(pinging) = &self.pinging {
            pinging.abort();
        }
    }
}

/// Pings the watchdog as long as all is well; once it is not, systemd kills this process and starts another.
async fn ping(systemd: Arc<Systemd>, dispatcher: DispatcherHandle, store: Arc<dyn Store>) {
    let Some(limit) = systemd.watchdog() else {
        return;
    };
    // Twice in its time, as sd_watchdog_enabled(3) says; half of that is for the answers.
    let every = limit / 2;
    loop {
        match timeout(every / 2, is_well(&dispatcher, &*store)).await {
            Ok(Ok(())) => systemd.tell("WATCHDOG=1"),
            Ok(Err(error)) => {
                tracing::error!(%error, "the watchdog is not pinged");
                systemd.tell(&format!("STATUS=not well: {error}"));
            }
            Err(_) => {
                tracing::error!(
                    "the watchdog is not pinged: the dispatcher or the store does not answer"
                );
                systemd.tell("STATUS=not well: the dispatcher or the store does not answer");
            }
        }
        sleep(every / 2).await;
    }
}

/// Fails if the dispatcher's loop does not turn, or the store serves nothing until it is opened again.
async fn is_well(dispatcher: &DispatcherHandle, store: &dyn Store) -> batchyard::Result<()> {
    dispatcher.turned().await?;
    let Some(name) = store.queues("").await?.into_iter().next() else {
        return Ok(());
    };
    // A store that is poisoned still has its last reading, and nothing to read from.
    match store.queue(&name).await?.bookmark(PROBE).await {
        // What passes by itself is no reason to start anew.
        Err(error) if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unavailable) => Ok(()),
        looked => looked.map(drop),
    }
}

fn unlistenable(address: SocketAddr, error: &io::Error) -> Failure {
    let (exit, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            Exit::Conflict,
            "; another process listens there: choose another port for --metrics",
        ),
        _ => (Exit::Failure, ""),
    };
    let text = format!("metrics can't be served at {address}: {error}{hint}");
    Failure::new(exit, text)
}

/// What is read to see whether anything can be: a bookmark that nobody stores.
pub(super) const PROBE: &str = "batchyard:health";
