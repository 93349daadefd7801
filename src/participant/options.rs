//! How a store is opened, and how durable its commits are by default.

use crate::Durability;
use crate::files::dir::Dir;
use crate::files::geometry::{Geometry, Parameter};
use crate::files::owner::Ownership;
use crate::system::clock::now_ns;
use crate::{Error, LimitKind, Result, limits};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
pub use untorn_wal::FlushPolicy;
use untorn_wal::Retention;

impl Durability {
    /// Returns the deadline of a commit made now, on the monotonic clock; `None` if the flush
    /// policy decides.
    pub(crate) fn deadline_ns(self) -> Option<u64> {
        match self {
            Durability::Within(time) if !time.is_zero() => {
                let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                Some(now_ns().saturating_add(time).min(u64::MAX - 1))
            }
            _ => None,
        }
    }
}

/// The entry points of the logger. The logger's layer is above the ones that start it, so its
/// functions come down with the options, whose `Default` is implemented in that layer.
#[derive(Clone, Copy)]
pub(crate) struct LoggerEntry {
    /// Serves as the logger in the calling thread. Calls its argument when clients can join, or
    /// when another logger is found to serve.
    pub(crate) run_in_thread: fn(Dir, &mut dyn FnMut()) -> Result<()>,
    /// The hook that runs before `main`.
    #[cfg(feature = "logger-hook")]
    pub(crate) hook: extern "C" fn(),
}

impl fmt::Debug for LoggerEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoggerEntry").finish_non_exhaustive()
    }
}

/// Options of [`Store::open`](crate::Store::open); made by
/// [`Store::options`](crate::Store::options).
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) durability: Durability,
    pub(crate) flush_policy: Option<FlushPolicy>,
    pub(crate) max_size: Option<u64>,
    pub(crate) page_size: Option<usize>,
    pub(crate) segment_size: Option<u64>,
    pub(crate) ring_size: Option<u64>,
    pub(crate) create: bool,
    pub(crate) read_only: bool,
    pub(crate) any_file_system: bool,
    pub(crate) foreign_owner: bool,
    pub(crate) logger_program: Option<PathBuf>,
    pub(crate) logger_thread: bool,
    /// The logger itself opens the store, for message-passing clients.
    pub(crate) is_of_logger: bool,
    pub(crate) logger_idle: Option<Duration>,
    pub(crate) lock_timeout: Option<Duration>,
    pub(crate) logger_timeout: Duration,
    pub(crate) checkpoint_bytes: Option<u64>,
    pub(crate) sample_interval: Option<Duration>,
    pub(crate) retention: Option<Retention>,
    pub(crate) logger_entry: LoggerEntry,
}

impl Options {
    /// Returns the default options.
    pub(crate) fn new(logger_entry: LoggerEntry) -> Options {
        Options {
            durability: Durability::Durable,
            flush_policy: None,
            max_size: None,
            page_size: None,
            segment_size: None,
            ring_size: None,
            create: true,
            read_only: false,
            any_file_system: false,
            foreign_owner: false,
            logger_program: None,
            logger_thread: false,
            is_of_logger: false,
            logger_idle: None,
            lock_timeout: None,
            logger_timeout: Duration::from_secs(30),
            checkpoint_bytes: None,
            sample_interval: None,
            retention: None,
            logger_entry,
        }
    }

    /// Sets the durability of commits that do not name one. Default: [`Durability::Durable`].
    pub fn durability(&mut self, durability: Durability) -> &mut Options {
        self.durability = durability;
        self
    }

    /// Sets when the logger syncs. The policy holds for all processes of the store. If it is not
    /// set, the policy in force remains (at first [`FlushPolicy::OnCommit`]).
    pub fn flush_policy(&mut self, policy: FlushPolicy) -> &mut Options {
        self.flush_policy = Some(policy);
        self
    }

    /// Sets the maximum size of the arena in bytes, fixed when the store is created. Default: 1
    /// TiB; at most 2³² pages (16 TiB at the default page size).
    ///
    /// A process reserves address space for this size, or for 64 GiB if that is less, and as much
    /// again when it first writes. Beyond 64 GiB, more is reserved as the store grows.
    pub fn max_size(&mut self, bytes: u64) -> &mut Options {
        self.max_size = Some(bytes);
        self
    }

