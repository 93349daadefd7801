//! How often to sync? This suite compares four schemes on the disk with the temporary files, over a
//! range of sync frequencies and record rates: the loss in a power cut, the time to an
//! acknowledgement, and the costs. It also compares the measurements with models, and ends with
//! advice.
//!
//! Each setting runs twice. First the settings run on the disk, one after the other, and latency,
//! throughput, syncs and bytes are measured. Then the schemes of one frequency and rate run
//! concurrently on the recorder, whose syncs take as long as those of the disk. The power is cut at
//! random instants ([`loss`]).
//!
//! | module | its one job |
//! |---|---|
//! | [`setting`] | the settings that are compared |
//! | [`load`], [`baseline`] | a process that writes records and measures; the file of the scheme without a log |
//! | [`loss`] | the loss in a cut |
//! | [`model`], [`row`] | the predicted values and reasons for deviations; both next to the measurements |
//! | [`advice`] | the recommended setting |
//! | [`table`], [`page`], [`chart`] | presentation |

pub mod advice;
pub mod baseline;
pub mod chart;
pub mod load;
pub mod loss;
pub mod model;
pub mod page;
pub mod row;
pub mod setting;
pub mod table;

use crate::context::{Context, Limit};
use crate::outcome::{Finding, Outcome};
use crate::processes::loggers::kill_loggers;
use load::Measured;
use loss::{Losses, Run};
use row::Row;
use setting::{SCHEMES, Setting};
use std::time::{Duration, Instant};

/// The log's ring in its default size is flushed when it is half full, under any policy.
const HALF_A_RING: f64 = (untorn::limits::RING_SIZE_DEFAULT / 2) as f64;
/// Smallest number of cuts of each setting.
const CUTS_MIN: usize = 12;
/// Seconds that are spent on more cuts, if there is time.
const CUTTING: f64 = 1.5;
/// Number of intervals for which a setting is measured.
const INTERVALS: f64 = 6.0;
/// Shortest measurement in seconds.
const SECONDS_MIN: f64 = 0.8;
/// Time to start a process and to make a store, in seconds.
const STARTING: f64 = 0.5;
/// Largest factor by which a measurement is prolonged if there is time.
const STRETCH_MAX: f64 = 8.0;
/// Smallest factor by which a measurement is shortened if there is little time.
const STRETCH_MIN: f64 = 0.5;

/// A frequency and a rate at which all schemes are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cell {
    hz: Option<u32>,
    rate: u32,
}

/// Returns all cells. The most important ones come first, since the time may not suffice for all.
fn cells() -> Vec<Cell> {
    let of_rate = |rate| [Some(10), Some(100), Some(1000), None, Some(1)].map(|hz| Cell { hz, rate });
    let mut cells: Vec<Cell> = [1000, 10_000, 100].into_iter().flat_map(of_rate).collect();
    // These cells show where the rate is no longer sustained.
    cells.extend([Some(100), None].map(|hz| Cell { hz, rate: 100_000 }));
    cells
}

impl Cell {
    fn settings(self) -> Vec<Setting> {
        let has = |scheme: &setting::Scheme| self.hz.is_some() || scheme.has_on_commit();
        SCHEMES.into_iter().filter(has).map(|scheme| Setting { scheme, hz: self.hz, rate: self.rate }).collect()
    }

    /// Returns the seconds of warm-up and of measurement.
    fn times(self, stretch: f64) -> (f64, f64) {
        let interval = self.hz.map_or(0.0, |hz| 1.0 / f64::from(hz));
        ((1.2 * interval).max(0.25), (INTERVALS * interval).max(SECONDS_MIN) * stretch)
    }

    /// Returns the duration in seconds: each scheme on the disk, and all of them on the recorder.
    fn cost(self, stretch: f64) -> f64 {
        let (warm_up, seconds) = self.times(stretch);
        (self.settings().len() + 1) as f64 * (warm_up + seconds + STARTING) + CUTTING * stretch
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.hz {
            Some(hz) => write!(to, "{hz} Hz and {} records/s", self.rate),
            None => write!(to, "a sync for each commit and {} records/s", self.rate),
        }
    }
}

/// Runs the suite.
pub fn run(context: &Context) -> Outcome {
    let mut outcome = Outcome::of(context);
    let can_cut = crate::power::prepare();
    if let Err(why) = &can_cut {
        outcome.skip("the loss in a power cut", why);
    }
    let mut suite = Suite { context, outcome: &mut outcome, can_cut: can_cut.is_ok(), rows: Vec::new() };
    match &context.only {
        Some(only) => match only.parse() {
            Ok(setting) => suite.compare(&[setting], 1.0),
            Err(why) => suite.outcome.skip(only, why),
        },
        None => suite.all(),
    }
    suite.rows.sort_by_key(|(setting, _)| (setting.rate, setting.scheme, setting.hz.unwrap_or(u32::MAX)));
    let rows: Vec<Row> = suite.rows.into_iter().map(|(_, row)| row).collect();
    let limits: Vec<advice::Limit> = context.limits.iter().chain(&advice::LIMITS).copied().collect();
    outcome.advice = advice::advise(&rows, &limits);
    outcome.figures.insert("power cuts".into(), rows.iter().map(|row| row.cuts as f64).sum());
    outcome.rows = rows;
    outcome.seconds = context.elapsed().as_secs_f64();
    outcome
}

