//! Named points at which a proof ends the process, fails the disk, or leaves a step out.
//!
//! Only the feature `faults` builds them in: without it each is nothing at all. What happens at a point is said by
//! `FAILPOINTS` in the environment, in the words of the crate `fail`:
//!
//! ```text
//!   FAILPOINTS='journal.synced=3*off->1*return(kill)'      the fourth time, the process dies on the spot
//!   FAILPOINTS='journal.sync=return(skip)'                 a planted fault: the step is left out
//!   FAILPOINTS='sled.write=2*off->1*return(enospc)'        the third time, the disk is full
//! ```
//! A name is `part.event`: what has just happened (`synced`), or the step that comes next (`sync`). Each stands in
//! [`points`], once, and in one place of the code. Where a process passed is written, a line a point, to the end of the
//! file that `BATCHYARD_PASSED` names, so that a proof knows how often it can be killed where.

use std::io;
#[cfg(feature = "faults")]
use std::{fs::File, io::Write, sync::LazyLock};

/// Every point, with what comes next there or has just happened.
pub fn points() -> impl Iterator<Item = (&'static str, &'static str)> {
    POINTS.lines().filter_map(|line| line.split_once(" | "))
}

const POINTS: &str = "\
command.reserved | there is space for the answers, no child was started
command.started | the child was started, nothing was written to it
command.ended | the child has exited with 0, its answers are not kept
command.kept | the answers are kept, none is recorded
command.recorded | the answers are recorded, and still kept
compact.copied | all of a compacted store is written and synced beside the old one
compact.exchanged | it is in the place of the old one, the folder around them was not synced
compact.synced | that was synced, the old one is still there
dispatcher.claimed | a batch was claimed, its handler was not called
dispatcher.handle | the handler is called
dispatcher.handled | the handler has answered, nothing of it is recorded
dispatcher.tell | on_results is called
dispatcher.told | on_results has answered, the batch has not ended
dispatcher.finish | a batch that is through is ended
dispatcher.finished | it has ended, nobody was told
dispatcher.released | a batch was given back after an outage
dispatcher.deferred | a batch was deferred after a failure
dispatcher.split | a failing batch is split
dispatcher.halved | a failing batch was split
dispatcher.rejected | the last one alone was dead-lettered
handler.record | a handler's outcomes or checkpoint are stored
handler.recorded | they were stored, the handler was not told
import.part | a part of a dump is taken in
import.taken_in | a part of a dump was taken in
journal.locked | the folder of the store is locked, nothing was looked at
journal.format | a new FORMAT is named
journal.format_named | a new FORMAT was named, the folder was not synced
journal.log_made | the folder of the log was made, the one around it was not synced
journal.mend | what was found is to be mended
journal.root_opened | the root is open or made, and not as it was
journal.root_mended | the root is as it was
journal.cleared | files of no use are gone
journal.set_aside | a tail is in quarantine, and still where it was
journal.cut | a tail is gone
journal.checkpoint | a checkpoint goes into its event
journal.finish | a batch is ended
journal.written_again | the last group was written and synced again
journal.headers_mended | the headers are as they were, no mark follows
journal.offered | the batches that were held are offered in memory
journal.open | all of opening is done, the writer was not started
journal.write | a group is written
journal.written | a group was written, not synced
journal.sync | a group is synced
journal.synced | a group was synced, nobody was answered
journal.published | a group is shown, nobody was answered
journal.answered | all of a group were answered
journal.lengthened | a spare was made longer for a large group
journal.begin | a segment is begun
journal.header | a new segment has its header, nothing names it
journal.left | the segment before it names the new one, which has no group
journal.make | a file was created for a spare
journal.made | a spare was made, nobody may use it yet
journal.recycle | a freed segment becomes a spare
journal.recycled | a freed segment has become a spare
journal.remove | a freed segment is removed
journal.removed | a freed segment was removed
journal.part | a part of a baseline was written
journal.baseline | a baseline was written, no root names it
journal.root | the root is stored
journal.rooted | the root was stored, nothing was freed
journal.freed | what the root lets go of was freed
journal.carried | a slice was carried to the head of the log
journal.idle | there is nothing to do, a mark may be written
journal.close | the writer ends, what is in memory may be written
journal.closed | all is written, the store is not let go of
redis.begun | the queue is made, and not in the list of queues
redis.named | the queue is in the list of queues
redis.call | a script that changes something is sent
redis.called | it was answered, nobody was told
redis.push | a group of pushes is sent
redis.pushed | it was answered, none of them was
redis.staged | payloads were sent ahead of their push
redis.members | the members of a batch were read, their payloads were not
redis.taken_in | a part of a dump lies beside the queue
run.saved | a note on the run was stored
run.queued | a chunk of INPUT was queued
run.written | OUTPUT.part is whole and synced
run.renamed | OUTPUT has its name, its folder was not synced
run.note | a note that the run has ended is named
run.noted | it was named, its folder was not synced
run.removing | the folder of the run has its last name
run.removed | the folder of the run is gone, the note of it is not
snapshot.copied | all of a snapshot is written and synced, and has no name yet
snapshot.named | it has its name, its folder was not synced
sled.locked | the folder of the store is locked, nothing was looked at
sled.format | a new FORMAT is named
sled.format_named | a new FORMAT was named, the folder was not synced
sled.database_folder | the folder of a new database is made
sled.snapshot | what sled recovers from is made durable, before it opens its database
sled.snapshot_kept | a copy of sled's snapshot was made and synced
sled.snapshot_made | sled has made a snapshot of the end of its log, whose name was not synced
sled.slack | a file is left as it is while it is not much larger than what lies in it
sled.trim | the end of sled's file, where nothing lies, is cut off
sled.trimmed | it was cut off, and the file was not synced
sled.opened | sled has opened its database
sled.proved | the database is the one that belongs here
sled.unmark | the mark of a clean close is removed
sled.unmarked | the mark of a clean close was removed
sled.unstaged | what a large update had begun was taken back
sled.recovered | all queues are as they should be, nothing was synced
sled.folder_synced | all files were synced, a new store does not say that it is made
sled.open | all of opening is done
sled.write | sled is given what a step writes
sled.save | what a step changes is saved for a dump that is being read
sled.written | sled was given what a step writes
sled.chunk | a chunk of a push was written
sled.claimed | a claim was written, not synced
sled.staged | a part of a large update was written
sled.ended | the end of a large batch was written, no member was settled
sled.slice | a slice of an ended batch was settled
sled.settled | all slices of the ended batches were settled, and not synced
sled.advanced | a slice of what time brings was written
sled.drop | the tree of a window is dropped
sled.dropped | the tree of a window was dropped
sled.checkpoint | a checkpoint is put beside its batch
sled.finish | a batch is ended
sled.flush | sled writes what it has in memory
sled.sync | what sled wrote is synced
sled.make_way | what is unsynced is synced, before much more is written
sled.move | sled moves some pages out of segments that are nearly empty
sled.moved | it has moved some, and not synced them
sled.sync_folder | the files and folders of a store that was just opened are synced
sled.write_anew | what a failed sync has left in memory only is written anew
sled.synced | a group was synced, nobody was answered
sled.published | a group is shown, nobody was answered
sled.answered | all of a group were answered
sled.close | the writer ends
sled.mark | all is synced, the mark of a clean close is written
sled.mark_made | the mark of a clean close is an empty file
sled.marked | the store is marked as closed, sled was not
sled.closed | sled was closed, the store is not let go of
";

