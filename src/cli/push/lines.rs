//! Lines of a file or of stdin to requests, in chunks of what can be read without waiting.

use std::{
    io::{self, BufRead, Read},
    path::Path,
};

use batchyard::{MAX_PAYLOAD_BYTES, NewRequest};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::cli::{
    exit::Failure,
    lines::{self, Input},
    output::say,
};

/// What a line must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Payloads {
    /// JSON of any kind.
    Json,
    /// A JSON object that has its idempotency key in this field.
    JsonWithKey(String),
    /// Anything.
    Text,
}

/// Requests with the numbers of their lines.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) requests: Vec<(u64, NewRequest)>,
    /// About how much memory they take.
    pub(super) bytes: usize,
    /// Lines among them that became no requests.
    pub(super) refused: u64,
    pub(super) last_line: u64,
}

impl Chunk {
    pub(super) fn append(&mut self, mut next: Self) {
        self.requests.append(&mut next.requests);
        self.bytes += next.bytes;
        self.refused += next.refused;
        // The last chunk of all may have no line.
        self.last_line = self.last_line.max(next.last_line);
    }
}

/// A source of lines.
pub(super) struct Lines {
    input: Input,
    name: String,
    payloads: Payloads,
}

impl Lines {
    /// Opens a file; `-` is stdin.
    ///
    /// # Errors
    /// If it can't be read.
    pub(super) fn open(path: &Path, payloads: Payloads) -> Result<Self, Failure> {
        Ok(Self {
            input: lines::open(path)?,
            name: path.display().to_string(),
            payloads,
        })
    }

    /// Reads to the end, or until nobody receives any more. Blocks.
    ///
    /// # Errors
    /// If it can't be read.
    pub(super) fn read_all(mut self, chunks: &mpsc::Sender<Chunk>) -> Result<(), Failure> {
        let mut chunk = Chunk::default();
        let mut number = 0;
        loop {
            let line = self.next();
            let line = line.map_err(|error| Failure::io(&self.name, &error))?;
            let ended = line.is_none();
            if let Some(line) = line {
                number += 1;
                chunk.last_line = number;
                match request(&self.payloads, line) {
                    Ok(request) => {
                        chunk.bytes += request.payload.len() + REQUEST_BYTES;
                        chunk.requests.push((number, request));
                    }
                    Err(why) => {
                        say(&format!("line {number}: {why}"));
                        chunk.refused += 1;
                    }
                }
            }
            // The next line is not there yet, and what was read is not to wait for it.
            let idle = !self.input.buffer().contains(&b'\n');
            if ended || idle || chunk.bytes >= CHUNK_BYTES {
                let whole = std::mem::take(&mut chunk);
                if chunks.blocking_send(whole).is_err() || ended {
                    return Ok(());
                }
            }
        }
    }

    /// The next line, without its end; of one that is too long, as much as shows that.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.input).take(MAX_PAYLOAD_BYTES as u64 + 1);
        if limited.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.ends_with(b"\n") {
            line.pop();
        } else if line.len() > MAX_PAYLOAD_BYTES {
            self.input.skip_until(b'\n')?;
        }
        Ok(Some(line))
    }
}

/// The request that a line becomes, or why it becomes none.
fn request(payloads: &Payloads, line: Vec<u8>) -> Result<NewRequest, String> {
    if let Some(why) = lines::too_long(&line) {
        return Err(why);
    }
    let not_json = |error| lines::not_json(&line, &error);
    match payloads {
        Payloads::Text => Ok(NewRequest::new(line)),
        Payloads::Json => {
            serde_json::from_slice::<&RawValue>(&line).map_err(not_json)?;
            Ok(NewRequest::new(line))
        }
        Payloads::JsonWithKey(field) => {
            let value: serde_json::Value = serde_json::from_slice(&line).map_err(not_json)?;
            let key = match value.get(field) {
                Some(serde_json::Value::String(key)) => key.clone(),
                Some(serde_json::Value::Number(key)) => key.to_string(),
                Some(_) => return Err(format!("its field {field:?} is no string and no number")),
                None => return Err(format!("it has no field {field:?}")),
            };
            let request = NewRequest::new(line).idempotency_key(key);
            request.validate().map_err(|error| error.to_string())?;
            Ok(request)
        }
    }
}

const CHUNK_BYTES: usize = 1 << 20;
/// What a request counts besides its payload, so that empty ones don't come by the million.
const REQUEST_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_requests_or_are_refused_with_a_reason() {
        let keyed = Payloads::JsonWithKey("order".into());
        for (payloads, line, want) in [
            (&Payloads::Json, "{\"a\":1,\"a\":2}", Ok(())),
            (&Payloads::Json, " 17\r", Ok(())),
            (&Payloads::Json, "", Err("not JSON")),
            (&Payloads::Json, "{\"a\":", Err("column 5")),
            (&Payloads::Text, "", Ok(())),
            (&Payloads::Text, "{", Ok(())),
            (&keyed, "{\"order\":\"7\"}", Ok(())),
            (&keyed, "{\"order\":null}", Err("\"order\"")),
            (&keyed, "[]", Err("\"order\"")),
        ] {
            match (request(payloads, line.into()), want) {
                (Ok(request), Ok(())) => assert_eq!(request.payload, line),
                (Err(why), Err(text)) => assert!(why.contains(text), "{why}"),
                (got, _) => panic!("{payloads:?} {line:?}: {got:?}"),
            }
        }
        let longest = vec![b'x'; MAX_PAYLOAD_BYTES];
        assert!(request(&Payloads::Text, longest.clone()).is_ok());
        let longer = [longest, vec![b'x']].concat();
        assert!(request(&Payloads::Text, longer).is_err());
    }
}
