//! What the kernel asks, put to the disk.

use std::{
    ffi::OsStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, OFlags};

use super::{
    content::SECTOR_BYTES,
    disk::{Attributes, Disk, Result},
};

/// The kernel asks each time: after a restore, things are no longer what they were.
const REMEMBERED: Duration = Duration::ZERO;
/// What space is counted in.
const BLOCK_BYTES: u32 = 4096;
const GENERATION: Generation = Generation(0);
/// Nothing is cached, and closing asks for nothing.
const FILE: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_NOFLUSH);

/// The disk as a file system.
#[derive(Debug)]
pub(super) struct Served {
    disk: Arc<Mutex<Disk>>,
    owner: (u32, u32),
}

impl Served {
    pub(super) fn new(disk: Arc<Mutex<Disk>>) -> Self {
        let owner = (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        );
        Self { disk, owner }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self, of: Attributes) -> FileAttr {
        FileAttr {
            ino: INodeNo(of.number),
            size: of.size,
            blocks: of.space / SECTOR_BYTES as u64,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: kind(of.folder),
            perm: of.mode,
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.disk().look_up(parent.0, name);
        match found {
            Ok(found) => reply.entry(&REMEMBERED, &self.attributes(found), GENERATION),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.disk().stat(number.0);
        match found {
            Ok(found) => reply.attr(&REMEMBERED, &self.attributes(found)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _accessed: Option<TimeOrNow>,
        _modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _: Option<FileHandle>,
        _created: Option<SystemTime>,
        _flags_changed: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = |disk: &mut Disk| -> Result<Attributes> {
            if let Some(mode) = mode {
                disk.set_mode(number.0, permissions(mode, 0))?;
            }
            if let Some(size) = size {
                disk.resize(number.0, size)?;
            }
            disk.stat(number.0)
        };
        let set = set(&mut self.disk());
        match set {
            Ok(found) => reply.attr(&REMEMBERED, &self.attributes(found)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let created = self
            .disk()
            .create((parent.0, name), permissions(mode, umask), true);
        match created {
            Ok(created) => reply.entry(&REMEMBERED, &self.attributes(created), GENERATION),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let create = |disk: &mut Disk| {
            let file = disk.create((parent.0, name), permissions(mode, umask), false)?;
            Ok((file, disk.open_created(file.number)?))
        };
        let created = create(&mut self.disk());
        match created {
            Ok((file, handle)) => reply.created(
                &REMEMBERED,
                &self.attributes(file),
                GENERATION,
                FileHandle(handle),
                FILE,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.disk().remove((parent.0, name), false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.disk().remove((parent.0, name), true), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !RenameFlags::RENAME_NOREPLACE.contains(flags) {
            return reply.error(Errno::EINVAL);
        }
        let (from, to) = ((parent.0, name), (new_parent.0, new_name));
        done(self.disk().rename(from, to, flags.is_empty()), reply);
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        opened(self.disk().open(number.0), FILE, reply);
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        opened(self.disk().open(number.0), FopenFlags::empty(), reply);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = self.disk().read(handle.0, offset, size as usize);
        match bytes {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write = |disk: &mut Disk| {
            let written = disk.write(handle.0, offset, data)?;
            let synced = [OFlags::DSYNC, OFlags::SYNC].into_iter();
            let flags = OFlags::from_bits_retain(flags.0.cast_unsigned());
            if synced.into_iter().any(|flag| flags.contains(flag)) {
                disk.sync(handle.0)?;
            }
            Ok(written)
        };
        let written = write(&mut self.disk());
        match written {
            Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.disk().close(handle.0);
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.disk().close(handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.disk().sync(handle.0), reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.disk().sync(handle.0), reply);
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let disk = self.disk();
        let list = match disk.list(handle.0) {
            Ok(list) => list,
            Err(error) => return reply.error(errno(error)),
        };
        let own = [OsStr::new("."), OsStr::new("..")].map(|name| (name, number.0));
        let below = list
            .iter()
            .map(|(name, number)| (name.as_os_str(), *number));
        let entries = (1..).zip(own.into_iter().chain(below));
        for (next, (name, number)) in entries.skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(INodeNo(number), next, kind(disk.is_folder(number)), name) {
                break;
            }
        }
        drop(disk);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let space = self.disk().space();
        let block = u64::from(BLOCK_BYTES);
        match space {
            Ok((total, free)) => {
                let (total, free) = (total / block, free / block);
                reply.statfs(
                    total,
                    free,
                    free,
                    total,
                    free,
                    BLOCK_BYTES,
                    255,
                    BLOCK_BYTES,
                );
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::ZERO_RANGE;
        if !known.contains(flags) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let grow = !flags.contains(FallocateFlags::KEEP_SIZE);
        let zero = flags.contains(FallocateFlags::ZERO_RANGE);
        done(
            self.disk().allocate(handle.0, (offset, length), grow, zero),
            reply,
        );
    }
}

fn done(result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn opened(result: Result<u64>, flags: FopenFlags, reply: ReplyOpen) {
    match result {
        Ok(handle) => reply.opened(FileHandle(handle), flags),
        Err(error) => reply.error(errno(error)),
    }
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

fn kind(folder: bool) -> FileType {
    if folder {
        FileType::Directory
    } else {
        FileType::RegularFile
    }
}

fn permissions(mode: u32, umask: u32) -> u16 {
    u16::try_from(mode & !umask & 0o7777).unwrap_or_default()
}
