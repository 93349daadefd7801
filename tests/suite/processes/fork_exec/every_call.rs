//! Every call of every kind of handle, once, in a child of fork(): each must answer `Forked`, and
//! to the parent nothing may happen.

use super::in_child;
use crate::common::{HANGS, say};
use std::path::Path;
use std::sync::Barrier;
use std::time::Duration;
use untorn::{
    Batch, Cell, Changes, Client, Counter, Durability, Error, Feed, FlushPolicy, Keyspace, Range, RemoteChanges,
    Snapshot, Store, Ticket, TxnId, Value, Version,
};

/// Calls that were not answered `Forked`.
#[derive(Default)]
pub(crate) struct Wrong(pub(crate) Vec<String>);

impl Wrong {
    pub(crate) fn check<T>(&mut self, call: &str, answer: untorn::Result<T>) {
        match answer {
            Err(Error::Forked) => {}
            Err(error) => self.0.push(format!("{call}: {error}")),
            Ok(_) => self.0.push(format!("{call}: done")),
        }
    }

    /// Prints the wrong answers for the parent; returns the exit code of the child.
    fn code(self) -> i32 {
        self.0.iter().for_each(say);
        i32::from(!self.0.is_empty())
    }
}

/// One handle of each kind, as the parent made it.
struct Handles {
    store: Store,
    keys: Keyspace,
    /// That of the key `k`.
    version: TxnId,
    snapshots: [Snapshot; 2],
    /// Iterators that have gone one step.
    range: Range,
    value: Value,
    changes: Changes,
    ticket: Ticket,
    cell: Cell,
    stored: Version,
    typed: Cell<u64>,
    typed_stored: Version,
    counter: Counter,
    client: Client,
    remote_changes: RemoteChanges,
}

