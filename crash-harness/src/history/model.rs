//! What the store is to the checker: a map whose transactions happen one after the other, in the
//! order of their ids.
//!
//! More is asked than that some order explains the answers: it must be that of the transaction ids
//! that the store told, and each version must be the id of the transaction that wrote it. That also
//! leaves the search little to try.

use super::event::{Answer, Key, Operation, Seen};
use stateright::semantics::SequentialSpec;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

/// Configurations after which a search is given up.
const CONFIGURATIONS_MAX: usize = 200_000;

/// An operation, and which one of its history it is.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) index: usize,
    pub(super) operation: Operation,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Entry {
    value: u64,
    /// Not known as long as nobody was told: its writer died before the answer.
    version: Option<u64>,
}

type Entries = BTreeMap<Key, Entry>;

/// Which operations were done, and what the map was then.
type Configuration = (Vec<u64>, Entries);

/// What all states of one search share.
#[derive(Debug)]
struct Search {
    /// The ids of all transactions whose writers were told, in order.
    ids: Vec<u64>,
    /// From each of these the search has gone on already: if it comes by again, that was in vain,
    /// and it need not try again. (The search itself remembers nothing, and would try each order of
    /// operations that don't touch each other.)
    tried: RefCell<HashSet<Configuration>>,
    /// In each of these something was read. That is as good now as later, since it changes nothing:
    /// if it was in vain, so is everything else that could be done there.
    read_in: RefCell<HashSet<Configuration>>,
}

/// The map, and how far the history has come.
#[derive(Clone, Debug)]
pub(super) struct Model {
    entries: Entries,
    done: Vec<u64>,
    /// So many of the known transactions have happened.
    known: usize,
    is_dead_end: bool,
    search: Rc<Search>,
}

impl Model {
    /// An empty map, at the beginning of a history of so many operations in which transactions got
    /// these ids.
    pub(super) fn new(operations: usize, mut ids: Vec<u64>) -> Model {
        ids.sort_unstable();
        // Two that got the same id can't both be the next one.
        ids.dedup();
        let search = Rc::new(Search { ids, tried: RefCell::default(), read_in: RefCell::default() });
        let done = vec![0; operations.div_ceil(64)];
        Model { entries: Entries::new(), done, known: 0, is_dead_end: false, search }
    }

    /// How many configurations were tried, and whether the search was given up.
    pub(super) fn tried(&self) -> (usize, bool) {
        let tried = self.search.tried.borrow().len();
        (tried, tried >= CONFIGURATIONS_MAX)
    }

    /// Whether a key's version can be this one. Who learns a version that nobody knew fixes it.
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

    /// Whether an operation can be answered like this now.
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

    /// Whether this is the time of a transaction: of one that writes, if it is the next one; of one
    /// that reads, if those up to it have happened and those after it have not.
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

    /// Notes that an operation is done. A configuration that was tried is a dead end.
    fn note(&mut self, index: usize) {
        self.done[index / 64] |= 1 << (index % 64);
        let mut tried = self.search.tried.borrow_mut();
        self.is_dead_end |= tried.len() >= CONFIGURATIONS_MAX || !tried.insert(self.configuration());
    }
}

impl SequentialSpec for Model {
    type Op = Step;
    type Ret = Answer;

    /// An operation that has no answer, which happens nevertheless.
    fn invoke(&mut self, step: &Step) -> Answer {
        self.is_dead_end |= self.search.read_in.borrow().contains(&self.configuration());
        let version = |entries: &Entries, key: &Key| entries.get(key).map(|entry| entry.version);
        // A version that nobody was told is not one that somebody expects.
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
        // Who is the first to learn a version does change something.
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
