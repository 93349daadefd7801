//! The channels that transfer a record to another process, behind one trait.
//!
//! A record is a number of words of 64 bits in the sender's own memory. It is transferred when the
//! receiver has read each of its words once. Both sides know its length. Each side sends its next
//! record only after the previous one was transferred.
//!
//! A channel transfers records in both directions by the same means. Its two ends find each other
//! by file names in a directory.

pub(crate) mod event_count;
pub(crate) mod memory;
mod messages;
mod sealed;
mod shared;
mod store;

use super::digest::Digest;
use std::io;
use std::path::Path;

/// The longest record, in words: 16 MiB.
pub(crate) const WORDS_MAX: usize = 16 << 17;

/// One end of a channel.
pub(crate) trait Channel {
    /// Sends a record.
    fn send(&mut self, record: &[u64]) -> io::Result<()>;
    /// Receives a record of this many words.
    fn receive(&mut self, words: usize) -> io::Result<Received>;
    /// Returns the system calls made at this end so far. Those of the library are not counted.
    fn calls(&self) -> Calls;
}

/// A received record: its first words, and a digest of all of them.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Received {
    pub(crate) head: [u64; 3],
    pub(crate) digest: Digest,
}

impl Received {
    fn of(record: &[u64]) -> Received {
        let mut head = [0; 3];
        let known = record.len().min(3);
        head[..known].copy_from_slice(&record[..known]);
        Received { head, digest: Digest::of(record) }
    }
}

/// Counts of system calls.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Calls {
    pub(crate) sending: u64,
    pub(crate) receiving: u64,
}

/// The end of a channel: `First` belongs to the process that starts the other process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    First,
    Second,
}

/// The kind of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Kind {
    Pipe,
    Stream,
    Seqpacket,
    SealedRead,
    SealedMapped,
    Kept,
    Ring,
    Arena,
    ArenaSpin,
    StoreFeed,
    StoreSpin,
}

/// The family of a channel in the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    /// The kernel copies each byte twice.
    Message,
    /// Each byte is transferred from cache to cache.
    Shared,
    /// The sender fills a buffer and sends a message that says so.
    Buffer,
    /// The store, with all its other work.
    Store,
}

impl Kind {
    pub(crate) const ALL: [Kind; 11] = [
        Kind::Pipe,
        Kind::Stream,
        Kind::Seqpacket,
        Kind::SealedRead,
        Kind::SealedMapped,
        Kind::Kept,
        Kind::Ring,
        Kind::Arena,
        Kind::ArenaSpin,
        Kind::StoreFeed,
        Kind::StoreSpin,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Pipe => "pipe",
            Kind::Stream => "stream",
            Kind::Seqpacket => "seqpacket",
            Kind::SealedRead => "memfd-read",
            Kind::SealedMapped => "memfd-mapped",
            Kind::Kept => "kept-buffer",
            Kind::Ring => "ring",
            Kind::Arena => "arena",
            Kind::ArenaSpin => "arena-spin",
            Kind::StoreFeed => "store-feed",
            Kind::StoreSpin => "store-spin",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Describes the kind.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Kind::Pipe => "a pipe of 64 KiB",
            Kind::Stream => "a Unix stream socket",
            Kind::Seqpacket => "a Unix seqpacket socket, up to 64 KiB a packet",
            Kind::SealedRead => "a sealed memfd for each record, its descriptor by a stream socket; read into a buffer",
            Kind::SealedMapped => "the same, mapped by the receiver and read in place",
            Kind::Kept => "one shared buffer for all records, a message for each; copied out before it is looked at",
            Kind::Ring => "a shared ring of 256 KiB, copied in and out; a futex where one has to wait",
            Kind::Arena => "written into a shared arena, a pointer swung; read in place; a futex where one has to wait",
            Kind::ArenaSpin => "the same, without sleeping: the waiter polls all the time",
            Kind::StoreFeed => "untorn: a visible put here, a follower of visible changes there; by way of the logger",
            Kind::StoreSpin => "untorn: a visible put here, snapshots there until the new version shows",
        }
    }

    pub(crate) fn family(self) -> Family {
        match self {
            Kind::Pipe | Kind::Stream | Kind::Seqpacket => Family::Message,
            Kind::Ring | Kind::Arena | Kind::ArenaSpin => Family::Shared,
            Kind::SealedRead | Kind::SealedMapped | Kind::Kept => Family::Buffer,
            Kind::StoreFeed | Kind::StoreSpin => Family::Store,
        }
    }

    /// Returns how often each byte is copied between the sender's memory and the place where the
    /// receiver reads it. The number follows from the code; it is not measured.
    ///
    /// The store copies each byte into the log's buffer, into the ring and into the page. A
    /// follower also copies it out of the ring. The logger's write to the log does not count,
    /// because it is asynchronous.
    pub(crate) fn copies(self) -> u32 {
        match self {
            Kind::Arena | Kind::ArenaSpin | Kind::SealedMapped => 1,
            Kind::Pipe | Kind::Stream | Kind::Seqpacket | Kind::Ring | Kind::SealedRead | Kind::Kept => 2,
            Kind::StoreSpin => 3,
            Kind::StoreFeed => 4,
        }
    }

    /// Returns whether [`Channel::calls`] counts all system calls.
    pub(crate) fn counts_all_calls(self) -> bool {
        self.family() != Family::Store
    }

    /// Opens one end. The first end creates the files or sockets that the second opens. Each end
    /// waits for the other.
    pub(crate) fn open(self, dir: &Path, end: End) -> io::Result<Box<dyn Channel>> {
        Ok(match self {
            Kind::Pipe => Box::new(messages::Messages::pipe(dir, end)?),
            Kind::Stream => Box::new(messages::Messages::stream(dir, end)?),
            Kind::Seqpacket => Box::new(messages::Messages::seqpacket(dir, end)?),
            Kind::SealedRead => Box::new(sealed::Sealed::open(dir, end, false)?),
            Kind::SealedMapped => Box::new(sealed::Sealed::open(dir, end, true)?),
            Kind::Kept => Box::new(sealed::Kept::open(dir, end)?),
            Kind::Ring => Box::new(shared::Ring::open(dir, end)?),
            Kind::Arena => Box::new(shared::Arena::open(dir, end, event_count::Wait::Futex)?),
            Kind::ArenaSpin => Box::new(shared::Arena::open(dir, end, event_count::Wait::Spin)?),
            Kind::StoreFeed => Box::new(store::Followed::open(dir, end)?),
            Kind::StoreSpin => Box::new(store::Watched::open(dir, end)?),
        })
    }

    /// Creates the files that must exist before the second process starts.
    pub(crate) fn prepare(self, dir: &Path) -> io::Result<()> {
        match self {
            Kind::Pipe => messages::make_pipes(dir),
            Kind::Kept => shared::make(dir, sealed::Kept::WORDS),
            Kind::Ring => shared::make(dir, shared::Ring::WORDS),
            Kind::Arena | Kind::ArenaSpin => shared::make(dir, shared::Arena::WORDS),
            Kind::StoreFeed | Kind::StoreSpin => store::make(dir),
            // The two ends create these sockets when they connect.
            Kind::Stream | Kind::Seqpacket | Kind::SealedRead | Kind::SealedMapped => Ok(()),
        }
    }
}
