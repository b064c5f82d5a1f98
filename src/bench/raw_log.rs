//! The yardstick: a log with group commit and nothing else, as fast as files allow.
//!
//! Segments of 64 MiB; a group is one `pwrite` and one `fdatasync`. In memory it keeps a run of requests
//! for each group, so that batches can be claimed and read; it can't be opened again. The four kinds
//! differ in what the segment was before: see [`Kind`].

mod segments;

use std::{
    collections::VecDeque,
    fs::File,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};

pub(super) use self::segments::Kind;
use self::segments::Segments;
use super::{
    contestant::Setup,
    front::{Engine, Range, Reader},
};
use crate::error::{Error, Result};

/// The log.
#[derive(Debug)]
pub(super) struct RawLog {
    segments: Segments,
    segment: Arc<File>,
    segment_bytes: u64,
    at: u64,
    buffer: Vec<u8>,
    next: u64,
    cursor: u64,
    runs: Arc<Mutex<VecDeque<Run>>>,
}

/// What one group holds.
#[derive(Clone, Debug)]
struct Run {
    range: Range,
    segment: Arc<File>,
    at: u64,
    bytes: u64,
}

/// Reads by the runs that the writer keeps.
#[derive(Debug)]
pub(super) struct RawReader(Arc<Mutex<VecDeque<Run>>>);

impl RawLog {
    /// A new log.
    pub(super) fn create(at: &Setup, kind: Kind) -> Result<Self> {
        let mut segments = Segments::start(at, kind)?;
        Ok(Self {
            segment: segments.next()?,
            segments,
            segment_bytes: at.segment_bytes,
            at: 0,
            buffer: Vec::new(),
            next: 0,
            cursor: 0,
            runs: Arc::default(),
        })
    }

    /// Writes the buffer as one group and syncs it; where it went.
    fn append(&mut self) -> Result<u64> {
        let bytes = self.buffer.len() as u64;
        if self.at + bytes > self.segment_bytes && self.at > 0 {
            self.segment = self.segments.next()?;
            self.at = 0;
        }
        let at = self.at;
        let written = self.segment.write_all_at(&self.buffer, at);
        written
            .and_then(|()| self.segment.sync_data())
            .map_err(failed)?;
        self.at += bytes;
        Ok(at)
    }

    /// One small group that says what happened to a range.
    fn note(&mut self, kind: u32, range: Range) -> Result<()> {
        self.buffer.clear();
        self.buffer.extend_from_slice(&kind.to_le_bytes());
        self.buffer.extend_from_slice(&range.first.to_le_bytes());
        self.buffer.extend_from_slice(&range.end.to_le_bytes());
        self.append().map(drop)
    }
}

impl Engine for RawLog {
    type Reader = RawReader;

    fn reader(&self) -> Result<RawReader> {
        Ok(RawReader(Arc::clone(&self.runs)))
    }

    fn commit(&mut self, pushes: &[Vec<Bytes>]) -> Result<()> {
        let payloads = || pushes.iter().flatten();
        let count = payloads().count() as u64;
        self.buffer.clear();
        self.buffer.extend_from_slice(&PUSHED.to_le_bytes());
        self.buffer.extend_from_slice(&count.to_le_bytes());
        for payload in payloads() {
            let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            self.buffer.extend_from_slice(&length.to_le_bytes());
            self.buffer.extend_from_slice(payload);
        }
        let at = self.append()?;
        let range = Range {
            first: self.next,
            end: self.next + count,
        };
        self.next = range.end;
        let run = Run {
            range,
            segment: Arc::clone(&self.segment),
            at,
            bytes: self.buffer.len() as u64,
        };
        lock(&self.runs).push_back(run);
        Ok(())
    }

    fn claim(&mut self, most: u64) -> Result<Option<Range>> {
        let range = Range {
            first: self.cursor,
            end: self.next.min(self.cursor + most),
        };
        if range.len() == 0 {
            return Ok(None);
        }
        self.note(CLAIMED, range)?;
        self.cursor = range.end;
        Ok(Some(range))
    }

    fn finish(&mut self, range: Range) -> Result<()> {
        self.note(FINISHED, range)?;
        let mut runs = lock(&self.runs);
        while runs.front().is_some_and(|run| run.range.end <= range.end) {
            let last = runs.pop_front();
            let left = last.filter(|last| {
                let next = runs.front().map_or(&self.segment, |run| &run.segment);
                !Arc::ptr_eq(next, &last.segment)
            });
            if left.is_some() {
                self.segments.retire();
            }
        }
        Ok(())
    }
}

impl Reader for RawReader {
    fn read(&self, range: Range, take: &mut dyn FnMut(Vec<Bytes>)) -> Result<()> {
        let runs: Vec<Run> = {
            let runs = lock(&self.0);
            let first = runs.partition_point(|run| run.range.end <= range.first);
            let held = runs.iter().skip(first);
            held.take_while(|run| run.range.first < range.end)
                .cloned()
                .collect()
        };
        let mut buffer = BytesMut::new();
        let joins = |one: &Run, next: &Run| {
            Arc::ptr_eq(&one.segment, &next.segment) && one.at + one.bytes == next.at
        };
        for stretch in runs.chunk_by(joins) {
            let mut rest = stretch;
            while let Some(first) = rest.first() {
                let ends = rest.iter().map(|run| run.at + run.bytes - first.at);
                let count = ends.take_while(|bytes| *bytes <= PAGE_BYTES).count().max(1);
                let (page, after) = rest.split_at(count);
                rest = after;
                buffer = read_page(page, range, buffer, take)?;
            }
        }
        Ok(())
    }
}

/// Reads adjacent runs at once and gives out what is in the range; the buffer to use next.
fn read_page(
    runs: &[Run],
    range: Range,
    mut buffer: BytesMut,
    take: &mut dyn FnMut(Vec<Bytes>),
) -> Result<BytesMut> {
    let bytes: u64 = runs.iter().map(|run| run.bytes).sum();
    buffer.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
    let first = runs.first().ok_or_else(torn)?;
    let read = first.segment.read_exact_at(&mut buffer, first.at);
    read.map_err(failed)?;
    let whole = buffer.freeze();
    let mut at = 0;
    let mut payloads = Vec::new();
    for run in runs {
        at += GROUP_HEADER;
        for number in run.range.first..run.range.end {
            let length = whole.get(at..at + 4).ok_or_else(torn)?;
            let length = u32::from_le_bytes(length.try_into().map_err(|_| torn())?) as usize;
            at += 4;
            if number >= range.first && number < range.end {
                payloads.push(whole.slice(at..at + length));
            }
            at += length;
        }
    }
    take(payloads);
    // Whoever took the page let go of it: no page faults for the next one.
    Ok(whole.try_into_mut().unwrap_or_default())
}

fn lock(runs: &Mutex<VecDeque<Run>>) -> MutexGuard<'_, VecDeque<Run>> {
    runs.lock().unwrap_or_else(PoisonError::into_inner)
}

fn torn() -> Error {
    Error::internal("a group of the raw log does not end where it should")
}

fn failed(error: std::io::Error) -> Error {
    Error::internal("the raw log can't be written or read").with_source(error)
}

const PAGE_BYTES: u64 = 512 << 10;
const GROUP_HEADER: usize = 12;
const PUSHED: u32 = 1;
const CLAIMED: u32 = 2;
const FINISHED: u32 = 3;
