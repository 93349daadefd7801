//! Where the space of a full store is, and what can still be done in it.

use super::*;

/// A snapshot in another process holds the space. The error names the snapshot and its process;
/// when the snapshot is gone, so is the error.
#[test]
fn the_holder_of_the_space_is_named() {
    let _limit = limit();
    let test = TestStore::new();
    let store = open_with_max_size(&test, 8 << 20);
    let rows = store.keyspace("rows").unwrap();
    let count = fill(&store, &rows, 500);
    delete_each(&rows, 0..count / 3);
    let mut holder = spawn("space::full_store::pin", &test.path, &[]);
    let txn = holder.hear();
    let mut left = shuffled(count).filter(|key| *key >= count / 3).collect::<Vec<_>>();
    // Each key written again needs a page that the snapshot does not see.
    let error = loop {
        let mut refused = None;
        for key in &left {
            if let Err(error) = rows.put(&key.to_be_bytes(), &[3; 499]) {
                refused = Some(error);
                break;
            }
        }
        if let Some(error) = refused {
            break error;
        }
        assert!(store.stats().unwrap().pages_total < 8 << 20, "the store never fills");
    };
    let text = error.to_string();
    assert!(text.contains("snapshot") && text.contains(&holder.pid().to_string()) && text.contains(&txn), "{text}");
    // Deletes use what is reserved for them, and then name the holder as well.
    while let Some(key) = left.pop() {
        if let Err(error) = rows.delete(&key.to_be_bytes()) {
            let text = error.to_string();
            assert!(text.contains("snapshot") && text.contains(&holder.pid().to_string()), "{text}");
            left.push(key);
            break;
        }
    }
    holder.kill();
    wait_until(|| store.stats().unwrap().readers.iter().all(|reader| reader.is_loggers));
    delete_each(&rows, left);
    assert_clean(&store);
}

/// Cells stay durable in a full store: their records are overwritten by others of the same length.
#[test]
fn cells_stay_durable_in_a_full_store() {
    let _limit = limit();
    let test = TestStore::new();
    let store = open_with_max_size(&test, limits::MAX_SIZE_MIN);
    let cell = store.cell("cell", 64).unwrap();
    let rows = store.keyspace("rows").unwrap();
    cell.store_durable(&[1; 64]).unwrap();
    let count = fill(&store, &rows, 500);
    for n in 0..200_u64 {
        cell.store_durable(&[n as u8; 64]).unwrap_or_else(|error| panic!("{n}: {error}"));
    }
    delete_each(&rows, 0..count);
    assert_clean(&store);
}

// ---- free space

/// One large value was deleted. Each transaction got one page of the free extent, and the rest only
/// after a commit that never came.
#[test]
fn a_free_extent_serves_a_whole_transaction() {
    let _limit = limit();
    let test = TestStore::new();
    let store = open_with_max_size(&test, 64 << 20);
    let rows = store.keyspace("rows").unwrap();
    rows.put(b"large", &vec![1; 40 << 20]).unwrap();
    assert!(rows.delete(b"large").unwrap());
    for _ in 0..2 {
        store.checkpoint().unwrap();
    }
    for round in 0..30_u32 {
        let mut txn = store.begin().unwrap();
        for key in 0..1000_u32 {
            txn.put(&rows, &(round * 1000 + key).to_be_bytes(), &[round as u8; 1000]).unwrap_or_else(|error| {
                panic!(
                    "record {key} of transaction {round}: {error}, {:?} pages free",
                    store.stats().unwrap().pages_free
                )
            });
        }
        txn.commit().unwrap();
    }
    assert_clean(&store);
    // What small records have left, large ones can use.
    let mut txn = store.begin().unwrap();
    assert!(txn.drop_keyspace("rows").unwrap());
    txn.commit().unwrap();
    let rows = store.keyspace("rows").unwrap();
    rows.put(b"large", &vec![1; 20 << 20]).unwrap();
    assert!(rows.delete(b"large").unwrap());
    store.checkpoint().unwrap();
    for key in 0..100_u32 {
        rows.put(&key.to_be_bytes(), &vec![2; 100 << 10]).unwrap_or_else(|error| panic!("value {key}: {error}"));
    }
    assert_clean(&store);
}

/// A burst left a large pool of free pages, and one key that was written again and again went
/// through all of them: each checkpoint wrote the whole pool.
#[test]
fn one_hot_key_uses_the_same_few_pages() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open_with(|options| {
        options.durability(Durability::Visible).checkpoint_bytes(1 << 40);
    });
    let rows = store.keyspace("rows").unwrap();
    for is_put in [true, false] {
        for key in 0..50_000_u64 {
            match is_put {
                true => drop(rows.put(&key.to_be_bytes(), &[1; 1000]).unwrap()),
                false => assert!(rows.delete(&key.to_be_bytes()).unwrap()),
            }
        }
    }
    let arena = || std::fs::read(test.path.join("arena")).unwrap();
    for round in 0..3 {
        store.checkpoint().unwrap();
        let before = arena();
        for n in 0..20_000_u32 {
            rows.put(b"hot", &n.to_be_bytes()).unwrap();
        }
        let after = arena();
        let changed = before.chunks(4096).zip(after.chunks(4096)).filter(|(was, is)| was != is).count();
        let free = store.stats().unwrap().pages_free;
        eprintln!("round {round}: {changed} pages changed, {free} are free");
        assert!(free > 10_000, "{free} pages are free");
        assert!(changed * 4096 <= 4 << 20, "round {round}: {changed} of {free} free pages changed");
    }
    assert_clean(&store);
}
