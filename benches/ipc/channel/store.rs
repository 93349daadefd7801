//! The store itself: a value put in one process and read in the other.
//!
//! The measurement includes all work of the store: the writer lock, the copies of the pages on the
//! path to the key, the log record and its checksum. For a follower it also includes the logger's
//! flush thread: the commit wakes that thread, which wakes the follower.

use super::{Calls, Channel, End, Received};
use bytemuck::cast_slice;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use untorn::{Changes, Durability, Feed, FlushPolicy, Keyspace, Store, TxnId};

const KEYSPACES: [&str; 2] = ["to-second", "to-first"];
const KEY: &[u8] = b"record";

fn store_path(dir: &Path) -> PathBuf {
    dir.join("store")
}

fn open(dir: &Path) -> io::Result<Store> {
    let mut options = Store::options();
    options.durability(Durability::Visible).flush_policy(FlushPolicy::OnCommit);
    options.open(store_path(dir)).map_err(io::Error::other)
}

/// Makes the store, with the keys that the two processes use.
pub(super) fn make(dir: &Path) -> io::Result<()> {
    let store = open(dir)?;
    for name in KEYSPACES {
        store.keyspace(name).and_then(|keys| keys.put(KEY, &[])).map_err(io::Error::other)?;
    }
    store.sync().map_err(io::Error::other)
}

/// Returns the outgoing and the incoming key.
fn names(end: End) -> [&'static str; 2] {
    if end == End::First { KEYSPACES } else { [KEYSPACES[1], KEYSPACES[0]] }
}

fn received(value: &[u8], words: usize) -> io::Result<Received> {
    if value.len() != words * 8 {
        return Err(io::Error::other(format!("a value of {} bytes in place of {}", value.len(), words * 8)));
    }
    // A value may be at any offset in its page.
    match bytemuck::try_cast_slice(value) {
        Ok(record) => Ok(Received::of(record)),
        Err(_) => {
            let mut received = Received::default();
            for (index, word) in value.chunks_exact(8).enumerate() {
                let word = u64::from_ne_bytes(word.try_into().expect("8 bytes"));
                received.digest.add(word);
                if let Some(head) = received.head.get_mut(index) {
                    *head = word;
                }
            }
            Ok(received)
        }
    }
}

/// A reader of a feed of visible changes.
pub(super) struct Followed {
    outgoing: Keyspace,
    feed: Changes,
}

impl Followed {
    pub(super) fn open(dir: &Path, end: End) -> io::Result<Followed> {
        let store = open(dir)?;
        let [outgoing, incoming] = names(end);
        let outgoing = store.keyspace(outgoing).map_err(io::Error::other)?;
        let now = store.stats().map_err(io::Error::other)?.committed;
        let feed = store.changes(now, Feed::Visible).map_err(io::Error::other)?.keyspace(incoming);
        Ok(Followed { outgoing, feed })
    }
}

impl Channel for Followed {
    fn send(&mut self, record: &[u64]) -> io::Result<()> {
        self.outgoing.put(KEY, cast_slice(record)).map(drop).map_err(io::Error::other)
    }

    fn receive(&mut self, words: usize) -> io::Result<Received> {
        let change = self.feed.try_next(Duration::from_secs(60)).map_err(io::Error::other)?;
        let change = change.ok_or(io::ErrorKind::TimedOut)?;
        received(change.value().unwrap_or_default(), words)
    }

    fn calls(&self) -> Calls {
        Calls::default()
    }
}

/// A reader that polls the key until its version changes.
pub(super) struct Watched {
    outgoing: Keyspace,
    incoming: Keyspace,
    seen: TxnId,
}

impl Watched {
    pub(super) fn open(dir: &Path, end: End) -> io::Result<Watched> {
        let store = open(dir)?;
        let [outgoing, incoming] = names(end).map(|name| store.keyspace(name).map_err(io::Error::other));
        let (outgoing, incoming) = (outgoing?, incoming?);
        let found = incoming.get_versioned(KEY).map_err(io::Error::other)?;
        let (_, seen) = found.ok_or_else(|| io::Error::other("the store lacks the key"))?;
        Ok(Watched { outgoing, incoming, seen })
    }
}

impl Channel for Watched {
    fn send(&mut self, record: &[u64]) -> io::Result<()> {
        self.outgoing.put(KEY, cast_slice(record)).map(drop).map_err(io::Error::other)
    }

    fn receive(&mut self, words: usize) -> io::Result<Received> {
        for look in 1_u32.. {
            let found = self.incoming.get_versioned(KEY).map_err(io::Error::other)?;
            if let Some((value, version)) = found
                && version != self.seen
            {
                self.seen = version;
                return received(&value, words);
            }
            if look.is_multiple_of(1000) {
                std::thread::yield_now();
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn calls(&self) -> Calls {
        Calls::default()
    }
}
