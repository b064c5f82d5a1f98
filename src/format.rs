//! Formats: pure functions between bytes and values.

pub mod json_lines;
pub mod template;
