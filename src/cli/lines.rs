//! What the verbs that read lines share: where they come from, and why one is refused.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use batchyard::MAX_PAYLOAD_BYTES;

use super::exit::Failure;

/// A file of lines, or stdin.
pub(super) type Input = BufReader<Box<dyn Read + Send>>;

/// Opens a file; `-` is stdin.
///
/// # Errors
/// If it can't be read.
pub(super) fn open(path: &Path) -> Result<Input, Failure> {
    let input: Box<dyn Read + Send> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        let file = File::open(path).map_err(|error| Failure::input(path, &error))?;
        Box::new(file)
    };
    Ok(BufReader::with_capacity(BUFFER_BYTES, input))
}

/// Why a line is too long for a payload, if it is.
pub(super) fn too_long(line: &[u8]) -> Option<String> {
    (line.len() > MAX_PAYLOAD_BYTES).then(|| format!("longer than {MAX_PAYLOAD_BYTES} bytes"))
}

/// Why a line that did not parse is refused.
pub(super) fn not_json(line: &[u8], error: &serde_json::Error) -> String {
    if line.trim_ascii().is_empty() {
        return "it is empty, which is not JSON; use --lines for any text".into();
    }
    let column = error.column();
    format!("it is not JSON (column {column}); use --lines for any text")
}

/// A chunk of requests ends where the buffer does, so this is how much is queued in one step.
const BUFFER_BYTES: usize = 1 << 20;
