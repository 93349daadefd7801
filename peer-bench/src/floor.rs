//! Floors: what the machine allows, measured in the same run as the stores.

use crate::process::ROLE;
use crate::processors;
use crate::store::{Error, Result};
use crate::workload::Unit;
use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::futex;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Name of the pseudo-store.
pub(crate) const NAME: &str = "floor";

/// A property of the machine.
pub(crate) struct Floor {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    measure: fn(&Path, Duration) -> Result<f64>,
}

impl Floor {
    /// Returns whether the machine has what the floor needs.
    pub(crate) fn is_possible(&self) -> bool {
        self.name != TWO_CPUS || processors::allowed().len() > 1
    }
}

const TWO_CPUS: &str = "floor-futex-two-cpus";

pub(crate) const FLOORS: &[Floor] = &[
    Floor { name: "floor-fdatasync-4k", unit: Unit::OperationsPerSecond, measure: fdatasync },
    Floor { name: "floor-direct-dsync-4k", unit: Unit::OperationsPerSecond, measure: direct_dsync },
    Floor { name: "floor-cache-miss-256m", unit: Unit::Nanoseconds, measure: cache_miss },
    Floor { name: "floor-memcpy", unit: Unit::GigabytesPerSecond, measure: memcpy },
    Floor { name: "floor-futex-same-cpu", unit: Unit::Nanoseconds, measure: futex_same_processor },
    Floor { name: TWO_CPUS, unit: Unit::Nanoseconds, measure: futex_two_processors },
];

/// Measures a floor in a separate process, so that its memory is freed afterwards.
pub(crate) fn measure_in_process(floor: &Floor, dir: &Path, duration: Duration) -> Result<f64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([ROLE, "floor", floor.name]).arg(dir).arg(duration.as_micros().to_string());
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("the process ended with {}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// Runs as the process that measures one floor, and prints it.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [name, dir, micros] = arguments else { return Err("wrong number of arguments".into()) };
    let floor = FLOORS.iter().find(|floor| floor.name == name).ok_or("unknown floor")?;
    processors::pin(0)?;
    println!("{}", (floor.measure)(Path::new(dir), Duration::from_micros(micros.parse()?))?);
    Ok(())
}

/// Bytes of a write.
const BLOCK: usize = 4096;
/// Blocks of the file. The writes overwrite them in turn, as the writes of a log do.
const BLOCKS: u64 = 256;

/// Calls `operation` until the time is over. Returns the calls and the seconds.
fn repeat(duration: Duration, mut operation: impl FnMut(u64) -> Result<()>) -> Result<(f64, f64)> {
    operation(0)?;
    let begun = Instant::now();
    let mut calls = 0;
    while begun.elapsed() < duration {
        calls += 1;
        operation(calls)?;
    }
    Ok((calls as f64, begun.elapsed().as_secs_f64()))
}

/// Creates a file and writes and syncs all its blocks. Otherwise each later sync would also commit
/// a change of the file's extents.
fn preallocated(dir: &Path, flags: OFlags) -> Result<(File, tempfile::TempPath)> {
    let path = tempfile::NamedTempFile::new_in(dir)?.into_temp_path();
    std::fs::write(&path, vec![1; BLOCK * BLOCKS as usize])?;
    File::open(&path)?.sync_all()?;
    let flags = i32::try_from((flags | OFlags::NOFOLLOW | OFlags::CLOEXEC).bits())?;
    let file = std::fs::OpenOptions::new().write(true).custom_flags(flags).open(&path)?;
    Ok((file, path))
}

/// A block whose address is a multiple of its size, as direct writes require.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

fn write_blocks(file: &File, duration: Duration, sync: impl Fn() -> Result<()>) -> Result<f64> {
    let mut block = Box::new(Block([2; BLOCK]));
    let (calls, seconds) = repeat(duration, |call| {
        block.0[..8].copy_from_slice(&call.to_le_bytes());
        file.write_all_at(&block.0, call % BLOCKS * BLOCK as u64)?;
        sync()
    })?;
    Ok(calls / seconds)
}

fn fdatasync(dir: &Path, duration: Duration) -> Result<f64> {
    let (file, _path) = preallocated(dir, OFlags::empty())?;
    write_blocks(&file, duration, || Ok(file.sync_data()?))
}

fn direct_dsync(dir: &Path, duration: Duration) -> Result<f64> {
    let (file, _path) = preallocated(dir, OFlags::DIRECT | OFlags::DSYNC)?;
    write_blocks(&file, duration, || Ok(()))
}

/// Bytes that the dependent loads are spread over.
const MISS_BYTES: usize = 256 << 20;

