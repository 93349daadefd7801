//! One page of a tree, and an arena: trees, catalog and queues, as used by readers, writers,
//! recovery and `verify`.

use crate::btree::check::check_tree;
use crate::btree::cursor::RangeCursor;
use crate::btree::node::{EXTENT_BIT, Node, Payload, VERSION_LEN};
use crate::btree::node_mut;
use crate::btree::rebuild::{EntryList, NodeIdentity};
use crate::btree::{edit, range, search, walk};
use crate::files::geometry::Geometry;
use crate::files::header::CheckpointHeader;
use crate::files::page::PageRead;
use crate::files::page::{CHECKSUM_LEN, EXTENT_REF_LEN, StoredValue};
use crate::files::slot::{SLOT_WORDS, SlotImage};
use crate::fuzzing::{crc, file_of, sized, u32_at, u64_at};
use crate::limits::{GROWTH_PIECE, key_len_max};
use crate::pages::memory::TestPages;
use crate::pages::{extents, queue};
use crate::shared::memory::arena::Arena;
use crate::shared::progress::Progress;
use crate::txn::catalog;
use crate::txn::check::check_arena;
use crate::{PageId, TxnId};
use std::ops::Bound;
use untorn_wal::Lsn;
use untorn_wal::testing::Rng;

const PAGE: usize = 4096;
/// The pages of an arena that a target reads.
const PAGES_MAX: usize = GROWTH_PIECE as usize / PAGE;

/// A page of a tree, without its checksum word. It is parsed under the number that it contains.
pub fn page(bytes: &[u8]) {
    let (small, large): ([u8; PAGE - CHECKSUM_LEN], [u8; 65536 - CHECKSUM_LEN]);
    let body: &[u8] = if bytes.len() <= PAGE {
        small = sized(bytes);
        &small
    } else {
        large = sized(bytes);
        &large
    };
    let id = PageId(u32_at(body, 4));
    let Ok(node) = Node::parse(body, id) else { return };
    let mut key = Vec::new();
    for index in 0..node.count() {
        let _ = node.head(index);
        if let Ok(parts) = node.key(index) {
            parts.key_into(&mut key);
            assert_eq!(parts.len(), key.len());
            let result = node.find(&key);
            assert!(result.is_err() || result.is_ok_and(|result| result.index <= node.count()));
        }
        let _ = (node.payload(index), node.is_leaf().then(|| node.entry(index)));
    }
    for key in [&b""[..], b"\0", b"key", &[0xff; 600]] {
        assert!(node.find(key).is_err() || node.find(key).is_ok_and(|result| result.index <= node.count()));
        if !node.is_leaf() {
            let _ = node.child_for(key).map(|index| node.child(index));
        }
    }
    if node.audit().is_ok() {
        change_at_random(body, &node);
        // Only `check_tree` checks this: records share no bytes.
        if !has_overlaps(&node) {
            change(body, &node);
        }
    }
}

fn has_overlaps(node: &Node<'_>) -> bool {
    let slots = (0..node.count()).map(|index| node.slot(index));
    let mut records: Vec<_> =
        slots.map(|slot| (slot.offset, node.record_len(slot))).filter(|(_, len)| *len > 0).collect();
    records.sort_unstable();
    records.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0)
}

/// Makes many changes one after the other: whatever an audited page holds, no change goes out of
/// range.
fn change_at_random(body: &[u8], node: &Node<'_>) {
    let mut random = Rng(u64::from(crc(&[body])));
    let mut changed = body.to_vec();
    for _ in 0..40 {
        let Ok(now) = Node::parse(&changed, node.id) else { return };
        let (count, key) = (now.count() as u64, [now.prefix(), &random.number().to_le_bytes()].concat());
        let value = vec![1; random.below(300) as usize];
        let payload = match node.is_leaf() {
            true => Payload { version: &[1; VERSION_LEN], value: &value, slot_data: value.len() as u32 },
            false => Payload { version: &[], value: &[], slot_data: 9 },
        };
        let result = now.find(&key);
        let index = random.below(count.max(1)) as usize;
        match random.below(4) {
            0 if count > 0 => drop(node_mut::remove(&mut changed, node.id, index)),
            1 if count > 0 && node.is_leaf() => drop(node_mut::overwrite(&mut changed, node.id, index, payload)),
            2 if count > 0 && !node.is_leaf() => drop(node_mut::remove_child(&mut changed, node.id, index)),
            _ => drop(result.and_then(|result| node_mut::insert(&mut changed, node.id, result.index, &key, payload))),
        }
        let _ = Node::parse(&changed, node.id).and_then(|node| EntryList::read(&node));
    }
}

