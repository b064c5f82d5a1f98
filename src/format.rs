//! Formats: pure functions between bytes and values.

pub(crate) mod fields;
pub mod json_lines;
pub mod template;