/// Follows a random cycle of one word in each cache line. No load can begin before the previous
/// load has ended, and a prefetcher can't predict the next address.
fn cache_miss(_dir: &Path, duration: Duration) -> Result<f64> {
    const WORDS_OF_LINE: usize = 16;
    let lines = MISS_BYTES / 64;
    // Sattolo's algorithm gives one cycle through all lines.
    let mut next: Vec<u32> = (0..u32::try_from(lines)?).collect();
    let mut random = 1;
    for line in (1..lines).rev() {
        next.swap(line, (crate::dataset::mix(&mut random) % line as u64) as usize);
    }
    let mut memory = vec![0_u32; MISS_BYTES / 4];
    for (line, next) in next.iter().enumerate() {
        memory[line * WORDS_OF_LINE] = *next;
    }
    drop(next);
    let mut line = 0;
    const STEPS: u32 = 10_000;
    let (calls, seconds) = repeat(duration, |_| {
        for _ in 0..STEPS {
            line = memory[line as usize * WORDS_OF_LINE];
        }
        black_box(line);
        Ok(())
    })?;
    Ok(seconds * 1e9 / (calls * f64::from(STEPS)))
}

fn memcpy(_dir: &Path, duration: Duration) -> Result<f64> {
    const BYTES: usize = 64 << 20;
    let (from, mut to) = (vec![1_u8; BYTES], vec![0_u8; BYTES]);
    let (calls, seconds) = repeat(duration, |_| {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
        Ok(())
    })?;
    Ok(calls * BYTES as f64 / seconds / 1e9)
}

fn futex_same_processor(dir: &Path, duration: Duration) -> Result<f64> {
    futex_round_trip(dir, duration, 0)
}

fn futex_two_processors(dir: &Path, duration: Duration) -> Result<f64> {
    futex_round_trip(dir, duration, 1)
}

/// Values of the shared word.
const TO_PEER: u32 = 1;
const TO_CALLER: u32 = 0;
const OVER: u32 = 2;

/// Two processes pass a word to and fro; each sleeps in the kernel until the other has changed it.
fn futex_round_trip(dir: &Path, duration: Duration, peers_index: usize) -> Result<f64> {
    // The child inherits this thread's single processor, so it is passed the number of the other.
    let peers_processor = processors::allowed().get(peers_index).ok_or("there is only one processor")?;
    let path = tempfile::NamedTempFile::new_in(dir)?.into_temp_path();
    std::fs::write(&path, [0; BLOCK])?;
    let word = map_word(&path)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([ROLE, "futex-peer"]).arg(&path).arg(peers_processor.to_string());
    let mut peer = command.spawn()?;
    let outcome = repeat(duration, |_| {
        pass(word, TO_PEER)?;
        await_value(word, TO_CALLER)
    });
    pass(word, OVER)?;
    if outcome.is_err() {
        peer.kill()?;
    }
    peer.wait()?;
    let (calls, seconds) = outcome?;
    Ok(seconds * 1e9 / calls)
}

/// Runs as the other process of the round trip.
pub(crate) fn run_futex_peer(arguments: &[String]) -> Result<()> {
    let [path, processor] = arguments else { return Err("wrong number of arguments".into()) };
    processors::pin_to(processor.parse()?)?;
    let word = map_word(Path::new(path))?;
    loop {
        while word.load(Ordering::Acquire) == TO_CALLER {
            wait(word, TO_CALLER)?;
        }
        if word.load(Ordering::Acquire) == OVER {
            return Ok(());
        }
        pass(word, TO_CALLER)?;
    }
}

fn pass(word: &AtomicU32, value: u32) -> Result<()> {
    // Pairs with the load in the other process's loop.
    word.store(value, Ordering::Release);
    futex::wake(word, futex::Flags::empty(), 1)?;
    Ok(())
}

fn await_value(word: &AtomicU32, value: u32) -> Result<()> {
    loop {
        let found = word.load(Ordering::Acquire);
        if found == value {
            return Ok(());
        }
        wait(word, found)?;
    }
}

/// Longest sleep. After it, the other process counts as dead.
const PEER_TIMEOUT: i64 = 10;

fn wait(word: &AtomicU32, value: u32) -> Result<()> {
    use rustix::io::Errno;
    let timeout = futex::Timespec { tv_sec: PEER_TIMEOUT, tv_nsec: 0 };
    match futex::wait(word, futex::Flags::empty(), value, Some(&timeout)) {
        Ok(()) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(Errno::TIMEDOUT) => Err(Error::from("the other process does not answer")),
        Err(error) => Err(error.into()),
    }
}

/// Maps the first word of a file of [`BLOCK`] bytes, for the rest of the process's life.
fn map_word(path: &Path) -> Result<&'static AtomicU32> {
    let file = rustix::fs::open(path, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: the kernel chooses an address that nothing else uses, and the mapping is never
    // removed. The file has a whole page, which only the two processes use, by atomics alone.
    #[allow(unsafe_code)]
    unsafe {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let page = rustix::mm::mmap(std::ptr::null_mut(), BLOCK, protection, MapFlags::SHARED, &file, 0)?;
        Ok(&*page.cast::<AtomicU32>())
    }
}
