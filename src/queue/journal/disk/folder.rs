//! A folder of the operating system.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Disk, DiskFile};

/// A folder on Linux or macOS, held open so that it can be synced.
#[derive(Debug)]
pub(in crate::queue::journal) struct Folder {
    path: PathBuf,
    folder: File,
}

impl Folder {
    /// Opens a folder that is there.
    ///
    /// # Errors
    /// Those of opening it.
    pub(in crate::queue::journal) fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        let folder = File::open(&path)?;
        Ok(Self { path, folder })
    }

    fn file(&self, name: &str, options: &OpenOptions) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path.join(name);
        let file = options.open(&path)?;
        Ok(Arc::new(OsFile { path, file }))
    }
}

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // A name that is not text is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.file(name, OpenOptions::new().read(true).write(true))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        self.file(name, options.read(true).write(true).create_new(true))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.folder.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::fstatvfs(&self.folder)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

/// A file of a [`Folder`].
#[derive(Debug)]
struct OsFile {
    /// Where it was opened; files that are zeroed are never renamed.
    path: PathBuf,
    file: File,
}

impl OsFile {
    /// Zeros past the page cache, so that zeroing ahead never holds up the appends that share it.
    #[cfg(target_os = "linux")]
    fn zero_direct(&self, from: u64, to: u64) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).map_err(io::Error::other)?;
        let mut options = OpenOptions::new();
        let direct = options.write(true).custom_flags(flags).open(&self.path)?;
        zero_with(&direct, from, to)
    }

    #[cfg(not(target_os = "linux"))]
    fn zero_direct(&self, _from: u64, _to: u64) -> io::Result<()> {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

impl DiskFile for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len <= old {
            return Ok(());
        }
        let flags = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&self.file, flags, 0, len) {
            // Not every file system can reserve; writing does.
            Err(rustix::io::Errno::OPNOTSUPP) => zero_with(&self.file, old, len),
            done => Ok(done?),
        }
    }

    fn zero(&self, from: u64, to: u64) -> io::Result<()> {
        if from.is_multiple_of(BLOCK) && to.is_multiple_of(BLOCK) {
            match self.zero_direct(from, to) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                done => return done,
            }
        }
        zero_with(&self.file, from, to)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        write_all(parts, offset, |parts, at| {
            Ok(rustix::io::pwritev(&self.file, parts, at)?)
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Calls `write` until all the parts are written.
fn write_all(
    parts: &[IoSlice<'_>],
    mut offset: u64,
    write: impl Fn(&[IoSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut parts = parts.to_vec();
    let mut rest = parts.as_mut_slice();
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let written = match write(&rest[..rest.len().min(MAX_PARTS)], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            written => written?,
        };
        offset += written as u64;
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

fn zero_with(file: &File, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let step = (to - at).min(ZEROS.0.len() as u64);
        file.write_all_at(
            &ZEROS.0[..usize::try_from(step).map_err(io::Error::other)?],
            at,
        )?;
        at += step;
    }
    Ok(())
}

/// Aligned as direct I/O wants its memory.
#[repr(align(4096))]
struct Zeros([u8; 128 * 1024]);
static ZEROS: Zeros = Zeros([0; 128 * 1024]);

/// What direct I/O is aligned to.
const BLOCK: u64 = 4096;
/// As many parts as one call takes (`IOV_MAX`).
const MAX_PARTS: usize = 1024;
