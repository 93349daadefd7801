//! Predictions of the loss and of the time to an acknowledgement by two models: a plain one, and a
//! refined one that includes the rules of the schemes and the measured length of a sync. The module
//! also explains differences between a model and the measurement.
//!
//! Plain model: with f syncs and r records per second, a cut finds the records of half an interval
//! unsynced, r/(2f). A writer that waits does so for half an interval, 1/(2f).
//!
//! Refined model for the logger: its interval Δ begins with the oldest waiting record. Then comes a
//! sync of the length S, which covers the records before its beginning. If no record arrives during
//! the sync, the next interval begins with the next record, 1/r later on average. A cycle thus has
//! the length Δ + S + e^(-rS)/r and begins with k = rS + e^(-rS) records on average. The mean
//! number of records that are not durable is
//!
//! ```text
//!     L = (k·Δ + r·Δ²/2 + (k + r·Δ)·S + r·S²/2) / (Δ + S + e^(-rS)/r)
//! ```
//!
//! with the mean of S and the mean of its squares, since more records arrive during a long sync
//! than during a short one. Each record waits L/r on average to become durable (Little's law, L =
//! λW: Operations Research 9, 1961). The scheme that acknowledges early loses L records; the scheme
//! that waits does so for L/r.

use super::load::SyncTimes;
use super::setting::{Scheme, Setting};

/// A prediction.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Prediction {
    /// Mean number of acknowledged records that a cut loses.
    pub lost: f64,
    /// Mean time to the acknowledgement, in milliseconds.
    pub ack_ms: f64,
}

/// Returns the prediction of the plain model for `hz` syncs per second.
pub fn plain(setting: &Setting, hz: f64) -> Prediction {
    let half = if hz > 0.0 { 0.5 / hz } else { 0.0 };
    if setting.scheme.waits() {
        Prediction { lost: 0.0, ack_ms: half * 1e3 }
    } else {
        Prediction { lost: f64::from(setting.rate) * half, ack_ms: 0.0 }
    }
}

/// Returns the prediction of the refined model, given the achieved rate, the measured lengths of
/// syncs, and the flush lead time in seconds.
pub fn refined(setting: &Setting, rate: f64, sync: &SyncTimes, head_start: f64) -> Prediction {
    let interval = setting.interval().as_secs_f64();
    match setting.scheme {
        Scheme::MmapInterval => mapped(interval, rate, sync),
        Scheme::LoggerVisible => Prediction { lost: not_durable(interval, rate, sync), ack_ms: 0.0 },
        Scheme::LoggerDurable => Prediction { lost: 0.0, ack_ms: waiting_ms(interval, rate, sync) },
        Scheme::LoggerWithin => {
            let put_off = (interval - head_start).max(0.0);
            Prediction { lost: 0.0, ack_ms: waiting_ms(put_off, rate, sync) }
        }
    }
}

/// Returns the mean number of records that are visible but not durable; see the module's
/// documentation.
fn not_durable(interval: f64, rate: f64, sync: &SyncTimes) -> f64 {
    if rate <= 0.0 {
        return 0.0;
    }
    let (mean, square) = (sync.mean, sync.mean_square());
    let no_commit = (-rate * mean).exp();
    let first = rate * mean + no_commit;
    let of_a_cycle =
        first * interval + rate * interval * interval / 2.0 + (first + rate * interval) * mean + rate * square / 2.0;
    of_a_cycle / (interval + mean + no_commit / rate)
}

fn waiting_ms(interval: f64, rate: f64, sync: &SyncTimes) -> f64 {
    if rate <= 0.0 { 0.0 } else { not_durable(interval, rate, sync) / rate * 1e3 }
}

/// Returns the prediction for the mapped file. Its writer syncs at fixed times, or as soon as
/// possible if a sync took longer. During a sync the writer accepts no records; those that arrive
/// wait and follow at once. After a sync of the length S, the next sync begins P = max(Δ, S) after
/// the beginning of the first. Until then, rS records and then all later ones are at risk. During
/// the next sync, rP records are at risk.
fn mapped(interval: f64, rate: f64, sync: &SyncTimes) -> Prediction {
    let parts: &[f64] = if sync.parts.is_empty() { &[sync.mean] } else { &sync.parts };
    let mean = |of: &dyn Fn(f64) -> f64| parts.iter().map(|part| of(*part)).sum::<f64>() / parts.len() as f64;
    let period = mean(&|part| interval.max(part));
    if period <= 0.0 {
        return Prediction { lost: 0.0, ack_ms: 0.0 };
    }
    let of_a_cycle = mean(&|part| {
        let between = interval.max(part) - part;
        part * between + between * between / 2.0 + interval.max(part) * sync.mean
    });
    Prediction { lost: rate * of_a_cycle / period, ack_ms: sync.mean_square() / (2.0 * period) * 1e3 }
}

