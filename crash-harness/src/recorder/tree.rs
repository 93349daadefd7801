//! The files that a recorder serves, and the record of their changes.

use super::event::{Event, MARK, NameChange, OfOneBoot, PAGE, Page, ROOT, now};
use super::image::Image;
use super::{Held, Order};
use fuser::{Errno, FileAttr, FileType, INodeNo};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The number of the file to which processes write their marks.
pub(super) const MARK_INODE: u64 = 2;

pub(super) enum Inode {
    Dir(BTreeMap<String, u64>),
    File(FileNode),
}

#[derive(Default)]
pub(super) struct FileNode {
    pub(super) bytes: Vec<u8>,
    pub(super) recorded: bool,
    /// Whether something was written since the last sync.
    pub(super) unsynced: bool,
    pub(super) is_socket: bool,
}

pub(super) struct Tree {
    /// All inodes by number, from 1. They are never freed while the recorder lives.
    pub(super) inodes: Vec<Inode>,
    pub(super) events: Vec<Event>,
    /// The time of each event.
    pub(super) times: Vec<Duration>,
    pub(super) order: Option<Order>,
    pub(super) held: Option<Held>,
    pub(super) of_one_boot: OfOneBoot,
    zero: Page,
}

impl Tree {
    pub(super) fn new(of_one_boot: OfOneBoot) -> Tree {
        let root = BTreeMap::from([(MARK.to_string(), MARK_INODE)]);
        Tree {
            inodes: vec![Inode::Dir(root), Inode::File(FileNode::default())],
            events: Vec::new(),
            times: Vec::new(),
            order: None,
            held: None,
            of_one_boot,
            zero: Arc::new([0; PAGE]),
        }
    }

    /// Loads files that are durable from the beginning of the record.
    pub(super) fn load(&mut self, image: &Image) {
        for dir in &image.dirs {
            let parent = self.dir_at(dir.parent().expect("not the root"));
            self.insert(parent, name_of(dir), Inode::Dir(BTreeMap::new()));
        }
        for file in &image.files {
            let mut bytes = vec![0; file.size as usize];
            for (page, content) in &file.pages {
                let at = *page as usize * PAGE;
                if at < bytes.len() {
                    let len = PAGE.min(bytes.len() - at);
                    bytes[at..at + len].copy_from_slice(&content[..len]);
                }
            }
            let parent = self.dir_at(file.path.parent().expect("not the root"));
            let node = FileNode { bytes, recorded: true, ..FileNode::default() };
            self.insert(parent, name_of(&file.path), Inode::File(node));
        }
        let mut events = Vec::new();
        for (index, inode) in self.inodes.iter().enumerate() {
            let number = index as u64 + 1;
            match inode {
                Inode::File(file) if number != MARK_INODE => {
                    let pages = pages_of(&file.bytes, 0, file.bytes.len(), &self.zero);
                    let size = file.bytes.len() as u64;
                    events.push(Event::Write { file: number, first: 0, pages, size, is_write_back: false });
                    events.push(Event::Synced { file: number, before: events.len() });
                }
                _ => {}
            }
        }
        for (index, inode) in self.inodes.iter().enumerate() {
            let Inode::Dir(names) = inode else { continue };
            let dir = index as u64 + 1;
            for (name, inode) in names.iter().filter(|(_, inode)| **inode != MARK_INODE) {
                let is_dir = matches!(self.inodes[*inode as usize - 1], Inode::Dir(_));
                let change = NameChange::Made { name: name.clone(), inode: *inode, is_dir };
                events.push(Event::Name { dir, change });
            }
            events.push(Event::DirSynced { dir, before: events.len() });
        }
        events.into_iter().for_each(|event| self.note(event));
    }

    /// Records an event with the current time.
    pub(super) fn note(&mut self, event: Event) {
        self.events.push(event);
        self.times.push(now());
    }

    fn dir_at(&self, path: &Path) -> u64 {
        let mut at = ROOT;
        for part in path {
            at = self.dir(at).expect("a directory")[part.to_str().expect("a plain name")];
        }
        at
    }

    fn insert(&mut self, parent: u64, name: &str, inode: Inode) -> u64 {
        self.inodes.push(inode);
        let number = self.inodes.len() as u64;
        self.dir_mut(parent).expect("a directory").insert(name.to_string(), number);
        number
    }

    pub(super) fn inode(&self, number: u64) -> Option<&Inode> {
        self.inodes.get(number as usize - 1)
    }

    pub(super) fn dir(&self, number: u64) -> Option<&BTreeMap<String, u64>> {
        match self.inode(number) {
            Some(Inode::Dir(names)) => Some(names),
            _ => None,
        }
    }

    pub(super) fn dir_mut(&mut self, number: u64) -> Option<&mut BTreeMap<String, u64>> {
        match self.inodes.get_mut(number as usize - 1) {
            Some(Inode::Dir(names)) => Some(names),
            _ => None,
        }
    }

    pub(super) fn file_mut(&mut self, number: u64) -> Option<&mut FileNode> {
        match self.inodes.get_mut(number as usize - 1) {
            Some(Inode::File(file)) => Some(file),
            _ => None,
        }
    }

