//! Measures the cost of a record when many records are sent in one message.
//!
//! A message of b bytes costs a fixed σ, however many records it contains. The share of a record of
//! r bytes is σ r / b. This favours large messages. But the sender makes the whole batch before it
//! sends the batch, and the receiver reads the batch after the whole of it has arrived. If the
//! batch is no longer in the cache by then, each byte is fetched once more. So the cost rises again
//! beyond some size M:
//!
//! c(b) = σ r / b + r β + r γ max(0, 1 − M / b)
//!
//! This is the trade-off of blocked matrix multiplication: make the block as large as fits, and no
//! larger (Hong and Kung 1981; Lam, Rothberg and Wolf 1991). In matrix multiplication, the traffic
//! falls with the root of the cache size, because each operand in the block is used as often as the
//! block is wide. In a batch, a byte is used a fixed number of times. So a larger cache only
//! divides the fixed part among more records. M is half of the second-level cache, because each
//! side accesses two copies of a batch: its own copy and the copy in the channel.

use super::super::arguments::Arguments;
use super::super::channel::Kind;
use super::super::fit::{self, Row};
use super::super::machine::Machine;
use super::super::measure;
use super::super::pair::Pair;
use std::io;

/// Words of a record: 64 bytes.
const RECORD_WORDS: usize = 8;
/// Bytes of a record.
pub(crate) const RECORD_BYTES: usize = 8 * RECORD_WORDS;

/// The measured costs of one channel, and the model fitted to them.
pub(crate) struct Batches {
    pub(crate) kind: Kind,
    /// Bytes of a batch, and nanoseconds per record.
    pub(crate) costs: Vec<(usize, f64)>,
    /// σ, r β and r γ, in nanoseconds.
    pub(crate) found: [f64; 3],
    pub(crate) cache_bytes: f64,
    pub(crate) error: f64,
}

impl Batches {
    pub(crate) fn of(kind: Kind, costs: Vec<(usize, f64)>, cache_bytes: f64) -> Batches {
        let rows: Vec<_> = costs
            .iter()
            .map(|(bytes, cost)| Row { factors: factors(*bytes as f64, cache_bytes), found: *cost })
            .collect();
        let found = fit::coefficients(&rows);
        let error = fit::error(&rows, &found);
        Batches { kind, costs, found, cache_bytes, error }
    }

    /// Returns the model's cost of a record in nanoseconds.
    pub(crate) fn at(&self, bytes: f64) -> f64 {
        factors(bytes, self.cache_bytes).iter().zip(self.found).map(|(factor, found)| factor * found).sum()
    }

    /// Returns the model's best batch in bytes. This is the largest batch that fits into the cache,
    /// if the bytes of a larger batch cost more than it saves of the fixed part. Otherwise it is
    /// infinite.
    pub(crate) fn best_by_model(&self) -> f64 {
        let [sigma, _, beyond] = self.found;
        // The slope of c beyond M has the sign of M γ − σ.
        if beyond / RECORD_BYTES as f64 * self.cache_bytes > sigma { self.cache_bytes } else { f64::INFINITY }
    }

    /// Returns the batch with the least measured cost, and the cost.
    pub(crate) fn best_measured(&self) -> (usize, f64) {
        self.costs.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default()
    }

    /// Returns the smallest measured batch whose cost per record is at most a tenth above the
    /// least.
    pub(crate) fn good_enough(&self) -> usize {
        let least = self.best_measured().1;
        self.costs.iter().find(|(_, cost)| *cost <= 1.1 * least).map_or(0, |(bytes, _)| *bytes)
    }
}

pub(crate) fn factors(bytes: f64, cache_bytes: f64) -> [f64; 3] {
    [RECORD_BYTES as f64 / bytes, 1.0, (1.0 - cache_bytes / bytes).max(0.0)]
}

/// Measures a stream socket and a shared ring.
pub(crate) fn all(arguments: &Arguments, machine: &Machine) -> io::Result<Vec<Batches>> {
    let kinds = arguments.kinds().into_iter().filter(|kind| matches!(kind, Kind::Stream | Kind::Ring));
    let cache_bytes = machine.l2_bytes as f64 / 2.0;
    kinds.map(|kind| Ok(Batches::of(kind, measure_costs(kind, arguments)?, cache_bytes))).collect()
}

fn measure_costs(kind: Kind, arguments: &Arguments) -> io::Result<Vec<(usize, f64)>> {
    eprintln!("batches by {}", kind.name());
    let mut pair = Pair::start(kind, arguments.is_pinned, measure::second()?)?;
    let mut costs = Vec::new();
    for bytes in arguments.sizes().into_iter().filter(|bytes| *bytes >= RECORD_BYTES) {
        let words = bytes / 8;
        let before = pair.stream(words, 3, RECORD_WORDS)? / 3.0;
        let rounds = (arguments.time_of_a_point().as_nanos() as f64 / before) as usize;
        let rounds = rounds.clamp(4, 20_000);
        // The least of several measurements counts: disturbances only make a stream slower.
        let mut least = f64::INFINITY;
        for _ in 0..3 {
            least = least.min(pair.stream(words, rounds, RECORD_WORDS)?);
        }
        costs.push((bytes, least / (rounds * bytes / RECORD_BYTES) as f64));
    }
    Ok(costs)
}
