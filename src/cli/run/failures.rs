//! What did not work: every reason in `--failures FILE`, the first ten on stderr.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use batchyard::RequestId;
use serde::Serialize;

use super::{Failure, unwritable};
use crate::cli::output::say;

/// Where failures are told. Its file is written anew by each start of a run, in no particular order.
pub(super) struct Failures {
    file: Option<(PathBuf, Mutex<BufWriter<File>>)>,
    told: Mutex<u64>,
}

/// A line of the file.
#[derive(Serialize)]
struct Reason<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<RequestId>,
    line: u64,
    error: &'a str,
}

impl Failures {
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let file = match path {
            None => None,
            Some(path) => {
                let file = File::create(path).map_err(|error| unwritable(path, &error))?;
                Some((path.to_owned(), Mutex::new(BufWriter::new(file))))
            }
        };
        Ok(Self {
            file,
            told: Mutex::new(0),
        })
    }

    /// A line of INPUT that is no request.
    pub(super) fn refused(&self, line: u64, why: &str) {
        self.tell(format_args!("line {line} is refused: {why}"));
        self.refused_before(line, why);
    }

    /// One that was told by an earlier start of this run.
    pub(super) fn refused_before(&self, line: u64, why: &str) {
        let error = format!("refused: {why}");
        self.write(&Reason {
            id: None,
            line,
            error: &error,
        });
    }

    /// A request that failed for good.
    pub(super) fn failed(&self, id: RequestId, line: u64, error: &str) {
        self.tell(format_args!("line {line} failed: {error}"));
        self.write(&Reason {
            id: Some(id),
            line,
            error,
        });
    }

    /// Makes the file whole, and says how many failures were not told on stderr.
    pub(super) fn finish(&self) -> Result<(), Failure> {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told > TOLD {
            say(&format!("… and {} more lines", told - TOLD));
        }
        let Some((path, file)) = &self.file else {
            return Ok(());
        };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let synced = file.flush().and_then(|()| file.get_ref().sync_all());
        synced.map_err(|error| unwritable(path, &error))
    }

    fn tell(&self, what: std::fmt::Arguments<'_>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        *told += 1;
        if *told <= TOLD {
            say(&what.to_string());
        }
    }

    fn write(&self, line: &Reason<'_>) {
        if let Some((_, file)) = &self.file {
            let mut text =
                serde_json::to_vec(line).expect("numbers and strings are always writable");
            text.push(b'\n');
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // An error stays with the writer, and `finish` tells it.
            let _ = file.write_all(&text);
        }
    }
}

/// How many failures are told on stderr.
const TOLD: u64 = 10;
