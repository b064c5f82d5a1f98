//! Lines of a dump, as `import` reads them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchyard::fuzzing::dumps(data));
