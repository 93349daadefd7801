//! Transactions of the other process, and their texts between the processes.

use super::*;

pub(crate) fn hex(bytes: &[u8]) -> String {
    std::iter::once("x".to_string()).chain(bytes.iter().map(|byte| format!("{byte:02x}"))).collect()
}

pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    (1..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

pub(crate) fn bound_in_hex(bound: &Bound<Vec<u8>>) -> String {
    match bound {
        Bound::Unbounded => "-".into(),
        Bound::Included(key) => format!("+{}", hex(key)),
        Bound::Excluded(key) => format!("!{}", hex(key)),
    }
}

pub(crate) fn bound_from_hex(text: &str) -> Bound<Vec<u8>> {
    match text.split_at(1) {
        ("+", key) => Bound::Included(from_hex(key)),
        ("!", key) => Bound::Excluded(from_hex(key)),
        _ => Bound::Unbounded,
    }
}

/// A whole state in a word.
pub(crate) fn digest(model: &Model) -> String {
    let mut hasher = DefaultHasher::new();
    for (keyspace, map) in model {
        name(*keyspace).hash(&mut hasher);
        map.len().hash(&mut hasher);
        map.iter().for_each(|entry| entry.hash(&mut hasher));
    }
    format!("{:016x}", hasher.finish())
}

/// Runs one transaction by the test's commands, and reports what it finds on the way.
pub(crate) fn peer_transaction(store: &Store) {
    let mut txn = store.begin().unwrap();
    let mut found = Vec::new();
    let commit = loop {
        let line = listen().unwrap();
        let fields: Vec<&str> = line.split(' ').collect();
        let keyspace = |at: usize| name(fields[at].parse().unwrap());
        match fields[..] {
            ["put", _, key, counter, len] => {
                let keys = txn.keyspace(&keyspace(1)).unwrap();
                let value = value(counter.parse().unwrap(), len.parse().unwrap());
                txn.put(&keys, &from_hex(key), &value).unwrap();
            }
            ["delete", _, key] => {
                let keys = txn.keyspace(&keyspace(1)).unwrap();
                found.push(txn.delete(&keys, &from_hex(key)).unwrap().to_string());
            }
            ["range", _, lower, upper] => {
                let keys = txn.keyspace(&keyspace(1)).unwrap();
                let bounds = (bound_from_hex(lower), bound_from_hex(upper));
                found.push(txn.delete_range(&keys, bounds_of(&bounds)).unwrap().to_string());
            }
            ["drop", _] => found.push(txn.drop_keyspace(&keyspace(1)).unwrap().to_string()),
            [end] => break end == "commit",
            _ => panic!("{line}"),
        }
    };
    if commit {
        txn.commit().unwrap();
    } else {
        txn.rollback();
    }
    found.iter().for_each(say);
    say("done");
}
