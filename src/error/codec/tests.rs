//! Goal: each error is unchanged after encoding and decoding, and no bytes do harm.
//!
//! Method: a sample of each variant with random texts and numbers, checked against the numbers of
//! the table, so that a variant without a sample fails the test. Its bytes are decoded, whole and
//! after a random change.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Samples of each enum that an error consists of: at least one of each variant.
struct Samples {
    errors: Vec<Error>,
    locks: Vec<LockKind>,
    holders: Vec<LockHolder>,
    spaces: Vec<Space>,
    loggers: Vec<LoggerFailure>,
    not_durable: Vec<NotDurableReason>,
    recovery: Vec<RecoveryReason>,
    detached: Vec<DetachedReason>,
    file_systems: Vec<FileSystemReason>,
    mismatches: Vec<MismatchKind>,
    accesses: Vec<FileAccess>,
    permissions: Vec<PermissionReason>,
}

impl Samples {
    fn new(text: &str, n: u64) -> Samples {
        let t = || text.to_string();
        let path = || PathBuf::from(text);
        let time = Duration::from_nanos(n);
        let some = n.is_multiple_of(2).then_some(n);
        let (small, errno, txn) = (n as u32, (n as i32).wrapping_abs() % 100, TxnId::from_u64(n));
        let error = || Arc::new(Error::Corrupt { file: t(), offset: n, what: t() });
        let locks = vec![LockKind::Writer, LockKind::Growth, LockKind::Cell { name: t() }];
        let holders = vec![
            LockHolder::Process { pid: small, held_for: some.map(Duration::from_nanos) },
            LockHolder::Thread { pid: small },
        ];
        let spaces = vec![
            Space::Log,
            Space::RetainedLog { segments: n },
            Space::Arena { bytes: n },
            Space::Control { bytes: n },
            Space::Snapshot {
                txn,
                pid: small,
                open_for: some.map(Duration::from_nanos),
                pinned_pages: n,
                free_pages: !n,
                snapshots: n % 3,
            },
            Space::Checkpoint,
            Space::CellSample,
            Space::File { name: t() },
        ];
        let tried = |count| vec![TriedProgram::new(t(), t()); count];
        let loggers = vec![
            LoggerFailure::Programs { tried: tried(small as usize % PROGRAMS_MAX) },
            LoggerFailure::NoProgram,
            LoggerFailure::Thread { error: t() },
            LoggerFailure::NotReady,
            LoggerFailure::Initializing { stalled_for: time },
            LoggerFailure::Panicked,
            LoggerFailure::Reported { error: error() },
            LoggerFailure::Foreign { output: t() },
        ];
        let recovery = vec![
            RecoveryReason::Log { errno },
            RecoveryReason::Arena { errno },
            RecoveryReason::CheckpointHeader { errno },
            RecoveryReason::Unknown { errno },
            RecoveryReason::LoggerExiting,
            RecoveryReason::CheckpointNotRecorded,
        ];
        let mut not_durable = vec![
            NotDurableReason::LoggerExiting,
            NotDurableReason::Cell { name: t(), version: Version::from_u64(n), error: error() },
            NotDurableReason::Failed { error: error() },
        ];
        not_durable.extend(recovery.iter().map(|reason| NotDurableReason::NeedsRecovery { reason: reason.clone() }));
        not_durable.extend(loggers.iter().map(|reason| NotDurableReason::NoLogger { reason: reason.clone() }));
        let detached = vec![
            DetachedReason::LockRemoved { directory: path() },
            DetachedReason::LockReplaced { directory: path() },
            DetachedReason::DirectoryRemoved { directory: path() },
            DetachedReason::LockReplacedInOpen,
            DetachedReason::DescriptorClosed,
        ];
        let file_systems = vec![FileSystemReason::NotShared, FileSystemReason::LockNotSeen { file: t() }];
        let mismatches = vec![
            MismatchKind::Missing,
            MismatchKind::MissingHeader,
            MismatchKind::WrongKind { found: t(), expected: t() },
            MismatchKind::Replaced,
            MismatchKind::LockReplaced,
            MismatchKind::LogReplaced,
            MismatchKind::Locked,
            MismatchKind::OtherStore,
            MismatchKind::OtherBoot,
            MismatchKind::OtherLayout { found: small, known: 1 },
            MismatchKind::Segment { what: t() },
        ];
        let accesses = vec![
            FileAccess::Open,
            FileAccess::Read,
            FileAccess::Write,
            FileAccess::ReadWrite,
            FileAccess::Create,
            FileAccess::Remove,
        ];
        let mut permissions = vec![
            PermissionReason::OtherUser { path: path(), owner: small, own: 0 },
            PermissionReason::NotRoot { path: path(), owner: small, own: 1 },
            PermissionReason::UnmappedOwner { path: path(), shown: small },
            PermissionReason::FileOwner { file: t(), found: small, expected: 0 },
            PermissionReason::BecomeOwner { path: path(), uid: small, gid: 5, why: t() },
        ];
        permissions.extend(accesses.iter().map(|access| PermissionReason::File { access: *access, file: t(), errno }));

        let mut errors = vec![
            Error::LockTimeout { lock: LockKind::Writer, waited: time, holder: None },
            Error::LoggerStalled { waited: time, visible: some.map(TxnId::from_u64) },
            Error::Diverged { txn },
            Error::Stale,
            Error::Lagged { oldest: txn },
            Error::Corrupt { file: t(), offset: n, what: t() },
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
            Error::ReservedName { name: t() },
            Error::OtherCell { name: t(), found: some, wanted: None },
            Error::FormatVersion { file: t(), found: small, known: 1 },
            Error::NotFound { path: path() },
            Error::LoggerPanicked { thread: t(), message: t() },
            Error::OtherStore { name: t() },
            Error::TransactionOpen,
            Error::TransactionFailed,
            Error::Forked,
            Error::Disconnected { reason: t() },
            Error::InDoubt { reason: t() },
        ];
        let timeout = |lock: &LockKind, holder| Error::LockTimeout { lock: lock.clone(), waited: time, holder };
        errors.extend(locks.iter().map(|lock| timeout(lock, None)));
        errors.extend(holders.iter().map(|holder| timeout(&locks[0], Some(holder.clone()))));
        errors.extend(spaces.iter().map(|what| Error::DiskFull { what: what.clone() }));
        errors.extend(loggers.iter().map(|reason| Error::LoggerUnavailable { reason: reason.clone() }));
        errors.extend(not_durable.iter().map(|reason| Error::NotDurable { txn, reason: reason.clone() }));
        errors.extend(recovery.iter().map(|reason| Error::NeedsRecovery { reason: reason.clone() }));
        errors.extend(detached.iter().map(|reason| Error::Detached { reason: reason.clone() }));
        errors.extend(file_systems.iter().map(|reason| Error::UnsupportedFileSystem {
            path: path(),
            file_system: t(),
            reason: reason.clone(),
        }));
        errors.extend(mismatches.iter().map(|what| Error::Mismatch { file: t(), what: what.clone() }));
        errors.extend(permissions.iter().map(|what| Error::Permission { what: what.clone() }));
        Samples {
            errors,
            locks,
            holders,
            spaces,
            loggers,
            not_durable,
            recovery,
            detached,
            file_systems,
            mismatches,
            accesses,
            permissions,
        }
    }
}

