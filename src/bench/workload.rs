//! What is measured: each workload once, for `batchyard bench` and for `cargo bench`.
//!
//! | workload | what is timed |
//! |---|---|
//! | `device` | the disk alone: one sync, and reading a file that is in no cache |
//! | `enqueue` | pushes, by 1 to 256 producers or in bulk, until the time is over |
//! | `claim` | taking 5,000 and 50,000 requests |
//! | `drain` | claim, read of every payload, finish, until nothing is left |
//! | `oldest` | `stats`, which tells the oldest, at 1,000 to 10 million queued |
//! | `dispatch` | from the push that reaches the threshold to the handler |
//! | `end-to-end` | from the first push until all is settled by a dispatcher |
//! | `beside` | pushes while other processes read the store: export, snapshot, verify |
//! | `open` | opening with millions queued, after a close and after a kill |
//! | `churn` | a bounded queue with 10 million passing through |
//! | `memory` | what is resident while millions are queued, or a large batch is read |
//! | `life` | device bytes a payload byte over push, claim, read and finish |
//! | `disk` | what is allocated at rest, and after a drain |

#[cfg(feature = "control")]
mod beside;
mod dispatch;
mod enqueue;
mod life;
mod open;
mod queued;
mod taken;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

pub use self::{
    enqueue::{fill_by, fill_with},
    open::{FILLED, fill},
    taken::empty,
};
use super::{
    contestant::{Contestant, Reopens, Role, Setup, own_folder},
    machine::{self, Device, Written},
    statistics::{Better, Latency, as_f64},
    yard::Yard,
};
use crate::{
    error::Result,
    queue::{QueueOptions, WhenFull},
};

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// The disk alone.
    Device,
    /// Pushes.
    Enqueue,
    /// Claims.
    Claim,
    /// Claim, read, finish.
    Drain,
    /// The oldest request.
    Oldest,
    /// From the threshold to the handler.
    Dispatch,
    /// From the push to the settling.
    EndToEnd,
    /// Pushes beside readers.
    Beside,
    /// Opening.
    Open,
    /// A bounded queue over a long time.
    Churn,
    /// Resident memory.
    Memory,
    /// Device bytes over a request's life.
    Life,
    /// Allocated bytes.
    Disk,
}

/// All of them, in the order in which they are shown, with their names.
pub const WORKLOADS: [(Workload, &str); 13] = [
    (Workload::Device, "device"),
    (Workload::Enqueue, "enqueue"),
    (Workload::Claim, "claim"),
    (Workload::Drain, "drain"),
    (Workload::Oldest, "oldest"),
    (Workload::Dispatch, "dispatch"),
    (Workload::EndToEnd, "end-to-end"),
    (Workload::Beside, "beside"),
    (Workload::Open, "open"),
    (Workload::Churn, "churn"),
    (Workload::Memory, "memory"),
    (Workload::Life, "life"),
    (Workload::Disk, "disk"),
];

impl Workload {
    /// Its name.
    pub fn name(self) -> &'static str {
        let of = WORKLOADS.iter().find(|(workload, _)| *workload == self);
        of.map_or("", |(_, name)| name)
    }

    /// In how many pieces it is run, each with rounds of its own.
    pub fn pieces(self) -> usize {
        match self {
            Self::Enqueue => enqueue::LOADS.len(),
            Self::Claim => taken::PUSHED.len(),
            Self::Drain => taken::DRAINS.len(),
            Self::Memory => queued::MEMORY.len(),
            _ => 1,
        }
    }

    /// What a piece is called, if it is one of the loads of `enqueue`.
    pub fn load(self, piece: usize) -> Option<String> {
        (self == Self::Enqueue).then(|| enqueue::LOADS[piece].name())
    }

    /// Whether the rounds are taken of one store, since filling it takes so long.
    pub fn fills_once(self) -> bool {
        matches!(
            self,
            Self::Oldest | Self::Beside | Self::Open | Self::Churn | Self::Memory
        )
    }

    /// Whether this one takes part.
    pub fn is_for(self, contestant: &Contestant, piece: usize) -> bool {
        let ours = contestant.role == Role::Backend;
        let logs = contestant.role != Role::RawLog || contestant.is_yardstick();
        match self {
            _ if contestant.role == Role::Moves => {
                self == Self::Claim && taken::PUSHED[piece].each > 1
            }
            Self::Device => contestant.is_yardstick(),
            Self::Enqueue => true,
            // Whose rows are rows however they were pushed, and who has no claim at all.
            Self::Claim if taken::PUSHED[piece].each == 1 => ours || contestant.is_yardstick(),
            Self::Claim => logs && contestant.role != Role::Redis,
            Self::Drain if taken::DRAINS[piece].cold => logs && contestant.reopens != Reopens::No,
            Self::Drain => logs,
            Self::Beside => cfg!(feature = "control") && ours && contestant.reopens == Reopens::Yes,
            Self::Open => ours && contestant.reopens == Reopens::Yes,
            Self::Life | Self::Disk => contestant.reopens == Reopens::Yes,
            // What millions take in a server is its own memory, not ours.
            Self::Memory => ours && !contestant.needs_server,
            Self::Oldest | Self::Dispatch | Self::EndToEnd | Self::Churn => ours,
        }
    }
}

