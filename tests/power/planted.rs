//! Proofs that can fail: with a step left out, the same check finds what it is there to find.

use std::{env, process::Command, sync::Once};

use crate::{Disk, store::Backend};

/// Reads which fault is planted, once for all tests of this process.
pub(crate) fn begin() {
    static BEGIN: Once = Once::new();
    if env::var_os("FAILPOINTS").is_some() {
        BEGIN.call_once(batchyard::fault::begin);
    }
}

/// The faults that were seen to be found.
pub(crate) fn caught(backend: Backend) -> &'static [&'static str] {
    match backend {
        Backend::Sled => &["sled.sync=skip", "sled.sync_folder=skip"],
        Backend::Journal => &["journal.sync=skip"],
    }
}

#[test]
fn a_sync_that_is_left_out_is_found_by_the_next_power_cut() {
    if Disk::new().is_none() {
        return;
    }
    for backend in Backend::ALL {
        let test = match backend {
            Backend::Sled => "fresh::no_power_cut_on_sled_loses_or_changes_what_was_answered",
            Backend::Journal => {
                "fresh::no_power_cut_on_the_journal_loses_or_changes_what_was_answered"
            }
        };
        for fault in caught(backend) {
            let points = fault.replace("skip", "return(skip)");
            let mut command = Command::new(env::current_exe().unwrap());
            command
                .args(["--exact", test, "--nocapture"])
                .env("FAILPOINTS", &points);
            let output = command.output().unwrap();
            let said =
                String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            let found = said
                .lines()
                .find(|line| line.contains("steps were answered"));
            assert!(!output.status.success(), "nobody noticed {fault}");
            let found = found.unwrap_or_else(|| panic!("{fault} ended otherwise: {said}"));
            println!("{fault}: {}", found.chars().take(300).collect::<String>());
        }
    }
}
