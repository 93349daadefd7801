//! A pair of processes that transfer records to each other, in phases.
//!
//! The second process runs this executable as well, and recognises its role by an environment
//! variable. Through a separate socket, it receives an order for each phase: the length of the
//! records, their number, and the task.

use super::channel::{Calls, Channel, End, Kind, Received};
use super::clock::now_ns;
use super::digest::Digest;
use super::machine;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};

const ROLE: &str = "UNTORN_BENCH_IPC_SECOND";
/// The words of a reply: the time at which the record had arrived, the system calls to receive it,
/// and its digest.
const ANSWER_WORDS: usize = 3;

/// The task of the second process in a phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
enum Task {
    /// Replies to each record with the time of its arrival.
    Answer = 1,
    /// Sends a record of the same length back.
    Echo = 2,
    /// Replies once, after all records.
    Swallow = 3,
}

/// One phase's times, in nanoseconds, and the system calls of both processes per transfer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phase {
    pub(crate) times: Vec<f64>,
    pub(crate) calls: f64,
}

/// The first process's side of a pair; dropping it ends the second.
pub(crate) struct Pair {
    channel: Box<dyn Channel>,
    control: UnixStream,
    child: Child,
    dir: tempfile::TempDir,
    kind: Kind,
}

impl Pair {
    /// Starts the second process. It must call [`consume_if_asked`] before anything else.
    pub(crate) fn start(kind: Kind, is_pinned: bool, mut command: Command) -> io::Result<Pair> {
        // The channels' files are in memory, so that no page is written back to a disk. The store
        // is on a disk.
        let in_memory = Path::new("/dev/shm");
        let dir = match kind {
            Kind::StoreFeed | Kind::StoreSpin => tempfile::tempdir()?,
            _ if in_memory.is_dir() => tempfile::tempdir_in(in_memory)?,
            _ => tempfile::tempdir()?,
        };
        kind.prepare(dir.path())?;
        let listener = UnixListener::bind(dir.path().join("control"))?;
        let pinned = if is_pinned { "pinned" } else { "free" };
        let role = format!("{}\n{pinned}\n{}", kind.name(), dir.path().display());
        let child = command.env(ROLE, role).spawn()?;
        let (control, _) = listener.accept()?;
        let channel = kind.open(dir.path(), End::First)?;
        let mut pair = Pair { channel, control, child, dir, kind };
        // The second process has opened its end.
        pair.control.read_exact(&mut [0])?;
        Ok(pair)
    }

    fn begin(&mut self, task: Task, words: usize, rounds: usize) -> io::Result<()> {
        let order = [task as u64, words as u64, rounds as u64];
        self.control.write_all(bytemuck::cast_slice(&order))?;
        self.control.read_exact(&mut [0])
    }

    /// Returns the times from before a record is sent until the other side has read it.
    pub(crate) fn one_way(&mut self, words: usize, rounds: usize) -> io::Result<Phase> {
        self.begin(Task::Answer, words, rounds)?;
        let mut record = pattern(words);
        let blank = blank_digest(&mut record);
        let mut times = Vec::with_capacity(rounds);
        let (before, mut received) = (self.channel.calls().sending, 0);
        for _ in 0..rounds {
            let start = now_ns();
            record[0] = start;
            self.channel.send(&record)?;
            let answer = self.channel.receive(ANSWER_WORDS)?;
            let [end, calls, digest] = answer.head;
            expect(digest, blank.with_first_raised(start, words))?;
            times.push(end.saturating_sub(start) as f64);
            received = calls;
        }
        let sent = self.channel.calls().sending - before;
        Ok(Phase { times, calls: (sent + received) as f64 / rounds as f64 })
    }