/// One run of one workload on one contestant: what a process of its own is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    /// What to do.
    pub workload: Workload,
    /// Which of its pieces.
    pub piece: usize,
    /// On which contestant.
    pub contestant: String,
    /// The round that it is.
    pub round: u32,
    /// How many rounds there are; a workload that fills its store once takes all of them.
    pub rounds: u32,
    /// How long to push, in seconds.
    pub seconds: f64,
    /// How much of the full counts.
    pub scale: f64,
    /// The most requests queued to look for the oldest of.
    pub most: u64,
    /// How much is queued while it is pushed beside readers.
    pub depth: u64,
    /// An empty folder.
    pub folder: PathBuf,
    /// The program that runs a [`fill`] of its own, to be killed.
    pub program: Option<PathBuf>,
}

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Requests a second.
    #[serde(rename = "requests/s")]
    RequestsPerSecond,
    /// Bytes a second, shown in MiB.
    #[serde(rename = "bytes/s")]
    BytesPerSecond,
    /// Microseconds.
    #[serde(rename = "us")]
    Microseconds,
    /// Bytes, shown in MiB.
    #[serde(rename = "bytes")]
    Bytes,
    /// Bytes a payload byte.
    #[serde(rename = "bytes/byte")]
    BytesPerByte,
    /// How many times as long.
    #[serde(rename = "times")]
    Times,
}

impl Unit {
    /// Whether more is better.
    pub fn better(self) -> Better {
        match self {
            Self::RequestsPerSecond | Self::BytesPerSecond => Better::More,
            Self::Microseconds | Self::Bytes | Self::BytesPerByte | Self::Times => Better::Less,
        }
    }
}

/// What one round gave for one case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    /// The case, such as `64 producers, 1 KiB`.
    pub case: String,
    /// The round.
    pub round: u32,
    /// The unit of the value.
    pub unit: Unit,
    /// The figure itself.
    pub value: f64,
    /// How long single calls took.
    pub latency: Option<Latency>,
    /// Bytes that reached the device: a request where the figure is a rate, else a call.
    pub device_bytes: Option<f64>,
    /// Bytes that became resident since before it was opened, its server's included.
    pub resident_bytes: Option<f64>,
    /// Bytes that its files took at the end.
    pub disk_bytes: Option<f64>,
}

impl Point {
    fn new(case: impl Into<String>, round: u32, unit: Unit, value: f64) -> Self {
        Self {
            case: case.into(),
            round,
            unit,
            value,
            latency: None,
            device_bytes: None,
            resident_bytes: None,
            disk_bytes: None,
        }
    }
}

/// Runs a part: its points.
///
/// # Errors
/// As the contestant.
pub async fn run(part: &Part) -> Result<Vec<Point>> {
    let contestant = Contestant::named(&part.contestant)?;
    let site = Site {
        part,
        contestant,
        folder: own_folder(&part.folder, "store")?,
        resident: machine::resident(std::process::id()).map(|(now, _)| now),
    };
    match part.workload {
        Workload::Device => enqueue::device(&site),
        Workload::Enqueue => enqueue::enqueue(&site).await,
        Workload::Claim => taken::claim(&site).await,
        Workload::Drain => taken::drain(&site).await,
        Workload::Oldest => queued::oldest(&site).await,
        Workload::Dispatch => dispatch::dispatch(&site).await,
        Workload::EndToEnd => dispatch::end_to_end(&site).await,
        #[cfg(feature = "control")]
        Workload::Beside => beside::beside(&site).await,
        #[cfg(not(feature = "control"))]
        Workload::Beside => Ok(Vec::new()),
        Workload::Open => open::open(&site).await,
        Workload::Churn => life::churn(&site).await,
        Workload::Memory => queued::memory(&site).await,
        Workload::Life => life::life(&site).await,
        Workload::Disk => life::disk(&site).await,
    }
}

