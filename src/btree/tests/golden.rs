//! Goal: the bytes of pages don't change unnoticed; `docs/format.md` shows the same pages. Method:
//! small pages written out in full; bytes that are not shown are zero.

use crate::btree::node::Payload;
use crate::btree::rebuild::{EntryList, NodeIdentity};
use crate::btree::tests::*;

/// Returns the body as lines of 8 bytes, each with its offset in the body, without lines of zeros.
fn dump(body: &[u8]) -> Vec<String> {
    let lines = body.chunks(8).enumerate().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    lines.map(|(line, bytes)| format!("{:4} {}", line * 8, hex(bytes))).collect()
}

#[test]
fn leaf() {
    let mut pair = Pair::new(4096);
    pair.put(b"apple", b"red");
    pair.put(b"apricot-of-the-season", b"orange");
    pair.put(b"ap", &[b'!'; 5000]);
    assert_eq!(
        dump(pair.pages.body(pair.root).unwrap()),
        [
            "   0 01 00 03 00 01 00 00 00", // leaf, level 0, 3 entries; page 1
            "   8 01 00 00 00 00 00 00 00", // created_txn
            "  16 01 00 00 00 00 00 00 00", // 1 page
            "  24 02 00 bc 0f 00 00 00 00", // 2 bytes of prefix, heap from 4028, no garbage
            "  32 61 70 00 00 00 00 00 00", // the prefix "ap"
            "  48 00 00 00 00 00 65 6c 70", // heads: none at 40 (the key "ap"), "ple", "ricot-of"
            "  56 66 6f 2d 74 6f 63 69 72",
            "  64 bc 0f 00 00 10 80 ed 0f", // slots: offset, suffix length, value length; the first refers to an extent
            "  72 03 00 03 00 d4 0f 13 00",
            "  80 06 00 00 00 00 00 00 00",
            "4024 00 00 00 00 01 00 00 00", // "ap": version
            "4032 00 00 00 00 02 00 00 00", // reference: page 2,
            "4040 02 00 00 00 88 13 00 00", // 2 pages, 5000 bytes
            "4048 00 00 00 00 01 00 00 00", // "apricot-of-the-season": version,
            "4056 00 00 00 00 2d 74 68 65", // rest,
            "4064 2d 73 65 61 73 6f 6e 6f",
            "4072 72 61 6e 67 65 01 00 00", // value; "apple": version,
            "4080 00 00 00 00 00 72 65 64", // value
        ]
    );
}

#[test]
fn branch() {
    let mut items = EntryList::new(1);
    for (index, (key, child)) in [(&b"month-"[..], 0x22), (b"month-of-plenty", 0x33)].into_iter().enumerate() {
        items.insert(index, key, Payload { version: &[], value: &[], slot_data: child });
    }
    let mut body = vec![0xAA; 4088];
    let identity =
        NodeIdentity { id: PageId(0x0102), created_txn: TxnId::from_u64(0x1000_0000_0009), first_child: PageId(0x11) };
    items.write(0..2, items.fit(0..2, body.len()).unwrap(), &mut body, identity);
    assert_eq!(
        dump(&body),
        [
            "   0 02 01 02 00 02 01 00 00", // branch, level 1, 2 separators; page 0x102
            "   8 09 00 00 00 00 10 00 00", // created_txn
            "  16 01 00 00 00 11 00 00 00", // 1 page; child 0
            "  24 06 00 f7 0f 00 00 00 00", // 6 bytes of prefix, heap from 4087
            "  32 6d 6f 6e 74 68 2d 00 00", // the prefix "month-"
            "  48 74 6e 65 6c 70 2d 66 6f", // heads: none at 40, "of-plent"
            "  56 00 00 00 00 22 00 00 00", // slots: offset, suffix length, child
            "  64 f7 0f 09 00 33 00 00 00",
            "4080 00 00 00 00 00 00 00 79", // the rest of the second separator
        ]
    );
}

#[test]
fn run() {
    let mut pages = TestPages::new(4096);
    let value = write_extent(&mut pages, &[b'v'; 4057]).unwrap();
    assert_eq!(value, StoredValue::Extent { page: PageId(1), pages: 2, len: 4057 });
    let extent = pages.extent(PageId(1), 2).unwrap();
    assert_eq!(
        dump(&extent[..40]),
        [
            "   0 03 00 00 00 01 00 00 00", // extent; page 1
            "   8 01 00 00 00 00 00 00 00", // created_txn
            "  16 02 00 00 00 00 00 00 00", // 2 pages
            "  24 d9 0f 00 00 00 00 00 00", // 4057 bytes
            "  32 76 76 76 76 76 76 76 76", // the value
        ]
    );
    assert!(
        extent[32..32 + 4057].iter().all(|byte| *byte == b'v') && extent[32 + 4057..].iter().all(|byte| *byte == 0)
    );
}
