//! What the system knows of this process, where it tells (Linux), and of a store's folder.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use super::{
    families::{
        PROCESS_CPU, PROCESS_FDS, PROCESS_MAX_FDS, PROCESS_RESIDENT, PROCESS_START, PROCESS_VIRTUAL,
    },
    page::Page,
};

/// Adds what can be read. Blocks.
pub(super) fn add(page: &mut Page) {
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        for (family, name) in [(PROCESS_RESIDENT, "VmRSS:"), (PROCESS_VIRTUAL, "VmSize:")] {
            if let Some(kib) = number_after(&status, name) {
                page.count(&family, &[], kib * 1024);
            }
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the folder's.
        page.count(&PROCESS_FDS, &[], open.count().saturating_sub(1) as u64);
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    if let Some(most) = number_after(&limits, "Max open files") {
        page.count(&PROCESS_MAX_FDS, &[], most);
    }
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in brackets, may hold anything.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect());
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    if let (Some(user), Some(system)) = (ticks(11), ticks(12)) {
        page.add(&PROCESS_CPU, &[], (user + system) / TICKS_PER_SECOND);
    }
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    if let (Some(boot), Some(started)) = (number_after(&boot, "btime"), ticks(19)) {
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
        page.add(
            &PROCESS_START,
            &[],
            boot as f64 + started / TICKS_PER_SECOND,
        );
    }
}

/// The first number on the line that begins so.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What the files below a folder take of the disk; what goes meanwhile counts as gone. Blocks.
pub(super) fn disk_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * BLOCK_BYTES,
            Err(_) => 0,
        })
        .sum()
}

/// The unit of times in /proc, the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;
const BLOCK_BYTES: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_behind_their_names() {
        let text =
            "VmSize:\t  12 kB\nVmRSS:\t    7 kB\nMax open files            1024    4096    files\n";
        assert_eq!(number_after(text, "VmRSS:"), Some(7));
        assert_eq!(number_after(text, "Max open files"), Some(1024));
        assert_eq!(number_after(text, "btime"), None);
    }
}
