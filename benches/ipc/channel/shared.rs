//! Shared memory without a store: a ring through which records are copied, and an arena in which
//! each record is written once and found by a pointer.

use super::super::digest::Digest;
use super::event_count::{self, Wait};
use super::memory::Memory;
use super::{Calls, Channel, End, Received, WORDS_MAX};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Makes the file that both processes map.
pub(super) fn make(dir: &Path, words: usize) -> io::Result<()> {
    let file = File::create_new(dir.join("memory"))?;
    file.set_len(words as u64 * 8)?;
    // Every page is written once here, and `map` reads it once in each process. So the measurement
    // includes no page faults.
    let memory = map(dir, words)?;
    memory.words().iter().step_by(512).for_each(|word| word.store(0, Ordering::Relaxed));
    Ok(())
}

/// Maps the file, and touches all of it.
pub(super) fn map(dir: &Path, words: usize) -> io::Result<Memory> {
    let file = OpenOptions::new().read(true).write(true).open(dir.join("memory"))?;
    let memory = Memory::map(&file, words, true)?;
    memory.digest(0, words);
    Ok(memory)
}

/// One direction of a ring, as indices into the memory. Positions count words and only grow.
#[derive(Clone, Copy)]
struct Lane {
    tail: usize,
    head: usize,
    filled: usize,
    emptied: usize,
    data: usize,
}

impl Lane {
    const DATA_WORDS: usize = 256 << 7;
    const WORDS: usize = 16 + 2 * event_count::WORDS + Lane::DATA_WORDS;

    /// Each position has a cache line of its own.
    const fn at(start: usize) -> Lane {
        let events = start + 16;
        Lane {
            tail: start,
            head: start + 8,
            filled: events,
            emptied: events + event_count::WORDS,
            data: events + 2 * event_count::WORDS,
        }
    }
}

/// Two rings, one for each direction.
pub(super) struct Ring {
    memory: Memory,
    outgoing: Lane,
    incoming: Lane,
    buffer: Vec<u64>,
    calls: Calls,
}

impl Ring {
    pub(super) const WORDS: usize = 2 * Lane::WORDS;
    /// The number of words that are copied between two publications. The receiver reads one piece
    /// while the sender copies the next.
    const PIECE_WORDS: usize = Lane::DATA_WORDS / 4;

    pub(super) fn open(dir: &Path, end: End) -> io::Result<Ring> {
        let memory = map(dir, Ring::WORDS)?;
        let lanes = [Lane::at(0), Lane::at(Lane::WORDS)];
        let [outgoing, incoming] = if end == End::First { lanes } else { [lanes[1], lanes[0]] };
        Ok(Ring { memory, outgoing, incoming, buffer: vec![1; WORDS_MAX], calls: Calls::default() })
    }
}

impl Channel for Ring {
    fn send(&mut self, record: &[u64]) -> io::Result<()> {
        let (memory, lane) = (&self.memory, self.outgoing);
        let mut rest = record;
        let mut tail = memory.words()[lane.tail].load(Ordering::Relaxed);
        while !rest.is_empty() {
            let taken = || (tail - memory.words()[lane.head].load(Ordering::Acquire)) as usize;
            let free = || Lane::DATA_WORDS - taken();
            self.calls.sending += event_count::wait(memory, lane.emptied, Wait::Futex, || free() > 0);
            let at = tail as usize % Lane::DATA_WORDS;
            let count = rest.len().min(free()).min(Ring::PIECE_WORDS).min(Lane::DATA_WORDS - at);
            memory.copy_in(lane.data + at, &rest[..count]);
            tail += count as u64;
            memory.words()[lane.tail].store(tail, Ordering::Release);
            self.calls.sending += event_count::notify(memory, lane.filled);
            rest = &rest[count..];
        }
        Ok(())
    }

    fn receive(&mut self, words: usize) -> io::Result<Received> {
        let (memory, lane) = (&self.memory, self.incoming);
        let mut filled = 0;
        let mut head = memory.words()[lane.head].load(Ordering::Relaxed);
        while filled < words {
            let there = || (memory.words()[lane.tail].load(Ordering::Acquire) - head) as usize;
            self.calls.receiving += event_count::wait(memory, lane.filled, Wait::Futex, || there() > 0);
            let at = head as usize % Lane::DATA_WORDS;
            let count = (words - filled).min(there()).min(Ring::PIECE_WORDS).min(Lane::DATA_WORDS - at);
            memory.copy_out(lane.data + at, &mut self.buffer[filled..filled + count]);
            head += count as u64;
            memory.words()[lane.head].store(head, Ordering::Release);
            self.calls.receiving += event_count::notify(memory, lane.emptied);
            filled += count;
        }
        Ok(Received::of(&self.buffer[..words]))
    }

    fn calls(&self) -> Calls {
        self.calls
    }
}

/// One direction of the arena: a word with the number of records so far, and space for the newest
/// two.
#[derive(Clone, Copy)]
struct Side {
    published: usize,
    event: usize,
    data: usize,
}

impl Side {
    const WORDS: usize = 16 + event_count::WORDS + 2 * WORDS_MAX;

    const fn at(start: usize) -> Side {
        Side { published: start, event: start + 16, data: start + 16 + event_count::WORDS }
    }

    /// Returns the space of a record. Records alternate between the two spaces, because the
    /// receiver may still read the previous record.
    fn word_of(self, number: u64) -> usize {
        self.data + (number % 2) as usize * WORDS_MAX
    }
}

/// A minimal copy-on-write arena.
pub(super) struct Arena {
    memory: Memory,
    how: Wait,
    outgoing: Side,
    incoming: Side,
    sent: u64,
    received: u64,
    calls: Calls,
}

impl Arena {
    pub(super) const WORDS: usize = 2 * Side::WORDS;

    pub(super) fn open(dir: &Path, end: End, how: Wait) -> io::Result<Arena> {
        let memory = map(dir, Arena::WORDS)?;
        let sides = [Side::at(0), Side::at(Side::WORDS)];
        let [outgoing, incoming] = if end == End::First { sides } else { [sides[1], sides[0]] };
        Ok(Arena { memory, how, outgoing, incoming, sent: 0, received: 0, calls: Calls::default() })
    }
}

impl Channel for Arena {
    fn send(&mut self, record: &[u64]) -> io::Result<()> {
        self.sent += 1;
        self.memory.copy_in(self.outgoing.word_of(self.sent), record);
        self.memory.words()[self.outgoing.published].store(self.sent, Ordering::Release);
        if self.how == Wait::Futex {
            self.calls.sending += event_count::notify(&self.memory, self.outgoing.event);
        }
        Ok(())
    }

    fn receive(&mut self, words: usize) -> io::Result<Received> {
        self.received += 1;
        let (memory, side, number) = (&self.memory, self.incoming, self.received);
        let is_there = || memory.words()[side.published].load(Ordering::Acquire) >= number;
        self.calls.receiving += event_count::wait(memory, side.event, self.how, is_there);
        let mut head = [0; 3];
        memory.copy_out(side.word_of(number), &mut head[..words.min(3)]);
        let digest: Digest = memory.digest(side.word_of(number), words);
        Ok(Received { head, digest })
    }

    fn calls(&self) -> Calls {
        self.calls
    }
}
