//! Reading all that is held, to tell what of it is damaged before anybody asks for it.
//!
//! | who | reads |
//! |---|---|
//! | an opening that is to verify | the requests, outcomes and results that are held, besides all events |
//! | `verify` | the same, and every body of every group; it changes nothing |
//! | `verify` of an open store | the same as of one moment, beside the writer: no segment is reused meanwhile |

use std::{fmt, path::Path, sync::Arc, thread, time::Duration};

use super::{
    JournalOptions,
    core::Core,
    disk::{Disk, Folder},
    identity::{Identity, KIND, LOG, USED, lost_format, salt, wrong_salt},
    log::{Found, Place, Reader, Scanned, Tail, salts},
    open::{gone, log_options, not_read, replay, root_is_gone},
    record,
    state::{Blob, Need, QueueState, State, Stretch},
    step::{Loaded, legible},
    view,
};
use crate::{
    error::{ErrorKind, Result},
    queue::{
        folder::{LookedAt, unusable},
        progress::Pulse,
        verified::{Finding, FindingKind, Verified, VerifyPhase},
    },
    request::RequestId,
};

/// Reads all of the store in this folder, and changes nothing.
pub(super) fn verify(path: &Path, pulse: &Pulse) -> Result<Verified> {
    match verify_now(path, pulse) {
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Verified::refused(
            &error,
            "it is refused, and left as it is",
        )),
        verified => verified,
    }
}

fn verify_now(path: &Path, pulse: &Pulse) -> Result<Verified> {
    let looked_at = LookedAt::begin(path, KIND, LOG);
    let looked_at = looked_at.map_err(|error| lost_format(path, error))?;
    let stated = &looked_at.fields;
    let log = path.join(LOG);
    let is_used = stated.contains_key(USED);
    if !log.is_dir() {
        // Nothing was written yet.
        return if is_used {
            Err(gone(path))
        } else {
            Ok(Verified::default())
        };
    }
    let disk = Folder::read_only(&log).map_err(|error| unusable(&log, "can't be opened", error))?;
    let there = salts(&disk).map_err(|error| unusable(&log, "can't be read", error))?;
    let (salt, is_mended) = salt(path, stated, &there)?;
    let identity = Identity { salt, is_used };
    let mut verified = look(Arc::new(disk), identity, path, pulse)?;
    if is_mended {
        let finding = Finding::damaged(wrong_salt(stated, salt), "FORMAT is written again");
        verified
            .findings
            .insert(0, finding.in_file(Some("FORMAT".into())));
    }
    Ok(verified)
}

/// Reads all of a log, and changes nothing.
pub(super) fn look(
    disk: Arc<dyn Disk>,
    identity: Identity,
    path: &Path,
    pulse: &Pulse,
) -> Result<Verified> {
    let found = Found::look(disk, log_options(identity.salt, &JournalOptions::default()))?;
    read(&found, identity, path, &Going { pulse, core: None })
}

/// Reads all of a log that is open, as it is at one moment.
pub(super) fn verify_open(core: &Core, pulse: &Pulse) -> Result<Verified> {
    // What is there now is there until it has been read.
    let _pin = core.reader.pin(0..=u32::MAX);
    let going = Going {
        pulse,
        core: Some(core),
    };
    let look = || -> Result<Verified> {
        let mut found = core.origin.found();
        for _ in 0..ATTEMPTS {
            if found.is_ok() {
                break;
            }
            // A file that was listed may have been recycled or removed before it was looked at.
            found = core.origin.found();
        }
        let identity = Identity {
            salt: core.origin.salt(),
            is_used: true,
        };
        let mut verified = match read(&found?, identity, &core.path, &going) {
            Err(error) if error.kind() == ErrorKind::Corrupt => Verified::refused(&error, ""),
            read => read?,
        };
        // The end is what its writer is about to write.
        let is_damage = |finding: &Finding| finding.kind == FindingKind::Damaged;
        verified.findings.retain(is_damage);
        Ok(verified)
    };
    let mut verified = look()?;
    if !verified.findings.is_empty() {
        // Nor is what was just on its way to the disk, or a file on its way to another use: that is whole when it is seen again.
        let again = look()?;
        let found = &mut verified.findings;
        found.retain(|finding| again.findings.contains(finding));
    }
    core.check()?;
    let open = [
        "FORMAT, and the lock",
        "the end of the log, which is being written",
    ];
    verified.not_looked_at.extend(open.map(Into::into));
    Ok(verified)
}

