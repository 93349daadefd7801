//! A histogram of durations in shared memory: any process records, and any process reads.
//!
//! The buckets are log-linear, as in Gil Tene's HdrHistogram: each power of two is divided into
//! eight equal parts. So 240 words record a duration to within an eighth of itself, from 256 ns to
//! two minutes. A shorter duration is recorded to within 32 ns; a longer one counts in the last
//! bucket.
//!
//! Recording is one addition to a bucket, one to the sum, and one load of the maximum. All are
//! relaxed, since a sample has no order with anything else. So there is no lock, nothing to repair,
//! and no state in which a reader has to wait.
//!
//! | a process dies | then |
//! |---|---|
//! | before the bucket | the sample is missing |
//! | between the bucket and the sum, or the sum and the maximum | it is missing in the mean, or as the maximum |
//!
//! Readers load the words in any order. Flipped bits give wrong figures and do no other harm: no
//! word is an index, and sums saturate.

use crate::shared::protocols::atomic::{Model, Word64};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// log2 of the parts that a power of two is divided into.
const PARTS_LOG2: u32 = 3;
const PARTS: usize = 1 << PARTS_LOG2;
/// log2 of the shortest part, in nanoseconds.
const UNIT_LOG2: u32 = 5;
/// Buckets: the shortest 256 ns, 28 powers of two up to 2^36 ns, and one more for what lies beyond.
const BUCKETS: usize = 30 * PARTS;

/// Returns the bucket of a duration.
#[inline]
fn bucket_of(ns: u64) -> usize {
    let units = ns >> UNIT_LOG2;
    if units < PARTS as u64 {
        return units as usize;
    }
    let octave = units.ilog2() - PARTS_LOG2;
    let part = (units >> octave) as usize % PARTS;
    ((octave as usize + 1) * PARTS + part).min(BUCKETS - 1)
}

/// Returns the longest duration of a bucket, in nanoseconds. The last bucket has no end.
fn longest_of(bucket: usize) -> u64 {
    if bucket >= BUCKETS - 1 {
        return u64::MAX;
    }
    let end_units = match (bucket / PARTS).checked_sub(1) {
        None => bucket as u64 + 1,
        Some(octave) => ((PARTS + bucket % PARTS) as u64 + 1) << octave,
    };
    (end_units << UNIT_LOG2) - 1
}

/// The shared words. All zero is an empty histogram.
#[repr(C, align(64))]
pub(crate) struct Histogram<M: Model> {
    /// Wraps after 584 years of recorded time.
    sum_ns: M::U64,
    max_ns: M::U64,
    buckets: [M::U64; BUCKETS],
}

impl<M: Model> Default for Histogram<M> {
    fn default() -> Histogram<M> {
        Histogram { sum_ns: M::U64::new(0), max_ns: M::U64::new(0), buckets: std::array::from_fn(|_| M::U64::new(0)) }
    }
}

impl<M: Model> Histogram<M> {
    /// Counts a duration of `ns` nanoseconds.
    #[inline]
    pub(crate) fn record(&self, ns: u64) {
        self.buckets[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
        // Nearly always there was a longer duration, and then nothing is written.
        if self.max_ns.load(Ordering::Relaxed) < ns {
            self.max_ns.fetch_max(ns, Ordering::Relaxed);
        }
    }

    /// Counts a duration, as [`Histogram::record`], without atomic additions, which cost more than
    /// all the rest. The caller holds a lock that excludes all other recorders.
    #[inline]
    pub(crate) fn record_alone(&self, ns: u64) {
        let add = |word: &M::U64, more: u64| {
            let sum = word.load(Ordering::Relaxed).wrapping_add(more);
            word.store(sum, Ordering::Relaxed);
        };
        add(&self.buckets[bucket_of(ns)], 1);
        add(&self.sum_ns, ns);
        if self.max_ns.load(Ordering::Relaxed) < ns {
            self.max_ns.store(ns, Ordering::Relaxed);
        }
    }

    /// Returns what has been recorded so far. Samples that are recorded meanwhile may be included
    /// in part.
    pub(crate) fn read(&self) -> Latency {
        Latency {
            buckets: self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
            max_ns: self.max_ns.load(Ordering::Relaxed),
        }
    }
}

/// A distribution of latencies: the durations that were recorded up to some instant, in buckets of
/// an eighth of their length.
///
/// Part of [`crate::Stats`]. Serializes as its summary (`count`, `mean_ns`, `p50_ns`, `p99_ns`,
/// `p999_ns`, `max_ns`), then `sum_ns` and `buckets`: the number and the count of each bucket that
/// is not empty. It is deserialized from those and `max_ns`.
///
/// ```
/// # fn main() -> untorn::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("data");
/// let store = untorn::Store::open(&path)?;
/// let users = store.keyspace("users")?;
/// let before = store.stats()?.latencies.flush;
/// users.put(b"alice", b"1")?;
/// let flush = store.stats()?.latencies.flush.since(&before); // of that put alone
/// assert!(flush.count() >= 1 && flush.percentile(50.0) <= flush.max());
/// # drop(users);
/// # store.close()?;
/// # untorn::logger::stop_logger(&path, std::time::Duration::from_secs(5))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Latency {
    buckets: Vec<u64>,
    sum_ns: u64,
    max_ns: u64,
}

