//! Reading all that is held, to tell what of it is damaged before anybody asks for it.
//!
//! | who | reads |
//! |---|---|
//! | an opening that is to verify | the requests, outcomes and results that are held, besides all events |
//! | `verify` | the same, and every body of every group; it changes nothing |

use std::{fmt, path::Path, sync::Arc};

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
        verified::{Finding, Verified},
    },
    request::RequestId,
};

/// Reads all of the store in this folder, and changes nothing.
pub(super) fn verify(path: &Path) -> Result<Verified> {
    match verify_now(path) {
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Verified::refused(
            &error,
            "it is refused, and left as it is",
        )),
        verified => verified,
    }
}

fn verify_now(path: &Path) -> Result<Verified> {
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
    let mut verified = look(Arc::new(disk), identity, path)?;
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
    Identity { salt, is_used }: Identity,
    path: &Path,
) -> Result<Verified> {
    let found = Found::look(disk, log_options(salt, &JournalOptions::default()))?;
    if is_used && !found.has_segments() {
        return Err(gone(path));
    }
    let mut findings = found.flaws();
    if is_used && !found.has_root() {
        findings.push(root_is_gone());
    }
    let reader = found.reader();
    found.scan(found.oldest(), true, &mut |scanned| {
        if let Scanned::Damage { from, bytes, what } = scanned {
            findings.push(not_read(&reader, from, bytes, &what));
        }
        Ok(())
    })?;
    let mut more = Vec::new();
    let mut missing = Vec::new();
    let (state, tail) = replay(&found, salt, &mut more, &mut missing)?;
    more.extend(missing);
    more.extend(held(&state, &reader));
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
    })
}

fn held_requests(queue: &QueueState) -> u64 {
    queue.held_requests() + queue.stored.dead.len() as u64
}

/// What of the requests, outcomes and results of an open store can't be read.
///
/// # Errors
/// `Poisoned`.
pub(super) fn held_by(core: &Core) -> Result<Vec<Finding>> {
    Ok(held(&core.lock()?.state, &core.reader))
}

/// What of the requests, outcomes and results that are held can't be read.
fn held(state: &State, reader: &Reader) -> Vec<Finding> {
    let mut found = Vec::new();
    for queue in state.queues.values() {
        let mut lines = Lines::of(queue, reader);
        let stretches: Vec<Stretch> = queue.stored.stretches.values().copied().collect();
        let mut at = 0;
        while at < stretches.len() {
            // What is known of them is looked up for as many as may be read in one go.
            let rest = &stretches[at..(at + TOGETHER).min(stretches.len())];
            let known = queue.known(rest, state.salt);
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
        }
        for blob in queue.blobs() {
            lines.look_at_blob(blob);
        }
        found.extend(lines.end());
    }
    found
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
/// Of one queue.
const MOST_LINES: usize = 100;
/// Stretches that are read in one go are rarely more.
const TOGETHER: usize = 16;
