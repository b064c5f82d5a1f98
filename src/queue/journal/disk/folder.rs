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
    opened: File,
    is_read_only: bool,
}

impl Folder {
    /// Opens a folder that is there.
    ///
    /// # Errors
    /// Those of opening it.
    pub(in crate::queue::journal) fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        let opened = File::open(&path)?;
        Ok(Self {
            path,
            opened,
            is_read_only: false,
        })
    }

    /// The same, of which nothing is changed: whoever tries is refused.
    ///
    /// # Errors
    /// Those of opening it.
    pub(in crate::queue::journal) fn read_only(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self {
            is_read_only: true,
            ..Self::open(path)?
        })
    }

    fn may_change(&self) -> io::Result<()> {
        if self.is_read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(())
    }

    fn file(&self, name: &str, options: &OpenOptions) -> io::Result<Arc<dyn DiskFile>> {
        let file = options.open(self.path.join(name))?;
        Ok(Arc::new(OsFile { file }))
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
        let mut options = OpenOptions::new();
        self.file(name, options.read(true).write(!self.is_read_only))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.may_change()?;
        let mut options = OpenOptions::new();
        self.file(name, options.read(true).write(true).create_new(true))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.may_change()?;
        fs::remove_file(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.may_change()?;
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.opened.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::fstatvfs(&self.opened)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

/// A file of a [`Folder`].
#[derive(Debug)]
struct OsFile {
    file: File,
}

impl OsFile {
    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        let mut at = from;
        while at < to {
            let left = usize::try_from(to - at).unwrap_or(ZEROS.len());
            let step = left.min(ZEROS.len());
            self.write_at(&[IoSlice::new(&ZEROS[..step])], at)?;
            at += step as u64;
        }
        Ok(())
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
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeros(old, len),
            done => Ok(done?),
        }
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        write_all(parts, offset, |parts, at| {
            Ok(rustix::io::pwritev(&self.file, parts, at)?)
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    #[cfg(target_os = "linux")]
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let length = buffer.len();
        let mut parts = [io::IoSliceMut::new(buffer)];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        let read = rustix::io::preadv2(&self.file, &mut parts, offset, flags)?;
        if read < length {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    /// Nothing tells what is cached: a thread that may wait reads it.
    #[cfg(not(target_os = "linux"))]
    fn read_cached_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn will_read(&self, offset: u64, bytes: u64) {
        #[cfg(target_os = "linux")]
        {
            let advice = rustix::fs::Advice::WillNeed;
            let bytes = std::num::NonZeroU64::new(bytes);
            // No more than a hint.
            let _ = rustix::fs::fadvise(&self.file, offset, bytes, advice);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (offset, bytes);
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

static ZEROS: [u8; 128 * 1024] = [0; 128 * 1024];

/// As many parts as one call takes (`IOV_MAX`).
const MAX_PARTS: usize = 1024;