    /// Returns the times until a record of the same length has come back and been read.
    pub(crate) fn round_trip(&mut self, words: usize, rounds: usize) -> io::Result<Phase> {
        self.begin(Task::Echo, words, rounds)?;
        let mut record = pattern(words);
        let blank = blank_digest(&mut record);
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let start = now_ns();
            record[0] = start;
            self.channel.send(&record)?;
            let echo = self.channel.receive(words)?;
            times.push((now_ns() - start) as f64);
            let sent = blank.with_first_raised(start, words);
            expect(echo.head[0], sent)?;
            expect(echo.digest.folded(), blank.with_first_raised(sent.folded(), words))?;
        }
        Ok(Phase { times, calls: 0.0 })
    }

    /// Returns the time for `rounds` successive messages, in nanoseconds. The sender builds each
    /// message from records of `record_words`; it reuses no earlier message.
    pub(crate) fn stream(&mut self, words: usize, rounds: usize, record_words: usize) -> io::Result<f64> {
        self.begin(Task::Swallow, words, rounds)?;
        let mut message = vec![0; words];
        let mut all = 0_u64;
        let mut number = 0_u64;
        let start = now_ns();
        for _ in 0..rounds {
            let mut digest = Digest::default();
            for record in message.chunks_mut(record_words) {
                for word in record {
                    number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    *word = number;
                    digest.add(number);
                }
            }
            self.channel.send(&message)?;
            all = all.rotate_left(1) ^ digest.folded();
        }
        let answer = self.channel.receive(ANSWER_WORDS)?;
        let [end, _, digest] = answer.head;
        if digest != all {
            return Err(io::Error::other("not all bytes of the messages arrived as they were sent"));
        }
        Ok((end - start) as f64)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // The second process ends when there are no more orders.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
        if matches!(self.kind, Kind::StoreFeed | Kind::StoreSpin) {
            let store = self.dir.path().join("store");
            // The channel still counts as a client of the store, but the logger exits anyway.
            let _ = untorn::logger::stop_logger(store, std::time::Duration::from_secs(20));
        }
    }
}

fn pattern(words: usize) -> Vec<u64> {
    (0..words as u64).map(|index| index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
}

/// Returns the digest of a record whose first word is 0.
fn blank_digest(record: &mut [u64]) -> Digest {
    record[0] = 0;
    Digest::of(record)
}

fn expect(found: u64, digest: Digest) -> io::Result<()> {
    if found == digest.folded() {
        return Ok(());
    }
    Err(io::Error::other("not all bytes of a record arrived as they were sent"))
}

/// Runs the second process of a pair, if this process was started as one. Returns whether it was.
pub(crate) fn consume_if_asked() -> io::Result<bool> {
    let Ok(role) = std::env::var(ROLE) else { return Ok(false) };
    let mut words = role.splitn(3, '\n');
    let [kind, pinned, dir] = [(); 3].map(|()| words.next().unwrap_or_default());
    let kind = Kind::from_name(kind).ok_or_else(|| io::Error::other("an unknown way of handing over"))?;
    if pinned == "pinned" {
        machine::pin(1);
    }
    let mut control = UnixStream::connect(Path::new(dir).join("control"))?;
    let mut channel = kind.open(Path::new(dir), End::Second)?;
    control.write_all(&[1])?;
    let mut order = [0_u64; 3];
    while control.read_exact(bytemuck::cast_slice_mut(&mut order)).is_ok() {
        let [task, words, rounds] = order;
        control.write_all(&[1])?;
        serve(&mut *channel, task, words as usize, rounds)?;
    }
    Ok(true)
}

fn serve(channel: &mut dyn Channel, task: u64, words: usize, rounds: u64) -> io::Result<()> {
    let before = channel.calls();
    let answer = |channel: &mut dyn Channel, digest| {
        let Calls { receiving, .. } = channel.calls();
        channel.send(&[now_ns(), receiving - before.receiving, digest])
    };
    let mut echo = pattern(if task == Task::Echo as u64 { words } else { 0 });
    let mut all = 0_u64;
    for _ in 0..rounds {
        let Received { digest, .. } = channel.receive(words)?;
        if task == Task::Answer as u64 {
            answer(channel, digest.folded())?;
        } else if task == Task::Echo as u64 {
            echo[0] = digest.folded();
            channel.send(&echo)?;
        } else {
            all = all.rotate_left(1) ^ digest.folded();
        }
    }
    if task == Task::Swallow as u64 {
        answer(channel, all)?;
    }
    Ok(())
}
