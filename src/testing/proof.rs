//! What proofs print, in one form.

use std::{env, fmt::Display, thread};

/// Prints what a proof has shown, as the line that `.ci/safety` gathers for the table of guarantees.
///
/// `guarantees` as the documentation names them (`"G1 G4"`); `cycles` with their unit (`"359 crash images"`);
/// `caught`: the planted faults that the same check was seen to find.
///
/// ```text
/// proof | G1 G4 | journal | backends killed::at_every_point | 214 kills | SkipSync, DropBaseline
/// ```
pub fn proof(guarantees: &str, backend: &str, cycles: impl Display, caught: &[&str]) {
    let program = env::current_exe().unwrap_or_default();
    let suite = program.file_stem().unwrap_or_default().to_string_lossy();
    // Cargo adds a hash to the name.
    let suite = suite.rsplit_once('-').map_or(&*suite, |(name, _)| name);
    let thread = thread::current();
    let test = thread.name().unwrap_or("?");
    let caught = caught.join(", ");
    println!("proof | {guarantees} | {backend} | {suite} {test} | {cycles} | {caught}");
}
