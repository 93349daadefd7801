//! The keyspaces that a transaction has opened, and their states at its savepoints.
//!
//! For each savepoint there is a list of the keyspaces that changed between it and the next one:
//! the former entry of each, or that it was not open. So a savepoint costs what is changed after
//! it, however many keyspaces are open.

use crate::KeyspaceId;
use crate::btree::edit::AppendPath;
use crate::txn::catalog;
use std::collections::HashMap;

/// A keyspace that the transaction has opened.
#[derive(Clone)]
pub(super) struct OpenTree {
    pub(super) entry: catalog::CatalogEntry,
    pub(super) changed: bool,
    /// The path to the last leaf, if the transaction has put a last key.
    pub(super) append: AppendPath,
}

/// The open keyspaces. A few are searched linearly, more through an index, so that a transaction
/// over n keyspaces takes time in proportion to n.
#[derive(Default)]
pub(super) struct OpenTrees {
    list: Vec<OpenTree>,
    /// The index of each keyspace in `list`, if there are more than [`LINEAR_SEARCH_MAX`].
    index: HashMap<KeyspaceId, usize>,
    /// For each savepoint, the former states of the keyspaces that changed since; `None` if they
    /// were not open.
    before: Vec<HashMap<KeyspaceId, Option<OpenTree>>>,
}

/// The number of keyspaces that are searched without an index.
const LINEAR_SEARCH_MAX: usize = 16;

impl OpenTrees {
    pub(super) fn position(&self, id: KeyspaceId) -> Option<usize> {
        if self.index.is_empty() {
            return self.list.iter().position(|tree| tree.entry.id == id);
        }
        self.index.get(&id).copied()
    }

    pub(super) fn at(&self, at: usize) -> &OpenTree {
        &self.list[at]
    }

    /// Takes the path to the last leaf of a keyspace's tree.
    pub(super) fn take_append(&mut self, at: usize) -> AppendPath {
        std::mem::take(&mut self.list[at].append)
    }

    /// Returns a keyspace that is about to be changed.
    pub(super) fn change(&mut self, at: usize) -> &mut OpenTree {
        if let Some(before) = self.before.last_mut() {
            let tree = &self.list[at];
            before.entry(tree.entry.id).or_insert_with(|| Some(tree.clone()));
        }
        &mut self.list[at]
    }

    pub(super) fn open(&mut self, tree: OpenTree) -> usize {
        if let Some(before) = self.before.last_mut() {
            before.entry(tree.entry.id).or_insert(None);
        }
        self.push(tree)
    }

    pub(super) fn close(&mut self, id: KeyspaceId) -> Option<OpenTree> {
        let removed = self.remove(id)?;
        if let Some(before) = self.before.last_mut() {
            before.entry(id).or_insert_with(|| Some(removed.clone()));
        }
        Some(removed)
    }

    /// Returns all open keyspaces, for the last changes of the transaction.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut OpenTree> {
        self.list.iter_mut()
    }

    pub(super) fn add_savepoint(&mut self) {
        // The pages of the paths belong to the savepoint from now on.
        self.list.iter_mut().for_each(|tree| tree.append.clear());
        self.before.push(HashMap::new());
    }

    /// Restores all keyspaces to their states at savepoint number `depth`, counted from 0, and
    /// removes the savepoints after it.
    pub(super) fn roll_back_to(&mut self, depth: usize) {
        for before in self.before.split_off(depth).into_iter().rev() {
            for (id, tree) in before {
                match (self.position(id), tree) {
                    (Some(at), Some(tree)) => self.list[at] = tree,
                    (None, Some(tree)) => drop(self.push(tree)),
                    (_, None) => drop(self.remove(id)),
                }
            }
        }
        self.add_savepoint();
    }

    fn push(&mut self, tree: OpenTree) -> usize {
        let at = self.list.len();
        self.list.push(tree);
        if at >= LINEAR_SEARCH_MAX {
            let from = if self.index.is_empty() { 0 } else { at };
            self.index.extend((from..=at).map(|at| (self.list[at].entry.id, at)));
        }
        at
    }

    fn remove(&mut self, id: KeyspaceId) -> Option<OpenTree> {
        let at = self.position(id)?;
        let removed = self.list.swap_remove(at);
        if self.index.remove(&id).is_some()
            && let Some(moved) = self.list.get(at)
        {
            self.index.insert(moved.entry.id, at);
        }
        Some(removed)
    }
}