    /// Sets the page size in bytes, a power of two from 4,096 (the default) to 65,536, fixed when
    /// the store is created.
    pub fn page_size(&mut self, bytes: usize) -> &mut Options {
        self.page_size = Some(bytes);
        self
    }

    /// Sets the size of a log segment in bytes, fixed when the store is created: a multiple of
    /// 4,096, at least four times the ring's size, at most 1 GiB. Default: 8 MiB, or four rings.
    /// The first segments are sparse files, so a store with few records takes little of the disk.
    pub fn segment_size(&mut self, bytes: u64) -> &mut Options {
        self.segment_size = Some(bytes);
        self
    }

    /// Sets the size in bytes of the ring by which writers pass their log records to the logger,
    /// fixed when the store is created: a power of two from 64 KiB to 256 MiB. Default: 2 MiB.
    /// Larger transactions stream through it. The ring begins with 64 KiB and doubles while the
    /// first records are put into it.
    pub fn ring_size(&mut self, bytes: u64) -> &mut Options {
        self.ring_size = Some(bytes);
        self
    }

    /// Sets whether to create the store (and the last component of its path) if there is none.
    /// Default: true.
    pub fn create(&mut self, create: bool) -> &mut Options {
        self.create = create;
        self
    }

    /// Opens the store for reading only: no write call succeeds, and the arena is never mapped
    /// writable. The process still needs write access to `control`, which holds its pins. If there
    /// is no store, an empty one is created, so that readers may start before writers, unless
    /// [`create`](Options::create) is false. Default: false.
    pub fn read_only(&mut self, read_only: bool) -> &mut Options {
        self.read_only = read_only;
        self
    }

    /// Opens a store on a network or FUSE file system too, where locks and syncs may not reach
    /// every process. Does not override the check that a lock of the store is seen through another
    /// open of its file. Default: false.
    pub fn any_file_system(&mut self, insist: bool) -> &mut Options {
        self.any_file_system = insist;
        self
    }

    /// Allows root to open a store whose directory belongs to another user. Default: false; such an
    /// open then returns [`Error::Permission`].
    ///
    /// The owner of a store can read and change everything in it, including what root writes. The
    /// logger that this process starts becomes the owner before it reads or makes anything. It
    /// takes uid and gid of the directory, drops other groups and all capabilities, and keeps only
    /// `PATH` and `UNTORN_…` of its environment. For that it needs `CAP_SETUID` and `CAP_SETGID`.
    /// Files that root itself makes are given to the owner. A process of any other uid is refused
    /// anyway, except for [`Options::observe`].
    pub fn foreign_owner(&mut self, allow: bool) -> &mut Options {
        self.foreign_owner = allow;
        self
    }

    /// Sets the program to start as the logger: `untorn-logger`, or a program that executes it. Its
    /// argument is the store's path, followed by `--foreign-owner` if
    /// [`foreign_owner`](Options::foreign_owner) makes it another user's logger. Default: the
    /// variable `UNTORN_LOGGER`, else the running executable itself (with the feature
    /// `logger-hook`), else `untorn-logger` beside it or on `PATH`.
    pub fn logger_program(&mut self, program: impl Into<PathBuf>) -> &mut Options {
        self.logger_program = Some(program.into());
        self
    }

    /// Runs the logger as a thread of this process if no process can be spawned. It then dies with
    /// this process; another process that has the store open starts the next. Default: false.
    pub fn logger_thread(&mut self, thread: bool) -> &mut Options {
        self.logger_thread = thread;
        self
    }

    /// Sets how long the logger stays after the last client has left. Default: 5 s.
    pub fn logger_idle(&mut self, idle: Duration) -> &mut Options {
        self.logger_idle = Some(idle);
        self
    }

    /// Sets how long `begin` waits for the writer lock before [`Error::LockTimeout`]. Default:
    /// without limit.
    pub fn lock_timeout(&mut self, timeout: Duration) -> &mut Options {
        self.lock_timeout = Some(timeout);
        self
    }

    /// Sets how long a call waits for a living logger that makes no progress before
    /// [`Error::LoggerStalled`]. Default: 30 s. Opening waits at least 30 s without progress before
    /// [`Error::LoggerUnavailable`].
    pub fn logger_timeout(&mut self, timeout: Duration) -> &mut Options {
        self.logger_timeout = timeout;
        self
    }

