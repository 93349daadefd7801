//! What a power cut takes under one setting. The load runs once more, on the recorder, whose syncs
//! take as long as the disk's were measured to take, at random. Then the record is cut at random
//! instants: of everything that no sync had covered nothing is on the disk, which is the worst
//! case. What is left is laid out, recovered by a fresh process as after any crash, and its records
//! are counted. Lost is what had been acknowledged before the instant and is not among them.
//!
//! Acknowledgements and events have times of one clock. An event of the record is noted before its
//! answer is given, and an acknowledgement after it was heard, so no acknowledgement is taken to be
//! earlier than the sync that it is owed to.

use super::baseline;
use super::load::{KEYSPACE, MEASURED, Measured, SyncTimes};
use super::setting::{Scheme, Setting};
use crate::instrumented;
use crate::limits::HANGS;
use crate::oracle::unsealed;
use crate::outcome::{Finding, Kind};
use crate::power::lives::of_one_boot;
use crate::process::{Process, kill_loggers};
use crate::recorder::choice::Choice;
use crate::recorder::{Record, Recorder, SECTOR};
use crate::role::{Role, say};
use crate::workload::misbehaved;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use untorn::Store;

/// How the role that counts says what it found.
const COUNTED: &str = "N ";
/// Instants that are drawn at once: the record is gone through once for them.
const AT_ONCE: usize = 12;
/// More say no more.
const CUTS_MAX: usize = 400;

/// What a cut took.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Acknowledged records that are gone.
    pub lost: u64,
    /// How long before the cut the oldest of them was acknowledged.
    pub at_risk: Duration,
}

/// What the cuts of one record took.
pub struct Losses {
    /// One for each instant.
    pub cuts: Vec<Cut>,
    /// Different states that were recovered.
    pub states: u64,
    /// Loggers that were killed at the end.
    pub kills: u64,
    /// What the load measured meanwhile.
    pub measured: Measured,
}

impl Losses {
    /// The mean of the losses, and its standard error.
    pub fn mean(&self) -> (f64, f64) {
        let count = self.cuts.len().max(1) as f64;
        let mean = self.cuts.iter().map(|cut| cut.lost as f64).sum::<f64>() / count;
        let variance =
            self.cuts.iter().map(|cut| (cut.lost as f64 - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        (mean, (variance / count).sqrt())
    }

    /// The most that was lost, in records and in time.
    pub fn most(&self) -> (u64, Duration) {
        let lost = self.cuts.iter().map(|cut| cut.lost).max().unwrap_or(0);
        (lost, self.cuts.iter().map(|cut| cut.at_risk).max().unwrap_or_default())
    }
}

/// How a load is run.
pub struct Run<'a> {
    /// Under which setting.
    pub setting: Setting,
    /// What its arrivals follow.
    pub seed: u64,
    /// How long nothing is measured, in seconds, and for how long it is.
    pub warm_up: f64,
    /// See there.
    pub seconds: f64,
    /// A directory for its files, which is not there yet.
    pub place: &'a Path,
}

impl Run<'_> {
    /// Starts the load on a store, waits for its end, and returns what it measured.
    ///
    /// # Errors
    /// What it found, or if it does not come to its end.
    pub fn load(&self, store: &Path, acknowledged: &str) -> Result<Measured, Finding> {
        let arguments = [
            self.setting.to_string(),
            self.seed.to_string(),
            self.warm_up.to_string(),
            self.seconds.to_string(),
            acknowledged.to_string(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut process = Process::start(&instrumented::own(), "load", store, &arguments, &[]);
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
            .map_err(|error| Finding::new(Kind::Misbehaved, format!("the load said {line:?}: {error}")))
    }

    /// Runs it on the recorder, whose syncs take as long as some of `sync`, and cuts the record at
    /// `cuts_min` instants, at more of them until `until`.
    ///
    /// # Errors
    /// What must not be: a scheme that waits lost something, or a store can't be recovered. The
    /// inner error is a recorder that can't be mounted.
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
        std::fs::create_dir_all(self.place).map_err(|error| misbehaved(&error.to_string()))?;
        let times = self.place.join("acknowledged");
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
            place: self.place.to_path_buf(),
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

/// A record, and how much of it is there after each state that was recovered.
struct Judge {
    setting: Setting,
    record: Record,
    /// When each record was acknowledged, in their order.
    acknowledged: Vec<Duration>,
    place: PathBuf,
    recovered: BTreeMap<u64, u64>,
}

impl Judge {
    /// Cuts at these instants, which are in order.
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
            // Between two syncs every instant leaves the same disk.
            let there = match self.recovered.get(&fingerprint) {
                Some(there) => *there,
                None => {
                    let store = self.place.join("store");
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

    /// What is lost if so many are there.
    ///
    /// # Errors
    /// If an acknowledgement had been waited for, anything that is lost.
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

/// What of the acknowledged records a cut at this instant takes, if the first so many are there.
fn lost(acknowledged: &[Duration], instant: Duration, there: u64) -> Cut {
    let acknowledged_count = acknowledged.partition_point(|time| *time <= instant);
    // More may be there than was told.
    let lost = (acknowledged_count as u64).saturating_sub(there);
    let oldest = acknowledged.get(there as usize).filter(|_| lost > 0);
    Cut { lost, at_risk: oldest.map_or(Duration::ZERO, |oldest| instant - *oldest) }
}

fn count_in_fresh_process(store: &Path, scheme: Scheme) -> Result<u64, Finding> {
    let mut process = Process::start(&instrumented::own(), "count", store, &[scheme.name()], &[]);
    let counted = process.wait_for(COUNTED, 1, HANGS);
    process.wait();
    counted.map(|()| process.newest(COUNTED))
}

/// Plays the role of the process that recovers a store and counts its records.
///
/// # Errors
/// If one is torn, or missing before others.
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
                format!("record {count} is missing, and later ones are there"),
            ));
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: lost is what was acknowledged before the cut and is not there; nothing else.
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

    /// Goal: a scheme that waits may lose nothing, and the others' losses are no violation.
    #[test]
    fn a_loss_after_waiting_is_a_violation() {
        for (scheme, is_violation) in [(Scheme::LoggerDurable, true), (Scheme::LoggerVisible, false)] {
            let setting = Setting { scheme, hz: Some(1), rate: 1 };
            let acknowledged = vec![Duration::from_secs(1)];
            let (record, place, recovered) = (Record::default(), PathBuf::new(), BTreeMap::new());
            let judge = Judge { setting, record, acknowledged, place, recovered };
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