/// Whoever waits for a verification, and the store that is used meanwhile, if it is.
struct Going<'a> {
    pulse: &'a Pulse,
    core: Option<&'a Core>,
}

impl Going<'_> {
    /// So much more is done, and about a mebibyte was read.
    fn on(&self, done: u64) -> Result<()> {
        self.pulse.add(done)?;
        if let Some(core) = self.core {
            core.check()?;
            core.origin.check_reading()?;
            thread::sleep(REST);
        }
        Ok(())
    }
}

/// Reads all that was found.
fn read(
    found: &Found,
    Identity { salt, is_used }: Identity,
    path: &Path,
    going: &Going<'_>,
) -> Result<Verified> {
    if is_used && !found.has_segments() {
        return Err(gone(path));
    }
    let mut findings = found.flaws();
    if is_used && !found.has_root() {
        findings.push(root_is_gone());
    }
    let reader = found.reader();
    going.pulse.begin(VerifyPhase::Log, found.live_bytes());
    let (mut at, mut unsaid) = (found.oldest(), 0);
    found.scan(at, true, &mut |scanned| {
        match scanned {
            Scanned::Damage { from, bytes, what } => {
                findings.push(not_read(&reader, from, bytes, &what));
            }
            Scanned::Group { body, .. } => {
                unsaid += distance(at, body);
                at = body;
                if unsaid >= A_LOOK {
                    going.on(std::mem::take(&mut unsaid))?;
                }
            }
        }
        Ok(())
    })?;
    let mut more = Vec::new();
    let mut missing = Vec::new();
    going
        .pulse
        .begin(VerifyPhase::Replaying, found.live_bytes());
    let (state, tail) = replay(found, salt, &mut more, &mut missing)?;
    more.extend(missing);
    let all = state
        .queues
        .values()
        .flat_map(|queue| queue.stored.stretches.values());
    let requests = all.map(|stretch| u64::from(stretch.requests)).sum();
    going.pulse.begin(VerifyPhase::Requests, requests);
    more.extend(held(&state, &reader, going)?);
    // What lies behind the last baseline was read twice.
    more.retain(|finding| !findings.contains(finding));
    findings.extend(more);
    if tail.is_unreadable {
        let finding = Finding::damaged(tail.unreadable(), "it is refused until it can be read");
        let file = reader.file_of(tail.end.segment);
        findings.push(finding.in_file(file).at(tail.end.offset, 512_u64));
    } else if let Some((from, bytes)) = tail.unconfirmed {
        let begun = Finding::unconfirmed(
            Tail::begun(from, bytes),
            "they are set aside in a file of quarantine",
        );
        let file = reader.file_of(from.segment);
        findings.push(begun.in_file(file).at(from.offset, bytes));
    }
    Ok(Verified {
        queues: state.queues.len() as u64,
        held: state.queues.values().map(held_requests).sum(),
        bytes: found.live_bytes(),
        findings,
        not_looked_at: Vec::new(),
    })
}

/// How far one group is behind another, without the ends of segments.
fn distance(from: Place, to: Place) -> u64 {
    let begin = if from.segment == to.segment {
        from.offset
    } else {
        0
    };
    to.offset.saturating_sub(begin).into()
}

fn held_requests(queue: &QueueState) -> u64 {
    queue.held_requests() + queue.stored.dead.len() as u64
}

/// What of the requests, outcomes and results of an open store can't be read.
///
/// # Errors
/// `Poisoned`.
pub(super) fn held_by(core: &Core) -> Result<Vec<Finding>> {
    let pulse = &Pulse::default();
    held(
        &core.lock()?.state,
        &core.reader,
        &Going { pulse, core: None },
    )
}

/// What of the requests, outcomes and results that are held can't be read.
///
/// # Errors
/// If nobody waits for it any more.
fn held(state: &State, reader: &Reader, going: &Going<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let (mut bytes, mut requests) = (0, 0);
    for queue in state.queues.values() {
        let mut lines = Lines::of(queue, reader);
        let stretches: Vec<Stretch> = queue.stored.stretches.values().copied().collect();
        let mut at = 0;
        while at < stretches.len() {
            // What is known of them is looked up for as many as may be read in one go.
            let rest = &stretches[at..(at + TOGETHER).min(stretches.len())];
            let known = queue.known(rest, state.salt);
            let before = at;
            match view::read_together(reader, rest, &known) {
                Ok((loaded, count)) => {
                    for (stretch, loaded) in rest.iter().zip(&loaded) {
                        lines.look(queue, stretch, loaded);
                    }
                    at += count;
                }
                Err(error) => {
                    lines.look_alone(&rest[0], &error);
                    at += 1;
                }
            }
            for stretch in &stretches[before..at] {
                bytes += u64::from(stretch.bytes);
                requests += u64::from(stretch.requests);
            }
            if bytes >= A_LOOK {
                bytes = 0;
                going.on(std::mem::take(&mut requests))?;
            }
        }
        for blob in queue.blobs() {
            lines.look_at_blob(blob);
            bytes += u64::from(blob.bytes);
            if bytes >= A_LOOK {
                bytes = 0;
                going.on(0)?;
            }
        }
        found.extend(lines.end());
    }
    Ok(found)
}

