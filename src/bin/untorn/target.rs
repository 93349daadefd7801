//! What a command works on: a store by its directory, or by its socket, as a message-passing
//! client. A command that can use either is written once, against the traits that they have in
//! common.

use crate::outcome::{Failure, Outcome};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use untorn::{Client, Options, Store, StoreRead, StoreWrite};

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

/// A store that is there, to read from.
pub(crate) fn to_read(path: &Path) -> Outcome<Box<dyn StoreRead>> {
    Ok(match connect(path)? {
        Some(client) => Box::new(client),
        None => Box::new(options().create(false).read_only(true).open(path)?),
    })
}

/// A store that is there, to change.
pub(crate) fn to_change(path: &Path) -> Outcome<Box<dyn StoreWrite>> {
    Ok(match connect(path)? {
        Some(client) => Box::new(client),
        None => Box::new(options().create(false).open(path)?),
    })
}

/// A store and a keyspace to put records into, made if there are none. By message, the first record
/// makes the keyspace.
pub(crate) fn to_fill(path: &Path, keyspace: &str) -> Outcome<Box<dyn StoreWrite>> {
    Ok(match connect(path)? {
        Some(client) => Box::new(client),
        None => {
            let store = options().create(true).open(path)?;
            store.keyspace(keyspace)?;
            Box::new(store)
        }
    })
}

/// A message-passing client, if the path is that of a socket.
fn connect(path: &Path) -> Outcome<Option<Client>> {
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        // So that no directory is made, or missed, in place of a socket whose logger has gone.
        Err(error) if error.kind() == ErrorKind::NotFound && path.extension() == Some("sock".as_ref()) => {
            let what = format!("there is no socket at {}; it is there while the store's logger runs", path.display());
            return Err(Failure::System(what));
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(Failure::system(format!("looking for {}", path.display()))(error));
        }
        _ => return Ok(None),
    }
    let client = Client::connect(path)?;
    if let Some(notice) = client.notice() {
        eprintln!("untorn: {notice}");
    }
    Ok(Some(client))
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
