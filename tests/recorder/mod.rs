//! A file system in memory that records, in one total order, everything a disk would be told: writes, completed syncs
//! of files and directories, names made, moved and removed. A test that knows this order knows every state that a power cut
//! could have left (see `states`).
//!
//! It is served by one thread of the test process, so the order is real. Files are opened with the page cache, so they
//! can be mapped shared; there is no write-back cache, so write calls arrive at once, and mapped pages when the kernel
//! writes them back. What processes write to the file `.mark` is recorded as a mark: so acknowledgements stand in the same order.
//!
//! The process that serves it must not map its files: unmapping waits for the server, which may wait for the same memory
//! map to grow its own. All that opens a store is done by other processes.
//!
//! A sync can be held, and then fail: what it was to make durable is lost unless it is written again, although
//! the page cache keeps it and later syncs succeed. That is what Linux does after a failed write-back.
//!
//! Files whose name begins with `control` belong to one boot: their bytes are served, but not recorded.
#![allow(dead_code)]

mod server;
pub(crate) mod states;

use fuser::{BackgroundSession, Config, Errno, FileAttr, FileType, INodeNo, MountOption, ReplyEmpty};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

/// Bytes of a page of the page cache, in which writes are recorded.
pub(crate) const PAGE: usize = 4096;
pub(crate) type Page = Arc<[u8; PAGE]>;

/// The file to which processes write their marks, in the root.
pub(crate) const MARK: &str = ".mark";
const ROOT: u64 = 1;
const MARK_INODE: u64 = 2;
/// Nobody but this server changes anything, so what the kernel knows stays true.
const FOR_EVER: Duration = Duration::from_secs(1 << 20);

/// One thing that a disk was told.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Whole pages from page `first` on, as the page cache has them; the file's size afterwards.
    Write { file: u64, first: u64, pages: Vec<Page>, size: u64 },
    /// The file was cut or extended.
    Resized { file: u64, size: u64 },
    /// A sync succeeded: what was recorded before the position `before` is durable.
    Synced { file: u64, before: usize },
    /// A sync failed: what was not durable yet and recorded before that position never will be.
    SyncFailed { file: u64, before: usize },
    /// A directory's names changed.
    Name { dir: u64, change: NameChange },
    /// The same for a directory's names.
    DirSynced { dir: u64, before: usize },
    /// A process said something.
    Mark(String),
}

#[derive(Clone, Debug)]
pub(crate) enum NameChange {
    Made { name: String, inode: u64, is_dir: bool },
    Moved { from: String, to: String },
    Removed { name: String },
}

enum Inode {
    Dir(BTreeMap<String, u64>),
    File(FileNode),
}

#[derive(Default)]
struct FileNode {
    bytes: Vec<u8>,
    recorded: bool,
    /// Something was written since the last sync.
    unsynced: bool,
    is_socket: bool,
}

/// Which sync is to be held.
struct Order {
    /// How its path in the file system begins.
    prefix: String,
    /// So many are let pass before.
    skip: usize,
}

/// A sync that waits for its answer.
pub(crate) struct Held {
    shared: Arc<Shared>,
    file: u64,
    before: usize,
    /// The thread that called it.
    pub(crate) thread: u32,
    reply: Option<ReplyEmpty>,
}

impl Held {
    /// The sync fails, and what it covered is lost.
    pub(crate) fn fail(mut self) {
        self.answer();
    }

    fn answer(&mut self) {
        if let Some(reply) = self.reply.take() {
            let mut state = self.shared.lock();
            state.events.push(Event::SyncFailed { file: self.file, before: self.before });
            drop(state);
            reply.error(Errno::EIO);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.answer();
    }
}

struct State {
    /// By number, from 1; they are never freed, as long as the test runs.
    inodes: Vec<Inode>,
    events: Vec<Event>,
    order: Option<Order>,
    held: Option<Held>,
    zero: Page,
}

struct Shared {
    state: Mutex<State>,
    has_held: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A mounted recorder; unmounted when dropped, at the latest with the test process.
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
    mount: Option<tempfile::TempDir>,
}

impl Recorder {
    /// Mounts an empty one, or one with files that are durable already.
    ///
    /// # Errors
    /// As the system refuses: no FUSE, or not allowed to mount.
    pub(crate) fn mount(image: Option<&states::Image>) -> io::Result<Recorder> {
        let zero: Page = Arc::new([0; PAGE]);
        let mark = FileNode::default();
        let root = BTreeMap::from([(MARK.to_string(), MARK_INODE)]);
        let mut state = State {
            inodes: vec![Inode::Dir(root), Inode::File(mark)],
            events: Vec::new(),
            order: None,
            held: None,
            zero,
        };
        if let Some(image) = image {
            state.load(image);
        }
        let shared = Arc::new(Shared { state: Mutex::new(state), has_held: Condvar::new() });
        let mount = tempfile::tempdir()?;
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("recorder".into()), MountOption::NoAtime];
        let session = fuser::spawn_mount(server::Server { shared: shared.clone() }, mount.path(), &config)?;
        Ok(Recorder { shared, session: Some(session), mount: Some(mount) })
    }