impl Handles {
    fn new(path: &Path) -> Handles {
        let store = Store::open(path).unwrap();
        let keys = store.keyspace("keys").unwrap();
        let version = keys.put(b"k", b"v").unwrap();
        keys.put(b"l", b"w").unwrap();
        let (cell, typed) = (store.cell("cell", 8).unwrap(), store.cell_of::<u64>("typed").unwrap());
        let (stored, typed_stored) = (cell.store(&[1; 8]).unwrap(), typed.store(&1).unwrap());
        let counter = store.counter("counter").unwrap();
        counter.add(1).unwrap();
        let snapshots = [store.snapshot().unwrap(), store.durable_snapshot().unwrap()];
        let mut range = keys.range(..).unwrap();
        let value = range.next().unwrap().unwrap().1;
        let client = Client::connect(path.join("logger.sock")).unwrap();
        let mut changes = store.changes(TxnId::ZERO, Feed::Visible).unwrap();
        let mut remote_changes = client.changes(TxnId::ZERO, Feed::Visible).unwrap();
        for first in [changes.try_next(HANGS), remote_changes.try_next(HANGS)] {
            assert_eq!(first.unwrap().unwrap().key(), b"k");
        }
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keys, b"n", b"x").unwrap();
        let ticket = txn.commit().unwrap();
        Handles {
            store,
            keys,
            version,
            snapshots,
            range,
            value,
            changes,
            ticket,
            cell,
            stored,
            typed,
            typed_stored,
            counter,
            client,
            remote_changes,
        }
    }

    fn of_store(&self, w: &mut Wrong) {
        w.check("Store::keyspace", self.store.keyspace("keys"));
        w.check("Store::keyspace, new", self.store.keyspace("new"));
        w.check("Store::find_keyspace", self.store.find_keyspace("keys"));
        w.check("Store::keyspaces", self.store.keyspaces());
        w.check("Store::drop_keyspace", self.store.drop_keyspace("keys"));
        w.check("Store::begin", self.store.begin());
        w.check("Store::begin_with", self.store.begin_with(Durability::Visible));
        w.check("Store::begin_timeout", self.store.begin_timeout(Duration::ZERO));
        w.check("Store::transact", self.store.transact(|_| Ok(())));
        w.check("Store::snapshot", self.store.snapshot());
        w.check("Store::durable_snapshot", self.store.durable_snapshot());
        w.check("Store::sync", self.store.sync());
        w.check("Store::checkpoint", self.store.checkpoint());
        w.check("Store::set_flush_policy", self.store.set_flush_policy(FlushPolicy::OnCommit));
        w.check("Store::cell", self.store.cell("cell", 8));
        w.check("Store::cell_of", self.store.cell_of::<u64>("typed"));
        w.check("Store::find_cell", self.store.find_cell("cell"));
        w.check("Store::counter", self.store.counter("counter"));
        w.check("Store::cells", self.store.cells());
        w.check("Store::drop_cell", self.store.drop_cell("cell"));
        w.check("Store::stats", self.store.stats());
        w.check("Store::verify", self.store.verify());
        w.check("Store::close", self.store.clone().close());
        w.check("Store::changes", self.store.changes(TxnId::ZERO, Feed::Durable));
    }

    fn of_keyspace(&self, w: &mut Wrong) {
        w.check("Keyspace::put", self.keys.put(b"k", b"x"));
        w.check("Keyspace::get", self.keys.get(b"k"));
        w.check("Keyspace::get_versioned", self.keys.get_versioned(b"k"));
        w.check("Keyspace::delete", self.keys.delete(b"k"));
        w.check("Keyspace::delete_range", self.keys.delete_range("a".."z"));
        w.check("Keyspace::clear", self.keys.clear());
        w.check("Keyspace::compare_and_swap", self.keys.compare_and_swap(b"k", Some(self.version), b"x"));
        w.check("Keyspace::compare_and_delete", self.keys.compare_and_delete(b"k", self.version));
        w.check("Keyspace::range", self.keys.range(..));
        w.check("Keyspace::prefix", self.keys.prefix(b"k"));
        w.check("Keyspace::len", self.keys.len());
        w.check("Keyspace::is_empty", self.keys.is_empty());
        w.check("Keyspace::contains_key", self.keys.contains_key("k"));
        w.check("Keyspace::multi_get", self.keys.multi_get(["k"]));
        w.check("Keyspace::first", self.keys.first());
        w.check("Keyspace::pop_last", self.keys.pop_last());
        w.check("Keyspace::update", self.keys.update("k", |_| None));
    }

    fn of_snapshot(&self, w: &mut Wrong) {
        for snapshot in &self.snapshots {
            w.check("Snapshot::get", snapshot.get(&self.keys, b"k"));
            w.check("Snapshot::get_versioned", snapshot.get_versioned(&self.keys, b"k"));
            w.check("Snapshot::range", snapshot.range(&self.keys, ..));
            w.check("Snapshot::prefix", snapshot.prefix(&self.keys, b"k"));
            w.check("Snapshot::cursor", snapshot.cursor(&self.keys));
            w.check("Snapshot::find_keyspace", snapshot.find_keyspace("keys"));
            w.check("Snapshot::keyspaces", snapshot.keyspaces());
            w.check("Snapshot::len", snapshot.len(&self.keys));
        }
    }

    fn of_iterators(&mut self, w: &mut Wrong) {
        w.check("Range::next", self.range.next().unwrap());
        w.check("Range::next_back", self.range.next_back().unwrap());
        w.check("Changes::try_next", self.changes.try_next(Duration::ZERO));
        w.check("Changes::next", self.changes.next().unwrap());
        w.check("RemoteChanges::try_next", self.remote_changes.try_next(Duration::ZERO));
        w.check("RemoteChanges::next", self.remote_changes.next().unwrap());
    }

    fn of_ticket(&self, w: &mut Wrong) {
        w.check("Ticket::wait", self.ticket.wait());
        w.check("Ticket::wait_timeout", self.ticket.wait_timeout(Duration::ZERO));
        w.check("Ticket, awaited", poll_once(self.ticket.clone()));
        if self.ticket.is_durable() {
            w.0.push("Ticket::is_durable".into());
        }
    }

    fn of_cells(&self, w: &mut Wrong) {
        w.check("Cell::store", self.cell.store(&[2; 8]));
        w.check("Cell::store_durable", self.cell.store_durable(&[2; 8]));
        w.check("Cell::load", self.cell.load(&mut [0; 8]));
        w.check("Cell::load_version", self.cell.load_version(self.stored, &mut [0; 8]));
        w.check("Cell::version", self.cell.version());
        w.check("Cell<T>::store", self.typed.store(&2));
        w.check("Cell<T>::store_durable", self.typed.store_durable(&2));
        w.check("Cell<T>::load", self.typed.load());
        w.check("Cell<T>::load_version", self.typed.load_version(self.typed_stored));
        w.check("Counter::add", self.counter.add(1));
        w.check("Counter::sub", self.counter.sub(1));
        w.check("Counter::get", self.counter.get());
    }

    fn of_client(&self, w: &mut Wrong) {
        let mut batch = Batch::new();
        batch.put("keys", b"m", b"x");
        w.check("Client::get", self.client.get("keys", b"k"));
        w.check("Client::get_versioned", self.client.get_versioned("keys", b"k"));
        w.check("Client::multi_get", self.client.multi_get("keys", &[b"k"]));
        w.check("Client::scan", self.client.scan("keys", ..));
        w.check("Client::scan_back", self.client.scan_back("keys", ..));
        w.check("Client::prefix", self.client.prefix("keys", b"k"));
        w.check("Client::keyspaces", self.client.keyspaces());
        w.check("Client::put", self.client.put("keys", b"k", b"x"));
        w.check("Client::delete", self.client.delete("keys", b"k"));
        w.check("Client::commit", self.client.commit(&batch));
        w.check("Client::compare_and_swap", self.client.compare_and_swap("keys", b"k", None, b"x"));
        w.check("Client::sync", self.client.sync());
        w.check("Client::checkpoint", self.client.checkpoint());
        w.check("Client::stats", self.client.stats());
        w.check("Client::cell_load", self.client.cell_load("cell"));
        w.check("Client::cell_load_version", self.client.cell_load_version("cell", self.stored));
        w.check("Client::cell_store", self.client.cell_store("cell", &[2; 8]));
        w.check("Client::cell_store_durable", self.client.cell_store_durable("cell", &[2; 8]));
        w.check("Client::counter_add", self.client.counter_add("counter", 1));
        w.check("Client::counter_get", self.client.counter_get("counter"));
        w.check("Client::changes", self.client.changes(TxnId::ZERO, Feed::Visible));
        w.check("Client::changes_from_now", self.client.changes_from_now(Feed::Visible));
    }

    /// What answers nothing must do no harm: copies, names, and the text for people.
    fn harmless(&self) -> usize {
        let Handles { store, keys, snapshots, range, changes, ticket, cell, counter, client, .. } = self;
        let copies = (store.clone(), keys.clone(), snapshots.clone(), ticket.clone(), cell.clone(), counter.clone());
        let named = (keys.name(), cell.name(), cell.size(), counter.name(), snapshots[0].txn_id(), ticket.txn_id());
        let shown =
            format!("{named:?} {store:?} {keys:?} {snapshots:?} {range:?} {changes:?} {ticket:?} {cell:?} {client:?}");
        drop(copies);
        shown.len()
    }

    /// As the parent finds them when its children have done all that.
    fn resume(mut self) {
        assert_eq!(self.value, b"v");
        assert_eq!(self.range.next().unwrap().unwrap().1, b"w");
        assert_eq!((self.typed.load().unwrap(), self.counter.get().unwrap()), ((1, self.typed_stored), 1));
        self.ticket.wait().unwrap();
        assert_eq!(self.client.get("keys", b"l").unwrap().as_deref(), Some(&b"w"[..]));
        for second in [self.changes.try_next(HANGS), self.remote_changes.try_next(HANGS)] {
            assert_eq!(second.unwrap().unwrap().key(), b"l");
        }
    }
}

