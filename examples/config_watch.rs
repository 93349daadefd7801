//! A service that follows its configuration: it reads the settings once, and then receives every
//! change by the change feed.
//!
//! Settings that belong together are changed in one transaction, and the service applies them
//! together. It begins with a snapshot and follows from that snapshot's transaction on, so it
//! misses nothing between the two. It follows durable changes, so it never acts on a setting that a
//! power loss takes back.
//!
//! `cargo run --release --example config_watch`

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use untorn::{Feed, Store};

type Anything<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Anything {
    if let Some(path) = std::env::args_os().nth(1) {
        return service(Path::new(&path));
    }
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("data");
    let store = Store::open(&path)?;
    let config = store.keyspace("config")?;
    config.put(b"log", b"info")?;

    let mut service = Command::new(std::env::current_exe()?).arg(&path).stdout(Stdio::piped()).spawn()?;
    let mut said = BufReader::new(service.stdout.take().expect("piped")).lines();
    let mut hear = || -> Anything {
        println!("{}", said.next().ok_or("the service has ended")??);
        Ok(())
    };
    hear()?;

    config.put(b"log", b"debug")?;
    hear()?;
    // Host and port belong together.
    let mut txn = store.begin()?;
    txn.put(&config, b"host", b"db1.example")?;
    txn.put(&config, b"port", b"5432")?;
    txn.commit()?;
    hear()?;
    // The service ignores other keyspaces.
    store.keyspace("users")?.put(b"alice", b"1")?;
    config.delete(b"log")?;
    hear()?;
    config.put(b"stop", b"now")?;
    hear()?;
    assert!(service.wait()?.success());

    drop(config);
    store.close()?;
    untorn::logger::stop_logger(&path, Duration::from_secs(10))?;
    Ok(())
}

fn service(path: &Path) -> Anything {
    let store = Store::open(path)?;
    let snapshot = store.durable_snapshot()?;
    let keyspace = snapshot.find_keyspace("config")?.ok_or("there is no configuration")?;
    let mut settings = BTreeMap::new();
    for entry in snapshot.range(&keyspace, ..)? {
        let (key, value) = entry?;
        settings.insert(text(&key), text(value));
    }
    println!("begins with {settings:?}");

    let mut changed = Vec::new();
    for change in store.changes(snapshot.txn_id(), Feed::Durable)?.keyspace("config") {
        let change = change?;
        // The removal of a key, a range of keys, or the whole keyspace.
        settings.retain(|name: &String, _| !change.affects(name.as_bytes()));
        let name = text(change.key());
        if let Some(value) = change.value() {
            settings.insert(name.clone(), text(value));
        }
        changed.push(name);
        // Only after the last change of a transaction are the settings consistent.
        if change.last_in_txn() {
            println!("{} changed: {settings:?}", changed.join(", "));
            changed.clear();
            if settings.contains_key("stop") {
                break;
            }
        }
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
