//! Reads of an older value of a cell beside damage and beside a server that dies.

use super::*;

/// Where the region has the entry of a cell whose newest versions are these.
fn entry_of(control: &std::fs::File, versions: &[u64]) -> u64 {
    use std::os::unix::fs::FileExt;
    let len = control.metadata().unwrap().len();
    let mut bytes = vec![0; len as usize];
    control.read_exact_at(&mut bytes, 0).unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let is_entry = |at: &usize| {
        let mut stamps: Vec<u64> = (0..4).map(|copy| word(at + 32 + 8 * copy)).collect();
        stamps.sort_unstable();
        word(at + 8) == versions[3] && stamps == versions
    };
    (0..bytes.len() - 128).step_by(128).find(is_entry).expect("the cell's entry") as u64
}

/// Damage in a cell's entry, whichever bit flips, makes reading an older value an error, or changes
/// nothing: the value of one version is never given as that of another one of the four that are
/// kept.
#[test]
fn damage_while_an_older_value_is_read() {
    use std::os::unix::fs::FileExt;
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let cell = store.cell("cell", 64).unwrap();
    let versions: Vec<Version> = (1..=9).map(|number| cell.store(&whole(number, 64)).unwrap()).collect();
    let kept: Vec<(u64, Version)> = (1..=9).zip(versions).skip(5).collect();
    store.sync().unwrap();
    // A logger would take what is damaged for new values, and sample it.
    let logger = store.stats().unwrap().logger_pid.unwrap();
    crate::common::send(logger, Signal::STOP);
    let control = std::fs::File::options().read(true).write(true).open(test.path.join("control")).unwrap();
    let numbers: Vec<u64> = kept.iter().map(|(_, version)| version.as_u64()).collect();
    let entry = entry_of(&control, &numbers);
    let read = |version: Version| {
        let mut bytes = vec![0; 64];
        cell.load_version(version, &mut bytes).map(|()| number(&bytes))
    };
    let mut refused = 0;
    for bit in 0..128 * 8 {
        let at = entry + bit / 8;
        let mut before = [0];
        control.read_exact_at(&mut before, at).unwrap();
        control.write_all_at(&[before[0] ^ 1 << (bit % 8)], at).unwrap();
        for (expected, version) in &kept {
            match read(*version) {
                Ok(found) => assert_eq!(found, *expected, "bit {bit} of the entry, version {version}"),
                Err(Error::Stale | Error::NoCell { .. }) => refused += 1,
                Err(error) => panic!("bit {bit} of the entry, version {version}: {error:?}"),
            }
        }
        control.write_all_at(&before, at).unwrap();
    }
    eprintln!("{refused} reads refused");
    // Each bit of each stamp at least, and of the generation.
    assert!(refused >= 4 * 64 + 64);
    for (expected, version) in &kept {
        assert_eq!(read(*version).unwrap(), *expected, "with the entry as it was");
    }
    crate::common::send(logger, Signal::CONT);
}

/// A message-passing client requests an older value, and the server is gone. The result is an error
/// of the connection, and never another value. The same client reads it again once there is a
/// server.
#[test]
fn the_server_dies_before_an_older_value_is_read() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let cell = store.cell("cell", 64).unwrap();
    let older = cell.store(&whole(1, 64)).unwrap();
    cell.store(&whole(2, 64)).unwrap();
    store.sync().unwrap();
    let client = untorn::Client::connect(test.path.join("logger.sock")).unwrap();
    assert_eq!(number(&client.cell_load_version("cell", older).unwrap()), 1);
    // This process starts the next logger, as long as it has the store open.
    kill_logger(&store);
    wait_until(|| match client.cell_load_version("cell", older) {
        Ok(value) => {
            assert_eq!(number(&value), 1);
            true
        }
        Err(Error::Disconnected { .. }) => {
            store.sync().unwrap();
            false
        }
        Err(error) => panic!("{error:?}"),
    });
    let logger = store.stats().unwrap().logger_pid.unwrap();
    drop((cell, store));
    crate::common::send(logger, Signal::KILL);
    wait_until(|| !crate::common::exists(logger));
    let error = client.cell_load_version("cell", older).unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error:?}");
    let store = test.open();
    let cell = store.cell("cell", 64).unwrap();
    assert_eq!(load(&cell).0, 2);
    wait_until(|| match client.cell_load_version("cell", older) {
        // Recovery keeps the newest value alone.
        Ok(value) => number(&value) == 1,
        Err(Error::Stale) => true,
        Err(Error::Disconnected { .. }) => false,
        Err(error) => panic!("{error:?}"),
    });
}
