//! The `batchyard` command line.
fn main() {}
