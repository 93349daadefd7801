//! The store that a command uses: by its directory, or by its socket, as a message-passing client.
//! A command that can use either is written once, against the traits that both implement.

use crate::outcome::{CommandFailure, Outcome};
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

/// Returns the options by which every command opens a store.
pub(crate) fn options() -> Options {
    let mut options = Store::options();
    options.foreign_owner(FOREIGN_OWNER.load(Ordering::Relaxed));
    options
}

/// Opens an existing store read-only.
pub(crate) fn to_read(path: &Path) -> Outcome<Box<dyn StoreRead>> {
    Ok(match connect(path)? {
        Some(client) => Box::new(client),
        None => Box::new(options().create(false).read_only(true).open(path)?),
    })
}

/// Opens an existing store for writing.
pub(crate) fn to_change(path: &Path) -> Outcome<Box<dyn StoreWrite>> {
    Ok(match connect(path)? {
        Some(client) => Box::new(client),
        None => Box::new(options().create(false).open(path)?),
    })
}

/// Opens a store and a keyspace for writing; creates both if missing. Over the socket, the first
/// put creates the keyspace.
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

/// Returns a message-passing client, if the path is that of a socket.
fn connect(path: &Path) -> Outcome<Option<Client>> {
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        // A missing `.sock` path means that the logger is not running; do not treat it as a store
        // directory.
        Err(error) if error.kind() == ErrorKind::NotFound && path.extension() == Some("sock".as_ref()) => {
            let what = format!("there is no socket at {}; it is there while the store's logger runs", path.display());
            return Err(CommandFailure::System(what));
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(CommandFailure::system(format!("looking for {}", path.display()))(error));
        }
        _ => return Ok(None),
    }
    let client = Client::connect(path)?;
    if let Some(notice) = client.notice() {
        eprintln!("untorn: {notice}");
    }
    Ok(Some(client))
}

/// Returns an error for a socket if the command needs the directory.
pub(crate) fn refuse_socket(path: &Path, command: &str) -> Outcome {
    if !is_socket(path) {
        return Ok(());
    }
    Err(CommandFailure::Usage(format!("{command} needs the store's directory; {} is a socket", path.display())))
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}
