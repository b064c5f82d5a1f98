//! The group that is filling, those on their way to the disk, and waiting for one to get there.

use std::{
    collections::VecDeque,
    future::Future,
    io::IoSlice,
    pin::Pin,
    sync::{Arc, OnceLock, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::{
    codec::Codec,
    event::{Event, Of, Pushed, What},
    log::{
        Cursor, Log, Place, Reader,
        fault::{self, Fault},
    },
    published::{Live, Reading},
    record::{self, Anchor, Draft, Roster},
    state::{Blob, Stretch},
};
use crate::{
    error::{Error, Result},
    sync::Mutex,
};

/// A group that takes what callers bring.
#[derive(Debug)]
pub(super) struct Filling {
    pub(super) at: Cursor,
    pub(super) body: Vec<u8>,
    events: Vec<u8>,
    piece: Option<Piece>,
    /// What the checks of requests start from.
    salt: u64,
    /// The queues that it touches, and whether there is something to wake others for.
    touched: Vec<(u32, bool)>,
    pub(super) callers: usize,
    pub(super) done: Arc<Done>,
}

/// The piece at the end of the body, to which further pushes of its queue are added.
#[derive(Debug)]
struct Piece {
    queue: u32,
    back: u32,
    pushed: Pushed,
    roster: Roster,
    last: u64,
}

/// A group that is complete.
#[derive(Debug)]
pub(super) struct Group {
    at: Cursor,
    body: Vec<u8>,
    events: Vec<u8>,
    pub(super) readings: Vec<(Arc<Live>, Reading, bool)>,
    pub(super) done: Arc<Done>,
}

impl Filling {
    pub(super) fn new(at: Cursor, body: Vec<u8>, salt: u64) -> Self {
        Self {
            at,
            body,
            events: Vec::new(),
            piece: None,
            salt,
            touched: Vec::new(),
            callers: 0,
            done: Arc::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.body.is_empty() && self.events.is_empty() && self.piece.is_none()
    }

    /// Whether so many bytes more, of body and events together, go into its segment.
    pub(super) fn takes(&self, bytes: usize) -> bool {
        if !self.is_empty() && self.body.len() + bytes > MAX_GROUP_BYTES {
            return false;
        }
        let open = self.piece.as_ref().map_or(0, Piece::event_bytes);
        let roster = self.piece.as_ref().map_or(0, |piece| piece.roster.bytes());
        self.at
            .fits(self.body.len() + roster + bytes, self.events.len() + open)
    }

    /// Where the next byte of the body will lie.
    pub(super) fn place(&self) -> Place {
        let body = self.at.body();
        Place {
            segment: body.segment,
            offset: body.offset + length(&self.body),
        }
    }

    pub(super) fn touch(&mut self, queue: u32, wakes: bool) {
        match self.touched.iter_mut().find(|(known, _)| *known == queue) {
            Some((_, woken)) => *woken |= wakes,
            None => self.touched.push((queue, wakes)),
        }
    }

    /// Whether what this queue pushes next goes to the piece at the end.
    pub(super) fn grows(&self, queue: u32) -> bool {
        self.piece
            .as_ref()
            .is_some_and(|piece| piece.queue == queue)
    }

    /// Where the next byte of the body will lie, for those who check what they write there.
    pub(super) fn anchor(&self) -> Anchor {
        Anchor {
            salt: self.salt,
            place: self.place(),
        }
    }

    /// Where the piece at the end begins, and how many bytes it has if it ends here.
    pub(super) fn piece(&self) -> Option<(Place, u32)> {
        let piece = self.piece.as_ref()?;
        let offset = piece.pushed.offset;
        let end = self.body.len() + piece.roster.bytes();
        let body = self.at.body();
        let place = Place {
            segment: body.segment,
            offset: body.offset + offset,
        };
        Some((place, u32::try_from(end).unwrap_or(u32::MAX) - offset))
    }

    /// Begins a piece, `back` bytes behind the one before it in its stretch.
    pub(super) fn begin_piece(&mut self, queue: u32, back: u32) {
        self.end_piece();
        let pushed = Pushed {
            offset: length(&self.body),
            ..Pushed::default()
        };
        let anchor = self.anchor();
        record::begin_piece(&mut self.body, anchor, back);
        self.piece = Some(Piece {
            queue,
            back,
            pushed,
            roster: Roster::default(),
            last: 0,
        });
    }

    /// Adds a request to the piece at the end.
    pub(super) fn put_request(&mut self, draft: &Draft, id: u64, pushed_at: u64) {
        let anchor = self.anchor();
        draft.put(id, pushed_at, anchor, &mut self.body);
        if let Some(piece) = &mut self.piece {
            piece.roster.add(id, draft.payload.len() as u64);
        }
    }

    /// What was added to the body and to the piece at the end.
    pub(super) fn grow_piece(&mut self, part: Pushed, first: u64, requests: u32) {
        let Some(piece) = &mut self.piece else { return };
        let all = &mut piece.pushed;
        let distance = first - piece.last;
        match all.runs.last_mut() {
            Some((_, count)) if distance == 1 => *count += u64::from(requests),
            _ => all.runs.push((distance, u64::from(requests))),
        }
        piece.last = first + u64::from(requests) - 1;
        if all.ready == 0 {
            (all.head, all.ready_at) = (part.head, part.ready_at);
        }
        all.ready += part.ready;
        all.ready_bytes += part.ready_bytes;
        all.held_bytes += part.held_bytes;
        all.largest = all.largest.max(part.largest);
        all.expires_at = all.expires_at.into_iter().chain(part.expires_at).min();
        all.later.extend(part.later);
        all.keys.extend(part.keys);
        all.bookmarks.extend(part.bookmarks);
    }

    /// Ends the piece at the end, and says so.
    pub(super) fn end_piece(&mut self) {
        let Some(mut piece) = self.piece.take() else {
            return;
        };
        let from = piece.pushed.offset as usize;
        let anchor = Anchor {
            salt: self.salt,
            place: self.at.body(),
        };
        let anchor = anchor.behind(from);
        record::end_piece(&mut self.body, (from, anchor), piece.back, &piece.roster);
        piece.pushed.bytes = length(&self.body) - piece.pushed.offset;
        let what = What::Pushed(piece.pushed);
        let queue = piece.queue;
        Event::Of(Box::new(Of { queue, what })).put(&mut self.events);
    }

    /// Adds an event; the caller folds it.
    pub(super) fn put(&mut self, event: &Event) {
        self.end_piece();
        event.put(&mut self.events);
    }

    /// Adds a blob to the body.
    pub(super) fn put_blob(&mut self, bytes: &[u8]) -> Blob {
        self.end_piece();
        let place = self.place();
        self.body.extend_from_slice(bytes);
        Blob {
            segment: place.segment,
            offset: place.offset,
            bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            check: crc32fast::hash(bytes),
        }
    }

    /// What of these bytes of the log lies here, copied to where it belongs.
    fn copy(&self, at: Place, into: &mut [u8]) {
        copy(self.at.body(), &self.body, at, into);
    }

    /// The group as it is, and where the next one goes.
    pub(super) fn seal(
        mut self,
        reading: impl Fn(u32) -> Option<(Arc<Live>, Reading)>,
    ) -> (Group, Cursor) {
        self.end_piece();
        let next = self.at.after(self.body.len(), self.events.len());
        let readings = self.touched.into_iter();
        let readings = readings.filter_map(|(queue, wakes)| {
            let (live, reading) = reading(queue)?;
            Some((live, reading, wakes))
        });
        let group = Group {
            at: self.at,
            readings: readings.collect(),
            body: self.body,
            events: self.events,
            done: self.done,
        };
        (group, next)
    }
}

impl Piece {
    /// At most so many bytes its event takes.
    fn event_bytes(&self) -> usize {
        let noted = self.pushed.keys.len() * 64;
        let bookmarks = self.pushed.bookmarks.iter();
        let bookmarks: usize = bookmarks
            .map(|(source, value)| source.len() + value.len() + 20)
            .sum();
        128 + 20 * self.pushed.runs.len() + 40 * self.pushed.later.len() + noted + bookmarks
    }
}

impl Group {
    /// Writes and syncs it.
    pub(super) fn write(&self, log: &mut Log) -> Result<()> {
        log.append(self.at, &[IoSlice::new(&self.body)], &self.events)
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.body.len() + self.events.len()) as u64
    }

    /// Its buffer, to be filled again.
    pub(super) fn into_buffer(self) -> Option<Vec<u8>> {
        let mut body = self.body;
        body.clear();
        (body.capacity() <= MAX_KEPT_BUFFER).then_some(body)
    }
}

/// Reads from the log what may not be on its way to the disk yet.
pub(super) fn read(
    reader: &Reader,
    (sealed, filling): (&VecDeque<Arc<Group>>, &Filling),
    at: Place,
    bytes: u32,
) -> Result<Bytes> {
    let waiting = sealed.front().map_or(filling.at, |group| group.at).body();
    if at.segment < waiting.segment
        || (at.segment == waiting.segment && at.offset + bytes <= waiting.offset)
    {
        return reader.read(at, bytes);
    }
    let mut all = vec![0; bytes as usize];
    if at < waiting {
        let written = (waiting.offset - at.offset).min(bytes);
        let from_disk = reader.read(at, written)?;
        all[..written as usize].copy_from_slice(&from_disk);
    }
    for group in sealed {
        copy(group.at.body(), &group.body, at, &mut all);
    }
    filling.copy(at, &mut all);
    Ok(all.into())
}

/// Whether a stretch lies in what is on stable storage already, all of it.
pub(super) fn is_durable(
    (sealed, filling): (&VecDeque<Arc<Group>>, &Filling),
    stretch: &Stretch,
) -> bool {
    let waiting = sealed.front().map_or(filling.at, |group| group.at).body();
    let end = stretch.offset.saturating_add(stretch.bytes);
    (stretch.segment, end) <= (waiting.segment, waiting.offset)
}

/// Copies what both have of one segment.
fn copy(body: Place, from: &[u8], at: Place, into: &mut [u8]) {
    if body.segment != at.segment {
        return;
    }
    let (body, at) = (body.offset as usize, at.offset as usize);
    let first = body.max(at);
    let end = (body + from.len()).min(at + into.len());
    if first < end {
        into[first - at..end - at].copy_from_slice(&from[first - body..end - body]);
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// Why a group did not get to stable storage.
#[derive(Clone, Debug)]
pub(super) enum Refused {
    /// Nothing is known of it, and nothing more will be answered.
    Poisoned(String),
    /// There was no space for it; it was taken back.
    Full(String),
}

/// Whether a group is on stable storage, and who wants to know.
#[derive(Debug, Default)]
pub(super) struct Done {
    result: OnceLock<Result<(), Refused>>,
    wakers: Mutex<Vec<Waker>>,
}

impl Done {
    pub(super) fn set(&self, result: Result<(), Refused>) {
        // Set once, by whoever wrote the group.
        let _ = self.result.set(result);
        let wakers = self.wakers.lock();
        let wakers = std::mem::take(&mut *wakers.unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn get(&self) -> Option<Result<()>> {
        let result = self.result.get()?.clone();
        Some(result.map_err(|refused| match refused {
            Refused::Poisoned(why) => poisoned(&why),
            Refused::Full(why) => Error::unavailable(why),
        }))
    }

    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<Result<()>> {
        if let Some(result) = self.get() {
            return Poll::Ready(result);
        }
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have been set before the lock was had; whoever sets it wakes those that are in here.
        if let Some(result) = self.get()
            && !fault::is(Fault::LookOnce)
        {
            return Poll::Ready(result);
        }
        wakers.push(cx.waker().clone());
        Poll::Pending
    }
}

/// Resolves when a group is on stable storage.
pub(super) struct Synced(pub(super) Arc<Done>);

impl Future for Synced {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(cx)
    }
}

pub(super) fn poisoned(why: &str) -> Error {
    Error::poisoned(format!(
        "{why}; what was answered is safe, and nothing more is promised until the store is opened again"
    ))
}

/// What one push brings may be more; many together are not.
const MAX_GROUP_BYTES: usize = 64 << 20;
/// Larger buffers are given back to the system.
const MAX_KEPT_BUFFER: usize = 8 << 20;
