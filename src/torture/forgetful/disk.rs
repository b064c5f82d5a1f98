//! The disk: files, folders, what is open, and what goes wrong when. It knows nothing of FUSE.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

use fastrand::Rng;
use rustix::io::Errno;

use super::{
    Call, FailPlan, Loss, Rules,
    content::{Content, PAGE_BYTES},
    names::Names,
};

/// The number of the folder at the top.
pub(super) const ROOT: u64 = 1;
/// How large a disk without a limit says it is.
const UNLIMITED_BYTES: u64 = 1 << 40;

pub(super) type Result<T> = std::result::Result<T, Errno>;

#[derive(Clone, Debug)]
pub(super) struct Disk {
    nodes: BTreeMap<u64, Node>,
    names: Names,
    /// What is open; a number is never given twice, so that those of before a restore are known.
    handles: BTreeMap<u64, Handle>,
    next_number: u64,
    pub(super) rules: Rules,
    off: bool,
    /// Changing operations so far.
    pub(super) operations: u64,
    cut_at: Option<u64>,
    /// At which operation the power was cut.
    pub(super) cut_was_at: Option<String>,
    plan: Option<FailPlan>,
    /// Operations that failed because it was planned.
    pub(super) failures: u64,
    space: Option<u64>,
}

#[derive(Clone, Debug)]
struct Node {
    mode: u16,
    content: Content,
}

#[derive(Clone, Debug)]
struct Handle {
    node: u64,
    /// Of a folder: what was in it when it was opened.
    list: Vec<(OsString, u64)>,
}

/// What `stat` says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub(super) number: u64,
    pub(super) folder: bool,
    pub(super) mode: u16,
    pub(super) size: u64,
    pub(super) space: u64,
}

impl Disk {
    pub(super) fn new() -> Self {
        let mut disk = Self {
            nodes: BTreeMap::new(),
            names: Names::default(),
            handles: BTreeMap::new(),
            next_number: ROOT + 1,
            rules: Rules::Strict,
            off: false,
            operations: 0,
            cut_at: None,
            cut_was_at: None,
            plan: None,
            failures: 0,
            space: None,
        };
        disk.add(ROOT, 0o755, true);
        disk
    }

    pub(super) fn cut(&mut self) {
        self.off = true;
    }

    pub(super) fn cut_after(&mut self, operations: u64) {
        self.cut_at = Some(self.operations + operations);
        self.cut_was_at = None;
    }

    pub(super) fn fail(&mut self, plan: Option<FailPlan>) {
        self.plan = plan;
    }

    pub(super) fn set_space(&mut self, bytes: Option<u64>) {
        self.space = bytes;
    }

    /// The power comes back; what was open is open no more.
    pub(super) fn restore(&mut self, loss: Loss) {
        match loss {
            Loss::Nothing => {}
            Loss::All => {
                self.names.lose();
                self.nodes.values_mut().for_each(|node| node.content.lose());
            }
            Loss::Torn { seed } => {
                let mut random = Rng::with_seed(seed);
                self.names.tear(self.rules, &mut random);
                for node in self.nodes.values_mut() {
                    node.content.tear(&mut random);
                }
            }
        }
        self.handles.clear();
        self.collect();
        self.renumber();
        (self.off, self.cut_at, self.plan) = (false, None, None);
    }

    /// Everything is as it was when that was kept; what was open then is open no more.
    pub(super) fn go_back(&mut self, kept: &Self) {
        let (next, operations) = (self.next_number, self.operations);
        *self = kept.clone();
        self.next_number = next;
        self.operations = operations;
        self.handles.clear();
        self.collect();
        self.renumber();
    }

    /// The total and the free bytes.
    pub(super) fn space(&self) -> Result<(u64, u64)> {
        self.is_on()?;
        let total = self.space.unwrap_or(UNLIMITED_BYTES);
        Ok((total, total.saturating_sub(self.used())))
    }

    pub(super) fn look_up(&self, folder: u64, name: &OsStr) -> Result<Attributes> {
        self.is_on()?;
        self.stat(self.names.get(folder, name).ok_or(Errno::NOENT)?)
    }

    pub(super) fn stat(&self, number: u64) -> Result<Attributes> {
        self.is_on()?;
        let node = self.nodes.get(&number).ok_or(Errno::NOENT)?;
        Ok(Attributes {
            number,
            folder: self.names.is_folder(number),
            mode: node.mode,
            size: node.content.size(),
            space: node.content.space(),
        })
    }

