//! Tickets: shared syncs, and waits for durability by threads and by tasks.

use super::*;

/// One sync acknowledges the commits of all processes that it covers.
#[test]
fn group_commit_shares_syncs() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let _ = store.keyspace("numbers").unwrap();
    let mut children: Vec<Process> =
        (0..8).map(|n| spawn("processes::put", &test.path, &[&n.to_string(), "60"])).collect();
    children.iter().for_each(|child| child.expect("ready"));
    let before = store.stats().unwrap();
    children.iter_mut().for_each(|child| child.tell("go"));
    children.into_iter().for_each(|child| drop(child.finish()));
    let after = store.stats().unwrap();
    let (commits, syncs) = (after.commits - before.commits, after.fsyncs - before.fsyncs);
    eprintln!("{commits} durable commits, {syncs} syncs");
    assert_eq!(commits, 8 * 60);
    assert!(syncs < commits, "{syncs} syncs for {commits} commits");
    assert_eq!(store.durable_snapshot().unwrap().len(&store.keyspace("numbers").unwrap()).unwrap(), commits);
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// A ticket can be waited for, with a limit or without, polled, and awaited without any runtime.
#[test]
fn tickets() {
    let _limit = limit();
    let test = TestStore::new();
    let store = test.open();
    let keys = store.keyspace("keys").unwrap();
    store.set_flush_policy(FlushPolicy::Every(Duration::from_secs(3600))).unwrap();
    store.sync().unwrap();
    let commit = |key: &[u8]| {
        let mut txn = store.begin_with(Durability::Visible).unwrap();
        txn.put(&keys, key, b"v").unwrap();
        txn.commit().unwrap()
    };
    let ticket = commit(b"a");
    assert!(!ticket.is_durable());
    let start = Instant::now();
    assert!(!ticket.wait_timeout(Duration::from_millis(5)).unwrap());
    assert!(start.elapsed() < HANGS);
    assert_eq!(keys.get(b"a").unwrap().unwrap(), b"v");
    assert!(store.durable_snapshot().unwrap().txn_id() < ticket.txn_id());
    store.set_flush_policy(FlushPolicy::Every(Duration::from_millis(100))).unwrap();
    ticket.wait().unwrap();
    assert!(ticket.is_durable());
    assert!(ticket.wait_timeout(Duration::ZERO).unwrap());
    assert!(store.durable_snapshot().unwrap().txn_id() >= ticket.txn_id());

    let ticket = commit(b"b");
    block_on(ticket.clone()).unwrap();
    assert!(ticket.is_durable());
    block_on(ticket).unwrap();

    // Many at once, from several threads, in any order.
    let tickets: Vec<_> = (0..40u8).map(|n| commit(&[n])).collect();
    std::thread::scope(|scope| {
        for ticket in tickets.iter().rev() {
            scope.spawn(|| block_on(ticket.clone()).unwrap());
        }
        scope.spawn(|| store.sync().unwrap());
    });
    // The thread that wakes tasks has ended; another one does as well.
    std::thread::sleep(Duration::from_millis(20));
    block_on(commit(b"c")).unwrap();

    // An empty transaction has nothing that could become durable.
    let empty = store.begin_with(Durability::Durable).unwrap().commit().unwrap();
    assert_eq!(empty.txn_id(), store.snapshot().unwrap().txn_id());
    // A ticket outlives the handles.
    let last = commit(b"d");
    drop((keys, store));
    last.wait().unwrap();
}
