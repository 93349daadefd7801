//! The checker's model of the store: a map whose transactions happen one after the other, in the
//! order of their ids.
//!
//! The check is stricter than linearizability. The order must be that of the transaction ids that
//! the store returned, and each version must be the id of the transaction that wrote it. This also
//! keeps the search small.

use super::event::{Answer, Key, Operation, Seen};
use stateright::semantics::SequentialSpec;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

/// Number of configurations after which a search is given up.
const CONFIGURATIONS_MAX: usize = 200_000;

/// An operation and its index in the history.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) index: usize,
    pub(super) operation: Operation,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Entry {
    value: u64,
    /// `None` if the writer died before it received the version. The first answer that contains the
    /// version sets it.
    version: Option<u64>,
}

type Entries = BTreeMap<Key, Entry>;

/// The set of completed operations, and the map at that time.
type Configuration = (Vec<u64>, Entries);

/// State that is shared by all models of one search.
#[derive(Debug)]
struct Search {
    /// The ids of all transactions whose answers contain them, in order.
    ids: Vec<u64>,
    /// Configurations from which the search has continued already. If the search reaches one of
    /// them again, the first attempt from there has failed, so another one would fail, too. The
    /// tester itself does not memoize. It would try each order of independent operations.
    tried: RefCell<HashSet<Configuration>>,
    /// Configurations in which a read was performed. A read changes nothing, so it can as well be
    /// performed at once as later. If the search failed after that read, every other step from the
    /// same configuration fails, too.
    read_in: RefCell<HashSet<Configuration>>,
}

/// The map, and the progress of the history.
#[derive(Clone, Debug)]
pub(super) struct Model {
    entries: Entries,
    done: Vec<u64>,
    /// Number of known transactions that have happened.
    known: usize,
    is_dead_end: bool,
    search: Rc<Search>,
}

impl Model {
    /// Creates an empty map at the beginning of a history of `operations` operations. `ids` are the
    /// ids of the transactions that the history's answers contain.
    pub(super) fn new(operations: usize, mut ids: Vec<u64>) -> Model {
        ids.sort_unstable();
        // Two transactions with the same id can't both be the next one.
        ids.dedup();
        let search = Rc::new(Search { ids, tried: RefCell::default(), read_in: RefCell::default() });
        let done = vec![0; operations.div_ceil(64)];
        Model { entries: Entries::new(), done, known: 0, is_dead_end: false, search }
    }

    /// Returns how many configurations were tried, and whether the search was given up.
    pub(super) fn tried(&self) -> (usize, bool) {
        let tried = self.search.tried.borrow().len();
        (tried, tried >= CONFIGURATIONS_MAX)
    }

    /// Returns whether a key can have this version. If the key's version was unknown, this call
    /// sets it.
    fn has_version(&mut self, key: Key, version: Option<u64>) -> bool {
        match (self.entries.get_mut(&key), version) {
            (None, None) => true,
            (Some(entry), Some(version)) => *entry.version.get_or_insert(version) == version,
            _ => false,
        }
    }

    fn is_as_seen(&mut self, key: Key, seen: Seen) -> bool {
        match (self.entries.get(&key), seen) {
            (None, Seen::Absent) => true,
            (Some(entry), Seen::Present { value, version }) => {
                value.is_none_or(|value| value == entry.value) && (version.is_none() || self.has_version(key, version))
            }
            _ => false,
        }
    }

    /// Returns whether an operation can have this answer now.
    fn allows(&mut self, operation: &Operation, answer: &Answer) -> bool {
        match answer {
            Answer::Mismatch { key, current } => {
                let expected = operation.expect.iter().find(|(expected, _)| expected == key);
                expected.is_some_and(|(_, version)| version != current) && self.has_version(*key, *current)
            }
            Answer::Done { read, at } => {
                operation.expect.iter().all(|(key, version)| self.has_version(*key, *version))
                    && read.len() == operation.read.len()
                    && operation.read.iter().zip(read).all(|(key, seen)| self.is_as_seen(*key, *seen))
                    && at.is_none_or(|at| self.is_at(at, !operation.write.is_empty()))
            }
        }
    }

    /// Returns whether the transaction `at` can happen now. A transaction that writes must be the
    /// next one. For a transaction that only reads, all transactions up to `at` must have happened,
    /// and none after it.
    fn is_at(&mut self, at: u64, writes: bool) -> bool {
        let (before, after) = self.search.ids.split_at(self.known);
        if writes {
            let is_next = after.first() == Some(&at);
            self.known += usize::from(is_next);
            return is_next;
        }
        before.last().is_none_or(|id| *id <= at) && after.first().is_none_or(|id| at < *id)
    }

    fn apply(&mut self, operation: &Operation, version: Option<u64>) {
        for (key, value) in &operation.write {
            match value {
                Some(value) => self.entries.insert(*key, Entry { value: *value, version }),
                None => self.entries.remove(key),
            };
        }
    }

    fn configuration(&self) -> Configuration {
        (self.done.clone(), self.entries.clone())
    }

    /// Marks an operation as done. A configuration that was tried before is a dead end.
    fn note(&mut self, index: usize) {
        self.done[index / 64] |= 1 << (index % 64);
        let mut tried = self.search.tried.borrow_mut();
        self.is_dead_end |= tried.len() >= CONFIGURATIONS_MAX || !tried.insert(self.configuration());
    }
}

impl SequentialSpec for Model {
    type Op = Step;
    type Ret = Answer;

    /// Applies an operation that happened although it has no answer.
    fn invoke(&mut self, step: &Step) -> Answer {
        self.is_dead_end |= self.search.read_in.borrow().contains(&self.configuration());
        let version = |entries: &Entries, key: &Key| entries.get(key).map(|entry| entry.version);
        // An unknown version is unmet: no client can expect a version that no answer contained.
        let unmet = step.operation.expect.iter().find(|(key, expected)| match version(&self.entries, key) {
            None => expected.is_some(),
            Some(current) => current.is_none() || current != *expected,
        });
        if let Some((key, _)) = unmet {
            let current = version(&self.entries, key).flatten();
            self.note(step.index);
            return Answer::Mismatch { key: *key, current };
        }
        let seen = |key| match self.entries.get(key) {
            None => Seen::Absent,
            Some(entry) => Seen::Present { value: Some(entry.value), version: entry.version },
        };
        let read = step.operation.read.iter().map(seen).collect();
        self.apply(&step.operation, None);
        self.note(step.index);
        Answer::Done { read, at: None }
    }

    fn is_valid_step(&mut self, step: &Step, answer: &Answer) -> bool {
        let before = self.configuration();
        if self.is_dead_end || self.search.read_in.borrow().contains(&before) {
            return false;
        }
        if !self.allows(&step.operation, answer) {
            return false;
        }
        let writes = !step.operation.write.is_empty() && matches!(answer, Answer::Done { .. });
        // A read that sets an unknown version changes the map's state, so it is not recorded here.
        if !writes && self.entries == before.1 {
            self.search.read_in.borrow_mut().insert(before);
        }
        if let Answer::Done { at, .. } = answer {
            self.apply(&step.operation, *at);
        }
        self.note(step.index);
        !self.is_dead_end
    }
}
