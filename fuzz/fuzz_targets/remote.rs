//! Payloads for batch APIs, and what those answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchyard::fuzzing::remote(data));
