//! Where the segments of a raw log come from, and where they go.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use super::{super::contestant::Setup, failed};
use crate::error::{Error, Result};

/// What a segment is before anything is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Kind {
    /// An empty file, which grows: every sync also writes its new length and blocks.
    Growing,
    /// Zeroed by a background thread, two segments ahead.
    Zeroed,
    /// Zeroed before the clock starts; if those run out, the oldest are written over.
    ZeroedBefore,
    /// Its blocks are allocated by a background thread, and never zeroed: a sync also marks them as written.
    Allocated,
}

/// Gives out segments in order.
#[derive(Debug)]
pub(super) struct Segments {
    kind: Kind,
    made: mpsc::Receiver<Result<Segment>>,
    /// What was zeroed beforehand, to go round in.
    ring: Vec<Segment>,
    given: usize,
    /// Of those given out and not retired, oldest first.
    paths: VecDeque<PathBuf>,
    /// Removing a file takes milliseconds, so another thread does it.
    retired: mpsc::Sender<PathBuf>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Clone, Debug)]
struct Segment {
    file: Arc<File>,
    path: PathBuf,
}

impl Segments {
    /// Starts the threads that make and remove segments.
    pub(super) fn start(at: &Setup, kind: Kind) -> Result<Self> {
        let ring = match kind {
            Kind::ZeroedBefore => zeroed_before(at)?,
            _ => Vec::new(),
        };
        let (ahead, made) = mpsc::sync_channel(AHEAD - 1);
        let (retired, to_remove) = mpsc::channel::<PathBuf>();
        let own = at.clone();
        let mut threads = Vec::new();
        if kind != Kind::ZeroedBefore {
            threads.push(spawn("bench-segments", move || {
                let segments = (0..).map(|number| Segment::make(&own, number, kind));
                for segment in segments {
                    // An error is told to the writer; when the writer is gone, this is over.
                    if ahead.send(segment).is_err() {
                        break;
                    }
                }
            })?);
        }
        threads.push(spawn("bench-remover", move || {
            for path in to_remove {
                // The folder is removed as a whole anyway.
                let _ = fs::remove_file(path);
            }
        })?);
        Ok(Self {
            kind,
            made,
            ring,
            given: 0,
            paths: VecDeque::new(),
            retired,
            threads,
        })
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Result<Arc<File>> {
        let segment = if self.kind == Kind::ZeroedBefore {
            self.ring[self.given % self.ring.len()].clone()
        } else {
            let made = self.made.recv();
            made.map_err(|_| Error::internal("no more segments are made"))??
        };
        self.given += 1;
        self.paths.push_back(segment.path);
        Ok(segment.file)
    }

    /// The oldest one is no longer needed.
    pub(super) fn retire(&mut self) {
        let oldest = self.paths.pop_front();
        if let Some(path) = oldest.filter(|_| self.kind != Kind::ZeroedBefore) {
            // Without its thread it goes with the folder.
            let _ = self.retired.send(path);
        }
    }
}

impl Drop for Segments {
    /// Waits for its threads, so that nobody writes to a folder that is being removed.
    fn drop(&mut self) {
        self.made = mpsc::channel().1;
        self.retired = mpsc::channel().0;
        for thread in self.threads.drain(..) {
            // It panicked: its last words are in the log already.
            let _ = thread.join();
        }
    }
}

impl Segment {
    /// A new segment, on stable storage with its name.
    fn make(at: &Setup, number: u64, kind: Kind) -> Result<Self> {
        let path = at.folder.join(format!("{number:08}.segment"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(failed)?;
        match kind {
            Kind::Growing => {}
            Kind::Zeroed | Kind::ZeroedBefore => zero(&file, at.segment_bytes)?,
            Kind::Allocated => allocate(&file, at.segment_bytes)?,
        }
        file.sync_all().map_err(failed)?;
        let parent = File::open(&at.folder).map_err(failed)?;
        parent.sync_all().map_err(failed)?;
        Ok(Self {
            file: Arc::new(file),
            path,
        })
    }
}

fn zeroed_before(at: &Setup) -> Result<Vec<Segment>> {
    // What a log adds to payloads is small, and the last group of a segment may not fit.
    let needed = (at.bytes + at.bytes / 16) / at.segment_bytes + 2;
    (0..needed.max(LEAST_ZEROED))
        .map(|number| Segment::make(at, number, Kind::ZeroedBefore))
        .collect()
}

/// Zeroes it through the page cache, so that its pages are there for the first pass; in small pieces, each
/// synced, so that the disk has room for others between them.
fn zero(file: &File, bytes: u64) -> Result<()> {
    let zeroes = vec![0; PIECE];
    for at in (0..bytes).step_by(PIECE) {
        file.write_all_at(&zeroes, at).map_err(failed)?;
        file.sync_data().map_err(failed)?;
    }
    Ok(())
}

fn allocate(file: &File, bytes: u64) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        fallocate(file, FallocateFlags::empty(), 0, bytes).map_err(|error| failed(error.into()))
    }
    #[cfg(not(target_os = "linux"))]
    file.set_len(bytes).map_err(failed)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name.into()).spawn(work);
    thread.map_err(failed)
}

/// How many segments are ready before they are needed.
const AHEAD: usize = 2;
/// 512 MiB, to go round in.
const LEAST_ZEROED: u64 = 8;
const PIECE: usize = 1 << 20;
