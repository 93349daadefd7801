//! The command line: the commands, their arguments, and the switches that all of them share.

use crate::tour;
use clap::{ArgGroup, Args, Parser, Subcommand};
use std::path::PathBuf;

/// A crash-consistent key-value store that several processes open at once.
///
/// Exit codes: 0 done, 1 not found or check failed, 2 usage, 3 store error.
#[derive(Parser)]
#[command(name = "untorn", version)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) format: Format,
    /// As root, open a store that belongs to another user. That user can read everything
    /// that is put into it
    #[arg(long, global = true)]
    pub(crate) foreign_owner: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The format of keys and values, in arguments, input and output alike.
#[derive(Args, Clone, Copy)]
pub(crate) struct Format {
    /// Keys and values are hexadecimal digits instead of UTF-8
    #[arg(long, global = true)]
    pub(crate) hex: bool,
    /// One JSON object a line: {"keyspace","key","value"} for records
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// A keyspace of a store.
#[derive(Args)]
pub(crate) struct Location {
    /// The store's directory, or the socket of its logger
    pub(crate) store: PathBuf,
    /// The keyspace's name
    pub(crate) keyspace: String,
}

/// The changes to follow.
#[derive(Args)]
pub(crate) struct WatchOptions {
    /// The store's directory, or the socket of its logger
    pub(crate) store: PathBuf,
    /// Only this keyspace
    pub(crate) keyspace: Option<String>,
    /// Only keys that start with this
    #[arg(allow_hyphen_values = true)]
    pub(crate) prefix: Option<String>,
    /// Begin after this transaction (3.14, or the number that --json prints), 0 for the beginning,
    /// instead of now
    #[arg(long, value_name = "TXN")]
    pub(crate) from: Option<String>,
    /// Print only durable changes, which an fsync has covered; the default
    #[arg(long, conflicts_with = "visible")]
    pub(crate) durable: bool,
    /// Print changes as soon as they are visible, though a power loss may take them back
    #[arg(long)]
    pub(crate) visible: bool,
}

/// The keys to delete.
#[derive(Args)]
#[command(group(ArgGroup::new("what").required(true).multiple(true)))]
pub(crate) struct DelOptions {
    /// The record's key
    #[arg(group = "what", allow_hyphen_values = true, conflicts_with_all = ["from", "to", "prefix"])]
    pub(crate) key: Option<String>,
    /// Delete from this key on, to the end of the keyspace without --to
    #[arg(group = "what", long, value_name = "KEY", allow_hyphen_values = true, conflicts_with = "prefix")]
    pub(crate) from: Option<String>,
    /// Delete up to this key, but not this key; from the first key without --from
    #[arg(group = "what", long, value_name = "KEY", allow_hyphen_values = true, conflicts_with = "prefix")]
    pub(crate) to: Option<String>,
    /// Delete the keys that start with this
    #[arg(group = "what", long, value_name = "P", allow_hyphen_values = true)]
    pub(crate) prefix: Option<String>,
}

/// The store to show, and the interval.
#[derive(Args)]
pub(crate) struct TopOptions {
    /// The store's directory
    pub(crate) store: PathBuf,
    /// Milliseconds between updates, at least 100
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub(crate) interval: u64,
    /// Print one page, of one interval, and exit; its size is in COLUMNS and LINES
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Print the value of a key
    Get {
        #[command(flatten)]
        at: Location,
        /// The record's key
        #[arg(allow_hyphen_values = true)]
        key: String,
    },
    /// Set a key; durable on return. Creates the store and the keyspace if missing
    Put {
        #[command(flatten)]
        at: Location,
        /// The record's key
        #[arg(allow_hyphen_values = true)]
        key: String,
        /// Its new value
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Delete a key, or a range of keys, and then print how many were deleted; durable on return
    Del {
        #[command(flatten)]
        at: Location,
        #[command(flatten)]
        what: DelOptions,
    },
    /// Print the records in key order, as dump does, optionally of one prefix only
    Scan {
        #[command(flatten)]
        at: Location,
        /// Only keys that start with this
        #[arg(long, value_name = "P", allow_hyphen_values = true)]
        prefix: Option<String>,
    },
    /// Read `key<TAB>value` lines from standard input. Creates the store and the keyspace if
    /// missing
    ///
    /// Backslash escapes: \t \n \r \\ and \xHH. All lines are durable when the command ends. It
    /// stops at the first bad line, prints its number, has loaded exactly the lines before it, and
    /// exits with 2. With --json a line is an object as dump writes it; its "keyspace" is ignored,
    /// so a dump can be loaded into another one.
    Load {
        #[command(flatten)]
        at: Location,
    },
    /// Write all records as `key<TAB>value` lines in key order, of one snapshot
    ///
    /// Tab, newline and backslash are escaped as \t, \n and \\; bytes that are not UTF-8 as \xHH.
    /// On a terminal, all control characters are escaped as well; a pipe or a file gets them
    /// unchanged.
    Dump {
        #[command(flatten)]
        at: Location,
    },
    /// Follow the changes as they are committed, one a line, until interrupted
    ///
    /// A line is `txn<TAB>keyspace<TAB>put<TAB>key<TAB>value`, `…delete<TAB>key` or `…drop` (of the
    /// whole keyspace), escaped as dump does. With --json it is an object
    /// {"txn","keyspace","kind","key","value","last"}; the value is null for a removal, and last
    /// marks the end of a transaction. Output is flushed after each transaction.
    Watch(WatchOptions),
    /// Print the store's counters: transactions, pages, log, readers, logger
    Stat {
        /// The store's directory, or the socket of its logger
        store: PathBuf,
        /// Print the figures for Prometheus (text format 0.0.4), without becoming a client or
        /// starting a logger; needs the directory
        #[arg(long, conflicts_with = "json")]
        prometheus: bool,
    },
    /// Show the store's activity live, until q; or once, as text, if the output is no terminal
    ///
    /// Observes the store from outside: it is no client, starts no logger, and continues when the
    /// logger restarts or all processes leave.
    Top(TopOptions),
    /// Print the longest time that commits can take, by class, and the measured one
    ///
    /// The bounds are computed by response-time analysis from the longest lock holds and flushes so
    /// far, and from the rate of commits during the observation. Urgent are durable commits and
    /// those within less than 100 ms; all others are bulk.
    Deadlines {
        /// The store's directory
        store: PathBuf,
        /// Seconds during which the rate of commits is observed
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// How many of each class may commit at the same instant; by default, as many as processes
        /// have the store open
        #[arg(long)]
        callers: Option<u64>,
    },
    /// Check every page, record and checksum
    Verify {
        /// The store's directory
        store: PathBuf,
    },
    /// Write a checkpoint that covers everything visible now, and wait for it
    Checkpoint {
        /// The store's directory, or the socket of its logger
        store: PathBuf,
    },
    /// Request that the logger write a checkpoint and exit
    Stop {
        /// The store's directory
        store: PathBuf,
        /// How long to wait for its exit, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        timeout_seconds: u64,
    },
    /// Demonstrate that a store survives: index a directory tree by processes that are killed
    ///
    /// Four writer processes index every file (path → size, mtime, CRC of the content) into a fresh
    /// store. Two reader processes check every record and every snapshot's totals meanwhile. One
    /// writer is killed and one stopped in the middle of a transaction, the logger is killed, then
    /// all processes are. Exits 1 if anything acknowledged was missing or anything was torn.
    Tour(tour::TourOptions),
    /// One process of the tour
    #[command(hide = true)]
    TourChild(tour::TourProcess),
}
