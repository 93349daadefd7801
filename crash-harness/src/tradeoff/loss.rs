//! The loss of a power cut under one setting. The load runs once more, on the recorder. Its syncs
//! take random times from the distribution that was measured on the disk. Then the record is cut at
//! random instants. The disk then contains only data that a sync had covered, which is the worst
//! case. A new process recovers the remaining store as after any crash and counts its records. A
//! record is lost if it was acknowledged before the instant and is missing.
//!
//! Acknowledgements and events have times of one clock. An event is recorded before its answer is
//! sent, and the time of an acknowledgement is taken after it was received. So an acknowledgement
//! never appears earlier than the sync that caused it.

use super::baseline;
use super::load::{KEYSPACE, MEASURED, Measured, SyncTimes};
use super::setting::{Scheme, Setting};
use crate::outcome::{Finding, Kind};
use crate::power::lives::of_one_boot;
use crate::processes::HANGS;
use crate::processes::instrumented;
use crate::processes::loggers::kill_loggers;
use crate::processes::process::{Checked, start_role};
use crate::processes::role::{Role, say};
use crate::processes::sealed::unsealed;
use crate::recorder::choice::Choice;
use crate::recorder::{Record, Recorder, SECTOR};
use crate::workload::misbehaved;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use untorn::Store;

/// Prefix of the line with the result of the role that counts.
const COUNTED: &str = "N ";
/// Number of instants that are drawn at once and need only one pass over the record.
const AT_ONCE: usize = 12;
/// Number of cuts beyond which further cuts add no information.
const CUTS_MAX: usize = 400;

/// The loss of one cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Lost acknowledged records.
    pub lost: u64,
    /// Time between the acknowledgement of the oldest lost record and the cut.
    pub at_risk: Duration,
}

/// The losses of the cuts of one record.
pub struct Losses {
    /// One loss per instant.
    pub cuts: Vec<Cut>,
    /// Distinct states that were recovered.
    pub states: u64,
    /// Loggers that were killed at the end.
    pub kills: u64,
    /// Measurements of the load during the record.
    pub measured: Measured,
}