/// Returns the number of a variant in the encoding.
fn number(value: &impl Coded) -> u32 {
    let mut out = Encoded::default();
    value.put(&mut out);
    u32::from_le_bytes(out.bytes[..4].try_into().unwrap())
}

fn check_complete<T: Coded + Numbered>(samples: &[T]) {
    let numbers: BTreeSet<u32> = T::NUMBERS.iter().copied().collect();
    assert_eq!(numbers.len(), T::NUMBERS.len(), "a number stands for two variants");
    assert_eq!(samples.iter().map(number).collect::<BTreeSet<_>>(), numbers, "a variant has no sample");
}

#[test]
fn every_variant_has_a_sample() {
    let samples = Samples::new("text", 7);
    check_complete(&samples.errors);
    check_complete(&samples.locks);
    check_complete(&samples.holders);
    check_complete(&samples.spaces);
    check_complete(&samples.loggers);
    check_complete(&samples.not_durable);
    check_complete(&samples.recovery);
    check_complete(&samples.detached);
    check_complete(&samples.file_systems);
    check_complete(&samples.mismatches);
    check_complete(&samples.accesses);
    check_complete(&samples.permissions);
}

/// Decodes arbitrary bytes. The resulting error can be displayed and encoded again.
fn decode_any(bytes: &[u8]) {
    let Ok(error) = decode(bytes) else { return };
    let text = error.to_string();
    assert_eq!(printable(&text), text, "an error with characters that a terminal obeys");
    assert_eq!(format!("{:?}", decode(&encode(&error)).unwrap()), format!("{error:?}"));
}

proptest! {
    #[test]
    fn every_error_crosses_with_its_fields(text in "[ -~äöü€]{0,40}", n in any::<u64>()) {
        for error in Samples::new(&text, n).errors {
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
        for error in Samples::new(&text, n).errors {
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

/// A limit of another version is decoded as a limit, whatever its name.
#[test]
fn an_unknown_limit_is_a_limit() {
    let mut out = Encoded::default();
    14u32.put(&mut out);
    put_text("the number of moons", &mut out);
    2u64.put(&mut out);
    1u64.put(&mut out);
    let error = decode(&out.bytes).unwrap();
    assert!(matches!(error, Error::Limit { what: LimitKind::Other, found: 2, limit: 1 }), "{error:?}");
}

#[test]
fn long_texts_are_cut() {
    assert!(encode_reply(&Error::Invalid { what: "ü".repeat(10_000) }).len() < 3 * TEXT_BYTES_MAX);
}

/// A deep error would overflow the stack of the process that decodes it.
#[test]
fn errors_within_errors_end() {
    let wrap = |error| Error::LoggerUnavailable { reason: LoggerFailure::Reported { error: Arc::new(error) } };
    let mut error = Error::Stale;
    for _ in 0..100 {
        error = wrap(error);
    }
    let decoded = decode(&encode(&error)).unwrap();
    assert!(decoded.to_string().ends_with(&Error::Stale.to_string()), "{decoded}");
    assert!(encode(&decoded) == encode(&error));
    let layer = [2u32.to_le_bytes(), 6u32.to_le_bytes()].concat();
    let mut bytes = layer.repeat(100_000);
    bytes.extend(6u32.to_le_bytes());
    assert!(decode(&bytes).unwrap_err().contains("within each other"));
}