/// Changes an audited page as writers do.
fn change(body: &[u8], node: &Node<'_>) {
    let id = node.id;
    let is_sound = |body: &[u8]| Node::parse(body, id).and_then(|node| node.audit());
    let value = [7; EXTENT_REF_LEN];
    let payload = match node.is_leaf() {
        true => Payload {
            version: &[1; VERSION_LEN],
            value: &value,
            slot_data: EXTENT_REF_LEN as u32 | u32::from(EXTENT_BIT),
        },
        false => Payload { version: &[], value: &[], slot_data: 9 },
    };
    for key in [node.prefix(), &[node.prefix(), b"a new key of some length"].concat()] {
        let Ok(result) = node.find(key) else { continue };
        let mut changed = body.to_vec();
        if !result.found
            && node_mut::insert(&mut changed, id, result.index, key, payload).expect("a page that was parsed")
        {
            is_sound(&changed).expect("a sound page after an insertion");
            assert_eq!(Node::parse(&changed, id).map(|node| node.count()).ok(), Some(node.count() + 1));
        }
    }
    for index in [0, node.count() / 2, node.count().saturating_sub(1)] {
        if index >= node.count() {
            continue;
        }
        let mut changed = body.to_vec();
        node_mut::remove(&mut changed, id, index).expect("a page that was parsed");
        is_sound(&changed).expect("a sound page after a removal");
        if node.is_leaf() {
            changed.copy_from_slice(body);
            if node_mut::overwrite(&mut changed, id, index, payload).expect("a page that was parsed") {
                is_sound(&changed).expect("a sound page after a value was overwritten");
            }
        } else {
            changed.copy_from_slice(body);
            node_mut::set_child(&mut changed, id, index, PageId(3)).expect("a page that was parsed");
            is_sound(&changed).expect("a sound page after a child was replaced");
            assert_eq!(Node::parse(&changed, id).map(|node| node.child(index)).ok(), Some(PageId(3)));
        }
    }
    rebuild(body.len(), node);
}

/// Checks that a rebuilt page has the same entries.
fn rebuild(body_len: usize, node: &Node<'_>) {
    let Ok(items) = EntryList::read(node) else { return };
    assert_eq!(items.len(), node.count());
    let keys: Vec<Vec<u8>> = (0..items.len()).map(|index| items.key(index).to_vec()).collect();
    // A page is rebuilt only if its keys ascend. `check_tree`, or the writers that made the page,
    // have checked that.
    if !keys.is_sorted_by(|a, b| a < b) {
        return;
    }
    let Some(prefix_len) = items.fit(0..items.len(), body_len) else { return };
    let mut rebuilt = vec![0; body_len];
    let first_child = if node.is_leaf() { PageId::NONE } else { node.child(0) };
    items.write(
        0..items.len(),
        prefix_len,
        &mut rebuilt,
        NodeIdentity { id: node.id, created_txn: node.created_txn(), first_child },
    );
    let again = Node::parse(&rebuilt, node.id).expect("a page that was rebuilt");
    again.audit().expect("a sound page that was rebuilt");
    for (index, key) in keys.iter().enumerate() {
        assert_eq!(again.key(index).expect("a key of a sound page").to_vec(), *key);
        let result = again.find(key).expect("a search in a sound page");
        assert!(result.found && result.index == index, "key {index} is found at {result:?}");
        let (old, new) = (node.payload(index).expect("audited"), again.payload(index).expect("rebuilt"));
        assert_eq!((old.version, old.value, old.slot_data), (new.version, new.value, new.slot_data));
    }
}