    /// Returns the current path of a file.
    pub(super) fn path_of(&self, number: u64) -> Option<String> {
        fn search(tree: &Tree, dir: u64, number: u64, prefix: &str) -> Option<String> {
            tree.dir(dir)?.iter().find_map(|(name, inode)| {
                let path = format!("{prefix}{name}");
                if *inode == number { Some(path) } else { search(tree, *inode, number, &format!("{path}/")) }
            })
        }
        search(self, ROOT, number, "")
    }

    pub(super) fn attributes(&self, number: u64) -> Option<FileAttr> {
        let (kind, size, perm, nlink) = match self.inode(number)? {
            Inode::Dir(_) => (FileType::Directory, 0, 0o700, 2),
            Inode::File(file) if file.is_socket => (FileType::Socket, 0, 0o600, 1),
            Inode::File(file) => (FileType::RegularFile, file.bytes.len() as u64, 0o600, 1),
        };
        let time = SystemTime::UNIX_EPOCH;
        Some(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        })
    }

    pub(super) fn make(&mut self, parent: u64, name: &OsStr, is_dir: bool) -> Result<FileAttr, Errno> {
        let name = name.to_str().ok_or(Errno::EINVAL)?;
        if self.dir(parent).ok_or(Errno::ENOTDIR)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let recorded = !self.of_one_boot.has(name);
        let inode = if is_dir {
            Inode::Dir(BTreeMap::new())
        } else {
            Inode::File(FileNode { recorded, ..FileNode::default() })
        };
        let number = self.insert(parent, name, inode);
        let change = NameChange::Made { name: name.to_string(), inode: number, is_dir };
        self.note(Event::Name { dir: parent, change });
        self.attributes(number).ok_or(Errno::EIO)
    }

    pub(super) fn remove(&mut self, parent: u64, name: &OsStr, is_dir: bool) -> Result<(), Errno> {
        let name = name.to_str().ok_or(Errno::EINVAL)?;
        let number = *self.dir(parent).ok_or(Errno::ENOTDIR)?.get(name).ok_or(Errno::ENOENT)?;
        match (self.inode(number), is_dir) {
            (Some(Inode::Dir(names)), true) if !names.is_empty() => return Err(Errno::ENOTEMPTY),
            (Some(Inode::Dir(_)), false) => return Err(Errno::EISDIR),
            (Some(Inode::File(_)), true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        self.dir_mut(parent).ok_or(Errno::ENOTDIR)?.remove(name);
        self.note(Event::Name { dir: parent, change: NameChange::Removed { name: name.to_string() } });
        Ok(())
    }

    pub(super) fn rename(&mut self, dir: u64, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        let (from, to) = (from.to_str().ok_or(Errno::EINVAL)?, to.to_str().ok_or(Errno::EINVAL)?);
        let names = self.dir_mut(dir).ok_or(Errno::ENOTDIR)?;
        let inode = names.remove(from).ok_or(Errno::ENOENT)?;
        names.insert(to.to_string(), inode);
        let change = NameChange::Moved { from: from.to_string(), to: to.to_string() };
        self.note(Event::Name { dir, change });
        Ok(())
    }

    pub(super) fn write(&mut self, number: u64, offset: u64, data: &[u8], is_write_back: bool) -> Result<(), Errno> {
        let zero = self.zero.clone();
        let file = self.file_mut(number).ok_or(Errno::EBADF)?;
        let (from, to) = (offset as usize, offset as usize + data.len());
        if file.bytes.len() < to {
            file.bytes.resize(to, 0);
        }
        file.bytes[from..to].copy_from_slice(data);
        if file.recorded && !data.is_empty() {
            file.unsynced = true;
            // A page is dirty as a whole: the bytes beside the written ones go to the disk again,
            // too.
            let first = from / PAGE;
            let pages = pages_of(&file.bytes, first * PAGE, to, &zero);
            let size = file.bytes.len() as u64;
            self.note(Event::Write { file: number, first: first as u64, pages, size, is_write_back });
        }
        Ok(())
    }

    /// Returns whether this sync is to be held.
    pub(super) fn is_ordered(&mut self, number: u64) -> bool {
        if !self.file_mut(number).is_some_and(|file| file.unsynced) {
            return false;
        }
        let path = self.path_of(number).unwrap_or_default();
        match &mut self.order {
            Some(order) if path.starts_with(&order.prefix) && order.skip == 0 => {
                self.order = None;
                true
            }
            Some(order) if path.starts_with(&order.prefix) => {
                order.skip -= 1;
                false
            }
            _ => false,
        }
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).expect("a plain name")
}

/// Returns the pages that hold the bytes `from .. to`. The last one is padded with zeros.
fn pages_of(bytes: &[u8], from: usize, to: usize, zero: &Page) -> Vec<Page> {
    let to = to.next_multiple_of(PAGE).min(bytes.len());
    let page = |chunk: &[u8]| {
        if *chunk == zero[..chunk.len()] {
            return zero.clone();
        }
        let mut page = [0; PAGE];
        page[..chunk.len()].copy_from_slice(chunk);
        Arc::new(page)
    };
    bytes[from..to].chunks(PAGE).map(page).collect()
}
