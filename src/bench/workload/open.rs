//! Opening what holds millions.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

use tokio::time::Instant;

use super::{
    KIB, Part, Point, Site, Unit, enqueue, grouped, options, own_folder, queued::no_queue,
    taken::micros,
};
use crate::{
    bench::{
        contestant::{Contestant, Setup},
        machine::drop_caches,
        payload::Payloads,
    },
    error::{Error, Result},
};

/// What a filling program says once everything is queued; it goes on pushing until it is killed.
pub const FILLED: &str = "filled";

/// Opens after a clean close, and, where this program can start itself, after a kill.
pub(super) async fn open(site: &Site<'_>) -> Result<Vec<Point>> {
    let requests = site.count(5_000_000, 1000);
    let yard = site.open(requests * KIB as u64).await?;
    enqueue::fill(&*yard, &Payloads::of(KIB), requests).await?;
    yard.close().await?;
    drop(yard);
    let mut points = Vec::new();
    for round in 0..site.part.rounds {
        points.push(opened(site, round, Opening::AfterAClose, requests).await?);
        if site.contestant.verifies {
            drop_caches(site.folder());
            points.push(opened(site, round, Opening::Verified, requests).await?);
        }
        if let Some(program) = &site.part.program {
            kill_while_it_pushes(program, site.part)?;
            points.push(opened(site, round, Opening::AfterAKill, requests).await?);
        }
    }
    Ok(points)
}

/// One way to open what holds millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    AfterAClose,
    /// The same, nothing of it in a cache, and all of it read and checked.
    Verified,
    AfterAKill,
}

impl Opening {
    fn words(self) -> &'static str {
        match self {
            Self::AfterAClose => "after a close",
            Self::Verified => "after a close, every checksum verified, cold",
            Self::AfterAKill => "after kill -9",
        }
    }
}

/// Opens it until it can tell what it holds.
async fn opened(site: &Site<'_>, round: u32, opening: Opening, requests: u64) -> Result<Point> {
    let start = Instant::now();
    let mut setup = site.setup(0, options());
    setup.verify = opening == Opening::Verified;
    let yard = site.contestant.open(setup).await?;
    let queue = yard.queue().ok_or_else(no_queue)?;
    let stats = queue.stats(queue.now()).await?;
    let took = start.elapsed();
    if stats.ready < requests {
        let text = format!("{requests} were pushed, and {} are there", stats.ready);
        return Err(Error::internal(text));
    }
    let case = format!("{} x 1 KiB queued, {}", grouped(requests), opening.words());
    let mut point = site.point(case, Unit::Microseconds, micros(took));
    point.round = round;
    point.resident_bytes = site.resident(&*yard);
    point.disk_bytes = Some(site.disk());
    yard.close().await?;
    Ok(point)
}

/// Has another process push into the store, and kills it in the middle of that.
fn kill_while_it_pushes(program: &Path, part: &Part) -> Result<()> {
    let failed = |error| Error::internal("the program that is to be killed").with_source(error);
    let text = serde_json::to_string(part)
        .map_err(|error| Error::internal("a part").with_source(error))?;
    let child = Command::new(program)
        .args(["bench", "--fill", &text])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut child = Killed(child);
    let stdout = child.0.stdout.take();
    let stdout = stdout.ok_or_else(|| Error::internal("it has no output"))?;
    let mut said = String::new();
    BufReader::new(stdout)
        .read_line(&mut said)
        .map_err(failed)?;
    if said.trim() != FILLED {
        return Err(Error::internal(format!(
            "it did not fill the store: {said:?}"
        )));
    }
    Ok(())
}

/// A process that does not outlive its use.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the process does that will be killed: opens the store of this part, pushes some, says
/// [`FILLED`], and goes on pushing.
///
/// # Errors
/// As the contestant.
pub async fn fill(part: &Part) -> Result<()> {
    let contestant = Contestant::named(&part.contestant)?;
    let setup = Setup::new(own_folder(&part.folder, "store")?);
    let yard = contestant.open(setup).await?;
    let payloads = Payloads::of(KIB);
    enqueue::fill(&*yard, &payloads, MORE).await?;
    let told = writeln!(std::io::stdout(), "{FILLED}");
    told.map_err(|error| Error::internal("stdout").with_source(error))?;
    loop {
        enqueue::fill(&*yard, &payloads, MORE).await?;
    }
}

/// How many more are pushed before the kill; then it falls anywhere.
const MORE: u64 = 10_000;
