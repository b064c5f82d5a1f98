//! The command's output on its way to a file, within limits.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{LineFormat, answers::Answers, feed::Fed};
use crate::{
    batch::BatchId,
    error::is_full,
    handler::{Batch, HandlerError},
    request::MAX_PAYLOAD_BYTES,
};

/// Everything that the command has printed so far.
pub(super) struct Spool {
    file: NamedTempFile,
    /// Whether it lies where the next holder of the batch would look for it.
    is_kept: bool,
}

/// How much a command may print for a batch: a flood must neither fill the disk nor run for ever.
pub(super) struct Limits {
    bytes: u64,
    lines: u64,
    requests: u64,
}

impl Limits {
    pub(super) fn new(batch: &Batch, format: LineFormat, bytes: Option<u64>) -> Self {
        let requests = u64::from(batch.unsettled());
        let spare = match format {
            // One line more proves that the counts do not match; two are never needed.
            LineFormat::Plain => 0,
            LineFormat::Json => SPARE_LINES,
        };
        Self {
            bytes: bytes.unwrap_or(BASE_BYTES + requests * REQUEST_BYTES),
            lines: requests + spare,
            requests,
        }
    }
}

impl Spool {
    /// A new file, with space for usual answers to so many requests; in a directory of the handler's own, after
    /// removing those that killed holders of this batch left there. If the disk of that is full, among the temporary
    /// files of the system: there it is lost with this process, but batches go on, which may be what makes space again.
    ///
    /// # Errors
    /// Outage: there is no space for it.
    pub(super) async fn new(
        directory: Option<PathBuf>,
        batch: BatchId,
        requests: u32,
    ) -> Result<Self, HandlerError> {
        let bytes = USUAL_BYTES + USUAL_REQUEST_BYTES * u64::from(requests);
        let spool = blocking(move || {
            if let Some(directory) = directory {
                match own_file(&directory, batch).and_then(|file| reserved(file, bytes)) {
                    Ok(file) => return Ok((file, true)),
                    Err(error) if is_full(&error) => {
                        tracing::warn!(%batch, "the disk of the store is full: the answers of the command wait elsewhere");
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok((reserved(NamedTempFile::new()?, bytes)?, false))
        });
        let (file, is_kept) = spool.await?;
        Ok(Self { file, is_kept })
    }

    /// Copies `stdout` to the file until its end.
    ///
    /// # Errors
    /// Transient: a limit is exceeded. Outage: the file can't be written.
    pub(super) async fn fill(
        &mut self,
        mut stdout: impl AsyncRead + Unpin,
        limits: &Limits,
    ) -> Result<(), HandlerError> {
        let (mut bytes, mut lines, mut line_bytes) = (0_u64, 0_u64, 0_usize);
        let mut file = self.file.reopen().map_err(local)?;
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        loop {
            chunk.clear();
            if stdout.read_buf(&mut chunk).await? == 0 {
                return Ok(());
            }
            bytes += chunk.len() as u64;
            for part in chunk.split_inclusive(|byte| *byte == b'\n') {
                line_bytes += part.strip_suffix(b"\n").unwrap_or(part).len();
                if line_bytes > MAX_PAYLOAD_BYTES {
                    return Err(flood(&format!(
                        "a line of more than {MAX_PAYLOAD_BYTES} bytes"
                    )));
                }
                if part.ends_with(b"\n") {
                    (lines, line_bytes) = (lines + 1, 0);
                }
            }
            if lines > limits.lines {
                let requests = limits.requests;
                return Err(flood(&format!(
                    "more than {lines} lines for {requests} requests"
                )));
            }
            if bytes > limits.bytes {
                return Err(flood(&format!(
                    "more than {} bytes for one batch",
                    limits.bytes
                )));
            }
            (file, chunk) =
                blocking(move || file.write_all(&chunk).map(|()| (file, chunk))).await?;
        }
    }

    /// The answers in it, kept in a file at `path` until they are recorded, if one is given.
    pub(super) async fn keep(self, path: Option<&Path>, fed: Fed) -> Result<Answers, HandlerError> {
        let file = self.file;
        let file = match path.filter(|_| self.is_kept).map(Path::to_owned) {
            None => file.reopen().map_err(local)?,
            Some(path) => blocking(move || keep(file, &path)).await?,
        };
        Ok(Answers::new(file, fed))
    }
}

fn own_file(directory: &Path, batch: BatchId) -> std::io::Result<NamedTempFile> {
    remove_abandoned(directory, batch)?;
    tempfile::Builder::new()
        .prefix(&format!("{batch}."))
        .suffix(SPOOL_SUFFIX)
        .tempfile_in(directory)
}

/// Has the file system set space aside, so that a full disk shows before the command has done its work.
fn reserved(file: NamedTempFile, bytes: u64) -> std::io::Result<NamedTempFile> {
    #[cfg(target_os = "linux")]
    {
        use rustix::{fs, io::Errno};
        match fs::fallocate(file.as_file(), fs::FallocateFlags::KEEP_SIZE, 0, bytes) {
            // Not all file systems can.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
    Ok(file)
}

fn remove_abandoned(directory: &Path, batch: BatchId) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&batch.to_string()) && name.ends_with(SPOOL_SUFFIX) {
            fs::remove_file(directory.join(&*name))?;
        }
    }
    Ok(())
}

/// Gives the file its name only once its bytes are safe, so that a file of this name is whole.
fn keep(file: NamedTempFile, path: &Path) -> std::io::Result<File> {
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(path)
}

/// Runs file operations where they may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, HandlerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(local),
        Err(error) => Err(error.into()),
    }
}

