//! The durability of a commit when it returns.

use std::time::Duration;

/// The durability of a commit when it returns.
///
/// ```
/// # fn main() -> untorn::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("data");
/// use std::time::Duration;
/// use untorn::{Durability, Store};
///
/// let store = Store::options().durability(Durability::Within(Duration::from_millis(20))).open(&path)?;
/// let readings = store.keyspace("readings")?;
/// readings.put(b"10:00", b"21.5")?; // shares its fsync with all that comes in the next 20 ms
/// let mut txn = store.begin_with(Durability::Durable)?; // this one is in a hurry
/// txn.put(&readings, b"alarm", b"on")?;
/// txn.commit()?;
/// # drop(readings);
/// # store.close()?;
/// # untorn::logger::stop_logger(&path, Duration::from_secs(5))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Other processes see the commit; it survives the death of any process, but not a crash of the
    /// kernel or a power loss.
    Visible,
    /// The commit survives a power loss: an fsync that covers it has returned.
    #[default]
    Durable,
    /// As [`Durability::Durable`], but the logger may delay the fsync until this long after the
    /// call of the commit, so that one fsync covers more commits. It delays as far as the deadlines
    /// of all commits allow, by its running estimate of how long a flush takes. An fsync for other
    /// reasons covers this commit as well: the flush policy for commits of the other kinds, a
    /// half-full ring, or [`Store::sync`](crate::Store::sync).
    ///
    /// The deadline is a target, not a limit: a slow disk can miss it. Then the commit returns
    /// later, fully durable, and is counted in [`Stats::deadlines`](crate::Stats::deadlines). Zero
    /// is [`Durability::Durable`].
    Within(Duration),
}
