//! Doors into the journal for the fuzz targets; see [`crate::fuzzing`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    future::Future,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    JournalQueue, KIND, USED,
    codec::{Codec, Input, whole},
    event::{Baseline, Event},
    fields,
    fold::fold,
    log::{
        Place,
        fault::{self, Fault},
        fuzzing::headers,
    },
    open::Identity,
    record::{self, Anchor, Draft, Known, Roster},
    rig::{Rig, options, wait},
    simulated::{Crash, SimDisk},
    state::{QueueState, State, Stored, Stretch},
    verify::verify,
};
use crate::{
    error::Result,
    queue::{
        Queue, QueueOptions,
        folder::{format_of, parse_format},
    },
    request::NewRequest,
};

pub(crate) use super::{log::fuzzing::reseal, rig::SALT};

/// The files of a log.
pub(crate) type Image = BTreeMap<String, Vec<u8>>;

/// Values as they lie in groups and baselines, whatever the bytes are.
pub(crate) fn values(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    match kind % 6 {
        0 => same_again::<Event>(bytes),
        1 => same_again::<Baseline>(bytes),
        2 => same_again::<Stored>(bytes),
        3 => events(bytes),
        4 => state(bytes),
        _ => headers(bytes, SALT),
    }
}

/// What can be read is the same when it was written and read again.
fn same_again<T: Codec + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = whole::<T>(bytes) else {
        return;
    };
    let mut written = Vec::new();
    value.put(&mut written);
    let again = whole::<T>(&written).expect("what was written can be read");
    assert_eq!(again, value);
}

/// Whatever was decided before, the fold of it can be counted again, and then adds up.
fn events(bytes: &[u8]) {
    let mut state = State::default();
    let mut input = Input::new(bytes);
    let mut body = Place::start_of(1);
    while !input.is_empty() {
        let Ok(event) = Event::take(&mut input) else {
            break;
        };
        fold(&mut state, event, body);
        body.offset = body.offset.saturating_add(512);
    }
    for queue in state.queues.values_mut() {
        queue.recount();
        recounted(queue);
    }
}

/// So can whatever a baseline says.
fn state(bytes: &[u8]) {
    let Ok(stored) = whole::<Stored>(bytes) else {
        return;
    };
    let mut queue = QueueState::derive(stored);
    queue.recount();
    recounted(&queue);
}

fn recounted(queue: &QueueState) {
    let stored = &queue.stored;
    let counts = &stored.counts;
    let settled = [counts.done, counts.expired, counts.cancelled, counts.purged];
    let held = [counts.ready, counts.in_flight, stored.delayed.len() as u64];
    let dead = stored.dead.len() as u64;
    let all = settled.iter().chain(&held).chain([&dead]);
    let all = all.fold(0_u128, |sum, count| sum + u128::from(*count));
    assert_eq!(all, u128::from(counts.pushed), "{counts:?}");
    let mut written = Vec::new();
    stored.put(&mut written);
    let again = whole::<Stored>(&written).expect("what was written can be read");
    assert_eq!(again, *stored);
}

/// A stretch of requests that may be damaged anywhere.
///
/// ```text
/// flags  requests  cursor  then: damage, as (at 2, what 1), and the payloads, parted by zeros
/// ```
pub(crate) fn stretch(data: &[u8]) {
    let [flags, most, cursor, rest @ ..] = data else {
        return;
    };
    if flags & 1 == 0 {
        return any_stretch(*flags, (*most, *cursor), rest);
    }
    let damages = usize::from(flags >> 1 & 7);
    let (damages, payloads) = rest.split_at(rest.len().min(3 * damages));
    let payloads: Vec<&[u8]> = payloads.split(|byte| *byte == 0).take(64).collect();
    let (mut bytes, stretch) = pushed(&payloads, 1 + usize::from(*most % 8));
    let whole = bytes.clone();
    for damage in damages.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([damage[0], damage[1]]));
        let at = at % bytes.len();
        match damage[2] {
            0 => {
                let end = bytes.len().min(at + SECTOR);
                bytes[at..end].fill(0);
            }
            what => bytes[at] ^= what,
        }
    }
    let cursor = stretch.first.saturating_sub(1) + u64::from(*cursor);
    let (found, known) = read(&bytes, &Stretch { ..stretch }, cursor);
    assert_eq!(
        found,
        payloads.len(),
        "a stretch has what was pushed into it"
    );
    let stretch_bytes = Bytes::from(bytes);
    for request in record::requests(&stretch_bytes, &stretch, &known) {
        let Ok(payload) = request.payload(&stretch_bytes) else {
            continue;
        };
        // Ids are given one after the other here.
        let index = usize::try_from(request.id - stretch.first).expect("a few");
        assert_eq!(
            payload, payloads[index],
            "what is served is what was pushed"
        );
    }
    let undamaged = record::requests(&whole, &stretch, &known);
    assert!(undamaged.iter().all(|request| !request.is_lost()));
}

/// Bytes that are no stretch, or not this one.
fn any_stretch(flags: u8, (most, cursor): (u8, u8), bytes: &[u8]) {
    let tail = u32::from(flags) << 1;
    let stretch = Stretch {
        first: 1000,
        last: 1000 + u64::from(most),
        segment: 1,
        offset: 4160,
        bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        tail,
        requests: u32::from(most),
        ready: u32::from(most),
        ..Stretch::default()
    };
    read(bytes, &stretch, u64::from(cursor) * 8);
}

