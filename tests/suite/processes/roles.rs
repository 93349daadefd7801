//! What the child processes of this test do.

use super::*;
use crate::common::listen;

/// The least number of transfers and of looks of a process. A busy machine takes longer for them
/// than the time of the test.
const TRANSFERS_MIN: u64 = 30;
const LOOKS_MIN: u64 = 10;

/// Moves amounts between accounts for a while, several in each transaction; some are rolled back.
pub(crate) fn transfer(role: &Role) {
    let mut random = StdRng::seed_from_u64(role.number(0));
    let durability = if role.arguments[1] == "visible" { Durability::Visible } else { Durability::Durable };
    let store = Store::options().durability(durability).open(&role.store).unwrap();
    let accounts = store.keyspace("accounts").unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    let mut transfers = 0;
    let mut last = None;
    while Instant::now() < end || transfers < TRANSFERS_MIN {
        let mut txn = store.begin().unwrap();
        for _ in 0..random.random_range(1..5) {
            let from = account(random.random_range(0..ACCOUNTS));
            let to = account(random.random_range(0..ACCOUNTS));
            let have = amount(txn.get(&accounts, &from).unwrap().unwrap());
            let moved = random.random_range(0..=have);
            let padding = *[0, 50, 2000, 9000].get(random.random_range(0..40)).unwrap_or(&10);
            txn.put(&accounts, &from, &money(have - moved, padding)).unwrap();
            let have = amount(txn.get(&accounts, &to).unwrap().unwrap());
            txn.put(&accounts, &to, &money(have + moved, padding)).unwrap();
        }
        if random.random_bool(0.1) {
            txn.rollback();
            continue;
        }
        let id = txn.commit().unwrap().txn_id();
        assert!(last < Some(id));
        last = Some(id);
        transfers += 1;
    }
    say(transfers);
}

pub(crate) fn sum(role: &Role) {
    let store = Store::options().read_only(true).open(&role.store).unwrap();
    let accounts = store.keyspace("accounts").unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    let mut last = None;
    let mut looks = 0;
    let first = store.snapshot().unwrap();
    let contents = |snapshot: &Snapshot| {
        let entries = snapshot.range(&accounts, ..).unwrap().map(|entry| entry.unwrap());
        entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect::<Vec<_>>()
    };
    let first_contents = contents(&first);
    while Instant::now() < end || looks < LOOKS_MIN {
        let snapshot = store.snapshot().unwrap();
        assert!(last <= Some(snapshot.txn_id()));
        last = Some(snapshot.txn_id());
        check_sum(&snapshot, &accounts);
        let found = contents(&snapshot);
        check_sum(&store.durable_snapshot().unwrap(), &accounts);
        std::thread::yield_now();
        assert!(contents(&snapshot) == found, "a snapshot is not repeatable");
        looks += 1;
    }
    assert!(contents(&first) == first_contents, "an old snapshot is not repeatable");
    say(looks);
}

pub(crate) fn put(role: &Role) {
    let store = Store::open(&role.store).unwrap();
    let numbers = store.keyspace("numbers").unwrap();
    say("ready");
    listen();
    for n in 0..role.number(1) {
        numbers.put(&(role.number(0) << 32 | n).to_be_bytes(), b"v").unwrap();
    }
}

/// Begins a transaction and changes much in it, reports that, and goes on at a command.
pub(crate) fn hold(role: &Role) {
    let store = Store::open(&role.store).unwrap();
    let keys = store.keyspace("keys").unwrap();
    let mut txn = store.begin().unwrap();
    txn.put(&keys, b"k", b"held").unwrap();
    for n in 0..200u32 {
        txn.put(&keys, &n.to_be_bytes(), &[1; 500]).unwrap();
    }
    say("held");
    if listen().as_deref() == Some("commit") {
        txn.commit().unwrap();
        say("committed");
    }
}

/// Counts in two keys at once, and prints each number once it is acknowledged.
pub(crate) fn pairs(role: &Role) {
    let mut random = StdRng::seed_from_u64(role.number(1));
    let store = Store::open(&role.store).unwrap();
    let pairs = store.keyspace("pairs").unwrap();
    let keys = ["left", "right"].map(|side| format!("{side}-{}", role.arguments[0]));
    for number in 1u64.. {
        let padding = *[3000, 20_000].get(random.random_range(0..20)).unwrap_or(&20);
        let durability = if random.random_bool(0.5) { Durability::Visible } else { Durability::Durable };
        let mut txn = store.begin_with(durability).unwrap();
        for key in &keys {
            txn.put(&pairs, key.as_bytes(), &money(number, padding)).unwrap();
        }
        txn.commit().unwrap();
        say(number);
    }
}

pub(crate) fn visible(role: &Role) {
    let mut options = Store::options();
    options.durability(Durability::Visible).flush_policy(FlushPolicy::Every(Duration::from_secs(3600)));
    let store = options.open(&role.store).unwrap();
    let keys = store.keyspace("keys").unwrap();
    for number in 1u64..=3000 {
        keys.put(&number.to_be_bytes(), &money(number, 10)).unwrap();
        say(number);
    }
    listen();
}