struct Suite<'a> {
    context: &'a Context,
    outcome: &'a mut Outcome,
    can_cut: bool,
    rows: Vec<(Setting, Row)>,
}

impl Suite<'_> {
    fn all(&mut self) {
        let all: f64 = cells().iter().map(|cell| cell.cost(1.0)).sum();
        let stretch = match self.context.limit {
            Limit::Seconds(seconds) if seconds as f64 > all => (seconds as f64 / all).min(STRETCH_MAX),
            Limit::Seconds(seconds) => (seconds as f64 / cells()[0].cost(1.0)).clamp(STRETCH_MIN, 1.0),
            Limit::States(_) => 1.0,
        };
        for (index, cell) in cells().into_iter().enumerate() {
            let left = match self.context.limit {
                Limit::Seconds(seconds) => seconds as f64 - self.context.elapsed().as_secs_f64(),
                Limit::States(_) => f64::MAX,
            };
            let may_continue = self.context.may_continue(self.outcome.states, &cell.to_string());
            if index > 0 && (!may_continue || cell.cost(stretch) > left) {
                self.outcome.uncovered.push(format!("{cell}: the time was up"));
                continue;
            }
            self.compare(&cell.settings(), stretch);
        }
    }

    /// Measures these settings one after the other, cuts the power of all, and records the results.
    fn compare(&mut self, settings: &[Setting], stretch: f64) {
        let mut measured = Vec::new();
        for setting in settings {
            self.context.may_continue(self.outcome.states, &setting.to_string());
            match self.measure(setting, stretch) {
                Ok(on_disk) => measured.push((*setting, on_disk)),
                Err(finding) => self.found(setting, finding),
            }
        }
        let lost = self.lose(&measured, stretch);
        for ((setting, on_disk), lost) in measured.into_iter().zip(lost) {
            let lost = lost.unwrap_or_else(|finding| {
                self.outcome.states += 1;
                self.found(&setting, finding);
                None
            });
            if let Some(lost) = &lost {
                self.outcome.states += lost.states;
                self.outcome.kills += lost.kills;
            }
            self.rows.push((setting, Row::new(&setting, &on_disk, lost.as_ref(), HALF_A_RING)));
        }
    }

    fn found(&mut self, setting: &Setting, finding: Finding) {
        let name = setting.to_string();
        self.outcome.violated(finding, &name, self.context.replay(&name));
    }

    fn measure(&self, setting: &Setting, stretch: f64) -> Result<Measured, Finding> {
        let directory = self.context.directory(&format!("{setting}").replace(':', "-"));
        let measured = self.run(setting, stretch, &directory).load(&directory, "");
        kill_loggers(&directory);
        let _ = std::fs::remove_dir_all(&directory);
        measured
    }

    fn run<'p>(&self, setting: &Setting, stretch: f64, directory: &'p std::path::Path) -> Run<'p> {
        let (warm_up, seconds) = Cell { hz: setting.hz, rate: setting.rate }.times(stretch);
        Run { setting: *setting, seed: self.context.seed, warm_up, seconds, directory }
    }

    /// Measures losses. The runs are concurrent, because they do not measure durations.
    fn lose(&mut self, measured: &[(Setting, Measured)], stretch: f64) -> Vec<Result<Option<Losses>, Finding>> {
        if !self.can_cut {
            return measured.iter().map(|_| Ok(None)).collect();
        }
        let lose = |(index, (setting, on_disk)): (usize, &(Setting, Measured))| {
            let directory = self.context.directory_in_memory(&format!("cut-{setting}").replace(':', "-"));
            let run = self.run(setting, stretch, &directory);
            let mut random = self.context.random(u64::from(setting.rate) << 8 | index as u64);
            let time = run.warm_up + run.seconds + STARTING + CUTTING * stretch;
            let lost = run.lose(&on_disk.sync, &mut random, CUTS_MIN, Instant::now() + Duration::from_secs_f64(time));
            let _ = std::fs::remove_dir_all(&directory);
            lost
        };
        let lost: Vec<_> = std::thread::scope(|scope| {
            let runs: Vec<_> = measured.iter().enumerate().map(|of| scope.spawn(move || lose(of))).collect();
            runs.into_iter().map(|run| run.join().expect("a run does not panic")).collect()
        });
        let unmounted = |why: String| {
            self.outcome.skip("the loss in a power cut", why);
            None
        };
        let mut unmounted = unmounted;
        lost.into_iter().map(|lost| lost.map(|lost| lost.map_or_else(&mut unmounted, Some))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: two minutes suffice for all frequencies at one rate, and half a minute for the usual
    /// ones.
    #[test]
    fn what_matters_most_fits_into_a_short_run() {
        let cost = |count: usize| cells()[..count].iter().map(|cell| cell.cost(1.0)).sum::<f64>();
        assert!(cells()[0].cost(STRETCH_MIN) <= 10.0, "{}", cells()[0].cost(STRETCH_MIN));
        assert!(cost(3) <= 35.0 && cost(5) <= 90.0, "{} {}", cost(3), cost(5));
        assert!(cells()[..5].iter().any(|cell| cell.hz == Some(1)));
    }
}