/// The words of a commit's image, and then the pages of an arena from page 0 on.
pub fn arena(bytes: &[u8]) {
    let mut words: [u8; 8 * SLOT_WORDS] = sized(bytes);
    crate::fuzzing::files::seal_image(&mut words);
    let words: [u64; SLOT_WORDS] = std::array::from_fn(|index| u64_at(&words, 8 * index));
    let geometry = Geometry { page_size: PAGE, max_size: 16 << 20, ring_size: 64 << 10, segment_size: 256 << 10 };
    let image = SlotImage::decode(&words, "checkpoint").expect("the image was sealed");
    if image.problem(&geometry).is_some() || image.high_water as usize > PAGES_MAX {
        return;
    }
    let mut pages = bytes.get(8 * SLOT_WORDS..).unwrap_or_default().to_vec();
    pages.resize(GROWTH_PIECE as usize, 0);
    check_arena_of(&pages, &image, &geometry);
    seal_pages(&mut pages);
    check_arena_of(&pages, &image, &geometry);
}

/// Corrects the checksums of all pages, including those of runs.
fn seal_pages(arena: &mut [u8]) {
    let mut at = PAGE;
    while at < arena.len() {
        let pages = match arena[at + CHECKSUM_LEN] {
            3 => (u32_at(arena, at + 24) as usize).clamp(1, (arena.len() - at) / PAGE),
            _ => 1,
        };
        let sum = u64::from(crc(&[&arena[at + CHECKSUM_LEN..at + pages * PAGE]])) | 1 << 63;
        arena[at..at + CHECKSUM_LEN].copy_from_slice(&sum.to_le_bytes());
        at += pages * PAGE;
    }
}

fn check_arena_of(bytes: &[u8], image: &SlotImage, geometry: &Geometry) {
    let (store_id, file) = ([7; 16], file_of(bytes));
    let mut first = [0; 40];
    first[..8].copy_from_slice(b"untornA\x01");
    first[8..24].copy_from_slice(&store_id);
    first[24..32].copy_from_slice(&(PAGE as u64).to_le_bytes());
    let sum = crc(&[&first[..32]]);
    first[32..36].copy_from_slice(&sum.to_le_bytes());
    std::os::unix::fs::FileExt::write_all_at(&file, &first, 0).expect("a write to memory");
    let arena = Arena::open(&file, store_id, geometry, image.high_water).expect("an arena of this store");
    let header = CheckpointHeader {
        store_id,
        geometry: *geometry,
        serial: 2,
        log_position: Lsn(4096),
        clean: false,
        retention: untorn_wal::Retention::NOTHING,
        roots_sum: 0,
        image: *image,
    };
    let _ = check_arena(&arena, &header, &Progress::default());
    let pages = arena.pages(image.high_water);
    check_one_tree(&pages, image.catalog.root, bytes, image.txn);
    let _ = catalog::incarnations(&pages, &image.catalog);
    for keyspace in catalog::list(&pages, &image.catalog).unwrap_or_default() {
        let _ = catalog::find(&pages, &image.catalog, &keyspace.name);
        check_one_tree(&pages, keyspace.root, bytes, image.txn);
    }
    let queues = extents::all_queues(&pages, image).unwrap_or_else(|_| image.queues.to_vec());
    for queue in queues {
        let (mut own, mut entries) = (0u64, 0u64);
        let walked = queue::walk(
            &pages,
            &arena,
            &queue,
            &mut |_, _| {
                own += 1;
                Ok(())
            },
            &mut |entry| {
                assert!(!entry.page.is_none() && entry.created_txn <= entry.freed_txn);
                assert!(u64::from(entry.page.0) + u64::from(entry.pages) <= u64::from(image.high_water));
                entries += 1;
                Ok(())
            },
        );
        assert!(walked.is_err() || entries == queue.count, "a queue was walked, but not all of it");
        if !queue.head.is_none() {
            let _ = queue::each_page(&pages, &arena, &queue, &mut |_, _| Ok(()));
        }
    }
}