/// Returns the largest possible loss in records and in seconds, if no sync takes longer than the
/// given one. The loss covers an interval, the sync that had just begun before it, and the sync
/// after it.
pub fn worst(setting: &Setting, rate: f64, sync: f64) -> (f64, f64) {
    if setting.scheme.waits() {
        return (0.0, 0.0);
    }
    let age = setting.interval().as_secs_f64() + 2.0 * sync;
    (rate * age, age)
}

/// The measurements from which a difference is explained.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// Records acknowledged per second.
    pub throughput: f64,
    /// The length of a sync, in seconds.
    pub sync: f64,
    /// Flush lead time in seconds.
    pub head_start: f64,
    /// Log bytes per second.
    pub log_bytes_per_second: f64,
    /// Bytes at which a flush happens under any policy.
    pub half_a_ring: f64,
    /// Mean delay of writing records, as a part of the measured value. No model includes it.
    pub late: f64,
    /// The measured value.
    pub measured: f64,
    /// Its standard error, if it is a mean of samples.
    pub error: f64,
    /// The prediction of the plain model.
    pub plain: f64,
    /// The prediction of the refined model.
    pub refined: f64,
}

/// Relative difference that needs no explanation.
const CLOSE: f64 = 0.1;

/// Returns the reasons for a difference between the plain model and the measurement. Returns none
/// if they differ by at most a tenth or two standard errors.
pub fn why(setting: &Setting, of: &Evidence) -> Vec<String> {
    let mut why = Vec::new();
    let scale = of.measured.abs().max(of.plain.abs()).max(f64::MIN_POSITIVE);
    let is_near = |a: f64, b: f64| (a - b).abs() <= (CLOSE * scale).max(2.0 * of.error);
    if is_near(of.measured, of.plain) {
        return why;
    }
    let rate = f64::from(setting.rate);
    if of.throughput < (1.0 - CLOSE) * rate {
        why.push(format!("the rate was not reached ({:.0}/s)", of.throughput));
    }
    let interval = setting.interval().as_secs_f64();
    if of.sync > CLOSE * interval {
        why.push(format!("a sync takes {:.2} ms itself and covers the records before its beginning", of.sync * 1e3));
    }
    let is_loggers = setting.scheme != Scheme::MmapInterval;
    if is_loggers && interval > 0.0 && rate * interval < 10.0 {
        let records = rate * interval;
        why.push(format!("the interval begins with the oldest waiting record and has only {records:.1} records"));
    }
    if setting.scheme == Scheme::LoggerWithin {
        why.push(format!(
            "the logger begins {:.2} ms before the deadline, its estimate of a flush",
            of.head_start * 1e3
        ));
    }
    if is_loggers && interval > 0.0 && of.log_bytes_per_second * interval > of.half_a_ring {
        why.push("a half-full ring is flushed before the interval ends".into());
    }
    if of.late > CLOSE * of.measured {
        why.push(format!("records were put {:.2} ms late on average: the machine was busy", of.late));
    }
    let expected = of.refined + of.late;
    if !is_near(of.measured, expected) {
        let left = of.measured - expected;
        why.push(format!("together these predict {expected:.2}; {left:+.2} is unexplained"));
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 0.02 * b.abs().max(1e-9)
    }

    /// Returns syncs of equal length.
    fn always(seconds: f64) -> SyncTimes {
        SyncTimes { mean: seconds, max: seconds, parts: vec![seconds] }
    }

    fn setting(scheme: Scheme, hz: u32, rate: u32) -> Setting {
        Setting { scheme, hz: Some(hz), rate }
    }

    #[test]
    fn the_plain_model_is_half_an_interval() {
        let visible = plain(&setting(Scheme::LoggerVisible, 10, 1000), 10.0);
        assert_eq!(visible, Prediction { lost: 50.0, ack_ms: 0.0 });
        let durable = plain(&setting(Scheme::LoggerDurable, 10, 1000), 10.0);
        assert_eq!(durable, Prediction { lost: 0.0, ack_ms: 50.0 });
    }

    /// Goal: with many records and fast syncs the refined model equals the plain one. With few
    /// records it predicts an interval, and without an interval one and a half syncs.
    #[test]
    fn the_refined_model_at_its_ends() {
        let many = refined(&setting(Scheme::LoggerDurable, 10, 100_000), 1e5, &always(1e-7), 0.0);
        assert!(close(many.ack_ms, 50.0), "{many:?}");
        let few = refined(&setting(Scheme::LoggerDurable, 1000, 1), 0.01, &always(1e-7), 0.0);
        assert!(close(few.ack_ms, 1.0), "{few:?}");
        let grouped =
            refined(&Setting { scheme: Scheme::LoggerDurable, hz: None, rate: 100_000 }, 1e5, &always(1e-3), 0.0);
        assert!(close(grouped.ack_ms, 1.5), "{grouped:?}");
        let mapped = refined(&setting(Scheme::MmapInterval, 10, 1000), 1000.0, &always(0.0), 0.0);
        assert!(close(mapped.lost, 50.0) && mapped.ack_ms == 0.0, "{mapped:?}");
        // Syncs that take longer than the interval follow each other immediately, and each covers
        // the records of the previous one.
        let slow = refined(&setting(Scheme::MmapInterval, 1000, 1000), 1000.0, &always(0.005), 0.0);
        assert!(close(slow.lost, 5.0) && close(slow.ack_ms, 2.5), "{slow:?}");
    }

    /// Goal: the formula is right. Method: a simulation of the logger's rule.
    #[test]
    fn the_formula_agrees_with_a_simulation() {
        let varied = SyncTimes { mean: 0.004, max: 0.01, parts: vec![0.001, 0.001, 0.01] };
        let cases = [
            (0.1, 100.0, always(0.001)),
            (0.001, 500.0, always(0.002)),
            (0.0, 1000.0, always(0.001)),
            (0.01, 50.0, always(0.0)),
            (0.002, 5000.0, varied),
        ];
        for (interval, rate, sync) in cases {
            let mut random = StdRng::seed_from_u64(7);
            let mut arrivals = Vec::new();
            let mut at = 0.0;
            while arrivals.len() < 2_000_000 {
                at += -(1.0 - random.random::<f64>()).ln() / rate;
                arrivals.push(at);
            }
            let (mut waited, mut next, mut free) = (0.0, 0, 0.0_f64);
            while next < arrivals.len() {
                let begins = f64::max(arrivals[next], free) + interval;
                let covered = arrivals.partition_point(|at| *at <= begins);
                free = begins + sync.parts[random.random_range(0..sync.parts.len())];
                waited += arrivals[next..covered].iter().map(|at| free - at).sum::<f64>();
                next = covered;
            }
            let simulated = waited / arrivals.len() as f64;
            let formula = waiting_ms(interval, rate, &sync) / 1e3;
            assert!(close(formula, simulated), "{interval} {rate} {sync:?}: {formula} {simulated}");
        }
    }

    /// Goal: small differences are not explained, and the reasons that the measurements show are
    /// named.
    #[test]
    fn differences_are_explained_by_what_was_measured() {
        let visible = setting(Scheme::LoggerVisible, 100, 1000);
        let fits = Evidence {
            throughput: 1000.0,
            sync: 0.0001,
            head_start: 0.0,
            log_bytes_per_second: 1e5,
            half_a_ring: 1e6,
            late: 0.0,
            measured: 5.2,
            error: 0.0,
            plain: 5.0,
            refined: 5.1,
        };
        assert!(why(&visible, &fits).is_empty());
        assert!(why(&visible, &Evidence { measured: 9.0, error: 2.5, ..fits }).is_empty());
        let slow = Evidence { sync: 0.004, measured: 9.1, refined: 9.0, ..fits };
        assert!(why(&visible, &slow)[0].contains("4.00 ms"), "{:?}", why(&visible, &slow));
        let unexplained = why(&visible, &Evidence { measured: 20.0, ..fits });
        assert!(unexplained.len() == 1 && unexplained[0].contains("unexplained"), "{unexplained:?}");
        let busy = why(&visible, &Evidence { measured: 9.0, late: 3.9, ..fits });
        assert!(busy.len() == 1 && busy[0].contains("late"), "{busy:?}");
        let forced = Evidence { log_bytes_per_second: 1e9, measured: 1.0, refined: 5.0, ..fits };
        assert!(why(&visible, &forced)[0].contains("half-full"));
    }
}
