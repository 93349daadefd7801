//! What a command works on: a store by its directory, or by its socket, as a message-passing client.

use crate::outcome::{Failure, Outcome};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use untorn::{
    Batch, Change, Changes, Client, CommitOutcome, Durability, Error, Feed, Keyspace, Options, RemoteChanges, Store,
    TxnId,
};

/// Whether the switch `--foreign-owner` was given; set once, before any command runs.
static FOREIGN_OWNER: AtomicBool = AtomicBool::new(false);

pub(crate) fn set_foreign_owner(allow: bool) {
    FOREIGN_OWNER.store(allow, Ordering::Relaxed);
}

/// Options by which every command opens a store.
pub(crate) fn options() -> Options {
    let mut options = Store::options();
    options.foreign_owner(FOREIGN_OWNER.load(Ordering::Relaxed));
    options
}

pub(crate) enum Target {
    Directory(Store),
    Socket(Client),
}

impl Target {
    /// A store that is there, to read from.
    pub(crate) fn to_read(path: &Path) -> Outcome<Target> {
        Target::open(path, |path| options().create(false).read_only(true).open(path))
    }

    /// A store that is there, to change.
    pub(crate) fn to_change(path: &Path) -> Outcome<Target> {
        Target::open(path, |path| options().create(false).open(path))
    }

    /// A store, made if there is none.
    pub(crate) fn to_fill(path: &Path) -> Outcome<Target> {
        Target::open(path, |path| options().create(true).open(path))
    }

    fn open(path: &Path, open: impl FnOnce(&Path) -> untorn::Result<Store>) -> Outcome<Target> {
        match std::fs::metadata(path) {
            Ok(found) if found.file_type().is_socket() => {}
            // So that no directory is made, or missed, in place of a socket whose logger has gone.
            Err(error) if error.kind() == ErrorKind::NotFound && path.extension() == Some("sock".as_ref()) => {
                let what =
                    format!("there is no socket at {}; it is there while the store's logger runs", path.display());
                return Err(Failure::System(what));
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(Failure::system(format!("looking for {}", path.display()))(error));
            }
            _ => return Ok(Target::Directory(open(path)?)),
        }
        let client = Client::connect(path)?;
        if let Some(notice) = client.notice() {
            eprintln!("untorn: {notice}");
        }
        Ok(Target::Socket(client))
    }

    pub(crate) fn get(&self, keyspace: &str, key: &[u8]) -> Outcome<Option<Vec<u8>>> {
        match self {
            Target::Directory(store) => Ok(existing(store, keyspace)?.get(key)?.map(|value| value.to_vec())),
            Target::Socket(client) => client.get(keyspace, key).map_err(missing),
        }
    }

    pub(crate) fn put(&self, keyspace: &str, key: &[u8], value: &[u8]) -> Outcome<TxnId> {
        match self {
            Target::Directory(store) => Ok(store.keyspace(keyspace)?.put(key, value)?),
            Target::Socket(client) => Ok(client.put(keyspace, key, value)?),
        }
    }

    pub(crate) fn delete(&self, keyspace: &str, key: &[u8]) -> Outcome<bool> {
        match self {
            Target::Directory(store) => Ok(existing(store, keyspace)?.delete(key)?),
            Target::Socket(client) => client.delete(keyspace, key).map_err(missing),
        }
    }

    /// Calls `each` with the records whose keys begin with `prefix`, of one snapshot, in key order.
    pub(crate) fn scan(&self, keyspace: &str, prefix: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> Outcome) -> Outcome {
        match self {
            Target::Directory(store) => existing(store, keyspace)?.prefix(prefix)?.try_for_each(|record| {
                let (key, value) = record?;
                each(&key, &value)
            }),
            Target::Socket(client) => client.prefix(keyspace, prefix).map_err(missing)?.try_for_each(|record| {
                let (key, value) = record?;
                each(&key, &value)
            }),
        }
    }

    /// Makes the keyspace if there is none; by message that is left to the first record.
    pub(crate) fn ensure_keyspace(&self, keyspace: &str) -> Outcome {
        match self {
            Target::Directory(store) => Ok(store.keyspace(keyspace).map(drop)?),
            Target::Socket(_) => Ok(()),
        }
    }

