//! What proofs print, in one form.

use std::{env, fmt::Display, fs::OpenOptions, io::Write, thread};

/// Prints what a proof has shown as one line, and adds it to the file that `BATCHYARD_PROOFS` names, of which
/// `.ci/safety` makes the table of guarantees.
///
/// `guarantees` as the documentation names them (`"G1 G4"`); `cycles` with their unit (`"359 crash images"`);
/// `caught`: the planted faults that the same check was seen to find.
///
/// ```text
/// proof | G1 G4 | journal | backends killed::at_every_point | 214 kills | SkipSync, DropBaseline
/// ```
///
/// # Panics
/// If the file can't be written to.
pub fn proof(guarantees: &str, backend: &str, cycles: impl Display, caught: &[&str]) {
    let program = env::current_exe().unwrap_or_default();
    let suite = program.file_stem().unwrap_or_default().to_string_lossy();
    // Cargo adds a hash to the name.
    let suite = suite.rsplit_once('-').map_or(&*suite, |(name, _)| name);
    let thread = thread::current();
    let test = thread.name().unwrap_or("?");
    let caught = caught.join(", ");
    let line = format!("proof | {guarantees} | {backend} | {suite} {test} | {cycles} | {caught}\n");
    print!("{line}");
    if let Some(path) = env::var_os("BATCHYARD_PROOFS") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.expect("BATCHYARD_PROOFS names a file that can be written to");
    }
}