/// The role: tries everything in children, then finds that nothing has happened.
pub(crate) fn role(path: &Path) {
    let handles = Handles::new(path);
    let (begun, told) = (Barrier::new(2), Barrier::new(2));
    let mut in_hand = Some(handles);
    let code = std::thread::scope(|scope| {
        // Another thread has a transaction open when the child is forked.
        let store = in_hand.as_ref().unwrap().store.clone();
        let (begun, told) = (&begun, &told);
        scope.spawn(move || {
            let txn = store.begin().unwrap();
            begun.wait();
            told.wait();
            txn.rollback();
        });
        begun.wait();
        let code = in_child(|| {
            // The child's copies, which it drops.
            let mut handles = in_hand.take().unwrap();
            let mut wrong = Wrong::default();
            handles.of_store(&mut wrong);
            handles.of_keyspace(&mut wrong);
            handles.of_snapshot(&mut wrong);
            handles.of_iterators(&mut wrong);
            handles.of_ticket(&mut wrong);
            handles.of_cells(&mut wrong);
            handles.of_client(&mut wrong);
            let shown = handles.harmless();
            drop(handles);
            wrong.code() + i32::from(shown == 0)
        });
        told.wait();
        code
    });
    assert_eq!(code, 0, "some calls were answered wrongly");
    let handles = in_hand.unwrap();
    in_transaction(&handles);
    in_scan(&handles.client);
    in_cursors(&handles);
    handles.resume();
    say("done");
}

