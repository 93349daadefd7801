//! How far back a follower can go.

use super::*;

#[test]
fn a_consumer_that_falls_behind_gets_its_next_position() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(|options| {
        small(options);
        options.retain_changes(512 << 10, Duration::MAX);
    });
    let mut behind = store.changes(now(&store), Feed::Visible).unwrap();
    let mut count = write(&store, 10_000, 0);
    assert_eq!(numbers(&[behind.try_next(HANGS).unwrap().unwrap()]), [0]);
    for _ in 0..5 {
        count += write(&store, 400_000, count);
        store.checkpoint().unwrap();
    }
    // Spares are taken in turn, so it takes some more until the files that it needs are
    // overwritten.
    let oldest = loop {
        match store.changes(TxnId::ZERO, Feed::Durable) {
            Err(Error::Lagged { oldest }) => break oldest,
            Ok(mut changes) => match changes.try_next(Duration::ZERO) {
                Err(Error::Lagged { .. }) => continue,
                other => assert!(matches!(other, Ok(Some(_))), "{other:?}"),
            },
            Err(other) => panic!("{other}"),
        }
        count += write(&store, 400_000, count);
        store.checkpoint().unwrap();
    };
    let found = drain(&mut store.changes(oldest, Feed::Durable).unwrap(), now(&store));
    let found = numbers(&found);
    assert_eq!(found, (count - found.len() as u64..count).collect::<Vec<_>>());
    assert!(found.len() > 400, "only {} of {count} were kept", found.len());
    // The slow follower had read some bytes ahead. It delivers those, then each call returns
    // `Lagged`.
    let mut delivered = vec![0];
    let lagged = loop {
        match behind.try_next(HANGS) {
            Ok(Some(change)) => delivered.extend(numbers(&[change])),
            Ok(None) => panic!("nothing came"),
            Err(Error::Lagged { oldest }) => break oldest,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(delivered, (0..delivered.len() as u64).collect::<Vec<_>>(), "a gap");
    assert!(matches!(behind.try_next(HANGS), Err(Error::Lagged { .. })));
    assert!(store.changes(lagged, Feed::Visible).is_ok());
    assert_clean(&store);
}

#[test]
fn retention_by_time() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(|options| {
        small(options);
        options.retain_changes(u64::MAX, Duration::from_secs(600));
    });
    let mut count = 0;
    for _ in 0..4 {
        count += write(&store, 400_000, count);
        store.checkpoint().unwrap();
    }
    wait_until(|| store.stats().unwrap().wal_kept >= 4);
    let all = drain(&mut store.changes(TxnId::ZERO, Feed::Durable).unwrap(), now(&store));
    assert_eq!(numbers(&all), (0..count).collect::<Vec<_>>());
    // A shorter time, for all processes; what is older goes without any commit.
    drop(store);
    let store = dir.open_with(|options| {
        options.retain_changes(u64::MAX, Duration::from_millis(1));
    });
    wait_until(|| store.stats().unwrap().wal_kept == 0);
    assert_clean(&store);
}

#[test]
fn retention_survives_a_restart() {
    let _limit = limit();
    let dir = TestStore::new();
    let store = dir.open_with(|options| {
        small(options);
        options.retain_changes(1 << 20, Duration::MAX);
    });
    let count = write(&store, 600_000, 0);
    drop(store);
    dir.stop_logger();
    // As after a boot: only what lies on the disk is left.
    std::fs::remove_file(dir.path.join("control")).unwrap();
    let store = dir.open();
    assert!(store.stats().unwrap().wal_kept > 0);
    let all = drain(&mut store.changes(TxnId::ZERO, Feed::Durable).unwrap(), now(&store));
    assert_eq!(numbers(&all), (0..count).collect::<Vec<_>>());
}
