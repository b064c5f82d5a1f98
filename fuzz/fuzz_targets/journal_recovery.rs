//! Files of a journal, damaged in any way, and opened.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchyard::fuzzing::journal_recovery(data));
