//! Figures of a store by message: the same type as those of a direct client.

use crate::remote::Client;
use crate::remote::connection::Kind;
use crate::shared::stats::Stats;
use crate::{Error, Result};
use untorn_wal::wire;
use untorn_wal::wire::{Reply, Request};

impl Client {
    /// Returns figures of the store as of now. Needs the right to read everything.
    ///
    /// # Errors
    /// [`Error::NotAllowed`]; [`Error::Disconnected`]; [`Error::Protocol`] if the server's figures
    /// differ from those of this version of the library; [`Error::Busy`].
    pub fn stats(&self) -> Result<Stats> {
        let encoded = self.call(Kind::Read, &Request::Stats, |reply| match reply {
            Reply::Stats(encoded) => Some(encoded.to_vec()),
            _ => None,
        })?;
        decode(&encoded)
    }
}

/// Decodes the figures that a server sent.
fn decode(encoded: &[u8]) -> Result<Stats> {
    wire::decode_value(encoded).map_err(|error| Error::Protocol { what: format!("figures: {error}") })
}

#[cfg(test)]
mod tests {
    //! Goal: figures are unchanged after encoding and decoding, as JSON and by message; the bytes
    //! are those of `docs/protocol.md`; no bytes of a server do harm. Method: one value with all
    //! optional parts, its bytes, and each prefix and each bit flip of them.

    use super::*;
    use crate::TxnId;
    use crate::error::reason::RecoveryReason;
    use crate::shared::protocols::atomic::Native;
    use crate::shared::protocols::histogram::{Histogram, Latency};
    use crate::shared::stats::*;

    fn latency(durations: &[u64]) -> Latency {
        let histogram = Histogram::<Native>::default();
        durations.iter().for_each(|ns| histogram.record(*ns));
        histogram.read()
    }

    /// Returns figures in which all numbers differ.
    fn example() -> Stats {
        let txn = |number| TxnId::from_u64(1_u64 << 44 | number);
        let by_class = |ns| LatencyByClass { urgent: latency(&[ns]), bulk: latency(&[]) };
        Stats {
            committed: txn(1),
            durable: txn(2),
            checkpointed: txn(3),
            lag_txns: 4,
            lag_ns: 5,
            acknowledged: 6,
            region_start_seconds: 7,
            commits: 8,
            records: 9,
            keyspaces: 10,
            page_size: 11,
            pages_total: 12,
            pages_free: 13,
            arena_bytes: 14,
            max_size: 15,
            wal_bytes: 16,
            wal_segments: 17,
            wal_spares: 18,
            wal_kept: 19,
            fsyncs: 20,
            fsync_ns: 21,
            deadlines: DeadlineStat {
                commits: 22,
                met: 23,
                missed: 24,
                met_share: Some(0.5),
                flushes: 25,
                flushes_saved: 26,
                flush_estimate_ns: 27,
                wake_estimate_ns: 28,
                policy_flushes_at_once: true,
            },
            checkpoints: 29,
            lock_take_overs: 30,
            reaped: 31,
            logger_starts: 32,
            logger_pid: Some(33),
            logger_age_ns: Some(34),
            writer: Some(HolderStat { pid: 35, age_ns: 36 }),
            clients: vec![ClientStat {
                id: 37,
                pid: 38,
                age_ns: 39,
                commits: 40,
                pins: 41,
                is_alive: true,
                holds_writer_lock: false,
            }],
            readers: vec![ReaderStat {
                pid: 42,
                is_loggers: false,
                txn: txn(43),
                txns_behind: 44,
                age_ns: Some(45),
                pages_held: None,
            }],
            needs_recovery: Some(RecoveryReason::Log { errno: 52 }),
            cells: CellStat { in_use: 46, samples: 47, sampled_values: 48 },
            latencies: Latencies {
                acknowledgement: Acknowledgements {
                    urgent: latency(&[300, 300, 90_000]),
                    within: latency(&[u64::MAX]),
                    bulk: latency(&[0]),
                },
                lock_wait: by_class(49),
                lock_hold: by_class(50),
                flush: latency(&[1_000_000]),
                checkpoint: latency(&[]),
                sample: latency(&[51]),
            },
        }
    }

    #[test]
    fn figures_come_out_as_they_went_in() {
        let stats = example();
        let by_message = decode(&wire::encode_value(&stats).unwrap()).unwrap();
        assert_eq!(by_message, stats);
        let json = serde_json::to_string(&stats).unwrap();
        assert_eq!(serde_json::from_str::<Stats>(&json).unwrap(), stats);
        let flush = by_message.latencies.acknowledgement.urgent.since(&latency(&[300]));
        assert_eq!((flush.count(), flush.sum().as_nanos()), (2, 90_300));
    }

    /// The bytes are part of the protocol: if they change, its version must change.
    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        let encoded = wire::encode_value(&example()).unwrap();
        assert_eq!((encoded.len(), crc32fast::hash(&encoded)), (LENGTH, CRC), "raise `wire::VERSION`");
    }

    const LENGTH: usize = 1147;
    const CRC: u32 = 713_482_019;

    #[test]
    fn no_bytes_do_harm() {
        let encoded = wire::encode_value(&example()).unwrap();
        for end in 0..encoded.len() {
            assert!(matches!(decode(&encoded[..end]), Err(Error::Protocol { .. })), "the first {end} bytes");
        }
        for at in 0..encoded.len() {
            for bits in [0x01, 0x80, 0xff] {
                let mut flipped = encoded.clone();
                flipped[at] ^= bits;
                if let Ok(stats) = decode(&flipped) {
                    // Figures may be wrong; reading them is safe.
                    let latency = &stats.latencies.acknowledgement.urgent;
                    let _ = (latency.percentile(99.0), latency.since(&stats.latencies.flush), format!("{stats:?}"));
                }
            }
        }
    }
}
