//! What the machine says: what it is, what reached its disk, what is in memory.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::statistics::as_f64;
use crate::error::{Error, Result};

/// What was measured on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The model of its processor.
    pub cpu: String,
    /// How many threads run at the same time.
    pub cores: usize,
    /// All of its memory.
    pub memory_bytes: u64,
    /// The kernel and its version.
    pub kernel: String,
    /// The type of the file system that the stores lie on, such as `ext4`.
    pub file_system: String,
    /// The block device below it, if it has one whose sectors are counted.
    pub device: Option<String>,
}

impl Machine {
    /// This machine, and the disk that this folder lies on.
    pub fn look(folder: &Path) -> Self {
        let cpu = line_of("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into());
        let memory = line_of("/proc/meminfo", "MemTotal").and_then(|text| kibibytes(&text));
        let uname = rustix::system::uname();
        let device = Device::below(folder);
        Self {
            cpu,
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory.unwrap_or_default(),
            kernel: format!(
                "{} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy()
            ),
            file_system: file_system(folder).unwrap_or_else(|| "unknown".into()),
            device: device.map(|device| device.name),
        }
    }

    /// Whether what is synced here can survive power loss at all.
    pub fn is_disk(&self) -> bool {
        !matches!(self.file_system.as_str(), "tmpfs" | "ramfs")
    }
}

/// A block device whose written sectors are counted: `/proc/self/io` counts whole folios instead.
#[derive(Clone, Debug)]
pub struct Device {
    name: String,
    stat: PathBuf,
}

impl Device {
    /// The device that this folder lies on; `None` where there is none, or no way to tell.
    pub fn below(folder: &Path) -> Option<Self> {
        let device = fs::metadata(folder).ok()?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let link = format!("/sys/dev/block/{major}:{minor}");
        let path = fs::canonicalize(link).ok()?;
        let stat = path.join("stat");
        stat.exists().then_some(())?;
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some(Self { name, stat })
    }

    /// Bytes written to it since the machine started.
    pub fn written(&self) -> Option<u64> {
        let text = fs::read_to_string(&self.stat).ok()?;
        let sectors: u64 = text.split_whitespace().nth(6)?.parse().ok()?;
        Some(sectors * 512)
    }
}

/// What reached the device between two looks, all of its users together.
#[derive(Clone, Debug)]
pub struct Written {
    folder: PathBuf,
    device: Option<Device>,
    before: Option<u64>,
}

impl Written {
    /// Starts counting, once everything that waited was written.
    pub fn start(folder: &Path) -> Self {
        settle(folder);
        let device = Device::below(folder);
        let before = device.as_ref().and_then(Device::written);
        Self {
            folder: folder.to_owned(),
            device,
            before,
        }
    }

    /// Bytes since the start, what only waits in the page cache left out.
    pub fn so_far(&self) -> Option<f64> {
        let now = self.device.as_ref()?.written()?;
        Some(as_f64(now.saturating_sub(self.before?)))
    }

