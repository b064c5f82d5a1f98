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
//! [`POINTS`], once, and in one place of the code.

use std::io;

/// Every point, with what comes next there or has just happened.
pub const POINTS: &[(&str, &str)] = &[
    (
        "dispatcher.claimed",
        "a batch was claimed, its handler was not called",
    ),
    ("journal.checkpoint", "a checkpoint goes into its event"),
    ("journal.finish", "a batch is ended"),
    ("journal.write", "a group is written"),
    ("journal.written", "a group was written, not synced"),
    ("journal.sync", "a group is synced"),
    ("journal.synced", "a group was synced, nobody was answered"),
    ("sled.checkpoint", "a checkpoint is put beside its batch"),
    ("sled.finish", "a batch is ended"),
    ("sled.flush", "sled writes what it has in memory"),
    ("sled.sync", "what sled wrote is synced"),
    (
        "sled.sync_folder",
        "the files and folders of a store that was just opened are synced",
    ),
    (
        "sled.write_anew",
        "what a failed sync has left in memory only is written anew",
    ),
    ("sled.synced", "a group was synced, nobody was answered"),
];

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
pub(crate) fn point(name: &'static str) {
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
        POINTS.iter().any(|(known, _)| *known == name),
        "{name} is not in the list of points"
    );
    fail::fail_point!(name, |what| match what.as_deref() {
        Some("kill") => kill(),
        Some("skip") => Some(Planted::Skip),
        Some("eio") => Some(Planted::Error(io::ErrorKind::Other)),
        Some("enospc") => Some(Planted::Error(io::ErrorKind::StorageFull)),
        other => panic!("{name} knows kill, skip, eio and enospc, not {other:?}"),
    });
    None
}

/// As `kill -9` would: nothing is dropped, nothing is flushed.
#[cfg(feature = "faults")]
fn kill() -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    let killed = kill_process(getpid(), Signal::KILL);
    unreachable!("nobody survives SIGKILL: {killed:?}");
}
