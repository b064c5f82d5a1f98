//! Pushed requests as they lie in the journal, damaged.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchyard::fuzzing::journal_stretches(data));
