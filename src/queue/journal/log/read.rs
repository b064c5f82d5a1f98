//! Reading what the log holds, while it is written and reused.

use std::{
    collections::BTreeMap,
    ops::{RangeBounds, RangeInclusive},
    sync::{Arc, PoisonError, Weak},
};

use bytes::Bytes;

use super::{Place, buffers::Buffers, format::PAGE};
use crate::{
    error::{Error, Result},
    queue::journal::disk::DiskFile,
    sync::{RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// A file that is, or was, a segment. It is reused only when nobody else holds it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) name: String,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) length: u32,
    /// Whether all behind the log's end is zero, because the file had no earlier use.
    pub(super) fresh: bool,
}

impl Segment {
    /// The same file, known to be longer.
    pub(super) fn with_length(&self, length: u32) -> Self {
        Self {
            name: self.name.clone(),
            file: self.file.clone(),
            length,
            ..*self
        }
    }
}

/// The segments that can be read.
#[derive(Clone, Debug, Default)]
pub(super) struct Segments(Arc<RwLock<ByNumber>>);

#[derive(Debug, Default)]
struct ByNumber {
    live: BTreeMap<u32, Arc<Segment>>,
    /// Not yet reused, because somebody reads them or because nobody needs them.
    freed: BTreeMap<u32, Weak<Segment>>,
}

/// Reads bytes of the log; cheap to clone, and free to use from any thread.
#[derive(Clone, Debug)]
pub(in crate::queue::journal) struct Reader {
    segments: Segments,
    buffers: Buffers,
    only_cached: bool,
}

/// While it lives, its segments are not reused.
#[derive(Debug)]
pub(in crate::queue::journal) struct Pin {
    _segments: Vec<Arc<Segment>>,
}

impl Segments {
    fn read(&self) -> RwLockReadGuard<'_, ByNumber> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, ByNumber> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A live segment.
    pub(super) fn get(&self, number: u32) -> Option<Arc<Segment>> {
        self.read().live.get(&number).cloned()
    }

    /// The live ones in a range, in order.
    pub(super) fn range(&self, numbers: impl RangeBounds<u32>) -> Vec<Arc<Segment>> {
        self.read()
            .live
            .range(numbers)
            .map(|(_, segment)| segment.clone())
            .collect()
    }

    /// Adds one; answers the one that had its number.
    pub(super) fn insert(&self, segment: Arc<Segment>) -> Option<Arc<Segment>> {
        self.write().live.insert(segment.number, segment)
    }

    /// Takes those below `number` out; they can be read until they are reused.
    pub(super) fn free_below(&self, number: u32) -> Vec<Arc<Segment>> {
        let mut all = self.write();
        let live = all.live.split_off(&number);
        let freed = std::mem::replace(&mut all.live, live);
        all.freed.retain(|_, segment| segment.strong_count() > 0);
        let weak = freed
            .iter()
            .map(|(number, segment)| (*number, Arc::downgrade(segment)));
        all.freed.extend(weak);
        freed.into_values().collect()
    }

    /// Takes those above `number` out.
    pub(super) fn remove_above(&self, number: u32) -> Vec<Arc<Segment>> {
        self.write()
            .live
            .split_off(&(number + 1))
            .into_values()
            .collect()
    }
}

impl ByNumber {
    fn find(&self, number: u32) -> Option<Arc<Segment>> {
        let freed = || self.freed.get(&number).and_then(Weak::upgrade);
        self.live.get(&number).cloned().or_else(freed)
    }
}

impl Reader {
    pub(super) fn new(segments: Segments) -> Self {
        Self {
            segments,
            buffers: Buffers::default(),
            only_cached: false,
        }
    }

    /// How many bytes the segments with these numbers take.
    pub(in crate::queue::journal) fn log_bytes(&self, numbers: impl RangeBounds<u32>) -> u64 {
        let all = self.segments.read();
        let lengths = all.live.range(numbers).map(|(_, segment)| segment.length);
        lengths.map(u64::from).sum()
    }

    /// Reads what can be had without waiting for the disk, and fails otherwise.
    pub(in crate::queue::journal) fn only_cached(&self) -> Self {
        Self {
            only_cached: true,
            ..self.clone()
        }
    }

    /// Bytes from here on will be read soon.
    pub(in crate::queue::journal) fn will_read(&self, at: Place, bytes: u64) {
        let segment = self.segments.read().find(at.segment);
        if let Some(segment) = segment.filter(|_| !self.only_cached) {
            segment.file.will_read(at.offset.into(), bytes);
        }
    }

    /// Bytes of the log, as they are: what they should be is for their owner to check.
    ///
    /// # Errors
    /// `NotFound` if the segment is gone, `Corrupt` if it has no such bytes, `Unavailable` if they can't be read.
    pub(in crate::queue::journal) fn read(&self, at: Place, bytes: u32) -> Result<Bytes> {
        let Some(segment) = self.segments.read().find(at.segment) else {
            return Err(Error::not_found(format!(
                "segment {} of the log is gone",
                at.segment
            )));
        };
        let end = u64::from(at.offset) + u64::from(bytes);
        if at.offset < PAGE || end > segment.length.into() {
            return Err(Error::corrupt(format!(
                "segment {} has no {bytes} bytes at {}",
                at.segment, at.offset
            )));
        }
        let read = (self.buffers).filled(bytes as usize, |buffer| {
            if self.only_cached {
                segment.file.read_cached_at(buffer, at.offset.into())
            } else {
                segment.file.read_at(buffer, at.offset.into())
            }
        });
        read.map_err(|error| {
            Error::unavailable(format!(
                "{bytes} bytes at {} of {} can't be read: {error}",
                at.offset, segment.name
            ))
            .with_source(error)
        })
    }

    /// The file that is this segment, from the store's folder on.
    pub(in crate::queue::journal) fn file_of(&self, segment: u32) -> Option<String> {
        let segment = self.segments.read().find(segment);
        segment.map(|segment| format!("log/{}", segment.name))
    }

    /// Keeps these segments from being reused, as far as they are there.
    pub(in crate::queue::journal) fn pin(&self, segments: RangeInclusive<u32>) -> Pin {
        let all = self.segments.read();
        if segments.is_empty() {
            return Pin {
                _segments: Vec::new(),
            };
        }
        let live = all
            .live
            .range(segments.clone())
            .map(|(_, held)| held.clone());
        let freed = all
            .freed
            .range(segments)
            .filter_map(|(_, held)| held.upgrade());
        Pin {
            _segments: live.chain(freed).collect(),
        }
    }
}
