//! How far a commit has come when it returns.

use std::time::Duration;

/// How far a commit has come when it returns.
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
    /// Other processes see it; it survives the death of any process, but not of the kernel or the
    /// power.
    Visible,
    /// It survives a power loss: an fsync that covers it has returned.
    #[default]
    Durable,
    /// As [`Durability::Durable`], and there is time: the logger may put the fsync off until so
    /// long after the call of the commit, so that one covers more. It delays as far as the
    /// deadlines of all commits allow, going by its running estimate of how long a flush takes; an
    /// fsync for other reasons (the flush policy for commits of the other kinds, a half-full ring,
    /// [`Store::sync`](crate::Store::sync)) covers this commit as well.
    ///
    /// The deadline is what the logger aims at, not a limit: a slow disk can miss it. Then the
    /// commit returns later, as durable as ever, and is counted in
    /// [`Stats::deadlines`](crate::Stats::deadlines). Zero is [`Durability::Durable`].
    Within(Duration),
}
