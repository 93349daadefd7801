//! Who may do what by message, as the access file says it (see `access`).
//!
//! The store's owner, whose process the logger is, may always do everything. Several rules for a
//! uid add up. Without the file nobody else is let in, and with a malformed one neither. The
//! store's own names, `untorn.…`, are nobody's to write.

use crate::files::owner;
use crate::server::access;
use rustix::process::geteuid;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Names that belong to the store itself.
const OWN_NAMES: &str = "untorn.";

const CONNECTIONS_DEFAULT: usize = 256;
const MESSAGE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Whose server it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Principal {
    /// The logger's effective uid. It owns the store's directory: the logger has not started
    /// otherwise.
    pub(super) uid: u32,
    /// The uid by which the kernel names every user that this user namespace has no number for. It
    /// names no user in particular, so no rule but one for every uid is about it, and it is not the
    /// owner.
    pub(super) unmapped: Option<u32>,
}

impl Principal {
    /// That of this process.
    pub(super) fn of_this_process() -> Principal {
        Principal { uid: geteuid().as_raw(), unmapped: owner::unmapped_uid() }
    }

    fn is_owner(&self, uid: u32) -> bool {
        uid == self.uid && self.unmapped != Some(uid)
    }
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    principal: Principal,
    pub(super) rules: Vec<Rule>,
    /// What is wrong with the file: then only the owner is let in.
    pub(super) fault: Option<PolicyFault>,
    /// Where the socket is, if not in the store's directory.
    pub(super) socket: Option<PathBuf>,
    /// How many connections there may be.
    pub(super) connections: usize,
    /// How long a peer may take to send or take one message.
    pub(super) patience: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// `None`: every uid.
    pub(super) uid: Option<u32>,
    pub(super) may_write: bool,
    /// Empty: all names.
    pub(super) prefixes: Vec<String>,
}

/// Why the file is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PolicyFault {
    /// Counted from 1; 0 if it is about the file as a whole.
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
    /// The policy of a store without the file: only the owner.
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

    /// The policy of a store whose file can't be understood.
    pub(super) fn faulty(principal: Principal, fault: PolicyFault) -> Policy {
        Policy { fault: Some(fault), ..Policy::of_owner(principal) }
    }

    /// What a file says.
    pub(super) fn parse(text: &[u8], principal: Principal) -> Policy {
        match access::parse(text, principal) {
            Ok(policy) => policy,
            Err(fault) => Policy::faulty(principal, fault),
        }
    }

    /// Whether nobody but the owner can connect: then the socket's mode says so, too.
    pub(super) fn is_owners_alone(&self) -> bool {
        self.rules.iter().all(|rule| rule.uid == Some(self.principal.uid))
    }

    pub(super) fn is_owner(&self, uid: u32) -> bool {
        self.principal.is_owner(uid)
    }

    /// What a uid may do; `None` if it may not connect.
    pub(super) fn rights(&self, uid: u32) -> Option<Rights<'_>> {
        let rights = Rights { policy: self, uid };
        (rights.is_owner() || rights.rules().next().is_some()).then_some(rights)
    }
}

/// What one uid may do.
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

    /// The longest time that it may give a commit to become durable: it has a connection and a
    /// thread for as long.
    pub(super) fn commit_time_max(&self) -> Duration {
        self.policy.patience
    }

    /// Whether it may read a keyspace, cell or counter.
    pub(super) fn may_read(&self, name: &str) -> bool {
        self.is_owner() || self.rules().any(|rule| rule.covers(name))
    }

    /// Whether it may write it.
    pub(super) fn may_write(&self, name: &str) -> bool {
        !name.starts_with(OWN_NAMES)
            && (self.is_owner() || self.rules().any(|rule| rule.may_write && rule.covers(name)))
    }

    /// Whether it may read everything, and so know the store's figures.
    pub(super) fn may_read_all(&self) -> bool {
        self.is_owner() || self.rules().any(|rule| rule.prefixes.is_empty())
    }

    /// Whether it may write everything, and so have work done for the store as a whole.
    pub(super) fn may_write_all(&self) -> bool {
        self.is_owner() || self.rules().any(|rule| rule.may_write && rule.prefixes.is_empty())
    }

    /// Whether it may write anything.
    pub(super) fn may_write_some(&self) -> bool {
        self.is_owner() || self.rules().any(|rule| rule.may_write)
    }
}

impl Rule {
    fn covers(&self, name: &str) -> bool {
        // The store's own names tell of all others: a rule about names that begin with `u` does not
        // mean them.
        let is_own = name.starts_with(OWN_NAMES);
        let covers = |prefix: &String| name.starts_with(&**prefix) && (!is_own || prefix.starts_with(OWN_NAMES));
        self.prefixes.is_empty() || self.prefixes.iter().any(covers)
    }
}
