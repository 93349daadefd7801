//! The mutations of real bytes by the bounded tests: flipped bits, fields of extreme values, cuts,
//! and pieces of other files.

use untorn_wal::testing::Rng;

/// Values for which arithmetic and checks tend to fail.
const EXTREME: [u64; 18] = [
    0,
    1,
    7,
    8,
    0x7f,
    0xff,
    0x0fff,
    0x1000,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 44,
    1 << 62,
    i64::MAX as u64,
    u64::MAX - 7,
    u64::MAX,
];

/// Returns a changed copy of one of the seeds.
pub(super) fn mutate(random: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len() as u64) as usize].clone();
    for _ in 0..=random.below(4) {
        change(random, &mut bytes, seeds);
    }
    bytes
}

fn change(random: &mut Rng, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let len = bytes.len();
    if len == 0 {
        return bytes.extend((0..random.below(40)).map(|_| random.number() as u8));
    }
    // Headers are at the beginnings of files and of blocks, and contain most of the numbers.
    let at = match random.below(3) {
        0 => random.below(len.min(320) as u64) as usize,
        1 if len > 4096 => (random.below(len as u64) as usize / 4096 * 4096 + random.below(160) as usize).min(len - 1),
        _ => random.below(len as u64) as usize,
    };
    match random.below(8) {
        0 => bytes[at] ^= 1 << random.below(8),
        1..=3 => set_field(random, bytes, at),
        4 => bytes.truncate(at),
        5 => {
            let other = &seeds[random.below(seeds.len() as u64) as usize];
            let from = random.below(other.len() as u64 + 1) as usize;
            let count = random.below(600) as usize;
            let piece = &other[from..other.len().min(from + count)];
            let end = (at + piece.len()).min(len);
            bytes.splice(at..end, piece.iter().copied());
        }
        6 => {
            let end = len.min(at + random.below(64) as usize);
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => drop(bytes.drain(at..len.min(at + 1 + random.below(32) as usize))),
    }
}

/// Sets a number of 1 to 8 bytes, at a multiple of its width or anywhere.
fn set_field(random: &mut Rng, bytes: &mut [u8], at: usize) {
    let width = 1 << random.below(4);
    let at = if random.one_in(3) { at } else { at / width * width };
    let Some(field) = bytes.get_mut(at..at + width) else { return };
    let old = field.iter().rev().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    let new = match random.below(6) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        2 => old.wrapping_mul(2),
        3 => random.number(),
        _ => EXTREME[random.below(EXTREME.len() as u64) as usize],
    };
    field.copy_from_slice(&new.to_le_bytes()[..width]);
}
