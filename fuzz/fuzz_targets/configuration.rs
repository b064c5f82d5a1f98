//! Names, times, ids, policies, templates, configuration and FORMAT files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchyard::fuzzing::configuration(data));