    fn root(&self) -> &Path {
        self.mount.as_ref().expect("mounted until dropped").path()
    }

    /// Where a store may be made.
    pub(crate) fn store(&self) -> PathBuf {
        self.root().join(states::STORE)
    }

    /// Holds the next sync of a file whose path begins so and that has something to sync; `skip` of them pass before.
    pub(crate) fn hold_sync(&self, prefix: &str, skip: usize) {
        self.shared.lock().order = Some(Order { prefix: format!("{}/{prefix}", states::STORE), skip });
    }

    /// Waits for the sync that was to be held.
    pub(crate) fn held(&self, at_most: Duration) -> Option<Held> {
        let end = Instant::now() + at_most;
        let mut state = self.shared.lock();
        loop {
            if let Some(held) = state.held.take() {
                return Some(held);
            }
            let left = end.checked_duration_since(Instant::now())?;
            state = self.shared.has_held.wait_timeout(state, left).unwrap_or_else(|poison| poison.into_inner()).0;
        }
    }

    /// How much has been recorded.
    pub(crate) fn len(&self) -> usize {
        self.shared.lock().events.len()
    }

    /// How many marks begin so, after the position `from`.
    pub(crate) fn marks(&self, from: usize, prefix: &str) -> usize {
        let state = self.shared.lock();
        let is_wanted = |event: &&Event| matches!(event, Event::Mark(said) if said.starts_with(prefix));
        state.events.iter().skip(from).filter(is_wanted).count()
    }

    /// How many syncs of a file whose path begins so have succeeded, after the position `from`.
    pub(crate) fn syncs(&self, from: usize, prefix: &str) -> usize {
        let state = self.shared.lock();
        let prefix = format!("{}/{prefix}", states::STORE);
        let is_wanted = |event: &&Event| match event {
            Event::Synced { file, .. } => state.path_of(*file).is_some_and(|path| path.starts_with(&prefix)),
            _ => false,
        };
        state.events.iter().skip(from).filter(is_wanted).count()
    }

    /// Unmounts, and returns all that was recorded. Nobody uses the store any more.
    pub(crate) fn finish(mut self) -> Vec<Event> {
        self.unmount();
        std::mem::take(&mut self.shared.lock().events)
    }

    fn unmount(&mut self) {
        let held = {
            let mut state = self.shared.lock();
            state.order = None;
            state.held.take()
        };
        // Answered without the lock, which answering takes.
        drop(held);
        let Some(mount) = self.mount.take() else { return };
        let path = std::ffi::CString::new(mount.path().as_os_str().as_encoded_bytes()).expect("no zero byte in a path");
        // By force and lazily: whoever still waits for an answer gets an error, and nobody is kept from ending.
        // SAFETY: a valid path of a mount point that is this test's own.
        #[allow(unsafe_code)]
        let detached = unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
        if detached != 0 {
            eprintln!("unmounting {}: {}", mount.path().display(), io::Error::last_os_error());
        }
        drop(self.session.take());
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.unmount();
    }
}

impl State {
    fn load(&mut self, image: &states::Image) {
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
            self.insert(
                parent,
                name_of(&file.path),
                Inode::File(FileNode { bytes, recorded: true, ..FileNode::default() }),
            );
        }
        // What was loaded is durable from the beginning: the record begins with it.
        let mut events = Vec::new();
        for (index, inode) in self.inodes.iter().enumerate() {
            let number = index as u64 + 1;
            match inode {
                Inode::File(file) if number != MARK_INODE => {
                    let pages = pages_of(&file.bytes, 0, file.bytes.len(), &self.zero);
                    events.push(Event::Write { file: number, first: 0, pages, size: file.bytes.len() as u64 });
                    events.push(Event::Synced { file: number, before: events.len() });
                }
                _ => {}
            }
        }
        self.events.append(&mut events);
        for (index, inode) in self.inodes.iter().enumerate() {
            let Inode::Dir(names) = inode else { continue };
            let dir = index as u64 + 1;
            for (name, inode) in names.iter().filter(|(_, inode)| **inode != MARK_INODE) {
                let is_dir = matches!(self.inodes[*inode as usize - 1], Inode::Dir(_));
                let change = NameChange::Made { name: name.clone(), inode: *inode, is_dir };
                events.push(Event::Name { dir, change });
            }
            events.push(Event::DirSynced { dir, before: usize::MAX });
        }
        self.events.append(&mut events);
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

