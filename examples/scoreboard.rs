//! Several processes count in one store, and some are killed. Get-then-put loses concurrent
//! additions; a counter, a compare-and-swap and a transaction lose nothing.
//!
//! `cargo run --release --example scoreboard`

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use untorn::{CasOutcome, Durability, Error, Keyspace, Options, Store};

/// Processes that count concurrently.
const PROCESSES: usize = 4;
/// The additions of each process.
const ROUNDS: u64 = 2000;
/// The number of processes that are killed while they count, and replaced.
const KILLS: u64 = 2;

type Anything<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Anything {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [way, path] = &arguments[..] {
        return count(way, Path::new(path));
    }
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("data");
    let store = options().open(&path)?;
    println!("{PROCESSES} processes add 1, {ROUNDS} times each; {KILLS} of them are killed and replaced\n");
    println!("{:<16} {:>12} {:>12} {:>8}", "", "acknowledged", "on the board", "lost");
    for way in ["get-then-put", "counter", "compare-and-swap", "transaction"] {
        store.keyspace("board")?.put(way.as_bytes(), &0u64.to_le_bytes())?;
        store.counter("score")?;
        let acknowledged = run(way, &path)?;
        let found = match way {
            "counter" => store.counter("score")?.get()?,
            _ => score(&store.keyspace("board")?, way)?.0,
        };
        // A process that was killed between its addition and its output leaves one more than it
        // reported.
        let lost = acknowledged.saturating_sub(found);
        println!("{way:<16} {acknowledged:>12} {found:>12} {lost:>8}");
        if way != "get-then-put" {
            assert!((acknowledged..=acknowledged + KILLS).contains(&found), "{way}");
        }
    }
    store.close()?;
    untorn::logger::stop_logger(&path, Duration::from_secs(10))?;
    Ok(())
}

fn options() -> Options {
    let mut options = Store::options();
    // Counting needs no fsync each time.
    options.durability(Durability::Visible);
    options
}

/// Runs the processes that count that way, and returns how many additions they reported.
fn run(way: &str, path: &Path) -> Anything<u64> {
    let start = || {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([way.as_ref(), path.as_os_str()]).stdout(Stdio::piped()).spawn()
    };
    let mut children: Vec<Child> = (0..PROCESSES).map(|_| start()).collect::<Result<_, _>>()?;
    let mut acknowledged = 0;
    for _ in 0..KILLS {
        let mut dying = children.remove(0);
        let mut lines = BufReader::new(dying.stdout.take().expect("piped")).lines();
        acknowledged += lines.by_ref().take(ROUNDS as usize / 4).count() as u64;
        let killed = dying.kill();
        dying.wait()?;
        killed?;
        // The additions that it reported before it died count as well.
        acknowledged += lines.count() as u64;
        children.push(start()?);
    }
    for mut child in children {
        acknowledged += BufReader::new(child.stdout.take().expect("piped")).lines().count() as u64;
        assert!(child.wait()?.success());
    }
    Ok(acknowledged)
}

/// Runs one process: it adds 1 repeatedly, and prints a line after each addition.
fn count(way: &str, path: &Path) -> Anything {
    let store = options().open(path)?;
    let board = store.keyspace("board")?;
    let counter = store.counter("score")?;
    for _ in 0..ROUNDS {
        match way {
            // Other processes may add between the two calls: their additions are overwritten.
            "get-then-put" => {
                let (score, _) = score(&board, way)?;
                board.put(way.as_bytes(), &(score + 1).to_le_bytes())?;
            }
            // One atomic instruction in shared memory.
            "counter" => counter.add(1)?,
            // Put only if the version is unchanged; otherwise read again.
            "compare-and-swap" => loop {
                let (score, version) = score(&board, way)?;
                let swapped = board.compare_and_swap(way.as_bytes(), version, &(score + 1).to_le_bytes())?;
                if matches!(swapped, CasOutcome::Swapped(_)) {
                    break;
                }
            },
            // No other process writes between `begin` and `commit`, on any key.
            _ => {
                let mut txn = store.begin()?;
                let score = txn.get(&board, way.as_bytes())?.map_or(0, number);
                txn.put(&board, way.as_bytes(), &(score + 1).to_le_bytes())?;
                txn.commit()?;
            }
        }
        // One write each, so that every line printed before a kill arrives.
        std::io::stdout().write_all(b"added\n")?;
    }
    Ok(())
}

/// Returns the score and its version.
fn score(board: &Keyspace, way: &str) -> Result<(u64, Option<untorn::TxnId>), Error> {
    let found = board.get_versioned(way.as_bytes())?;
    Ok(found.map_or((0, None), |(value, version)| (number(&value), Some(version))))
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
}
