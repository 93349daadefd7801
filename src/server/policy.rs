//! The rights of message-passing clients, as in the access file (see `access`).
//!
//! The store's owner, whose process the logger is, may always do everything. Several rules for a
//! uid add up. Without the file, or with a malformed one, only the owner is admitted. The store's
//! own names, `untorn.…`, are not writable by any client.

use crate::files::owner;
use crate::server::access;
use rustix::process::geteuid;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The prefix of names that belong to the store itself.
const OWN_NAMES: &str = "untorn.";

const CONNECTIONS_DEFAULT: usize = 256;
const MESSAGE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// The owner of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Principal {
    /// The logger's effective uid. It owns the store's directory: otherwise the logger does not
    /// start.
    pub(super) uid: u32,
    /// The uid that the kernel uses for every user without a number in this user namespace. It
    /// identifies no user, so only rules for every uid apply to it, and it is not the owner.
    pub(super) unmapped: Option<u32>,
}

impl Principal {
    /// Returns the principal of this process.
    pub(super) fn of_this_process() -> Principal {
        Principal { uid: geteuid().as_raw(), unmapped: owner::unmapped_uid() }
    }

    fn is_owner(&self, uid: u32) -> bool {
        uid == self.uid && self.unmapped != Some(uid)
    }
}

/// The contents of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    principal: Principal,
    pub(super) rules: Vec<Rule>,
    /// The error in the file, if any: then only the owner is admitted.
    pub(super) fault: Option<PolicyFault>,
    /// The path of the socket, if it is outside the store's directory.
    pub(super) socket: Option<PathBuf>,
    /// The most connections.
    pub(super) connections: usize,
    /// The longest time in which a peer may send or receive one message.
    pub(super) patience: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// The uid; `None` for every uid.
    pub(super) uid: Option<u32>,
    pub(super) may_write: bool,
    /// The prefixes of names; empty for all names.
    pub(super) prefixes: Vec<String>,
}

/// The reason why the file can't be parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PolicyFault {
    /// The line, counted from 1; 0 if the error concerns the file as a whole.
    pub(super) line: usize,
    pub(super) what: String,
}

impl fmt::Display for PolicyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "the file {}: {}", access::NAME, self.what),
            line => write!(f, "the file {}, line {line}: {}", access::NAME, self.what),
        }
    }
}

impl Policy {
    /// Returns the policy of a store without the file: only the owner.
    pub(super) fn of_owner(principal: Principal) -> Policy {
        Policy {
            principal,
            rules: Vec::new(),
            fault: None,
            socket: None,
            connections: CONNECTIONS_DEFAULT,
            patience: MESSAGE_TIMEOUT_DEFAULT,
        }
    }

    /// Returns the policy of a store whose file can't be parsed.
    pub(super) fn faulty(principal: Principal, fault: PolicyFault) -> Policy {
        Policy { fault: Some(fault), ..Policy::of_owner(principal) }
    }

    /// Parses the contents of a file.
    pub(super) fn parse(text: &[u8], principal: Principal) -> Policy {
        match access::parse(text, principal) {
            Ok(policy) => policy,
            Err(fault) => Policy::faulty(principal, fault),
        }
    }

    /// Returns whether only the owner can connect; the socket's mode is then set accordingly.
    pub(super) fn is_owners_alone(&self) -> bool {
        self.rules.iter().all(|rule| rule.uid == Some(self.principal.uid))
    }

    pub(super) fn is_owner(&self, uid: u32) -> bool {
        self.principal.is_owner(uid)
    }

    /// Returns the rights of a uid; `None` if it may not connect.
    pub(super) fn rights(&self, uid: u32) -> Option<Rights<'_>> {
        let rights = Rights { policy: self, uid };
        (rights.is_owner() || rights.rules().next().is_some()).then_some(rights)
    }
}

/// The rights of one uid.
#[derive(Clone, Copy)]
pub(super) struct Rights<'p> {
    policy: &'p Policy,
    uid: u32,
}

impl Rights<'_> {
    fn rules(&self) -> impl Iterator<Item = &Rule> {
        let is_of_peer = |uid| uid == self.uid && self.policy.principal.unmapped != Some(uid);
        self.policy.rules.iter().filter(move |rule| rule.uid.is_none_or(is_of_peer))
    }

    pub(super) fn is_owner(&self) -> bool {
        self.policy.principal.is_owner(self.uid)
    }

    /// Returns the longest time that it may give a commit to become durable: the commit occupies a
    /// connection and a thread for as long.
    pub(super) fn commit_time_max(&self) -> Duration {
        self.policy.patience
    }

    /// Returns whether it may read a keyspace, cell or counter.
    pub(super) fn may_read(&self, name: &str) -> bool {
        self.is_owner() || self.rules().any(|rule| rule.covers(name))
    }

    /// Returns whether it may write a keyspace, cell or counter.
    pub(super) fn may_write(&self, name: &str) -> bool {
        !name.starts_with(OWN_NAMES)
            && (self.is_owner() || self.rules().any(|rule| rule.may_write && rule.covers(name)))
    }

    /// Returns whether it may read everything, and so also the store's figures.
    pub(super) fn may_read_all(&self) -> bool {
        self.is_owner() || self.rules().any(|rule| rule.prefixes.is_empty())
    }

    /// Returns whether it may write everything, and so also request work for the store as a whole.
    pub(super) fn may_write_all(&self) -> bool {
        self.is_owner() || self.rules().any(|rule| rule.may_write && rule.prefixes.is_empty())
    }

    /// Returns whether it may write anything.
    pub(super) fn may_write_some(&self) -> bool {
        self.is_owner() || self.rules().any(|rule| rule.may_write)
    }
}

impl Rule {
    fn covers(&self, name: &str) -> bool {
        // The store's own names reveal all others, so a rule about names that begin with `u` does
        // not include them.
        let is_own = name.starts_with(OWN_NAMES);
        let covers = |prefix: &String| name.starts_with(&**prefix) && (!is_own || prefix.starts_with(OWN_NAMES));
        self.prefixes.is_empty() || self.prefixes.iter().any(covers)
    }
}
