//! The process that opens the changed stores, and what it does.

use super::*;
use crate::common::Process;

/// Opens stores in another process, and compares each refused store with its former bytes.
pub(super) struct Opener {
    pub(super) child: Process,
    pub(super) dir: PathBuf,
    pub(super) number: usize,
    pub(super) opened: usize,
    pub(super) refused: usize,
}

impl Opener {
    pub(super) fn new(dir: &Path) -> Opener {
        let child = spawn("damage::hostile_fields::opener", dir, &[]);
        Opener { child, dir: dir.to_owned(), number: 0, opened: 0, refused: 0 }
    }

    /// Opens the store with one field changed. Returns how that ended; a store that was refused has
    /// each file as it was.
    pub(super) fn open(&mut self, image: &Image, field: &Field, value: u64) -> String {
        self.number += 1;
        let path = numbered(&self.dir, self.number);
        image.lay_out(&path, |files| patch(files, field, value));
        let before = (all_files(&path), stamps(&path));
        eprint!("{field:?} = {value:#x}: ");
        let said = self.child.ask(path.to_str().unwrap());
        eprintln!("{said}");
        match said.split(' ').next() {
            Some("opened" | "limited") => self.opened += 1,
            Some("refused") => {
                self.refused += 1;
                let is_kept = before == (all_files(&path), stamps(&path));
                assert!(is_kept, "{field:?} = {value:#x}: {said}, and files were touched");
            }
            _ => panic!("{field:?} = {value:#x}: {said}"),
        }
        store_files::remove_all(&path);
        said
    }
}

/// Size, time of the last change and inode of each file of a store.
pub(super) fn stamps(path: &Path) -> Vec<(String, u64, std::time::SystemTime, u64)> {
    use std::os::unix::fs::MetadataExt;
    let stamp = |name: String| {
        let found = std::fs::metadata(path.join(&name)).unwrap();
        (name, found.len(), found.modified().unwrap(), found.ino())
    };
    all_files(path).into_keys().map(stamp).collect()
}

/// Opens a store and uses it. An error of the opening is the caller's; later ones are as good as
/// success.
pub(super) fn use_store(path: &Path) -> untorn::Result<()> {
    let store = in_process().logger_timeout(Duration::from_secs(5)).lock_timeout(Duration::from_secs(5)).open(path)?;
    let _ = read(&store);
    let _ = store.verify();
    let _ = (|| -> untorn::Result<()> {
        let mut txn = store.begin()?;
        for name in ["a", "new"] {
            let keyspace = txn.keyspace(name)?;
            txn.put(&keyspace, b"large", &[1; 9000])?;
            txn.delete(&keyspace, b"step")?;
        }
        txn.commit()?;
        store.checkpoint().map(drop)
    })();
    let _ = store.verify();
    Ok(())
}

/// Joins the store of the role, and uses it at each command. Prints how each of these uses ended.
pub(super) fn use_while_forged(role: &Role) {
    let mut options = in_process();
    options.logger_timeout(Duration::from_millis(100));
    let store = options.open(&role.store).unwrap();
    // Nothing is read before: a thread that has pinned a transaction keeps what it has read of its
    // image.
    say("joined");
    while let Some(task) = listen() {
        let newest = || store.snapshot().and_then(|snapshot| snapshot.keyspaces());
        let durable = || store.durable_snapshot().and_then(|snapshot| snapshot.keyspaces());
        let begun = || store.begin().and_then(|mut txn| txn.keyspace("forged"));
        let verified = || store.verify();
        let ended = match task.as_str() {
            "newest" => newest().map(drop),
            "durable" => durable().map(drop),
            "begin" => begun().map(drop),
            "verify" => verified().map(drop),
            "fill" => fill(&store),
            "pins" => pins(&store),
            "create" => create_cells(&store),
            _ => store.stats().map(drop),
        };
        say(match ended {
            Ok(()) => "good".to_owned(),
            Err(Error::Corrupt { file, what, .. }) => format!("refused {file}: {what}"),
            Err(error) => format!("failed {error}"),
        });
    }
}

/// Puts more than the arena has room for, until an error that names damage.
fn fill(store: &Store) -> untorn::Result<()> {
    for i in 0..12_000u32 {
        let put = || -> untorn::Result<()> {
            let mut txn = store.begin_with(Durability::Visible)?;
            let keyspace = txn.keyspace("fill")?;
            txn.put(&keyspace, &i.to_be_bytes(), &[5; 900])?;
            txn.commit().map(drop)
        };
        // The logger may be behind.
        loop {
            match put() {
                Ok(()) => break,
                Err(error @ (Error::Corrupt { .. } | Error::Limit { .. })) => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
    Ok(())
}

/// Pins more transactions than a chunk of reader slots has room for.
fn pins(store: &Store) -> untorn::Result<()> {
    let mut held = Vec::new();
    for i in 0..READER_CHUNK as u64 + 8 {
        let mut txn = store.begin_with(Durability::Visible)?;
        let keyspace = txn.keyspace("pins")?;
        txn.put(&keyspace, b"key", &i.to_be_bytes())?;
        drop(txn.commit()?);
        held.push(store.snapshot()?);
    }
    Ok(())
}

/// Makes cells of more bytes than a chunk of their values has.
fn create_cells(store: &Store) -> untorn::Result<()> {
    for i in 0..40 {
        store.cell(&format!("made {i}"), 4096)?.store(&[i; 4096])?;
    }
    Ok(())
}
