//! Answers, payloads and templates as lines of JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchyard::fuzzing::json_lines(data));
