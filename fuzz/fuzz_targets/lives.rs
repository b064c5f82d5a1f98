//! Verbs on a journal that crashes, compared with a queue in memory that does not.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchyard::fuzzing::lives(data));
