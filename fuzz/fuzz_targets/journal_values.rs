//! Events, baselines and headers of the journal.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchyard::fuzzing::journal_values(data));