    /// Stores records as one transaction, visible on return. An error names the record that was refused, if it was one.
    pub(crate) fn load<'r>(
        &self,
        keyspace: &str,
        records: impl Iterator<Item = (&'r [u8], &'r [u8])> + Clone,
    ) -> Result<(), (Option<usize>, Error)> {
        let whole = |error| (None, error);
        match self {
            Target::Directory(store) => {
                let keyspace = store.keyspace(keyspace).map_err(whole)?;
                let mut txn = store.begin_with(Durability::Visible).map_err(whole)?;
                for (index, (key, value)) in records.enumerate() {
                    txn.put(&keyspace, key, value).map_err(|error| (Some(index), error))?;
                }
                txn.commit().map(drop).map_err(whole)
            }
            Target::Socket(client) => {
                let mut batch = Batch::new();
                for (key, value) in records.clone() {
                    batch.put(keyspace, key, value);
                }
                match client.commit_with(&batch, Durability::Visible) {
                    Ok(CommitOutcome::Committed(_) | CommitOutcome::Mismatch { .. }) => Ok(()),
                    // Which of them it is, the server does not say. One alone it is.
                    Err(error @ Error::Limit { .. }) => {
                        let is_refused = |(_, (key, value)): &(usize, (&[u8], &[u8]))| {
                            let outcome = client.put_with(keyspace, key, value, Durability::Visible);
                            matches!(outcome, Err(Error::Limit { .. }))
                        };
                        let refused = records.enumerate().find(is_refused).map(|(index, _)| index);
                        Err((refused, error))
                    }
                    Err(error) => Err((None, error)),
                }
            }
        }
    }

    pub(crate) fn sync(&self) -> untorn::Result<()> {
        match self {
            Target::Directory(store) => store.sync(),
            Target::Socket(client) => client.sync(),
        }
    }

    /// The changes after `from`, or after now.
    pub(crate) fn follow(
        &self,
        from: Option<TxnId>,
        feed: Feed,
        keyspace: Option<&str>,
        prefix: &[u8],
    ) -> untorn::Result<Follower> {
        Ok(match self {
            Target::Directory(store) => {
                let from = match from {
                    Some(txn) => txn,
                    None if feed == Feed::Visible => store.snapshot()?.txn_id(),
                    None => store.durable_snapshot()?.txn_id(),
                };
                let changes = store.changes(from, feed)?.prefix(prefix);
                Follower::Direct(Box::new(match keyspace {
                    Some(name) => changes.keyspace(name),
                    None => changes,
                }))
            }
            Target::Socket(client) => {
                let changes = match from {
                    Some(txn) => client.changes(txn, feed)?,
                    None => client.changes_from_now(feed)?,
                };
                let changes = changes.prefix(prefix);
                Follower::Remote(Box::new(match keyspace {
                    Some(name) => changes.keyspace(name),
                    None => changes,
                }))
            }
        })
    }

    pub(crate) fn checkpoint(&self) -> untorn::Result<TxnId> {
        match self {
            Target::Directory(store) => store.checkpoint(),
            Target::Socket(client) => client.checkpoint(),
        }
    }
}

/// Somebody who follows the changes.
pub(crate) enum Follower {
    Direct(Box<Changes>),
    Remote(Box<RemoteChanges>),
}

impl Follower {
    pub(crate) fn try_next(&mut self, timeout: Duration) -> untorn::Result<Option<Change>> {
        match self {
            Follower::Direct(changes) => changes.try_next(timeout),
            Follower::Remote(changes) => changes.try_next(timeout),
        }
    }
}

/// Refuses a socket where only the directory will do.
pub(crate) fn refuse_socket(path: &Path, command: &str) -> Outcome {
    if !is_socket(path) {
        return Ok(());
    }
    Err(Failure::Usage(format!("{command} needs the store's directory; {} is a socket", path.display())))
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// A keyspace, unless it would have to be created.
fn existing(store: &Store, name: &str) -> Outcome<Keyspace> {
    store.find_keyspace(name)?.ok_or_else(|| no_keyspace(name))
}

fn missing(error: Error) -> Failure {
    match error {
        Error::NoKeyspace { name } => no_keyspace(&name),
        other => other.into(),
    }
}

fn no_keyspace(name: &str) -> Failure {
    Failure::NotFound(format!("there is no keyspace {name:?}"))
}
