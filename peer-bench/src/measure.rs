//! One slice of a workload in one thread.

use crate::dataset::{Dataset, fill, mix};
use crate::store::{Result, Session};
use crate::workload::{BATCH, Operation};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The result of a slice.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Slice {
    /// Operations, or entries where the unit counts entries.
    pub(crate) operations: u64,
    /// Time that they took.
    pub(crate) nanos: u64,
    /// Times of single operations in nanoseconds, sorted, at most [`SAMPLES`].
    pub(crate) samples: Vec<u64>,
}

/// Sampled times that a worker reports.
pub(crate) const SAMPLES: usize = 1000;

/// When a slice is measured, in nanoseconds of CLOCK_MONOTONIC, which all processes share.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Whether several threads or processes run concurrently. If so, only the operations that end
    /// in the window count. Otherwise a thread that starts late or is starved would add the rate of
    /// another time. A single thread starts the window when it is ready, and completes its last
    /// operation.
    pub(crate) is_shared: bool,
}

impl Window {
    /// Returns a window of this length that opens after a run-up, in which stores that were idle
    /// get their pages and caches back.
    pub(crate) fn open_soon(length: Duration, is_shared: bool) -> Window {
        let run_up = if is_shared { length / 5 } else { length / 10 };
        let start = monotonic_nanos() + nanos(run_up);
        Window { start, end: start + nanos(length), is_shared }
    }
}

/// Returns the time of CLOCK_MONOTONIC.
pub(crate) fn monotonic_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Repeats `operation`, which returns how many units it did, until the end of the window, and
/// counts from its start. Takes the time of every `sample_interval`-th call.
pub(crate) fn repeat(
    window: Window,
    sample_interval: u32,
    mut operation: impl FnMut() -> Result<u64>,
) -> Result<Slice> {
    while monotonic_nanos() < window.start {
        for _ in 0..sample_interval {
            operation()?;
        }
    }
    let (mut operations, mut samples) = (0, Vec::new());
    let begun = monotonic_nanos();
    let length = window.end - window.start;
    let end = if window.is_shared { window.end } else { begun + length };
    let mut now = begun;
    while now < end {
        let mut done = operation()?;
        let sampled = monotonic_nanos();
        for _ in 1..sample_interval {
            done += operation()?;
        }
        let ended = if sample_interval == 1 { sampled } else { monotonic_nanos() };
        if ended <= end || !window.is_shared {
            operations += done;
            samples.push(sampled - now);
        }
        now = ended;
    }
    samples.sort_unstable();
    let nanos = if window.is_shared { length } else { now - begun };
    Ok(Slice { operations, nanos, samples: thin_out(&samples, SAMPLES) })
}

/// Returns at most `count` of the sorted values, evenly spaced, with the first and the last.
fn thin_out(sorted: &[u64], count: usize) -> Vec<u64> {
    if sorted.len() <= count {
        return sorted.to_vec();
    }
    (0..count).map(|index| sorted[index * (sorted.len() - 1) / (count - 1)]).collect()
}

/// Returns a duration in nanoseconds.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The state of a thread that lasts from slice to slice, and its buffers.
pub(crate) struct Thread {
    dataset: Dataset,
    random: u64,
    salt: u64,
    /// Index of the next key that does not exist yet.
    next_index: u64,
    key: Vec<u8>,
    value: Vec<u8>,
    /// Sum of all values read, so that the compiler can't remove the reads.
    sum: u64,
}

impl Thread {
    /// Returns the state of a new thread. `number` is unique among the threads of all processes.
    pub(crate) fn new(dataset: Dataset, number: usize) -> Thread {
        let (key, value) = (Vec::new(), Vec::new());
        Thread { dataset, random: number as u64, salt: 0, next_index: dataset.entries, key, value, sum: 0 }
    }

    /// Sets the salt of the values and the random keys of the next slice.
    pub(crate) fn begin_slice(&mut self, salt: u64) {
        let mut state = salt ^ self.random.rotate_left(48);
        self.salt = mix(&mut state);
        self.random = mix(&mut state);
    }

    fn random_index(&mut self) -> u64 {
        mix(&mut self.random) % self.dataset.entries
    }

    fn random_key(&mut self) {
        let index = self.random_index();
        self.dataset.key_into(index, &mut self.key);
    }

    /// Makes the next entry to write. Its salt is new: a key that recurs gets another value.
    fn next_entry(&mut self, index: u64) {
        self.salt = self.salt.wrapping_add(1);
        self.dataset.key_into(index, &mut self.key);
        self.dataset.value_into(index, self.salt, &mut self.value);
    }

