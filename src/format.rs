//! Formats: pure functions between bytes and values.

pub mod template;