    pub(super) fn set_mode(&mut self, number: u64, mode: u16) -> Result<()> {
        self.is_on()?;
        self.node(number)?.mode = mode;
        Ok(())
    }

    /// Creates a file or a folder.
    pub(super) fn create(
        &mut self,
        at: (u64, &OsStr),
        mode: u16,
        folder: bool,
    ) -> Result<Attributes> {
        self.change(Call::Create, || format!("create {}", at.1.display()))?;
        if self.names.get(at.0, at.1).is_some() {
            return Err(Errno::EXIST);
        }
        if !self.names.is_folder(at.0) {
            return Err(Errno::NOENT);
        }
        let number = self.next();
        self.add(number, mode, folder);
        self.names
            .change(number, None, Some((at.0, at.1.to_owned())));
        self.stat(number)
    }

    pub(super) fn open(&mut self, number: u64) -> Result<u64> {
        self.is_on()?;
        self.planned(Call::Open)?;
        self.open_created(number)
    }

    /// Opens what was created by the same call.
    pub(super) fn open_created(&mut self, number: u64) -> Result<u64> {
        self.node(number)?;
        let list = self.names.list(number);
        let handle = self.next();
        self.handles.insert(handle, Handle { node: number, list });
        Ok(handle)
    }

    pub(super) fn close(&mut self, handle: u64) {
        self.handles.remove(&handle);
        self.collect();
    }

    /// What was in a folder when it was opened.
    pub(super) fn list(&self, handle: u64) -> Result<&[(OsString, u64)]> {
        self.is_on()?;
        self.handles
            .get(&handle)
            .map(|handle| &*handle.list)
            .ok_or(Errno::IO)
    }

    pub(super) fn is_folder(&self, number: u64) -> bool {
        self.names.is_folder(number)
    }

    pub(super) fn read(&mut self, handle: u64, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.is_on()?;
        self.planned(Call::Read)?;
        Ok(self.opened(handle)?.1.content.read(offset, len))
    }

    /// How many bytes of it there was space for.
    pub(super) fn write(&mut self, handle: u64, offset: u64, bytes: &[u8]) -> Result<usize> {
        let len = bytes.len();
        self.change(Call::Write, || format!("write {len} bytes at {offset}"))?;
        let free = self.space()?.1 / PAGE_BYTES as u64;
        let content = &mut self.opened(handle)?.1.content;
        let mut fits = len;
        if content.new_pages(offset, len) > free {
            let whole = len / PAGE_BYTES;
            let pages = (0..=whole)
                .rev()
                .find(|pages| content.new_pages(offset, pages * PAGE_BYTES) <= free);
            fits = pages.unwrap_or_default() * PAGE_BYTES;
            if fits == 0 {
                return Err(Errno::NOSPC);
            }
        }
        content.write(offset, &bytes[..fits]);
        Ok(fits)
    }

    pub(super) fn resize(&mut self, number: u64, size: u64) -> Result<()> {
        self.change(Call::Allocate, || format!("resize to {size}"))?;
        self.node(number)?.content.resize(size);
        Ok(())
    }

    /// Takes space for a range, or makes it zeros, or both.
    pub(super) fn allocate(
        &mut self,
        handle: u64,
        range: (u64, u64),
        grow: bool,
        zero: bool,
    ) -> Result<()> {
        let (offset, len) = range;
        self.change(Call::Allocate, || {
            format!("allocate {len} bytes at {offset}")
        })?;
        let free = self.space()?.1 / PAGE_BYTES as u64;
        let content = &mut self.opened(handle)?.1.content;
        if content.new_pages(offset, usize::try_from(len).map_err(|_| Errno::FBIG)?) > free {
            return Err(Errno::NOSPC);
        }
        if zero {
            content.zero(offset, len);
        }
        content.allocate(offset, len, grow);
        Ok(())
    }

    pub(super) fn sync(&mut self, handle: u64) -> Result<()> {
        let number = self.handles.get(&handle).map(|handle| handle.node);
        let (call, what) = match number {
            Some(number) if self.names.is_folder(number) => (Call::SyncFolder, "sync a folder"),
            _ => (Call::Sync, "sync"),
        };
        let rules = self.rules;
        match self.change(call, || what.to_owned()) {
            Ok(()) => {
                let (number, node) = self.opened(handle)?;
                node.content.sync();
                self.names.sync(number, rules);
                self.collect();
                Ok(())
            }
            Err(error) => {
                if !self.off
                    && let Ok((_, node)) = self.opened(handle)
                {
                    node.content.sync_failed();
                }
                Err(error)
            }
        }
    }

