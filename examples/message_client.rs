//! A process that uses a store through its socket alone: it opens no file of it and maps no memory,
//! so it can't damage it. This is for other containers, and for programs that are less trusted than
//! the store's owner.
//!
//! `cargo run --release --example message_client`

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use untorn::{Batch, Client, CommitOutcome, Store};

type Anything<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Anything {
    if let Some(socket) = std::env::args_os().nth(1) {
        return by_message(Path::new(&socket));
    }
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("data");
    // The owner uses the store directly. The logger, which it starts, also serves the socket.
    let store = Store::open(&path)?;
    let accounts = store.keyspace("accounts")?;
    accounts.put(b"alice", b"100")?;
    accounts.put(b"bob", b"20")?;

    let status = Command::new(std::env::current_exe()?).arg(path.join("logger.sock")).status()?;
    assert!(status.success());
    for entry in accounts.range(..)? {
        let (name, amount) = entry?;
        println!("the owner finds: {} {}", text(&name), text(&amount));
    }

    drop(accounts);
    store.close()?;
    untorn::logger::stop_logger(&path, Duration::from_secs(10))?;
    Ok(())
}

fn by_message(socket: &Path) -> Anything {
    let client = Client::connect(socket)?;
    let (amount, version) = client.get_versioned("accounts", b"alice")?.ok_or("alice has no account")?;
    println!("alice has {}", text(&amount));

    // Several changes as one transaction, if alice's account has not changed since. On return they
    // are durable.
    let mut batch = Batch::new();
    batch.expect_version("accounts", b"alice", version);
    batch.put("accounts", b"alice", b"70").put("accounts", b"bob", b"50");
    match client.commit(&batch)? {
        CommitOutcome::Committed(_) => println!("30 moved to bob"),
        CommitOutcome::Mismatch { .. } => println!("another client was faster"),
    }
    // The same batch again: the version is another one by now, so nothing happens.
    match client.commit(&batch)? {
        CommitOutcome::Committed(_) => println!("30 moved to bob again"),
        CommitOutcome::Mismatch { .. } => println!("not a second time"),
    }

    client.put("accounts", b"carol", b"0")?;
    for record in client.scan("accounts", ..)? {
        let (name, amount) = record?;
        println!("{} has {}", text(&name), text(&amount));
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