/// The findings of a queue, of which there may be too many.
struct Lines<'a> {
    queue: String,
    reader: &'a Reader,
    told: Vec<Finding>,
    more: u64,
}

impl<'a> Lines<'a> {
    fn of(queue: &QueueState, reader: &'a Reader) -> Self {
        Self {
            queue: queue.stored.name.clone(),
            reader,
            told: Vec::new(),
            more: 0,
        }
    }

    fn look(&mut self, queue: &QueueState, stretch: &Stretch, loaded: &Loaded) {
        for found in &loaded.requests {
            let damage = match queue.need(found.id) {
                Need::Bare => found.lost_of_it(),
                Need::Whole => found.payload(&loaded.bytes).err(),
                Need::Nothing => None,
            };
            if let Some(damage) = damage {
                let id = RequestId::from_u64(found.id);
                let place = (place_of(stretch), found.bytes);
                self.add(
                    Some(id),
                    place,
                    "it is never served: once it is read it becomes a dead letter, unless it has an outcome",
                    format_args!("request {id}: {damage}"),
                );
            }
        }
    }

    /// A stretch that the disk does not give.
    fn look_alone(&mut self, stretch: &Stretch, error: &crate::error::Error) {
        let place = (place_of(stretch), u64::from(stretch.bytes));
        let what = format_args!("{} requests: {error}", stretch.requests);
        self.add(None, place, RETRIED, what);
    }

    fn look_at_blob(&mut self, blob: Blob) {
        let at = Place {
            segment: blob.segment,
            offset: blob.offset,
        };
        let read = self.reader.read(at, blob.bytes);
        let read = legible(read.and_then(|bytes| record::check_blob(blob, &bytes)));
        let (why, opening) = match &read {
            Ok(Some(())) => return,
            Ok(None) => (
                "is damaged".to_owned(),
                "its kind is known and stays; what was recorded with it is not served",
            ),
            Err(error) if error.kind() == ErrorKind::Unavailable => (format!("{error}"), RETRIED),
            Err(error) => (format!("{error}"), ""),
        };
        let what = format_args!(
            "an outcome, a result or an error of {} bytes in segment {} at {} {why}",
            blob.bytes, blob.segment, blob.offset
        );
        self.add(None, (at, blob.bytes.into()), opening, what);
    }

    fn add(
        &mut self,
        request: Option<RequestId>,
        (at, bytes): (Place, u64),
        opening: &'static str,
        what: fmt::Arguments<'_>,
    ) {
        if self.told.len() == MOST_LINES {
            self.more += 1;
            return;
        }
        let finding = Finding::damaged(what.to_string(), opening);
        self.told.push(Finding {
            queue: Some(self.queue.clone()),
            request,
            ..finding
                .in_file(self.reader.file_of(at.segment))
                .at(at.offset, bytes)
        });
    }

    fn end(mut self) -> Vec<Finding> {
        if self.more > 0 {
            let what = format!("{} more like these", self.more);
            self.told.push(Finding {
                queue: Some(self.queue),
                ..Finding::damaged(what, "")
            });
        }
        self.told
    }
}

fn place_of(stretch: &Stretch) -> Place {
    Place {
        segment: stretch.segment,
        offset: stretch.offset,
    }
}

/// What is done about what the disk does not give now.
const RETRIED: &str = "who asks for it is told that it is unavailable, and it is tried again";
/// So much is read between two looks at who else wants something.
const A_LOOK: u64 = 1 << 20;
const REST: Duration = Duration::from_millis(1);
/// How often files that come and go are listed.
const ATTEMPTS: u32 = 3;
/// Of one queue.
const MOST_LINES: usize = 100;
/// Stretches that are read in one go are rarely more.
const TOGETHER: usize = 16;
