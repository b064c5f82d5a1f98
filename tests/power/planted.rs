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

/// The faults that are seen to be found by power cuts.
pub(crate) fn caught(backend: Backend) -> &'static [&'static str] {
    match backend {
        Backend::Sled => &["sled.sync=skip", "sled.sync_folder=skip"],
        Backend::Journal => &["journal.sync=skip"],
    }
}

/// And by errors of the disk.
pub(crate) fn caught_by_errors(backend: Backend) -> &'static [&'static str] {
    match backend {
        Backend::Sled => &["sled.write_anew=skip"],
        Backend::Journal => &["journal.sync=skip"],
    }
}

#[test]
fn a_sync_that_is_left_out_is_found_by_the_next_power_cut() {
    for backend in Backend::ALL {
        let test = match backend {
            Backend::Sled => "fresh::no_power_cut_on_sled_loses_or_changes_what_was_answered",
            Backend::Journal => {
                "fresh::no_power_cut_on_the_journal_loses_or_changes_what_was_answered"
            }
        };
        all_are_found(caught(backend), test, &[]);
    }
}

#[test]
fn what_sled_takes_for_durable_and_is_not_is_found() {
    let all = [("BATCHYARD_STRIDE", "1"), ("BATCHYARD_CYCLES", "8")];
    let test = "grown::a_grown_sled_store_survives_a_torn_loss_at_the_changes_of_its_opening";
    all_are_found(&["sled.snapshot=skip"], test, &all);
    let test = "grown::a_grown_sled_store_survives_a_torn_loss_at_the_changes_of_large_writes";
    all_are_found(&["sled.make_way=skip"], test, &all[1..]);
}

#[test]
fn what_is_taken_for_durable_after_an_error_is_found() {
    for backend in Backend::ALL {
        let test = match backend {
            Backend::Sled => "errors::no_error_of_the_disk_costs_what_sled_answered",
            Backend::Journal => "errors::no_error_of_the_disk_costs_what_the_journal_answered",
        };
        all_are_found(caught_by_errors(backend), test, &[]);
    }
}

/// Runs the test with each fault, and so set, and sees it fail by what is lost.
fn all_are_found(faults: &[&str], test: &str, set: &[(&str, &str)]) {
    if Disk::new().is_none() {
        return;
    }
    for fault in faults {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", test, "--nocapture"])
            .envs(set.iter().copied())
            .env("FAILPOINTS", fault.replace("skip", "return(skip)"));
        let output = command.output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "nobody noticed {fault}");
        let mut lines = said.lines();
        let is_found = |line: &str| FOUND.iter().any(|found| line.contains(found));
        let found = lines.find(|line| is_found(line));
        let found = found.unwrap_or_else(|| panic!("{fault} ended otherwise: {said}"));
        println!("{fault}: {}", found.chars().take(300).collect::<String>());
    }
}

/// How a power cut says that something is gone: what was answered, or what a journal knows that it had.
const FOUND: [&str; 2] = ["steps were answered", "nothing was damaged"];
