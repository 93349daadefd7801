//! The main calls, once each: keyspaces, transactions, snapshots, durability, cells, counters, and
//! a second process.
//!
//! `cargo run --release --example quickstart`

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use untorn::{Durability, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // This is the second process, which is started further down.
    if let Some(path) = std::env::args_os().nth(1) {
        return second_process(Path::new(&path));
    }
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("data");

    // Creates the store; the first process to open it starts the logger, which makes commits
    // durable.
    let store = Store::open(&path)?;
    let users = store.keyspace("users")?;

    // One key, one transaction. When it returns, an fsync has covered it.
    users.put(b"alice", b"100")?;
    users.put(b"bob", b"20")?;

    // Several keys: all of them become visible at once, or none. Dropped without a commit, the
    // transaction has no effect. Begun as visible, it gives way to transactions of other processes
    // that wait for the disk.
    let mut txn = store.begin_with(Durability::Visible)?;
    txn.put(&users, b"alice", b"70")?;
    txn.put(&users, b"bob", b"50")?;
    // Faster: visible to all processes now, durable a little later. The ticket reports when.
    let before = store.snapshot()?;
    let ticket = txn.commit()?;
    ticket.wait()?;

    // A snapshot is unchanged by later commits; reads come from the memory map, without a copy.
    println!("before: alice has {}", text(before.get(&users, b"alice")?.expect("put before")));
    for entry in users.range(..)? {
        let (key, value) = entry?;
        println!("now: {} has {}", text(&key), text(&value));
    }

    // Values of fixed size that change all the time: updated in place, never torn, with a version
    // each.
    let position = store.cell_of::<[f64; 2]>("position")?;
    position.store(&[52.5, 13.4])?;
    store.counter("visits")?.add(1)?;

    // Any process can open the same directory, and be killed at any time.
    let status = Command::new(std::env::current_exe()?).arg(&path).status()?;
    assert!(status.success());
    println!("visits: {}", store.counter("visits")?.get()?);
    println!("carol has {}", text(&users.get(b"carol")?.expect("put by the other process")));

    // Without this call, the logger exits some seconds after the last process.
    drop((before, ticket, position, users));
    store.close()?;
    untorn::logger::stop_logger(&path, Duration::from_secs(10))?;
    Ok(())
}

fn second_process(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(path)?;
    let ([latitude, longitude], _version) = store.cell_of::<[f64; 2]>("position")?.load()?;
    println!("another process: position {latitude}, {longitude}");
    store.counter("visits")?.add(1)?;
    store.keyspace("users")?.put(b"carol", b"7")?;
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