    /// Bytes since the start, with what waited.
    pub fn all(&self) -> Option<f64> {
        settle(&self.folder);
        self.so_far()
    }
}

/// Writes everything that waits in the page cache of this file system.
fn settle(folder: &Path) {
    // Figures of the device get less exact without it, and nothing else.
    #[cfg(target_os = "linux")]
    if let Ok(folder) = File::open(folder) {
        let _ = rustix::fs::syncfs(folder);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = folder;
}

/// Forgets cached file contents below this folder, as far as that works: first file by file, then, where
/// allowed, all of the machine's page cache.
pub fn drop_caches(folder: &Path) {
    settle(folder);
    for path in files(folder) {
        if let Ok(file) = File::open(path) {
            // Best effort, and said so.
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
    }
    if let Ok(mut all) = fs::OpenOptions::new()
        .write(true)
        .open("/proc/sys/vm/drop_caches")
    {
        let _ = all.write_all(b"1");
    }
}

/// Bytes that the files below this folder take on the disk.
pub fn disk_bytes(folder: &Path) -> u64 {
    let blocks = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.blocks());
    files(folder).map(blocks).sum::<u64>() * 512
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let mut waiting = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        let entries = fs::read_dir(&path).into_iter().flatten().flatten();
        for entry in entries {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => waiting.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.into_iter()
}

/// Resident memory of a process, and the most it ever had, in bytes.
pub fn resident(process: u32) -> Option<(u64, u64)> {
    let status = format!("/proc/{process}/status");
    let of = |name| kibibytes(&line_of(&status, name)?);
    Some((of("VmRSS")?, of("VmHWM")?))
}

/// How long it takes to write so many bytes over what was written before, and to sync them; in nanoseconds.
///
/// # Errors
/// If it can't be written.
pub fn sync_times(folder: &Path, bytes: usize) -> Result<Vec<u64>> {
    let path = folder.join("syncs");
    let file = File::create(&path).map_err(failed)?;
    let zeroes = vec![0; SPAN];
    file.write_all_at(&zeroes, 0).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    let mut nanos = Vec::new();
    for at in (0..SPAN - bytes).step_by(bytes).take(SYNCS) {
        let start = Instant::now();
        let written = file.write_all_at(&zeroes[..bytes], at as u64);
        written.and_then(|()| file.sync_data()).map_err(failed)?;
        nanos.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    fs::remove_file(path).map_err(failed)?;
    Ok(nanos)
}

fn failed(error: io::Error) -> Error {
    Error::internal("the disk can't be tried out").with_source(error)
}

/// How fast the device reads a file of this size that is in no cache, in bytes a second.
///
/// # Errors
/// If it can't be written or read.
pub fn cold_read(folder: &Path, bytes: u64) -> Result<f64> {
    let path = folder.join("cold");
    let mut buffer = vec![0; 1 << 20];
    fastrand::fill(&mut buffer);
    let mut file = File::create(&path).map_err(failed)?;
    for _ in 0..bytes.div_ceil(1 << 20) {
        file.write_all(&buffer).map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    drop(file);
    drop_caches(folder);
    let mut file = File::open(&path).map_err(failed)?;
    let start = Instant::now();
    let mut total = 0;
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            read => total += read as u64,
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    fs::remove_file(path).map_err(failed)?;
    Ok(as_f64(total) / seconds)
}

/// The type of the mount that this folder is in: the longest one that it begins with.
fn file_system(folder: &Path) -> Option<String> {
    let folder = fs::canonicalize(folder).ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (PathBuf::from(words.next()?), words.next()?);
        folder.starts_with(&at).then(|| (at, kind.to_owned()))
    });
    let longest = mounts.max_by_key(|(at, _)| at.components().count());
    longest.map(|(_, kind)| kind)
}

/// What stands behind `name:` in a file of such lines.
fn line_of(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    lines.find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

const SPAN: usize = 2 << 20;
const SYNCS: usize = 1000;

fn kibibytes(text: &str) -> Option<u64> {
    let number: u64 = text.split(' ').next()?.parse().ok()?;
    Some(number * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_machine_knows_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine::look(folder.path());
        assert!(machine.cores > 0 && machine.memory_bytes > 1 << 20);
        assert!(machine.kernel.starts_with("Linux "));
        assert_ne!(machine.file_system, "unknown");
        let (now, most) = resident(std::process::id()).unwrap();
        assert!(now > 0 && now <= most);
    }

    #[test]
    fn disk_bytes_count_what_is_allocated_in_every_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(disk_bytes(folder.path()), 0);
        fs::create_dir(folder.path().join("below")).unwrap();
        let file = File::create(folder.path().join("below/file")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(disk_bytes(folder.path()) < 1 << 20, "a hole takes no room");
        fs::write(folder.path().join("other"), vec![1; 70_000]).unwrap();
        file.sync_all().unwrap();
        drop_caches(folder.path());
        assert!(disk_bytes(folder.path()) >= 65_536);
    }
}