/// How many requests are found, and what was known before.
fn read(bytes: &[u8], stretch: &Stretch, cursor: u64) -> (usize, Known) {
    let known = Known {
        salt: SALT,
        cursor,
        real: BTreeSet::new(),
        gone: BTreeSet::new(),
    };
    let found = record::requests(bytes, stretch, &known);
    let bytes = Bytes::copy_from_slice(bytes);
    let mut last = None;
    for request in &found {
        assert!(last < Some(request.id), "ids grow");
        last = Some(request.id);
        // Legible or not, it says which.
        let _ = (request.payload(&bytes), request.extras(&bytes));
    }
    (found.len(), known)
}

/// A stretch of these payloads, so many a piece, with ids one after the other.
fn pushed(payloads: &[&[u8]], piece: usize) -> (Vec<u8>, Stretch) {
    let small = |number: usize| u32::try_from(number).expect("a few");
    let place = Place {
        segment: 1,
        offset: 4160,
    };
    let anchor = Anchor { salt: SALT, place };
    let first = 1_000_000;
    let (mut bytes, mut begins, mut id) = (Vec::new(), 0, first);
    for payloads in payloads.chunks(piece) {
        let back = small(bytes.len() - begins);
        begins = bytes.len();
        let begin = anchor.behind(begins);
        record::begin_piece(&mut bytes, begin, back);
        let mut roster = Roster::default();
        for payload in payloads {
            let draft = Draft::new(NewRequest::new(payload.to_vec()), None, None);
            let at = anchor.behind(bytes.len());
            draft.put(id, id, at, &mut bytes);
            roster.add(id, payload.len() as u64);
            id += 1;
        }
        record::end_piece(&mut bytes, (begins, begin), back, &roster);
    }
    let stretch = Stretch {
        first,
        last: id - 1,
        segment: place.segment,
        offset: place.offset,
        bytes: small(bytes.len()),
        tail: small(begins),
        requests: small(payloads.len()),
        ready: small(payloads.len()),
        head: first,
        ..Stretch::default()
    };
    (bytes, stretch)
}

/// A FORMAT, beside a log whose files have these salts: what is accepted is accepted again once it was written.
pub(crate) fn format(text: &str, there: &BTreeSet<u64>) {
    let path = Path::new("store");
    let Ok(stated) = parse_format(path, text, KIND) else {
        return;
    };
    let Ok((salt, _)) = super::salt(path, &stated, there) else {
        return;
    };
    let is_used = stated.contains_key(USED);
    let text = format_of(KIND, &fields(Identity { salt, is_used }));
    let again = parse_format(path, &text, KIND).expect("it was written");
    assert_eq!(again.contains_key(USED), is_used);
    let again = super::salt(path, &again, there).expect("it was accepted");
    assert_eq!(again, (salt, false));
}

/// A store on a simulated disk, whose writer is this thread.
pub(crate) struct Simulated {
    disk: SimDisk,
    queues: QueueOptions,
    rig: Rig,
}

impl Simulated {
    /// Opens what lies in these files; an empty store if there are none.
    pub(crate) fn open(image: Image, queues: QueueOptions) -> Result<Self> {
        Self::on(SimDisk::from_image(image), queues)
    }

    fn on(disk: SimDisk, queues: QueueOptions) -> Result<Self> {
        let mut rig = Rig::open_with(&disk, options().queues(queues))?;
        if rig
            .report
            .iter()
            .any(|line| !line.starts_with("unconfirmed"))
        {
            rig.tend.write_baseline(&rig.core)?;
        }
        Ok(Self { disk, queues, rig })
    }

    pub(crate) fn queue(&self) -> Arc<dyn Queue> {
        let queue = &self.rig.queue;
        Arc::new(JournalQueue::new(queue.keeper.clone(), queue.live.clone()))
    }

    /// What was found amiss.
    pub(crate) fn report(&self) -> &[String] {
        &self.rig.report
    }

    /// What can't be read of all that is held.
    pub(crate) fn verify(&self) -> Result<Vec<String>> {
        verify(&self.rig.core)
    }

    /// Runs this, and then tends to what the writer would.
    pub(crate) fn wait<T>(&mut self, future: impl Future<Output = T>) -> T {
        let done = wait(&self.rig.core, future);
        while self
            .rig
            .core
            .lock()
            .is_ok_and(|inner| inner.is_to_be_tended())
        {
            self.rig.tend.look(&self.rig.core, false);
        }
        done
    }

    /// What the writer does when it has had nothing to do for a while.
    pub(crate) fn idle(&mut self) {
        self.rig.tend.look(&self.rig.core, true);
    }

    /// All files, as they are.
    pub(crate) fn image(&self) -> Image {
        self.disk.image()
    }

    /// Closes it; all files, as they are then.
    pub(crate) fn close(mut self) -> Result<Image> {
        self.rig.tend.finish(&self.rig.core)?;
        Ok(self.disk.image())
    }

    /// Ends it in one of five ways, of which four are without power, and opens what is left.
    pub(crate) fn crash(self, how: u8, seed: u64) -> Result<Self> {
        let how = Crash::ALL[usize::from(how) % Crash::ALL.len()];
        let left = self.disk.crash(self.disk.operations(), how, seed);
        Self::on(left, self.queues)
    }
}

/// What a disk loses at once.
const SECTOR: usize = 512;

/// Makes a mistake from here on, in this thread, by which the targets can be seen to fail.
pub(crate) fn plant(fault: &str) {
    let faults = [
        Fault::AnswerBeforeSync,
        Fault::DropBaseline,
        Fault::ReuseFence,
        Fault::AcceptStale,
        Fault::LeaveTheEnd,
    ];
    let fault = faults.into_iter().find(|one| format!("{one:?}") == fault);
    fault::plant(fault.expect("one of the faults of the journal"));
}