    /// Runs a slice.
    pub(crate) fn run(
        &mut self,
        operation: Operation,
        session: &mut dyn Session,
        window: Window,
        sample_interval: u32,
    ) -> Result<Slice> {
        match operation {
            Operation::Get | Operation::Seek10 | Operation::Scan => {
                let mut slice = Slice::default();
                session.snapshot(&mut |reader| {
                    slice = repeat(window, sample_interval, || match operation {
                        Operation::Get => {
                            self.random_key();
                            self.sum = self.sum.wrapping_add(reader.get(&self.key)?);
                            Ok(1)
                        }
                        Operation::Seek10 => {
                            self.random_key();
                            self.sum = self.sum.wrapping_add(reader.seek(&self.key, 10)?.1);
                            Ok(1)
                        }
                        _ => {
                            let (read, sum) = reader.seek(FIRST_KEY, u64::MAX)?;
                            self.sum = self.sum.wrapping_add(sum);
                            if read < self.dataset.entries {
                                return Err(format!("a scan found {read} of {} entries", self.dataset.entries).into());
                            }
                            Ok(read)
                        }
                    })?;
                    Ok(())
                })?;
                std::hint::black_box(self.sum);
                Ok(slice)
            }
            Operation::GetSnapshot => repeat(window, sample_interval, || {
                self.random_key();
                session.snapshot(&mut |reader| {
                    self.sum = self.sum.wrapping_add(reader.get(&self.key)?);
                    Ok(())
                })?;
                Ok(1)
            }),
            Operation::Put => repeat(window, sample_interval, || {
                let index = self.random_index();
                self.next_entry(index);
                session.put(&self.key, &self.value)?;
                Ok(1)
            }),
            Operation::Batch { is_ascending } => {
                repeat(window, sample_interval, || self.write_batch(session, is_ascending))
            }
            Operation::Increment => repeat(window, sample_interval, || {
                session.increment()?;
                Ok(1)
            }),
            Operation::PutLarge { mebibytes } => repeat(window, sample_interval, || {
                self.salt = self.salt.wrapping_add(1);
                let index = self.salt % LARGE_VALUES;
                fill(mebibytes << 20, index, self.salt, &mut self.value);
                session.put(format!("large-{index}").as_bytes(), &self.value)?;
                Ok((mebibytes << 20) as u64)
            }),
            Operation::Load | Operation::DiskBytes | Operation::OpenClean | Operation::OpenKilled => {
                Err(format!("{operation:?} is no operation of a session").into())
            }
        }
    }

    /// Writes one transaction of [`BATCH`] entries.
    pub(crate) fn write_batch(&mut self, session: &mut dyn Session, is_ascending: bool) -> Result<u64> {
        let mut entries = Vec::with_capacity(BATCH as usize);
        for _ in 0..BATCH {
            let index = if is_ascending { self.next_index } else { self.random_index() };
            self.next_index += u64::from(is_ascending);
            self.next_entry(index);
            entries.push((self.key.clone(), self.value.clone()));
        }
        session.batch(&entries)?;
        Ok(BATCH)
    }
}

/// A key that is not greater than any other. LMDB has no empty keys.
pub(crate) const FIRST_KEY: &[u8] = &[0];

/// Keys to which large values are written in turn.
const LARGE_VALUES: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_counts_units_and_samples_some() {
        let mut calls = 0_u64;
        let window = Window::open_soon(Duration::from_millis(5), false);
        let slice = repeat(window, 4, || {
            calls += 1;
            Ok(10)
        })
        .unwrap();
        assert!(slice.operations < calls * 10, "the run-up must not count");
        assert_eq!((slice.operations % 40, calls % 4), (0, 0));
        assert!(slice.nanos >= 5_000_000);
        assert!(!slice.samples.is_empty() && slice.samples.len() <= SAMPLES && slice.samples.is_sorted());
    }

    #[test]
    fn an_error_ends_a_slice() {
        let window = Window::open_soon(Duration::from_secs(60), false);
        assert!(repeat(window, 1, || Err("no".into())).is_err());
    }

    /// A thread that gets its turn late does not add to the rate.
    #[test]
    fn what_ends_after_a_shared_window_does_not_count() {
        let now = monotonic_nanos();
        let late = |is_shared| Window { start: now, end: now + 5_000_000, is_shared };
        let mut sleep = || {
            std::thread::sleep(Duration::from_millis(10));
            Ok(1)
        };
        let slice = repeat(late(true), 1, &mut sleep).unwrap();
        assert_eq!((slice.operations, slice.nanos), (0, 5_000_000));
    }

    #[test]
    fn values_of_slices_and_threads_differ() {
        let dataset = Dataset { entries: 1000, key_bytes: 24, value_bytes: 150 };
        let value = |number, salt| {
            let mut thread = Thread::new(dataset, number);
            thread.begin_slice(salt);
            thread.next_entry(7);
            thread.value
        };
        assert_ne!(value(0, 1), value(0, 2));
        assert_ne!(value(0, 1), value(1, 1));
    }

    #[test]
    fn thinning_keeps_the_ends() {
        let values: Vec<u64> = (0..1000).collect();
        let thin = thin_out(&values, 11);
        assert_eq!((thin.len(), thin[0], thin[10]), (11, 0, 999));
        assert_eq!(thin_out(&values[..5], 11), [0, 1, 2, 3, 4]);
    }
}
