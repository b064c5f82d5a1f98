//! Pushes beside readers: what callers wait while others read all of the store.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
};

use tokio::process::Command;

use super::{
    FILL, Point, Site, Unit,
    enqueue::{Load, fill, produce},
    grouped,
    queued::no_queue,
    taken::most,
};
use crate::{
    bench::{payload::Payloads, statistics::Latency, yard::Yard},
    control::{ControlAccess, serve_control},
    error::{Error, Result},
};

/// What another process does with the store, again and again.
const READERS: [&str; 3] = ["export", "snapshot", "verify"];

/// Pushes to a store that holds much, with nobody reading it and then beside each reader, round by round. The readers are
/// this program, as somebody else would call it; they come in through the control socket.
pub(super) async fn beside(site: &Site<'_>) -> Result<Vec<Point>> {
    let Some(program) = &site.part.program else {
        return Ok(Vec::new());
    };
    let yard: Arc<dyn Yard> = Arc::from(site.open(0).await?);
    let store = yard.store().ok_or_else(no_queue)?;
    let payloads = Payloads::of(BYTES);
    let depth = site.count(site.part.depth, 1000);
    fill(&*yard, &payloads, depth).await?;
    let served = serve_control(site.folder(), store, None, ControlAccess::All)?;
    let pushes = Pushes {
        site,
        program,
        yard: &yard,
        payloads: &payloads,
        copy: site.part.folder.join("copy"),
    };
    // Nothing is fast at first.
    pushes.beside(None).await?;
    let mut points = Vec::new();
    for round in 0..site.part.rounds {
        let named = |case: String, value, unit, latency| Point {
            round,
            latency,
            ..site.point(case, unit, value)
        };
        let at = format!("{}, {} queued", LOAD.name(), grouped(depth));
        let alone = pushes.beside(None).await?;
        let micros = Unit::Microseconds;
        points.push(named(at.clone(), alone.p50, micros, Some(alone)));
        for reader in READERS {
            let beside = pushes.beside(Some(reader)).await?;
            let case = format!("{at}, beside {reader}");
            points.push(named(case, beside.p50, micros, Some(beside)));
            let percentiles = [
                ("p50", beside.p50 / alone.p50),
                ("p99", beside.p99 / alone.p99),
            ];
            for (percentile, times) in percentiles {
                let case = format!("{percentile} beside {reader}, to that of nobody");
                points.push(named(case, times, Unit::Times, None));
            }
        }
    }
    served.close().await;
    yard.close().await?;
    Ok(points)
}

/// Producers at a store that others read.
struct Pushes<'a> {
    site: &'a Site<'a>,
    program: &'a Path,
    yard: &'a Arc<dyn Yard>,
    payloads: &'a Payloads,
    /// Where a snapshot goes.
    copy: PathBuf,
}

impl Pushes<'_> {
    /// How long pushes take beside a reader; as many requests as they added leave again.
    async fn beside(&self, reader: Option<&str>) -> Result<Latency> {
        let seconds = self.site.part.seconds;
        // What was begun before is over.
        self.site.start_counting().await;
        let pushed = produce(self.yard, LOAD, self.payloads, seconds);
        let (pushed, _, nanos) = match reader {
            None => pushed.await?,
            Some(reader) => tokio::select! {
                pushed = pushed => pushed?,
                failed = self.read_on(reader) => return Err(failed),
            },
        };
        self.clear()?;
        self.take(pushed).await?;
        Latency::of(nanos).ok_or_else(|| Error::internal("nothing was pushed"))
    }

    /// Reads all of it, again and again; why it ended. It is killed when this is dropped.
    async fn read_on(&self, reader: &str) -> Error {
        loop {
            // Each copy has a folder that is not there yet.
            let read = match self.clear() {
                Ok(()) => self.read(reader).await,
                failed => failed,
            };
            if let Err(error) = read {
                return error;
            }
        }
    }

    async fn read(&self, reader: &str) -> Result<()> {
        let failed = |error| Error::internal(reader.to_owned()).with_source(error);
        let mut command = Command::new(self.program);
        command.arg(reader).arg("--store").arg(self.site.folder());
        if reader == "snapshot" {
            command.arg("--to").arg(self.copy.join("store"));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let Output { status, stderr, .. } = child.wait_with_output().await.map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&stderr);
        let last = said.lines().last().unwrap_or_default();
        Err(Error::internal(format!("{reader}: {last} ({status})")))
    }

    /// Makes an empty folder for copies.
    fn clear(&self) -> Result<()> {
        let cleared = match std::fs::remove_dir_all(&self.copy) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            cleared => cleared,
        };
        let made = cleared.and_then(|()| std::fs::create_dir(&self.copy));
        made.map_err(|error| Error::internal(self.copy.display().to_string()).with_source(error))
    }

    /// Takes so many requests.
    async fn take(&self, mut requests: u64) -> Result<()> {
        while requests > 0 {
            let held = self.yard.claim(most(requests.min(TAKEN))).await?;
            let held = held.ok_or_else(|| Error::internal("what was pushed is not there"))?;
            requests -= held.requests();
            self.yard.finish(held).await?;
        }
        Ok(())
    }
}

const BYTES: usize = 200;
const LOAD: Load = Load::one_by_one(8, BYTES);
const TAKEN: u64 = 10 * FILL;