    /// Sets the log volume in bytes after which the logger takes a checkpoint. It holds for all
    /// processes of the store. If it is not set, the value in force remains (at first 64 MiB).
    pub fn checkpoint_bytes(&mut self, bytes: u64) -> &mut Options {
        self.checkpoint_bytes = Some(bytes);
        self
    }

    /// Sets the time between two samples, by which cells and counters become durable. Under
    /// [`FlushPolicy::Every`], that policy decides instead. It holds for all processes of the
    /// store. If it is not set, the value in force remains (at first 10 ms).
    ///
    /// Each sample is a commit whose flush the flush policy decides, whatever deadlines other
    /// commits have. So under [`FlushPolicy::OnCommit`], a counter that is constantly added to
    /// causes one fsync in each interval.
    pub fn sample_interval(&mut self, interval: Duration) -> &mut Options {
        self.sample_interval = Some(interval);
        self
    }

    /// Sets how much of the log is kept for followers ([`Store::changes`](crate::Store::changes)),
    /// beyond what recovery needs. The segments take, as whole files, at most `bytes` on the disk,
    /// and their changes are at most `age` old (by the system's clock). Both bounds hold;
    /// `u64::MAX` and [`Duration::MAX`] are no bounds. A follower that falls behind gets
    /// [`Error::Lagged`].
    ///
    /// The log does not contain values of at least 64 KiB. Once a checkpoint contains such a value,
    /// and it was overwritten or deleted, a follower that has not read it may get the same error.
    ///
    /// It holds for all processes of the store. If it is not set, the value in force remains: at
    /// first 16 MiB without a bound of age. It survives restarts: each checkpoint records the value
    /// in force, and only a power loss before the next checkpoint reverts a change of it. When the
    /// disk is full, what is kept for followers is deleted before any commit fails.
    pub fn retain_changes(&mut self, bytes: u64, age: Duration) -> &mut Options {
        self.retention = Some(Retention { bytes, age });
        self
    }

    /// Returns which owners' stores these options open.
    pub(crate) fn ownership(&self) -> Ownership {
        if self.foreign_owner { Ownership::Foreign } else { Ownership::Own }
    }

    /// Returns the geometry of a store that is created with these options.
    pub(crate) fn geometry(&self) -> Result<Geometry> {
        let page_size = self.page_size.unwrap_or(limits::PAGE_SIZE_DEFAULT);
        let ring_size = self.ring_size.unwrap_or(limits::RING_SIZE_DEFAULT);
        let segment_size = limits::SEGMENT_SIZE_DEFAULT.max(ring_size.saturating_mul(4));
        let segment_size = self.segment_size.unwrap_or(segment_size);
        let asked = self.max_size.unwrap_or(limits::MAX_SIZE_DEFAULT);
        let max_size = asked.checked_next_multiple_of(limits::GROWTH_PIECE).unwrap_or(u64::MAX);
        let geometry = Geometry { page_size, max_size, ring_size, segment_size };
        if let Some((parameter, what)) = geometry.problem() {
            return Err(match parameter {
                Parameter::Max => {
                    Error::Limit { what: LimitKind::MaxSize, found: asked, limit: geometry.max_size_max() }
                }
                _ => Error::Invalid { what },
            });
        }
        Ok(geometry)
    }
}

impl Options {
    /// Returns an error if an explicit option differs from what the store was created with.
    pub(crate) fn refuse_other_geometry(&self, store: &Geometry) -> Result<()> {
        let asked = [
            ("page size", self.page_size.map(|bytes| bytes as u64), store.page_size as u64),
            ("ring size", self.ring_size, store.ring_size),
            ("segment size", self.segment_size, store.segment_size),
            ("maximum size", self.max_size.map(|bytes| bytes.next_multiple_of(limits::GROWTH_PIECE)), store.max_size),
        ];
        for (name, asked, has) in asked {
            if asked.is_some_and(|asked| asked != has) {
                return Err(Error::Invalid {
                    what: format!("the store was created with a {name} of {has} bytes, not {}", asked.unwrap_or(0)),
                });
            }
        }
        Ok(())
    }
}
