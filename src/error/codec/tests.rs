//! Each error must come out at the other side as what it was, and no bytes may do harm.
//!
//! Method: a sample of each variant with random texts and numbers, checked against the numbers of
//! the table, so that a variant without a sample fails the test. Its bytes are decoded, whole and
//! after a random change.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// A sample of each variant of [`Error`].
fn errors(text: &str, n: u64) -> Vec<Error> {
    let t = || text.to_string();
    let time = Duration::from_nanos(n);
    let txn = TxnId::from_u64(n);
    let some = n.is_multiple_of(2).then_some(n);
    vec![
        Error::LockTimeout { waited: time, holder: t() },
        Error::LoggerStalled { waited: time, visible: some.map(TxnId::from_u64) },
        Error::LoggerUnavailable { reason: t() },
        Error::NotDurable { txn, reason: t() },
        Error::DiskFull { what: t() },
        Error::Diverged { txn },
        Error::Stale,
        Error::Lagged { oldest: txn },
        Error::NeedsRecovery { reason: t() },
        Error::Corrupt { file: t(), offset: n, what: t() },
        Error::Mismatch { file: t(), what: t() },
        Error::ReadOnly,
        Error::NoKeyspace { name: t() },
        Error::NoCell { name: t() },
        Error::Limit { what: LimitKind::KeyLength, found: n, limit: !n },
        Error::Invalid { what: t() },
        Error::Io { what: t(), source: io::Error::from_raw_os_error(5) },
        Error::Io { what: t(), source: io::Error::other(t()) },
        Error::NotAllowed { what: t() },
        Error::Busy { what: t() },
        Error::Protocol { what: t() },
        Error::Permission { what: t() },
        Error::ReservedName { name: t() },
        Error::OtherCell { name: t(), found: some, wanted: None },
        Error::Detached { reason: t() },
        Error::FormatVersion { file: t(), found: n as u32, known: 1 },
        Error::NotFound { path: t().into() },
        Error::UnsupportedFileSystem { path: t().into(), file_system: t(), reason: t() },
        Error::LoggerPanicked { thread: t(), message: t() },
        Error::OtherStore { name: t() },
        Error::TransactionOpen,
        Error::TransactionFailed,
        Error::Forked,
        Error::Disconnected { reason: t() },
        Error::InDoubt { reason: t() },
    ]
}

/// The number of a variant as it is encoded.
fn number(value: &impl Coded) -> u32 {
    let mut out = Vec::new();
    value.put(&mut out);
    u32::from_le_bytes(out[..4].try_into().unwrap())
}

fn check_complete<T: Coded + Numbered>(samples: &[T]) {
    let numbers: BTreeSet<u32> = T::NUMBERS.iter().copied().collect();
    assert_eq!(numbers.len(), T::NUMBERS.len(), "a number stands for two variants");
    assert_eq!(samples.iter().map(number).collect::<BTreeSet<_>>(), numbers, "a variant has no sample");
}

#[test]
fn every_variant_has_a_sample() {
    check_complete(&errors("text", 7));
}

/// Decodes bytes that may be anything. An error that comes out can be shown and encoded again.
fn decode_any(bytes: &[u8]) {
    let Ok(error) = decode(bytes) else { return };
    let text = error.to_string();
    assert_eq!(printable(&text), text, "an error with characters that a terminal obeys");
    assert_eq!(format!("{:?}", decode(&encode(&error)).unwrap()), format!("{error:?}"));
}

proptest! {
    #[test]
    fn every_error_crosses_with_its_fields(text in "[ -~äöü€]{0,40}", n in any::<u64>()) {
        for error in errors(&text, n) {
            let decoded = decode(&encode(&error)).unwrap();
            prop_assert_eq!(format!("{decoded:?}"), format!("{error:?}"));
            prop_assert_eq!(decoded.to_string(), error.to_string());
            let frame = encode_reply(&error);
            let Ok(Reply::Failed(failure)) = wire::decode(&frame[wire::FRAME_HEADER_BYTES..]) else {
                panic!("{error}")
            };
            prop_assert_eq!(failure.text, error.to_string());
            prop_assert_eq!(failure.error, encode(&error));
        }
    }

    #[test]
    fn changed_bytes_do_no_harm(
        text in any::<String>(),
        n in any::<u64>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        how in 0..4,
    ) {
        for error in errors(&text, n) {
            let mut bytes = encode(&error);
            decode_any(&bytes);
            let at = at.index(bytes.len());
            match how {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, byte),
                2 => bytes[at] = 0xff,
                _ => bytes[at] ^= byte,
            }
            decode_any(&bytes);
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), number in 0u32..40) {
        decode_any(&bytes);
        decode_any(&[&number.to_le_bytes()[..], &bytes].concat());
    }
}

/// A limit of another version is one, whatever it is called.
#[test]
fn an_unknown_limit_is_a_limit() {
    let mut bytes = 14u32.to_le_bytes().to_vec();
    put_text("the number of moons", &mut bytes);
    2u64.put(&mut bytes);
    1u64.put(&mut bytes);
    let error = decode(&bytes).unwrap();
    assert!(matches!(error, Error::Limit { what: LimitKind::Other, found: 2, limit: 1 }), "{error:?}");
}

#[test]
fn long_texts_are_cut() {
    assert!(encode_reply(&Error::Invalid { what: "ü".repeat(10_000) }).len() < 3 * TEXT_BYTES_MAX);
}