impl Losses {
    /// Returns the mean of the losses and its standard error.
    pub fn mean(&self) -> (f64, f64) {
        let count = self.cuts.len().max(1) as f64;
        let mean = self.cuts.iter().map(|cut| cut.lost as f64).sum::<f64>() / count;
        let variance =
            self.cuts.iter().map(|cut| (cut.lost as f64 - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        (mean, (variance / count).sqrt())
    }

    /// Returns the largest loss, in records and in time.
    pub fn most(&self) -> (u64, Duration) {
        let lost = self.cuts.iter().map(|cut| cut.lost).max().unwrap_or(0);
        (lost, self.cuts.iter().map(|cut| cut.at_risk).max().unwrap_or_default())
    }
}

/// The parameters of a load.
pub struct Run<'a> {
    /// The setting.
    pub setting: Setting,
    /// Seed of the arrivals.
    pub seed: u64,
    /// Duration of the warm-up in seconds.
    pub warm_up: f64,
    /// Duration of the measurement in seconds.
    pub seconds: f64,
    /// A directory for its files, which does not exist yet.
    pub directory: &'a Path,
}

impl Run<'_> {
    /// Starts the load on a store, waits for its end, and returns its measurements.
    ///
    /// # Errors
    /// A finding of the load, or a timeout.
    pub fn load(&self, store: &Path, acknowledged: &str) -> Result<Measured, Finding> {
        let arguments = [
            self.setting.to_string(),
            self.seed.to_string(),
            self.warm_up.to_string(),
            self.seconds.to_string(),
            acknowledged.to_string(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut process = start_role(&instrumented::own(), "load", store, &arguments, &[]);
        let patience = HANGS + Duration::from_secs_f64(self.warm_up + self.seconds);
        let measured = process.wait_for(MEASURED, 1, patience);
        if measured.is_err() {
            kill_loggers(store);
        }
        measured?;
        process.wait();
        let lines = process.lines();
        let line = lines.iter().find_map(|line| line.strip_prefix(MEASURED)).unwrap_or_default();
        serde_json::from_str(line)
            .map_err(|error| Finding::new(Kind::Misbehaved, format!("the load printed {line:?}: {error}")))
    }

    /// Runs the load on the recorder, whose syncs take times from `sync`. Cuts the record at
    /// `cuts_min` instants, and at more of them until `until`.
    ///
    /// # Errors
    /// A violation: a scheme that waits lost a record, or a store can't be recovered. The inner
    /// error means that no recorder can be mounted.
    pub fn lose(
        &self,
        sync: &SyncTimes,
        random: &mut StdRng,
        cuts_min: usize,
        until: Instant,
    ) -> Result<Result<Losses, String>, Finding> {
        let recorder = match Recorder::mount(of_one_boot(), None) {
            Ok(recorder) => recorder,
            Err(error) => return Ok(Err(format!("no file system in user space: {error}"))),
        };
        recorder.slow_down_syncs(sync.parts.iter().map(|part| Duration::from_secs_f64(*part)).collect());
        let misbehaved = |what: &str| Finding::new(Kind::Misbehaved, format!("{}: {what}", self.setting));
        std::fs::create_dir_all(self.directory).map_err(|error| misbehaved(&error.to_string()))?;
        let times = self.directory.join("acknowledged");
        let loaded = self.load(&recorder.store(), &times.to_string_lossy());
        let kills = kill_loggers(&recorder.store()) as u64;
        let record = recorder.finish();
        let measured = loaded?;
        let times = std::fs::read(times).ok().and_then(|bytes| serde_json::from_slice::<Vec<u64>>(&bytes).ok());
        let times = times.ok_or_else(|| misbehaved("the times of the acknowledgements can't be read"))?;
        let acknowledged = times.into_iter().map(Duration::from_nanos).collect();
        let mut judge = Judge {
            setting: self.setting,
            record,
            acknowledged,
            directory: self.directory.to_path_buf(),
            recovered: BTreeMap::new(),
        };
        let mut cuts = Vec::new();
        while cuts.len() < cuts_min || (Instant::now() < until && cuts.len() < CUTS_MAX) {
            let window = measured.from.as_nanos() as u64..measured.to.as_nanos() as u64;
            let count = AT_ONCE.min(cuts_min.max(1));
            let mut instants: Vec<Duration> =
                (0..count).map(|_| Duration::from_nanos(random.random_range(window.clone()))).collect();
            instants.sort();
            judge.cut_at(&instants, &mut cuts)?;
        }
        Ok(Ok(Losses { cuts, states: judge.recovered.len() as u64, kills, measured }))
    }
}

/// A record, and the number of records in each state that was recovered.
struct Judge {
    setting: Setting,
    record: Record,
    /// The times of the acknowledgements, in order.
    acknowledged: Vec<Duration>,
    directory: PathBuf,
    recovered: BTreeMap<u64, u64>,
}

impl Judge {
    /// Cuts at these instants, which are sorted.
    fn cut_at(&mut self, instants: &[Duration], cuts: &mut Vec<Cut>) -> Result<(), Finding> {
        let mut disk = self.record.disk(SECTOR);
        let mut at = 0;
        for instant in instants {
            let end = self.record.times.partition_point(|time| time <= instant);
            for (position, event) in self.record.events.iter().enumerate().take(end).skip(at) {
                disk.apply(position, event);
            }
            at = end;
            let image = disk.image(&Choice::Nothing { names: false });
            let fingerprint = image.fingerprint();
            // All instants between two syncs leave the same disk.
            let there = match self.recovered.get(&fingerprint) {
                Some(there) => *there,
                None => {
                    let store = self.directory.join("store");
                    let laid_out = image.lay_out(&store);
                    laid_out.map_err(|error| Finding::new(Kind::Misbehaved, format!("laying out a state: {error}")))?;
                    let there = count_in_fresh_process(&store, self.setting.scheme);
                    let _ = std::fs::remove_dir_all(&store);
                    let there = there?;
                    self.recovered.insert(fingerprint, there);
                    there
                }
            };
            cuts.push(self.cut(*instant, there)?);
        }
        Ok(())
    }

    /// Returns the loss if `there` records are there.
    ///
    /// # Errors
    /// Any loss, if the scheme waits for durability.
    fn cut(&self, instant: Duration, there: u64) -> Result<Cut, Finding> {
        let cut = lost(&self.acknowledged, instant, there);
        if cut.lost > 0 && self.setting.scheme.waits() {
            let what = format!(
                "{} records are gone that had been acknowledged as durable, for up to {:?}; {there} are there",
                cut.lost, cut.at_risk
            );
            return Err(Finding::new(Kind::LostAcked, what));
        }
        Ok(cut)
    }
}

/// Returns the loss of a cut at this instant, if the first `there` records are there.
fn lost(acknowledged: &[Duration], instant: Duration, there: u64) -> Cut {
    let acknowledged_count = acknowledged.partition_point(|time| *time <= instant);
    // Records may be there that were not acknowledged.
    let lost = (acknowledged_count as u64).saturating_sub(there);
    let oldest = acknowledged.get(there as usize).filter(|_| lost > 0);
    Cut { lost, at_risk: oldest.map_or(Duration::ZERO, |oldest| instant - *oldest) }
}

fn count_in_fresh_process(store: &Path, scheme: Scheme) -> Result<u64, Finding> {
    let mut process = start_role(&instrumented::own(), "count", store, &[scheme.name()], &[]);
    let counted = process.wait_for(COUNTED, 1, HANGS);
    process.wait();
    counted.map(|()| process.newest(COUNTED))
}

/// Plays the role of the process that recovers a store and counts its records.
///
/// # Errors
/// If a record is torn, or missing before others.
pub fn play_count(role: &Role) -> Result<(), Finding> {
    let is_file = role.arguments.first().is_some_and(|scheme| scheme == Scheme::MmapInterval.name());
    let count = if is_file { baseline::recovered(&role.store) } else { count(&role.store)? };
    say(format_args!("{COUNTED}{count}"));
    Ok(())
}

fn count(path: &Path) -> Result<u64, Finding> {
    let mut options = Store::options();
    options.logger_thread(true).logger_idle(Duration::from_millis(1)).create(false);
    let store = options.open(path).map_err(misbehaved("recovering the store"))?;
    let snapshot = store.snapshot().map_err(misbehaved("snapshot"))?;
    let Some(records) = snapshot.find_keyspace(KEYSPACE).map_err(misbehaved("find_keyspace"))? else { return Ok(0) };
    let mut count = 0;
    for entry in snapshot.range(&records, ..).map_err(misbehaved("range"))? {
        let (key, value) = entry.map_err(misbehaved("range"))?;
        count += 1;
        if *key != u64::to_be_bytes(count) || unsealed(value)? != count {
            return Err(Finding::new(
                Kind::OrderViolation,
                format!("record {count} is missing, but later ones are there"),
            ));
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: exactly the records that were acknowledged before the cut and are missing count as
    /// lost.
    #[test]
    fn what_is_lost_is_counted() {
        let ms = Duration::from_millis;
        let acknowledged: Vec<Duration> = (1..=10).map(ms).collect();
        let of = |instant, there| {
            let cut = lost(&acknowledged, ms(instant), there);
            (cut.lost, cut.at_risk)
        };
        assert_eq!(of(5, 5), (0, ms(0)));
        assert_eq!(of(5, 8), (0, ms(0)));
        assert_eq!(of(5, 3), (2, ms(1)));
        assert_eq!(of(20, 0), (10, ms(19)));
        assert_eq!(of(0, 0), (0, ms(0)));
    }

    /// Goal: a scheme that waits may lose nothing; losses of the other schemes are no violation.
    #[test]
    fn a_loss_after_waiting_is_a_violation() {
        for (scheme, is_violation) in [(Scheme::LoggerDurable, true), (Scheme::LoggerVisible, false)] {
            let setting = Setting { scheme, hz: Some(1), rate: 1 };
            let acknowledged = vec![Duration::from_secs(1)];
            let (record, directory, recovered) = (Record::default(), PathBuf::new(), BTreeMap::new());
            let judge = Judge { setting, record, acknowledged, directory, recovered };
            assert_eq!(judge.cut(Duration::from_secs(2), 0).is_err(), is_violation);
            assert!(judge.cut(Duration::from_secs(2), 1).is_ok());
        }
    }

    #[test]
    fn mean_and_error() {
        let cut = |lost| Cut { lost, at_risk: Duration::ZERO };
        let cuts = vec![cut(1), cut(2), cut(3)];
        let losses = Losses { cuts, states: 0, kills: 0, measured: Measured::default() };
        let (mean, error) = losses.mean();
        assert!((mean - 2.0).abs() < 1e-9 && (error - (1.0_f64 / 3.0).sqrt()).abs() < 1e-9);
        assert_eq!(losses.most().0, 3);
    }
}
