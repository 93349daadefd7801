//! Values that verify themselves, and random numbers that a seed determines.

/// Shortest sealed value in bytes.
const LEN_MIN: usize = 16;

/// Returns a value that shows whether it is torn: a number, and bytes that are derived from it. It
/// has `len` bytes, but at least 16.
#[must_use]
pub fn sealed(number: u64, len: usize) -> Vec<u8> {
    let len = len.max(LEN_MIN);
    let mut bytes = number.to_le_bytes().to_vec();
    let mut random = Random::new(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A value that is not whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Torn {
    /// Its length in bytes.
    pub len: usize,
}

impl std::fmt::Display for Torn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a value of {} bytes is torn", self.len)
    }
}

/// Returns the number of a sealed value.
///
/// # Errors
/// If the value is not whole.
pub fn unsealed(bytes: &[u8]) -> Result<u64, Torn> {
    let torn = Torn { len: bytes.len() };
    let number = u64::from_le_bytes(*bytes.first_chunk().ok_or(torn)?);
    if sealed(number, bytes.len()) == bytes { Ok(number) } else { Err(torn) }
}

/// As [`unsealed`].
///
/// # Panics
/// If the value is not whole.
#[must_use]
#[track_caller]
pub fn expect_sealed(bytes: &[u8]) -> u64 {
    unsealed(bytes).unwrap_or_else(|torn| panic!("{torn}"))
}

/// Small random numbers that a seed determines (splitmix64, by Steele, Lea and Flood).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins the sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Returns the next number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Returns the next number, less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Returns the seed of a random test: `UNTORN_SEED`, else a new one. Prints it, so that a failure
/// shows how to replay it.
#[must_use]
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("UNTORN_SEED").ok().and_then(|seed| seed.parse().ok());
    let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = given.unwrap_or_else(|| clock().map_or(1, |since| since.as_nanos() as u64));
    eprintln!("replay: UNTORN_SEED={seed} cargo test {test}");
    seed
}

#[cfg(test)]
mod tests {
    use super::{Torn, sealed, unsealed};

    #[test]
    fn a_sealed_value_has_its_length_and_its_number() {
        for len in 0..70 {
            let value = sealed(7 + len as u64, len);
            assert_eq!(value.len(), len.max(16));
            assert_eq!(unsealed(&value), Ok(7 + len as u64));
        }
    }

    #[test]
    fn each_changed_byte_and_each_other_length_shows() {
        let value = sealed(5, 45);
        for at in 0..value.len() {
            let mut torn = value.clone();
            torn[at] ^= 1;
            assert_eq!(unsealed(&torn), Err(Torn { len: 45 }), "byte {at}");
        }
        let longer = [&value[..], &[0]].concat();
        for torn in [&[][..], &value[..7], &value[..15], &longer] {
            assert_eq!(unsealed(torn), Err(Torn { len: torn.len() }));
        }
    }
}