/// Reads a tree in all ways. If the check accepts the tree, the results agree, and it can be
/// changed.
fn check_one_tree<P: PageRead>(pages: &P, root: PageId, bytes: &[u8], txn: TxnId) {
    let mut seen = 0;
    let checked = check_tree(pages, root, &mut |_| {
        seen += 1;
        Ok(())
    });
    let _ = walk::each_page(pages, root, &mut |_| Ok(true));
    let mut keys: Vec<Vec<u8>> = Vec::new();
    // A damaged tree may lead to one page by many paths. Each path ends, and so must the test.
    let entries_max = checked.as_ref().map_or(2_000, |report| report.entries as usize);
    let mut cursor = RangeCursor::new(root, Bound::Unbounded, Bound::Unbounded);
    while let Ok(Some(at)) = cursor.next(pages) {
        assert!(checked.is_err() || keys.len() < entries_max, "a cursor has more entries than the tree");
        keys.push(at.key.to_vec());
        if keys.len() > entries_max {
            break;
        }
    }
    for key in keys.iter().step_by(7) {
        let found = search::get(pages, root, key);
        assert!(checked.is_err() || found.is_ok_and(|found| found.is_some()), "a key of a sound tree is not found");
    }
    let mut back = RangeCursor::new(root, Bound::Included(b"b"), Bound::Unbounded);
    let mut count = 0;
    while let Ok(Some(_)) = back.next_back(pages) {
        count += 1;
        if count > entries_max {
            break;
        }
    }
    let Ok(report) = checked else { return };
    assert_eq!(keys.len() as u64, report.entries);
    assert!(keys.is_sorted_by(|a, b| a < b));
    assert_eq!(count, keys.iter().filter(|key| key.as_slice() >= b"b").count());
    assert_eq!(seen, report.leaves + report.branches + report.extents);
    edit_tree(root, bytes, txn, &keys);
}

/// Removes the middle third of the keys from a tree with `count` entries. Returns false if that is
/// an error, as it is if two of the entries have the same run.
fn remove_range(memory: &mut TestPages, root: &mut PageId, keys: &[Vec<u8>], count: u64) -> bool {
    let (Some(start), Some(end)) = (keys.get(keys.len() / 3), keys.get(keys.len() * 2 / 3)) else { return true };
    let mut cursor = RangeCursor::new(*root, Bound::Included(start), Bound::Excluded(end));
    let mut inside = 0;
    while cursor.next(memory).expect("a range of a sound tree").is_some() {
        inside += 1;
    }
    let Ok(removed) = range::delete(memory, root, start, Some(end)) else { return false };
    assert_eq!(removed, inside, "the entries of a range");
    let report = check_tree(memory, *root, &mut |_| Ok(())).expect("a tree stays sound without a range");
    assert_eq!(report.entries, count - removed);
    true
}

/// Changes a tree that the check accepts, as a transaction does.
fn edit_tree(root: PageId, bytes: &[u8], txn: TxnId, keys: &[Vec<u8>]) {
    let Ok(next) = txn.next_in(txn.incarnation()) else { return };
    let (mut memory, mut root) = (TestPages::holding(PAGE, bytes.to_vec(), next), root);
    let mut count = keys.len() as u64;
    let largest = vec![b'~'; key_len_max(PAGE)];
    for key in [&b"\0"[..], b"in the middle", &largest] {
        let is_new = !keys.iter().any(|known| known == key);
        if edit::put(&mut memory, &mut root, key, next, StoredValue::Inline(&[1; 100])).is_err() {
            return;
        }
        count += u64::from(is_new);
    }
    let stride = (keys.len() / 40).max(1);
    for key in keys.iter().step_by(stride) {
        match edit::delete(&mut memory, &mut root, key) {
            Ok(was_there) => {
                assert!(was_there, "a key of a sound tree is not there to be deleted");
                count -= 1;
            }
            // A page of the tree may be invalid for the transaction: of a later one, for example.
            Err(_) => return,
        }
    }
    let report = check_tree(&memory, root, &mut |_| Ok(())).expect("a sound tree after changes");
    assert_eq!(report.entries, count);
    let found = search::get(&memory, root, b"in the middle").expect("a search in a sound tree");
    assert!(keys.iter().any(|key| key == b"in the middle") || found.is_some_and(|found| found.value == [1; 100]));
    if !remove_range(&mut memory, &mut root, keys, count) {
        return;
    }
    edit::free_tree(&mut memory, root).expect("a sound tree can be given back");
}
