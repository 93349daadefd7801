//! The header in `checkpoint`, and the image of a commit that it holds.

use crate::files::geometry::Geometry;
use crate::files::header::CheckpointHeader;
use crate::files::slot::{SLOT_WORDS, SlotImage, checksum, is_reserved_zero};
use crate::fuzzing::{crc, file_of, set_u32, sized, u64_at};
use crate::{PageId, limits};
use untorn_wal::{LogShape, Lsn, StoreId};

const SLOT_BYTES: usize = 4096;
/// The offset of the image in a header.
const IMAGE_AT: usize = 112;

/// The file `checkpoint`: two header slots.
pub fn header(bytes: &[u8]) {
    let mut file: [u8; 2 * SLOT_BYTES] = sized(bytes);
    check_headers(&file);
    for slot in file.as_chunks_mut::<SLOT_BYTES>().0 {
        seal_image(&mut slot[IMAGE_AT..][..8 * SLOT_WORDS]);
        let sum = crc(&[&slot[..12], &slot[16..]]);
        set_u32(slot, 12, sum);
    }
    check_headers(&file);
}

fn check_headers(file: &[u8; 2 * SLOT_BYTES]) {
    let mut valid = 0;
    for (index, slot) in file.as_chunks::<SLOT_BYTES>().0.iter().enumerate() {
        let Ok(header) = CheckpointHeader::decode(slot, index as u64) else { continue };
        valid += 1;
        assert_eq!(header.encode(), *slot, "the header of slot {index} encodes to other bytes");
        check_geometry(&header.geometry);
        check_image(&header.image, &header.geometry);
        assert!(header.log_position <= Lsn::MAX && header.log_position.is_aligned());
        // An accepted header can be written again, or an error refuses that.
        if let Ok(serial) = CheckpointHeader::next_serial(header.serial) {
            let next = CheckpointHeader { serial, clean: false, ..header };
            let again = CheckpointHeader::decode(&next.encode(), serial % 2).expect("the header after an accepted one");
            assert_eq!(again, next);
        } else {
            assert!(header.refuse_exhausted().is_err());
        }
    }
    let read = CheckpointHeader::read_slots(&file_of(file));
    if let Ok((found, damage)) = &read {
        assert_eq!(found.len(), valid);
        assert_eq!(damage.is_some(), valid < 2);
        assert!(found.is_sorted_by_key(|header| header.serial));
    }
}

/// Checks again what creation accepts.
fn check_geometry(geometry: &Geometry) {
    let Geometry { page_size, max_size, ring_size, segment_size } = *geometry;
    assert!(page_size.is_power_of_two() && (limits::PAGE_SIZE_MIN..=limits::PAGE_SIZE_MAX).contains(&page_size));
    assert!(ring_size.is_power_of_two() && (limits::RING_SIZE_MIN..=limits::RING_SIZE_MAX).contains(&ring_size));
    assert!(segment_size >= 4 * ring_size && segment_size <= limits::SEGMENT_SIZE_MAX);
    assert!(max_size >= limits::MAX_SIZE_MIN && max_size.is_multiple_of(limits::GROWTH_PIECE));
    assert!(geometry.pages_max() <= 1 << 32 && geometry.pages_max() * page_size as u64 == max_size);
    let shape = LogShape::new(StoreId([0; 16]), segment_size).expect("the log accepts the size of a segment");
    assert!(shape.record_bytes_max() > ring_size && u64::from(shape.segment_blocks()) * 4096 == segment_size);
}

fn check_image(image: &SlotImage, geometry: &Geometry) {
    let is_page = |page: PageId| page.is_none() || page.0 < image.high_water;
    assert!((1..=geometry.pages_max()).contains(&u64::from(image.high_water)));
    assert!(is_page(image.catalog.root) && is_page(image.extent_directory));
    assert!(image.log_tail <= Lsn::MAX && image.log_tail.is_aligned());
    assert!(image.keyspaces < image.next_keyspace && image.keyspaces <= limits::KEYSPACES_MAX);
    for queue in image.queues {
        assert!(is_page(queue.head) && is_page(queue.tail));
        assert!(queue.head_index.max(queue.tail_index) <= crate::files::page::queue_capacity(geometry.page_size));
    }
    // A transaction's additions to these do not overflow.
    let counts = [image.records, image.free_pages, image.commits].into_iter();
    assert!(counts.chain(image.queues.map(|queue| queue.count)).all(|count| count <= 1 << 62));
}

/// The words of a commit slot, as `control` and the header hold them.
pub fn slot_image(bytes: &[u8]) {
    let mut bytes: [u8; 8 * SLOT_WORDS] = sized(bytes);
    check_words(&bytes);
    seal_image(&mut bytes);
    check_words(&bytes);
}

fn check_words(bytes: &[u8; 8 * SLOT_WORDS]) {
    let words: [u64; SLOT_WORDS] = std::array::from_fn(|index| u64_at(bytes, 8 * index));
    let Ok(image) = SlotImage::decode(&words, "control") else { return };
    assert_eq!(image.encode() == words, is_reserved_zero(&words), "an image encodes to other words");
    for (page_size, max_size) in [(4096, limits::MAX_SIZE_MIN), (4096, 1 << 40), (65536, 1 << 48)] {
        let geometry = Geometry { page_size, max_size, ring_size: 64 << 10, segment_size: 256 << 10 };
        match image.problem(&geometry) {
            Some((word, what)) => assert!(word < SLOT_WORDS && !what.is_empty()),
            None => check_image(&image, &geometry),
        }
    }
}

/// Writes the sum over the words before the last, as `docs/format.md` defines it.
pub(super) fn seal_image(bytes: &mut [u8]) {
    let sum = checksum(&std::array::from_fn(|index| u64_at(bytes, 8 * index)));
    bytes[8 * (SLOT_WORDS - 1)..8 * SLOT_WORDS].copy_from_slice(&sum.to_le_bytes());
}
