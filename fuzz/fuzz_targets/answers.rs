//! What a command prints, and what becomes of the requests that it was given.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchyard::fuzzing::answers(data));