impl Latency {
    /// Returns the number of recorded durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |count, bucket| u64::saturating_add(count, *bucket))
    }

    /// Returns the sum of all durations.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// Returns the mean of all durations; 0 if there are none.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.checked_div(self.count()).unwrap_or(0))
    }

    /// Returns the longest duration; 0 if there are none.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    /// Returns the duration that `percent` percent of all durations do not exceed. This is the
    /// longest duration of its bucket, so at most an eighth (or 32 ns) more than the true one.
    /// Returns 0 if there are none.
    pub fn percentile(&self, percent: f64) -> Duration {
        let wanted = (self.count() as f64 * percent.clamp(0.0, 100.0) / 100.0).ceil().max(1.0) as u64;
        let reached = self.cumulative().find(|(_, count)| *count >= wanted);
        Duration::from_nanos(reached.map_or(0, |(longest, _)| longest.min(self.max_ns)))
    }

    /// Returns the durations recorded since `earlier`, an older state of the same histogram. The
    /// maximum is known only to the precision of its bucket.
    pub fn since(&self, earlier: &Latency) -> Latency {
        let buckets: Vec<u64> =
            self.buckets.iter().zip(&earlier.buckets).map(|(now, then)| now.saturating_sub(*then)).collect();
        let longest = buckets.iter().rposition(|count| *count > 0).map_or(0, longest_of);
        Latency { buckets, sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns), max_ns: self.max_ns.min(longest) }
    }

    /// Returns how many durations were at most as long as each of `bounds`, which ascend. If a
    /// bound lies within a bucket, the durations of that bucket count as longer. So each number is
    /// a lower bound, and exact if its bound is the end of a bucket.
    pub fn counts_up_to(&self, bounds: &[Duration]) -> Vec<u64> {
        let mut buckets = self.cumulative().peekable();
        let mut below = 0;
        let count_up_to = |bound: &Duration| {
            while let Some((_, count)) = buckets.next_if(|(longest, _)| u128::from(*longest) <= bound.as_nanos()) {
                below = count;
            }
            below
        };
        bounds.iter().map(count_up_to).collect()
    }

    /// Returns the longest duration of each bucket, in nanoseconds, and the number of durations up
    /// to it.
    fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        self.buckets.iter().enumerate().scan(0_u64, |below, (bucket, count)| {
            *below = below.saturating_add(*count);
            Some((longest_of(bucket), *below))
        })
    }

    /// Returns the summary, by the names of its serialized fields.
    fn summary(&self) -> [(&'static str, u64); 6] {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        [
            ("count", self.count()),
            ("mean_ns", ns(self.mean())),
            ("p50_ns", ns(self.percentile(50.0))),
            ("p99_ns", ns(self.percentile(99.0))),
            ("p999_ns", ns(self.percentile(99.9))),
            ("max_ns", ns(self.max())),
        ]
    }
}

/// What a [`Latency`] is serialized as.
#[derive(Serialize, Deserialize)]
#[serde(rename = "Latency")]
struct Serialized {
    count: u64,
    mean_ns: u64,
    p50_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    max_ns: u64,
    sum_ns: u64,
    buckets: Vec<(u32, u64)>,
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let [count, mean_ns, p50_ns, p99_ns, p999_ns, max_ns] = self.summary().map(|(_, value)| value);
        let buckets = (0..).zip(&self.buckets).filter(|(_, count)| **count > 0);
        let buckets = buckets.map(|(bucket, count)| (bucket, *count)).collect();
        let sum_ns = self.sum_ns;
        Serialized { count, mean_ns, p50_ns, p99_ns, p999_ns, max_ns, sum_ns, buckets }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Latency, D::Error> {
        let serialized = Serialized::deserialize(deserializer)?;
        let mut buckets = vec![0; BUCKETS];
        for (bucket, count) in serialized.buckets {
            match buckets.get_mut(bucket as usize) {
                Some(place) => *place = count,
                None => return Err(D::Error::custom(format_args!("bucket {bucket} of {BUCKETS}"))),
            }
        }
        Ok(Latency { buckets, sum_ns: serialized.sum_ns, max_ns: serialized.max_ns })
    }
}

