//! Users without rights, and root, which has all of them.

use super::*;

/// Without the rights that a direct client needs, the error names the file and the right; and
/// nothing was changed.
#[test]
fn missing_rights_are_named() {
    let _limit = limit();
    if !is_root("missing rights are named") {
        return;
    }
    let test = TestStore::new();
    test.open().keyspace("keys").unwrap().put(b"k", b"v").unwrap();
    let parent = test.path.parent().unwrap();
    std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mode = |name: &str, mode: u32| {
        std::fs::set_permissions(test.path.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // By default no other user gets in.
    assert_eq!(std::fs::metadata(&test.path).unwrap().permissions().mode() & 0o777, 0o700);
    for name in ["arena", "checkpoint", "control", "lock"] {
        assert_eq!(std::fs::metadata(test.path.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    let answer = |read_only: &str| {
        let child = spawn("opening::as-nobody", &test.path, &[read_only]);
        let answer = child.hear();
        child.finish();
        answer
    };
    let refused = |read_only: &str, why: &str| {
        let answer = answer(read_only);
        assert!(answer.contains(why), "{answer}");
    };
    refused("false", "no permission for");
    mode(".", 0o755);
    for name in ["arena", "checkpoint", "control", "lock"] {
        mode(name, 0o666);
    }
    // Whatever the files' modes allow, the store is another user's.
    let keeper = test.open();
    for read_only in ["false", "true"] {
        refused(read_only, "belongs to uid 0, this process runs as uid 65534");
    }
    assert_clean(&keeper);
}

/// Root opens another user's store while no process uses it, and works with it. The logger that
/// root starts, and so the files made then, must not lock the owner out.
#[test]
fn root_leaves_a_store_to_its_owner() {
    const USER: u32 = 12345;
    let _limit = limit();
    if !is_root("root leaves a store to its owner") {
        return;
    }
    let test = TestStore::new();
    let parent = test.path.parent().unwrap();
    std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(&test.path).unwrap();
    std::os::unix::fs::chown(&test.path, Some(USER), Some(USER)).unwrap();
    for round in 1..4u64 {
        // First of all root makes the store.
        let store = test.open_with(|options| {
            options.foreign_owner(true).segment_size(1 << 18).ring_size(1 << 16);
        });
        let keys = store.keyspace("keys").unwrap();
        for n in 0..20u8 {
            keys.put(&[n], &[round as u8; 50_000]).unwrap();
        }
        drop((keys, store));
        test.stop_logger();
        let user = spawn("opening::as-user", &test.path, &[&USER.to_string(), &format!("round {round}")]);
        user.expect(&(20 + round).to_string());
        user.finish();
        test.stop_logger();
    }
    for dir in [test.path.clone(), test.path.join("wal")] {
        for file in std::fs::read_dir(dir).unwrap().flatten() {
            let stat = file.metadata().unwrap();
            assert_eq!((stat.uid(), stat.gid()), (USER, USER), "{:?}", file.path());
        }
    }
}

fn is_root(what: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{what}: needs root, which CI has");
    eprintln!("SKIPPED (1): {what}: needs root");
    false
}

/// Opens as a user without rights, and prints the result.
pub(super) fn as_nobody(path: &Path, read_only: bool) {
    let nobody = rustix::process::Uid::from_raw(65534);
    rustix::thread::set_thread_uid(nobody).unwrap();
    let path = PathBuf::from(path);
    match Store::options().read_only(read_only).create(!read_only).open(&path) {
        Err(error) => say(error),
        Ok(store) => {
            let keys = store.find_keyspace("keys").unwrap().unwrap();
            say(String::from_utf8_lossy(&keys.get(b"k").unwrap().unwrap()));
        }
    }
}