    fn inode(&self, number: u64) -> Option<&Inode> {
        self.inodes.get(number as usize - 1)
    }

    fn dir(&self, number: u64) -> Option<&BTreeMap<String, u64>> {
        match self.inode(number) {
            Some(Inode::Dir(names)) => Some(names),
            _ => None,
        }
    }

    fn dir_mut(&mut self, number: u64) -> Option<&mut BTreeMap<String, u64>> {
        match self.inodes.get_mut(number as usize - 1) {
            Some(Inode::Dir(names)) => Some(names),
            _ => None,
        }
    }

    fn file_mut(&mut self, number: u64) -> Option<&mut FileNode> {
        match self.inodes.get_mut(number as usize - 1) {
            Some(Inode::File(file)) => Some(file),
            _ => None,
        }
    }

    fn path_of(&self, number: u64) -> Option<String> {
        fn search(state: &State, dir: u64, number: u64, prefix: &str) -> Option<String> {
            state.dir(dir)?.iter().find_map(|(name, inode)| {
                let path = format!("{prefix}{name}");
                if *inode == number { Some(path) } else { search(state, *inode, number, &format!("{path}/")) }
            })
        }
        search(self, ROOT, number, "")
    }

    fn attributes(&self, number: u64) -> Option<FileAttr> {
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

    fn make(&mut self, parent: u64, name: &OsStr, is_dir: bool) -> Result<FileAttr, Errno> {
        let name = name.to_str().ok_or(Errno::EINVAL)?;
        if self.dir(parent).ok_or(Errno::ENOTDIR)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let recorded = !states::is_of_one_boot(name);
        let inode = if is_dir {
            Inode::Dir(BTreeMap::new())
        } else {
            Inode::File(FileNode { recorded, ..FileNode::default() })
        };
        let number = self.insert(parent, name, inode);
        let change = NameChange::Made { name: name.to_string(), inode: number, is_dir };
        self.events.push(Event::Name { dir: parent, change });
        self.attributes(number).ok_or(Errno::EIO)
    }

    fn remove(&mut self, parent: u64, name: &OsStr, is_dir: bool) -> Result<(), Errno> {
        let name = name.to_str().ok_or(Errno::EINVAL)?;
        let number = *self.dir(parent).ok_or(Errno::ENOTDIR)?.get(name).ok_or(Errno::ENOENT)?;
        match (self.inode(number), is_dir) {
            (Some(Inode::Dir(names)), true) if !names.is_empty() => return Err(Errno::ENOTEMPTY),
            (Some(Inode::Dir(_)), false) => return Err(Errno::EISDIR),
            (Some(Inode::File(_)), true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        self.dir_mut(parent).ok_or(Errno::ENOTDIR)?.remove(name);
        self.events.push(Event::Name { dir: parent, change: NameChange::Removed { name: name.to_string() } });
        Ok(())
    }

    fn write(&mut self, number: u64, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let zero = self.zero.clone();
        let file = self.file_mut(number).ok_or(Errno::EBADF)?;
        let (from, to) = (offset as usize, offset as usize + data.len());
        if file.bytes.len() < to {
            file.bytes.resize(to, 0);
        }
        file.bytes[from..to].copy_from_slice(data);
        if file.recorded && !data.is_empty() {
            file.unsynced = true;
            // A page is dirty or not as a whole: also the bytes beside those written go to the disk again.
            let first = from / PAGE;
            let pages = pages_of(&file.bytes, first * PAGE, to, &zero);
            let size = file.bytes.len() as u64;
            self.events.push(Event::Write { file: number, first: first as u64, pages, size });
        }
        Ok(())
    }

    /// Whether this sync is to be held.
    fn is_ordered(&mut self, number: u64) -> bool {
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

/// The pages that hold the bytes `from .. to`, the last one padded with zeros.
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