    pub(super) fn rename(
        &mut self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        replace: bool,
    ) -> Result<()> {
        self.change(Call::Rename, || {
            format!("rename {} to {}", from.1.display(), to.1.display())
        })?;
        let number = self.names.get(from.0, from.1).ok_or(Errno::NOENT)?;
        match self.names.get(to.0, to.1) {
            Some(_) if !replace => return Err(Errno::EXIST),
            Some(old) if old == number => return Ok(()),
            Some(old) if self.names.is_folder(old) != self.names.is_folder(number) => {
                return Err(if self.names.is_folder(old) {
                    Errno::ISDIR
                } else {
                    Errno::NOTDIR
                });
            }
            Some(old) if !self.names.list(old).is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        let (from, to) = ((from.0, from.1.to_owned()), (to.0, to.1.to_owned()));
        self.names.change(number, Some(from), Some(to));
        self.collect();
        Ok(())
    }

    /// Removes a file, or an empty folder.
    pub(super) fn remove(&mut self, at: (u64, &OsStr), folder: bool) -> Result<()> {
        self.change(Call::Remove, || format!("remove {}", at.1.display()))?;
        let number = self.names.get(at.0, at.1).ok_or(Errno::NOENT)?;
        match (self.names.is_folder(number), folder) {
            (true, false) => return Err(Errno::ISDIR),
            (false, true) => return Err(Errno::NOTDIR),
            (true, true) if !self.names.list(number).is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        self.names
            .change(number, Some((at.0, at.1.to_owned())), None);
        self.collect();
        Ok(())
    }

    fn is_on(&self) -> Result<()> {
        if self.off { Err(Errno::IO) } else { Ok(()) }
    }

    /// Every operation that changes something begins here; `what` it is, in words.
    fn change(&mut self, call: Call, what: impl FnOnce() -> String) -> Result<()> {
        self.is_on()?;
        self.operations += 1;
        if self.cut_at == Some(self.operations) {
            self.cut_was_at = Some(what());
            self.off = true;
            return Err(Errno::IO);
        }
        self.planned(call)
    }

    fn planned(&mut self, call: Call) -> Result<()> {
        let Some(plan) = self.plan.as_mut().filter(|plan| plan.call == call) else {
            return Ok(());
        };
        if plan.skip > 0 {
            plan.skip -= 1;
            return Ok(());
        }
        let error = plan.error.into();
        self.failures += 1;
        if plan.once {
            self.plan = None;
        }
        Err(error)
    }

    /// What is removed gives its space back at once.
    fn used(&self) -> u64 {
        let mut live = self.names.live();
        live.extend(self.handles.values().map(|handle| handle.node));
        let nodes = live.iter().filter_map(|number| self.nodes.get(number));
        nodes.map(|node| node.content.space()).sum()
    }

    fn next(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    fn add(&mut self, number: u64, mode: u16, folder: bool) {
        let content = Content::default();
        self.nodes.insert(number, Node { mode, content });
        if folder {
            self.names.add_folder(number);
        }
    }

    fn node(&mut self, number: u64) -> Result<&mut Node> {
        self.nodes.get_mut(&number).ok_or(Errno::NOENT)
    }

    /// Who opened a file before the power was cut has no part in what comes after.
    fn opened(&mut self, handle: u64) -> Result<(u64, &mut Node)> {
        let number = self.handles.get(&handle).ok_or(Errno::IO)?.node;
        Ok((number, self.nodes.get_mut(&number).ok_or(Errno::IO)?))
    }

    /// Forgets what nobody can reach any more.
    fn collect(&mut self) {
        let mut reached = self.names.named();
        reached.insert(ROOT);
        reached.extend(self.handles.values().map(|handle| handle.node));
        let gone: Vec<u64> = self
            .nodes
            .keys()
            .filter(|number| !reached.contains(number))
            .copied()
            .collect();
        for number in &gone {
            self.nodes.remove(number);
            self.names.remove(*number);
        }
        // What was in a folder that is gone is gone as well.
        if !gone.is_empty() {
            self.collect();
        }
    }

    /// New numbers, so that the kernel takes nothing that it remembers for what is there now.
    fn renumber(&mut self) {
        let mut numbers = BTreeMap::from([(ROOT, ROOT)]);
        for number in self.nodes.keys().filter(|number| **number != ROOT) {
            numbers.insert(*number, self.next_number);
            self.next_number += 1;
        }
        self.names.renumber(&numbers);
        let nodes = std::mem::take(&mut self.nodes).into_iter();
        self.nodes = nodes
            .map(|(number, node)| (numbers[&number], node))
            .collect();
    }
}