/// A full or broken disk of ours is no request's fault: were it a failure of the batch, a disk that
/// is full for a minute would have every request dead-lettered.
fn local(error: std::io::Error) -> HandlerError {
    HandlerError::outage("the file for the command's answers can't be used").with_source(error)
}

fn flood(what: &str) -> HandlerError {
    HandlerError::transient(format!("the command printed {what}, and was stopped"))
}

/// What is set aside for answers, and for each of them.
const USUAL_BYTES: u64 = 256 << 10;
const USUAL_REQUEST_BYTES: u64 = 256;
const SPOOL_SUFFIX: &str = ".spool";
const CHUNK_BYTES: usize = 256 << 10;
const BASE_BYTES: u64 = 64 << 20;
const REQUEST_BYTES: u64 = 64 << 10;
/// Lines that are no answers, such as a greeting, before the command counts as flooding.
const SPARE_LINES: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::FailureKind;

    const BATCH: BatchId = BatchId::from_u128(7);
    const LIMITS: Limits = Limits {
        bytes: u64::MAX,
        lines: 10,
        requests: 1,
    };

    #[tokio::test]
    async fn a_disk_that_takes_no_answers_is_an_outage_and_no_fault_of_the_batch() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let error = Spool::new(Some(gone.clone()), BATCH, 10)
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind(), FailureKind::Outage, "{error}");
        let there = folder.path().to_owned();
        let spool = Spool::new(Some(there), BATCH, 10).await.unwrap();
        let answers = gone.join("answers");
        let error = spool
            .keep(Some(&answers), Fed::default())
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind(), FailureKind::Outage, "{error}");
    }

    #[tokio::test]
    async fn a_line_may_be_as_long_as_the_longest_payload_without_its_end() {
        let mut spool = Spool::new(None, BATCH, 10).await.unwrap();
        let mut line = vec![b'x'; MAX_PAYLOAD_BYTES];
        line.push(b'\n');
        spool.fill(&line[..], &LIMITS).await.unwrap();
        line.insert(0, b'x');
        let error = spool.fill(&line[..], &LIMITS).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Transient, "{error}");
    }
}
