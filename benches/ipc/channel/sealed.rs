//! Buffers that are transferred with a message.
//!
//! With one buffer for each record, the sender fills a memfd, seals it so that no process can
//! change or truncate it, and sends its descriptor. The receiver checks the memfd's seals and size
//! before the first access, as it must with an untrusted peer. Then the receiver reads the memfd
//! into a buffer, or maps it.
//!
//! With one buffer for all records, the sender can write to the buffer at any time. So the receiver
//! examines only a copy, which the sender can't change.

use super::memory::Memory;
use super::messages::connected;
use super::shared::map;
use super::{Calls, Channel, End, Received, WORDS_MAX};
use bytemuck::{cast_slice, cast_slice_mut};
use rustix::fs::{self, MemfdFlags, SealFlags};
use rustix::net::{
    self, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketType,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

pub(super) struct Sealed {
    socket: OwnedFd,
    is_mapped: bool,
    buffer: Vec<u64>,
    calls: Calls,
}

impl Sealed {
    pub(super) fn open(dir: &Path, end: End, is_mapped: bool) -> io::Result<Sealed> {
        let socket = connected(dir, end, SocketType::STREAM)?;
        Ok(Sealed { socket, is_mapped, buffer: vec![1; WORDS_MAX], calls: Calls::default() })
    }
}

impl Channel for Sealed {
    fn send(&mut self, record: &[u64]) -> io::Result<()> {
        let file = fs::memfd_create("record", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut bytes: &[u8] = cast_slice(record);
        while !bytes.is_empty() {
            let count = rustix::io::write(&file, bytes)?;
            bytes = &bytes[count..];
            self.calls.sending += 1;
        }
        fs::fcntl_add_seals(&file, SEALS)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = [file.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&files));
        let length = record.len().to_le_bytes();
        net::sendmsg(&self.socket, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)?;
        // The four calls create, seal, send and close the memfd.
        self.calls.sending += 4;
        Ok(())
    }

    fn receive(&mut self, words: usize) -> io::Result<Received> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut length = [0; 8];
        let flags = RecvFlags::CMSG_CLOEXEC;
        net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut length)], &mut control, flags)?;
        let file = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let file = file.ok_or_else(|| io::Error::other("a message without its descriptor"))?;
        let seals = fs::fcntl_get_seals(&file)?;
        let size = fs::fstat(&file)?.st_size as usize;
        if !seals.contains(SEALS) || size != words * 8 {
            return Err(io::Error::other("a descriptor of something else"));
        }
        // The four calls receive the memfd, get its seals, get its size and close it.
        self.calls.receiving += 4;
        if self.is_mapped {
            let mapped = Memory::map(&file, words, false)?;
            let mut head = [0; 3];
            mapped.copy_out(0, &mut head[..words.min(3)]);
            self.calls.receiving += 2;
            return Ok(Received { head, digest: mapped.digest(0, words) });
        }
        let bytes: &mut [u8] = cast_slice_mut(&mut self.buffer[..words]);
        let mut filled = 0;
        while filled < bytes.len() {
            filled += rustix::io::pread(&file, &mut bytes[filled..], filled as u64)?;
            self.calls.receiving += 1;
        }
        Ok(Received::of(&self.buffer[..words]))
    }

    fn calls(&self) -> Calls {
        self.calls
    }
}

/// One buffer for all records of a direction.
pub(super) struct Kept {
    socket: OwnedFd,
    memory: Memory,
    outgoing: usize,
    incoming: usize,
    buffer: Vec<u64>,
    calls: Calls,
}

impl Kept {
    pub(super) const WORDS: usize = 2 * WORDS_MAX;

    pub(super) fn open(dir: &Path, end: End) -> io::Result<Kept> {
        let memory = map(dir, Kept::WORDS)?;
        let socket = connected(dir, end, SocketType::STREAM)?;
        let [outgoing, incoming] = if end == End::First { [0, WORDS_MAX] } else { [WORDS_MAX, 0] };
        Ok(Kept { socket, memory, outgoing, incoming, buffer: vec![1; WORDS_MAX], calls: Calls::default() })
    }
}

impl Channel for Kept {
    fn send(&mut self, record: &[u64]) -> io::Result<()> {
        self.memory.copy_in(self.outgoing, record);
        net::send(&self.socket, &record.len().to_le_bytes(), SendFlags::NOSIGNAL)?;
        self.calls.sending += 1;
        Ok(())
    }

    fn receive(&mut self, words: usize) -> io::Result<Received> {
        let mut length = [0; 8];
        let count = net::recv(&self.socket, &mut length[..], RecvFlags::WAITALL)?.0;
        self.calls.receiving += 1;
        if count < length.len() || usize::from_le_bytes(length) != words {
            return Err(io::Error::other("a message about another record"));
        }
        self.memory.copy_out(self.incoming, &mut self.buffer[..words]);
        Ok(Received::of(&self.buffer[..words]))
    }

    fn calls(&self) -> Calls {
        self.calls
    }
}