impl std::fmt::Debug for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("Latency");
        for (name, value) in self.summary() {
            fields.field(name, &value);
        }
        fields.finish()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: figures are as precise as documented, for any durations and any words.

    use super::*;
    use crate::shared::protocols::atomic::Native;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn buckets_follow_each_other_and_are_as_fine_as_stated() {
        let mut shortest = 0;
        for bucket in 0..BUCKETS - 1 {
            let longest = longest_of(bucket);
            assert_eq!((bucket_of(shortest), bucket_of(longest)), (bucket, bucket));
            let width = longest - shortest + 1;
            assert!(width <= 32 || width * 8 <= shortest, "bucket {bucket}: {shortest} to {longest}");
            shortest = longest + 1;
        }
        assert!(shortest > 60_000_000_000);
        assert_eq!((bucket_of(shortest), bucket_of(u64::MAX)), (BUCKETS - 1, BUCKETS - 1));
    }

    #[test]
    fn nothing_recorded_is_zero_everywhere() {
        let empty = Histogram::<Native>::default().read();
        assert!(empty.summary().iter().all(|(_, value)| *value == 0), "{empty:?}");
        assert!(empty.since(&empty).summary().iter().all(|(_, value)| *value == 0));
    }

    /// Durations of all magnitudes.
    fn durations() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec((0_u32..37, any::<u64>()).prop_map(|(bits, ns)| ns & ((1 << bits) - 1)), 1..300)
    }

    proptest! {
        #[test]
        fn figures_are_true_to_an_eighth(mut before in durations(), now in durations(), percent in 0.0..=100.0_f64) {
            let histogram = Histogram::<Native>::default();
            before.iter().for_each(|ns| histogram.record(*ns));
            let earlier = histogram.read();
            // Both ways of recording count alike.
            now.iter().enumerate().for_each(|(i, ns)| if i % 2 == 0 { histogram.record(*ns) } else { histogram.record_alone(*ns) });
            let later = histogram.read();
            let recent = later.since(&earlier);
            let check = |latency: &Latency, durations: &mut Vec<u64>| {
                durations.sort_unstable();
                assert_eq!(latency.count(), durations.len() as u64);
                assert_eq!(latency.sum(), Duration::from_nanos(durations.iter().sum()));
                let rank = ((durations.len() as f64 * percent / 100.0).ceil() as usize).max(1);
                let (truth, found) = (durations[rank - 1], latency.percentile(percent).as_nanos() as u64);
                assert!(truth <= found && found <= truth + (truth / 8).max(32), "{percent}: {truth} as {found}");
                let longest = *durations.last().unwrap();
                let max = latency.max().as_nanos() as u64;
                assert!(longest <= max && max <= longest + (longest / 8).max(32));
                let bound = Duration::from_nanos(longest_of(bucket_of(truth)));
                let up_to = durations.iter().filter(|ns| u128::from(**ns) <= bound.as_nanos()).count() as u64;
                assert_eq!(latency.counts_up_to(&[bound, Duration::MAX]), [up_to, durations.len() as u64]);
            };
            check(&recent, &mut now.clone());
            before.extend(&now);
            check(&later, &mut before);
            prop_assert_eq!(later.max_ns, *before.iter().max().unwrap());
        }

        #[test]
        fn any_words_are_read_without_panic(words in prop::collection::vec(any::<u64>(), BUCKETS), sum: u64, max: u64, ns: u64) {
            let histogram = Histogram::<Native> {
                sum_ns: AtomicU64::new(sum),
                max_ns: AtomicU64::new(max),
                buckets: std::array::from_fn(|i| AtomicU64::new(words[i])),
            };
            histogram.record(ns);
            histogram.record_alone(ns);
            let (read, none) = (histogram.read(), Histogram::<Native>::default().read());
            for latency in [read.since(&none), none.since(&read), read] {
                let _ = (format!("{latency:?}"), latency.counts_up_to(&[Duration::ZERO, Duration::MAX]));
            }
        }
    }
}