/// Where a part is at work.
pub(super) struct Site<'a> {
    part: &'a Part,
    contestant: Contestant,
    folder: PathBuf,
    /// What was resident before anything was opened.
    resident: Option<u64>,
}

impl Site<'_> {
    /// Opens the contestant; it will be given about so many bytes.
    async fn open(&self, bytes: u64) -> Result<Box<dyn Yard>> {
        self.open_with(bytes, options()).await
    }

    async fn open_with(&self, bytes: u64, queue: QueueOptions) -> Result<Box<dyn Yard>> {
        self.contestant.open(self.setup(bytes, queue)).await
    }

    fn setup(&self, bytes: u64, queue: QueueOptions) -> Setup {
        // At a tiny scale, zeroing segments would take longer than what is measured.
        let segments = scaled(10 * SEGMENT_MIB, self.part.scale).clamp(1, SEGMENT_MIB);
        Setup {
            queue,
            bytes,
            segment_bytes: segments << 20,
            ..Setup::new(self.folder.clone())
        }
    }

    /// A count at the scale of this run; at least `least`.
    fn count(&self, full: u64, least: u64) -> u64 {
        scaled(full, self.part.scale).max(least)
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    /// Counts what reaches the device from here on, once whatever was begun before has got there, such as
    /// segments made ahead; it waits no longer for that than a measurement takes.
    async fn start_counting(&self) -> Written {
        if let Some(device) = Device::below(&self.folder) {
            let start = Instant::now();
            let mut last = device.written();
            while start.elapsed().as_secs_f64() < self.part.seconds {
                sleep(LOOK).await;
                let now = device.written();
                if now.unwrap_or(0) - last.unwrap_or(0) < STILL {
                    break;
                }
                last = now;
            }
        }
        Written::start(&self.folder)
    }

    /// What became resident since before it was opened, here and in its server.
    fn resident(&self, yard: &dyn Yard) -> Option<f64> {
        let (now, _) = machine::resident(std::process::id())?;
        let server = yard.server().and_then(machine::resident);
        let server = server.map_or(0, |(now, _)| now);
        Some(as_f64(now.saturating_sub(self.resident?) + server))
    }

    fn disk(&self) -> f64 {
        as_f64(machine::disk_bytes(&self.folder))
    }

    /// What its files take once that no longer changes: a store may let go of files when it is idle.
    async fn disk_at_rest(&self) -> f64 {
        let mut last = machine::disk_bytes(&self.folder);
        let mut since = Instant::now();
        let start = since;
        while since.elapsed() < RESTS && start.elapsed() < RESTS_AT_MOST {
            sleep(LOOK).await;
            let now = machine::disk_bytes(&self.folder);
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        as_f64(last)
    }

    fn point(&self, case: impl Into<String>, unit: Unit, value: f64) -> Point {
        Point::new(case, self.part.round, unit, value)
    }
}

/// Nothing is kept of what is done: a drain measures the way out, not what is looked up afterwards.
fn options() -> QueueOptions {
    QueueOptions::default().retention(Duration::ZERO)
}

/// A queue that holds so many, and lets pushes wait for room.
fn bounded(requests: u64) -> QueueOptions {
    let timeout = Duration::from_secs(60);
    options()
        .max_requests(requests)
        .when_full(WhenFull::Block { timeout })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are far below 2^52, and scales are not negative"
)]
fn scaled(full: u64, scale: f64) -> u64 {
    (as_f64(full) * scale).round() as u64
}

/// A size as it is said: `200 B`, `16 KiB`.
fn size(bytes: usize) -> String {
    match bytes {
        1_048_576.. => format!("{} MiB", bytes >> 20),
        1024.. => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

/// A count as it is said: `50,000`.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

const LOOK: Duration = Duration::from_millis(50);
/// Files are given back within a second or two.
const RESTS: Duration = Duration::from_secs(3);
const RESTS_AT_MOST: Duration = Duration::from_secs(20);
/// What others may write meanwhile.
const STILL: u64 = 256 << 10;
const KIB: usize = 1024;
const SEGMENT_MIB: u64 = 64;
/// How many are pushed at once where only what comes after is measured.
const FILL: u64 = 1000;
