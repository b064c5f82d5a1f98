//! Replies of a Redis server.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| batchyard::fuzzing::redis_replies(data));