/// Reads `FAILPOINTS`; called once, when a program begins.
///
/// # Panics
/// If what it says can't be understood.
#[cfg(feature = "faults")]
pub fn begin() {
    // Dropping it would take the points back.
    std::mem::forget(fail::FailScenario::setup());
}

/// A moment at which the process may die.
#[cfg_attr(not(feature = "faults"), inline)]
pub fn point(name: &'static str) {
    planted(name);
}

/// Whether the step that comes next is to be taken: a planted fault may leave it out.
///
/// # Errors
/// The one of the disk that is planted here instead of the step.
#[cfg(any(feature = "journal", feature = "sled"))]
#[cfg_attr(not(feature = "faults"), inline)]
pub(crate) fn step(name: &'static str) -> io::Result<bool> {
    match planted(name) {
        None => Ok(true),
        Some(Planted::Skip) => Ok(false),
        Some(Planted::Error(kind)) => Err(kind.into()),
    }
}

/// Whether a planted fault leaves out what comes next, which can't fail.
#[cfg(any(feature = "journal", feature = "sled"))]
#[cfg_attr(not(feature = "faults"), inline)]
pub(crate) fn is_left_out(name: &'static str) -> bool {
    matches!(planted(name), Some(Planted::Skip))
}

#[cfg_attr(
    not(feature = "faults"),
    expect(dead_code, reason = "nothing is planted without the feature")
)]
#[derive(Clone, Copy, Debug)]
enum Planted {
    Skip,
    Error(io::ErrorKind),
}

#[cfg(not(feature = "faults"))]
#[inline]
fn planted(_name: &'static str) -> Option<Planted> {
    None
}

#[cfg(feature = "faults")]
fn planted(name: &'static str) -> Option<Planted> {
    debug_assert!(
        points().any(|(known, _)| known == name),
        "{name} is not in the list of points"
    );
    passed(name);
    fail::fail_point!(name, |what| match what.as_deref() {
        Some("kill") => kill(),
        Some("skip") => Some(Planted::Skip),
        Some("eio") => Some(Planted::Error(io::ErrorKind::Other)),
        Some("enospc") => Some(Planted::Error(io::ErrorKind::StorageFull)),
        other => panic!("{name} knows kill, skip, eio and enospc, not {other:?}"),
    });
    None
}

#[cfg(feature = "faults")]
fn passed(name: &str) {
    static PASSED: LazyLock<Option<File>> = LazyLock::new(|| {
        let path = std::env::var_os("BATCHYARD_PASSED")?;
        let file = File::options().create(true).append(true).open(&path);
        Some(file.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    });
    if let Some(mut file) = PASSED.as_ref() {
        let written = file.write_all(format!("{name}\n").as_bytes());
        written.expect("where a process passed can be written");
    }
}

/// As `kill -9` would: nothing is dropped, nothing is flushed.
#[cfg(feature = "faults")]
fn kill() -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    let killed = kill_process(getpid(), Signal::KILL);
    unreachable!("nobody survives SIGKILL: {killed:?}");
}
