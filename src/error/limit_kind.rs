//! The kinds of limits in [`Error::Limit`](crate::Error::Limit).

use std::fmt;

/// Defines [`LimitKind`] with the text of each kind.
macro_rules! limit_kinds {
    ($($(#[$doc:meta])* $kind:ident => $text:literal,)*) => {
        /// What an [`Error::Limit`](crate::Error::Limit) limits.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum LimitKind {
            $($(#[$doc])* $kind,)*
            /// A limit of a server that this version of the library does not know.
            Other,
        }

        impl LimitKind {
            const ALL: &[LimitKind] = &[$(LimitKind::$kind),*];

            /// Returns the name of the limited quantity.
            pub fn text(self) -> &'static str {
                match self {
                    $(LimitKind::$kind => $text,)*
                    LimitKind::Other => "a quantity that the server limits",
                }
            }
        }
    };
}

limit_kinds! {
    /// A quarter of the page size: 1,024 at the default.
    KeyLength => "the length of a key in bytes",
    /// 1 GiB; by message 16 MiB.
    ValueLength => "the length of a value in bytes",
    /// 255 bytes.
    KeyspaceNameLength => "the length of a keyspace's name in bytes",
    /// 255 bytes.
    CellNameLength => "the length of a cell's name in bytes",
    /// 1 to 4,096 bytes.
    CellLength => "the length of a cell in bytes (at least 1)",
    /// 1,048,576.
    Keyspaces => "the number of keyspaces",
    /// 65,536.
    Cells => "the number of cells and counters",
    /// 65,536, of all processes.
    Snapshots => "the number of pinned snapshots",
    /// 4,096.
    Clients => "the number of processes that have the store open",
    /// Sockets that a child of `fork()` must close.
    PrivateDescriptors => "the number of descriptors that children must not keep",
    /// The store has reached its maximum size, or all pages are numbered.
    StoreSize => "the store's size in bytes",
    /// [`Options::max_size`](crate::Options::max_size) asks for less than 4 MiB or more than 2³²
    /// pages.
    MaxSize => "the store's maximum size in bytes (at least 4 MiB)",
    /// The process may not write a file of this length.
    FileSize => "the size of a file in bytes (RLIMIT_FSIZE)",
    /// The record does not fit into the ring.
    LogRecord => "a log record in bytes",
    /// The tree is damaged.
    TreeLevels => "levels of a tree",
    /// 2⁴⁴ in the life of a store.
    TransactionIds => "the number of a store's transactions (copy its records into a new store)",
    /// 2²⁰ in the life of a store.
    Incarnations => "the incarnation of a store (copy its records into a new store)",
    /// 2⁶⁴ in the life of a store.
    KeyspaceNumbers => "the number of a keyspace (copy the store's records into a new store)",
    /// 2⁶⁴ in the life of a cell.
    CellVersions => "the versions of a cell (copy its value into one of another name)",
    /// The versions of a new cell begin above those of all dropped ones.
    StoreCellVersions => "the versions of a store's cells (copy its records into a new store)",
    /// 2⁶⁴ checkpoints.
    HeaderSerials => "the serial of a header in checkpoint (restore a backup)",
    /// 16 MiB and 64 KiB.
    MessageLength => "the length of a message in bytes",
    /// The same limits as `MessageLength`.
    ReplyLength => "the length of a reply in bytes",
    /// 65,536.
    MessageKeys => "the number of keys in a message",
    /// 65,536.
    BatchChanges => "the number of changes in a batch",
    /// 65,536.
    MessageKeyspaces => "the number of keyspaces in a message",
    /// 8 for each connection.
    Scans => "the number of scans that a connection has open",
    /// [`Durability::Within`](crate::Durability::Within) of a message-passing client. The limit is
    /// the time for which the server waits for a peer.
    CommitTime => "the time in microseconds that a message client gives a commit",
}

impl LimitKind {
    /// Returns the kind with this text.
    pub(crate) fn from_text(text: &str) -> LimitKind {
        LimitKind::ALL.iter().copied().find(|kind| kind.text() == text).unwrap_or(LimitKind::Other)
    }
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
