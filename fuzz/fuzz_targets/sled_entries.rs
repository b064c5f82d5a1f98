//! Keys and values of sled's trees.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchyard::fuzzing::sled_entries(data));