/// A child uses the transaction that its parent has open on this very thread.
fn in_transaction(handles: &Handles) {
    let Handles { store, keys, .. } = handles;
    let mut txn = store.begin_with(Durability::Visible).unwrap();
    txn.put(keys, b"n", b"by parent").unwrap();
    let mut in_hand = Some(txn);
    let code = in_child(|| {
        let mut txn = in_hand.take().unwrap();
        let mut wrong = Wrong::default();
        wrong.check("WriteTxn::put", txn.put(keys, b"k", b"x"));
        wrong.check("WriteTxn::get", txn.get(keys, b"k").map(drop));
        wrong.check("WriteTxn::get_versioned", txn.get_versioned(keys, b"k").map(drop));
        wrong.check("WriteTxn::delete", txn.delete(keys, b"k"));
        wrong.check("WriteTxn::delete_range", txn.delete_range(keys, "a".."z"));
        wrong.check("WriteTxn::clear", txn.clear(keys));
        let savepoint = txn.savepoint();
        wrong.check("WriteTxn::rollback_to", txn.rollback_to(savepoint));
        wrong.check("WriteTxn::range", txn.range(keys, ..).map(drop));
        wrong.check("WriteTxn::prefix", txn.prefix(keys, b"k").map(drop));
        wrong.check("WriteTxn::cursor", txn.cursor(keys).map(drop));
        wrong.check("WriteTxn::pop_first", txn.pop_first(keys));
        wrong.check("WriteTxn::update", txn.update(keys, "k", |_| None));
        wrong.check("WriteTxn::keyspace", txn.keyspace("new"));
        wrong.check("WriteTxn::drop_keyspace", txn.drop_keyspace("keys"));
        wrong.check("Keyspace::put, in a transaction", keys.put(b"k", b"x"));
        let shown = format!("{:?}", txn.base_txn_id());
        wrong.check("WriteTxn::commit", txn.commit());
        wrong.code() + i32::from(shown.is_empty())
    });
    assert_eq!(code, 0, "some calls were answered wrongly");
    in_hand.take().unwrap().commit().unwrap();
    assert_eq!(keys.get(b"n").unwrap().unwrap(), b"by parent");
}

/// A child uses a scan of its parent that has records to give.
fn in_scan(client: &Client) {
    let mut in_hand = Some(client.scan("keys", ..).unwrap());
    let code = in_child(|| {
        let mut wrong = Wrong::default();
        wrong.check("Scan::next", in_hand.take().unwrap().next().unwrap());
        wrong.code()
    });
    assert_eq!(code, 0, "a scan was answered wrongly");
    assert_eq!(in_hand.unwrap().count(), 3);
}

/// A child uses ranges and cursors that its parent has moved, of a snapshot and of a transaction.
fn in_cursors(handles: &Handles) {
    let Handles { store, keys, snapshots, .. } = handles;
    let txn = store.begin_with(Durability::Visible).unwrap();
    let (mut range, mut cursor) = (snapshots[0].range(keys, ..).unwrap(), snapshots[0].cursor(keys).unwrap());
    let (mut in_txn, mut txn_cursor) = (txn.range(keys, ..).unwrap(), txn.cursor(keys).unwrap());
    assert_eq!(range.next().unwrap().unwrap().1, b"v");
    assert_eq!(cursor.next().unwrap().unwrap(), (&b"k"[..], &b"v"[..]));
    assert_eq!(in_txn.next().unwrap().unwrap().1, b"v");
    assert_eq!(txn_cursor.next().unwrap().unwrap(), (&b"k"[..], &b"v"[..]));
    let code = in_child(|| {
        let mut wrong = Wrong::default();
        wrong.check("SnapshotRange::next", range.next().unwrap());
        wrong.check("SnapshotRange::next_back", range.next_back().unwrap());
        wrong.check("Cursor::seek", cursor.seek("k"));
        wrong.check("Cursor::next", cursor.next());
        wrong.check("Cursor::prev", cursor.prev());
        wrong.check("Cursor::first", cursor.first());
        wrong.check("Cursor::last", cursor.last());
        wrong.check("TxnRange::next", in_txn.next().unwrap());
        wrong.check("TxnCursor::seek", txn_cursor.seek("k"));
        wrong.check("TxnCursor::next", txn_cursor.next());
        wrong.code()
    });
    assert_eq!(code, 0, "some calls were answered wrongly");
    // The parent's are where they were.
    assert_eq!(range.next().unwrap().unwrap().1, b"w");
    assert_eq!(cursor.next().unwrap().unwrap().0, b"l");
    assert_eq!(txn_cursor.next().unwrap().unwrap().0, b"l");
}

fn poll_once(ticket: Ticket) -> untorn::Result<()> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::future::Future::poll(std::pin::pin!(ticket), &mut context) {
        std::task::Poll::Ready(answer) => answer,
        std::task::Poll::Pending => Ok(()),
    }
}
