//! Goal: keys, values and ranges of every type that the interface takes mean the same bytes.
//! Method: each form of a range beside the same range of a `BTreeMap`, in a keyspace, a snapshot, a
//! transaction and a message-passing client. That this file compiles shows which forms need no type
//! annotation.

use crate::common::{TestStore, limit};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use untorn::{Batch, Client, CommitOutcome, Durability, KeyRange, Keyspace, Snapshot, Store, WriteTxn};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// All views of the same records.
struct Views<'a> {
    keys: &'a Keyspace,
    snapshot: &'a Snapshot,
    txn: &'a WriteTxn<'a>,
    client: &'a Client,
    model: &'a Model,
}

impl Views<'_> {
    /// `range` is the range in question and `expected` the same one of vectors.
    fn check<R: KeyRange + Clone>(&self, range: R, expected: impl RangeBounds<Vec<u8>> + std::fmt::Debug) {
        let model: Vec<Vec<u8>> = self.model.keys().filter(|key| expected.contains(*key)).cloned().collect();
        let found = self.keys.range(range.clone()).unwrap();
        assert_eq!(found.map(|entry| entry.unwrap().0.to_vec()).collect::<Vec<_>>(), model, "{expected:?}");
        let found = self.snapshot.range(self.keys, range.clone()).unwrap();
        assert_eq!(found.map(|entry| entry.unwrap().0.to_vec()).collect::<Vec<_>>(), model, "{expected:?}");
        let found = self.txn.range(self.keys, range.clone()).unwrap();
        assert_eq!(found.map(|entry| entry.unwrap().0.to_vec()).collect::<Vec<_>>(), model, "{expected:?}");
        let found = self.client.scan("keys", range.clone()).unwrap();
        assert_eq!(found.map(|record| record.unwrap().0).collect::<Vec<_>>(), model, "{expected:?}");
        let mut backward: Vec<_> =
            self.client.scan_back("keys", range).unwrap().map(|record| record.unwrap().0).collect();
        backward.reverse();
        assert_eq!(backward, model, "{expected:?}");
    }
}

fn v(key: &str) -> Vec<u8> {
    key.into()
}

fn filled(test: &TestStore) -> (Store, Keyspace, Model) {
    let store = test.open_with(|options| {
        options.durability(Durability::Visible);
    });
    let keys = store.keyspace("keys").unwrap();
    let model: Model = ["", "a", "ab", "b", "ba", "c", "d"].iter().map(|key| (v(key), v("value"))).collect();
    store.transact(|txn| model.iter().try_for_each(|(key, value)| txn.put(&keys, key, value))).unwrap();
    (store, keys, model)
}

#[test]
fn every_form_of_a_range() {
    let _limit = limit();
    let test = TestStore::new();
    let (store, keys, model) = filled(&test);
    let client = Client::connect(test.path.join("logger.sock")).unwrap();
    let snapshot = store.snapshot().unwrap();
    let txn = store.begin().unwrap();
    let views = Views { keys: &keys, snapshot: &snapshot, txn: &txn, client: &client, model: &model };

    views.check(.., ..);
    views.check("a".."c", v("a")..v("c"));
    views.check("a"..="c", v("a")..=v("c"));
    views.check(b"a"..b"c", v("a")..v("c"));
    views.check(b"ab"..=b"ba", v("ab")..=v("ba"));
    views.check("b".., v("b")..);
    views.check(.."b", ..v("b"));
    views.check(..="b", ..=v("b"));
    views.check(v("ab").., v("ab")..);
    views.check(String::from("a")..String::from("b"), v("a")..v("b"));
    views.check(Cow::Borrowed(&b"b"[..]).., v("b")..);
    let key = v("bx");
    views.check(&key[..1].., v("b")..);
    views.check(&key[..].., v("bx")..);
    views.check(&key.., v("bx")..);
    views.check([b'a']..=[b'b'], v("a")..=v("b"));
    views.check(""..="", v("")..=v(""));
    views.check("x".., v("x")..);
    // Pairs of bounds.
    views.check((Bound::Excluded("a"), Bound::Included("b")), (Bound::Excluded(v("a")), Bound::Included(v("b"))));
    views.check((Bound::Excluded(b"a"), Bound::Unbounded), (Bound::Excluded(v("a")), Bound::Unbounded));
    views.check((Bound::Unbounded, Bound::Excluded(&key)), (Bound::Unbounded, Bound::Excluded(v("bx"))));
    let unbounded: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Unbounded);
    views.check(unbounded, ..);
    // Inverted ranges are empty.
    assert_eq!(keys.range("c".."a").unwrap().count(), 0);
    assert_eq!(client.scan("keys", "c"..="a").unwrap().count(), 0);
    assert_eq!(keys.prefix("a").unwrap().count(), 2);
    assert_eq!(snapshot.prefix(&keys, vec![b'b']).unwrap().count(), 2);
    assert_eq!(txn.prefix(&keys, String::from("c")).unwrap().count(), 1);
    assert_eq!(client.prefix("keys", b"a").unwrap().count(), 2);
}

#[test]
fn keys_and_values_of_every_type() {
    let _limit = limit();
    let test = TestStore::new();
    let (store, keys, _) = filled(&test);
    keys.put("k", "1").unwrap();
    keys.put(b"k", vec![2]).unwrap();
    let version = keys.put(String::from("k"), [3]).unwrap();
    assert_eq!(keys.get(Arc::<[u8]>::from(&b"k"[..])).unwrap().unwrap(), [3]);
    // What was read is a key and a value, too.
    let (key, value) = keys.last().unwrap().unwrap();
    assert_eq!(keys.get_versioned(&key).unwrap().unwrap().1, version);
    keys.put("copy", &value).unwrap();
    assert_eq!(keys.get("copy").unwrap().unwrap(), value);
    let _ = keys.compare_and_swap("k", Some(version), "4").unwrap();
    assert_eq!(keys.get(&key).unwrap().unwrap(), "4");
    assert!(keys.delete(key).unwrap());

    let mut txn = store.begin().unwrap();
    txn.put(&keys, "t", String::from("1")).unwrap();
    assert_eq!(txn.get(&keys, vec![b't']).unwrap(), Some(&b"1"[..]));
    assert!(txn.get_versioned(&keys, b"t").unwrap().is_some() && txn.delete(&keys, "t").unwrap());
    txn.commit().unwrap();
    assert!(store.snapshot().unwrap().get(&keys, "t").unwrap().is_none());

    let client = Client::connect(test.path.join("logger.sock")).unwrap();
    let version = client.put("keys", "m", vec![1]).unwrap();
    assert_eq!(client.get("keys", b"m").unwrap(), Some(vec![1]));
    let mut batch = Batch::new();
    batch
        .expect_version("keys", "m", version)
        .expect_absent("keys", vec![b'n'])
        .put("keys", "n", "2")
        .delete("keys", b"m");
    assert!(matches!(client.commit(&batch).unwrap(), CommitOutcome::Committed(_)));
    assert_eq!(client.multi_get("keys", ["m", "n"]).unwrap(), [None, Some(v("2"))]);
    let _ = client.compare_and_swap("keys", "m", None, String::from("3")).unwrap();
    assert!(client.delete("keys", "m").unwrap());
}
