//! Bits flip in the shared region while processes use it. Any process that maps a store can
//! overwrite the region, so detection is not promised and calls may fail. But no process may crash
//! or hang. Then the region is removed. The store must contain everything that was durable before
//! the first flip, or opening must report the damage.

use super::acknowledged;
use super::processes::{ScenarioProcesses, ScenarioResult, found};
use crate::outcome::Kind;
use crate::processes::HANGS;
use crate::processes::loggers::crash_kernel;
use crate::workload;
use crate::workload::oracle;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use untorn::Error;
pub(super) use untorn::internals::CHECKED_NUMBERS as NUMBERS;

/// The result of the scenario.
#[derive(Default)]
pub(super) struct Flipped {
    /// The flipped bits. Each entry is the offset of a byte and the number of the bit in it.
    pub(super) flips: Vec<(u64, u32)>,
    /// The error of opening the store without the region, if it can't be opened.
    pub(super) refused: Option<String>,
}

/// Bits that are flipped in a count of pieces or slots. Flipping one of these bits changes the
/// count by far more than the number of pieces or slots that exist.
const TELLING_BITS: std::ops::Range<u64> = 4..16;

/// Plays the scenario. Without `number`, random bits of the region are flipped. With `number`, one
/// bit of the count at that offset is flipped while the store grows.
pub(super) fn play(path: &Path, number: Option<u64>, seed: u64) -> ScenarioResult<Flipped> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut processes = ScenarioProcesses::new(path)?;
    let how = if number.is_some() { "anything, grow" } else { "anything" };
    let workers = [
        processes.start("a", "enduring", &["a", "12", "leave", "", how])?,
        processes.start("b", "enduring", &["b", "12", "leave", "", how])?,
    ];
    for worker in workers {
        processes.wait_for(worker, "D ", 2)?;
    }
    let before = workers.map(|worker| (processes.name(worker), acknowledged::by(&processes.lines(worker))));
    let mut flipped = Flipped::default();
    if let Ok(control) = File::options().read(true).write(true).open(path.join("control")) {
        let len = control.metadata().map_or(0, |metadata| metadata.len());
        for _ in 0..if number.is_some() { 1 } else { dice.random_range(1..5) } {
            let (at, bit) = match number {
                Some(at) => {
                    let bit = dice.random_range(TELLING_BITS);
                    (at + bit / 8, (bit % 8) as u32)
                }
                None => {
                    // State words, at the start of the region, are chosen far more often than the
                    // tables, the ring and the cells.
                    let within = [2 << 10, 2 << 10, 16 << 10, 256 << 10, len][dice.random_range(0..5)].min(len).max(1);
                    (dice.random_range(0..within), dice.random_range(0..8))
                }
            };
            let mut byte = [0];
            if control.read_exact_at(&mut byte, at).is_ok() && control.write_all_at(&[byte[0] ^ 1 << bit], at).is_ok() {
                flipped.flips.push((at, bit));
            }
            std::thread::sleep(Duration::from_millis(dice.random_range(1..40)));
        }
    }
    for worker in workers {
        let status = processes.wait(worker, HANGS * 3)?;
        processes.check()?;
        if !status.success() {
            return found(
                Kind::Misbehaved,
                format!("{} ended unexpectedly: {status}; {:?}", processes.name(worker), flipped.flips),
            );
        }
    }
    processes.end()?;
    crash_kernel(path);
    match workload::options().open(path) {
        Ok(store) => {
            for (name, acknowledged) in &before {
                oracle::kept(&store, [(name.as_str(), *acknowledged)], true)?;
            }
            oracle::verified(&store)?;
        }
        Err(error @ (Error::Corrupt { .. } | Error::Mismatch { .. } | Error::FormatVersion { .. })) => {
            flipped.refused = Some(error.to_string())
        }
        Err(error) => return found(Kind::Misbehaved, format!("opening without the region: {error}")),
    }
    crate::processes::loggers::kill_loggers(path);
    Ok(flipped)
}
