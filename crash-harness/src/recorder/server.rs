//! The recorder's interface to the kernel: it answers each request from memory and adds it to the
//! record.

use super::event::Event;
use super::tree::{Inode, MARK_INODE};
use super::{FOR_EVER, Held, Shared};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

pub(super) struct Server {
    pub(super) shared: Arc<Shared>,
}

impl Server {
    fn entry(&self, made: Result<FileAttr, Errno>, reply: ReplyEntry) {
        match made {
            Ok(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn done(&self, done: Result<(), Errno>, reply: ReplyEmpty) {
        match done {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.shared.lock();
        let found = name.to_str().and_then(|name| state.dir(parent.0)?.get(name)).copied();
        let attributes = found.and_then(|number| state.attributes(number)).ok_or(Errno::ENOENT);
        self.entry(attributes, reply);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.shared.lock().attributes(inode.0) {
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.shared.lock();
        if let Some(size) = size
            && let Some(file) = state.file_mut(inode.0)
        {
            if file.bytes.is_empty() {
                // Fresh zeroed memory, whose pages are not allocated until they are used.
                file.bytes = vec![0; size as usize];
            } else {
                file.bytes.resize(size as usize, 0);
            }
            if file.recorded {
                file.unsynced = true;
                state.note(Event::Resized { file: inode.0, size });
            }
        }
        match state.attributes(inode.0) {
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        let mut state = self.shared.lock();
        let mut made = state.make(parent.0, name, false);
        if let (Ok(attributes), libc::S_IFSOCK) = (&made, mode & libc::S_IFMT) {
            let number = attributes.ino.0;
            state.file_mut(number).expect("made just now").is_socket = true;
            made = state.attributes(number).ok_or(Errno::EIO);
        }
        drop(state);
        self.entry(made, reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.shared.lock().make(parent.0, name, true);
        self.entry(made, reply);
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        match self.shared.lock().make(parent.0, name, false) {
            Ok(attributes) => {
                let flags = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&FOR_EVER, &attributes, Generation(0), FileHandle(0), flags);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.shared.lock().remove(parent.0, name, false);
        self.done(done, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.shared.lock().remove(parent.0, name, true);
        self.done(done, reply);
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
        let renamed = match () {
            () if parent != new_parent => Err(Errno::EXDEV),
            () if !flags.is_empty() => Err(Errno::EINVAL),
            () => self.shared.lock().rename(parent.0, name, new_name),
        };
        self.done(renamed, reply);
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Marks bypass the page cache. Other files keep their cached pages, even dirty ones, from
        // one open to the next.
        let is_mark = inode.0 == MARK_INODE;
        let flags = if is_mark { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::FOPEN_KEEP_CACHE };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.shared.lock().file_mut(inode.0) {
            Some(file) => {
                let from = (offset as usize).min(file.bytes.len());
                let to = (from + size as usize).min(file.bytes.len());
                reply.data(&file.bytes[from..to]);
            }
            None => reply.error(Errno::EISDIR),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.shared.lock();
        let written = if inode.0 == MARK_INODE {
            let said = String::from_utf8_lossy(data).trim_end().to_string();
            state.note(Event::Mark(said));
            Ok(())
        } else {
            // The flag marks a write by the page cache. The page cache is write-through, so it
            // sends only pages that were changed through a mapping.
            state.write(inode.0, offset, data, flags.contains(WriteFlags::FUSE_WRITE_CACHE))
        };
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, request: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.shared.lock();
        let before = state.events.len();
        if state.is_ordered(inode.0) {
            let (shared, thread) = (self.shared.clone(), request.pid());
            state.held = Some(Held { shared, file: inode.0, before, thread, reply: Some(reply) });
            self.shared.has_held.notify_all();
            return;
        }
        if let Some(file) = state.file_mut(inode.0)
            && file.recorded
        {
            file.unsynced = false;
            if let Some(slow) = self.shared.slow.get() {
                return slow.answer_later(inode.0, before, reply);
            }
            state.note(Event::Synced { file: inode.0, before });
        }
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.shared.lock();
        let before = state.events.len();
        state.note(Event::DirSynced { dir: inode.0, before });
        reply.ok();
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = self.shared.lock();
        let Some(names) = state.dir(inode.0) else { return reply.error(Errno::ENOTDIR) };
        for (index, (name, number)) in names.iter().enumerate().skip(offset as usize) {
            let is_dir = matches!(state.inode(*number), Some(Inode::Dir(_)));
            let kind = if is_dir { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(*number), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // This answer makes the kernel send no more requests at a close.
        reply.error(Errno::ENOSYS);
    }
}
