//! The result of one setting: measurements and predictions. Programs read these field names from
//! JSON and CSV.

use super::load::Measured;
use super::loss::Losses;
use super::model::{self, Evidence};
use super::setting::Setting;
use serde::Serialize;

/// One setting.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The options that select the setting, as text.
    pub setting: String,
    /// The scheme's name.
    pub scheme: &'static str,
    /// Configured syncs per second; without an interval, the measured ones.
    pub fsync_hz: f64,
    /// Whether it syncs immediately, without an interval.
    pub on_commit: bool,
    /// Records due per second.
    pub rate: u32,
    /// Acknowledged records that a cut lost: the mean. `None` if no power cut was possible.
    pub lost_mean: Option<f64>,
    /// The standard error of that mean.
    pub lost_mean_error: Option<f64>,
    /// The largest number of lost records.
    pub lost_max: Option<u64>,
    /// The plain model's loss: r/(2f), or 0 for schemes that wait.
    pub lost_predicted: f64,
    /// The refined model's loss: see [`super::model`].
    pub lost_refined: f64,
    /// The largest possible loss in records, if no sync takes longer than the longest measured one.
    pub lost_worst: f64,
    /// The longest time between an acknowledgement and a cut that lost its record.
    pub at_risk_ms_max: Option<f64>,
    /// The longest such time that the model allows.
    pub at_risk_ms_worst: f64,
    /// Instants at which the power was cut.
    pub cuts: u64,
    /// Time from when a record was due to its acknowledgement: the mean.
    pub ack_ms_mean: f64,
    /// The median.
    pub ack_ms_p50: f64,
    /// The 99th percentile.
    pub ack_ms_p99: f64,
    /// The 99.9th percentile.
    pub ack_ms_p999: f64,
    /// The maximum.
    pub ack_ms_max: f64,
    /// The plain model's mean: 1/(2f), or 0 for schemes that do not wait.
    pub ack_predicted_ms: f64,
    /// The refined model's mean.
    pub ack_refined_ms: f64,
    /// Mean delay of writing a record. It is part of the latency, but not caused by the scheme.
    pub put_late_ms: f64,
    /// Acknowledgements later than the interval or deadline, as a fraction of all.
    pub late: f64,
    /// Records acknowledged per second.
    pub throughput: f64,
    /// Syncs in the measured time.
    pub fsyncs: u64,
    /// Syncs per second.
    pub fsyncs_per_second: f64,
    /// Mean duration of a sync.
    pub fsync_ms: f64,
    /// Longest duration of a sync.
    pub fsync_ms_max: f64,
    /// Bytes that the processes caused to be written to the disk in that time. `None` if the kernel
    /// does not count them.
    pub bytes_written: Option<u64>,
    /// The measured time in seconds.
    pub seconds: f64,
    /// The relative deviation from the plain model: of the loss for schemes that acknowledge early,
    /// of the latency for schemes that wait.
    pub deviation: Option<f64>,
    /// Reasons for the deviation that the measurements show.
    pub why: String,
}

impl Row {
    /// Combines the measurements on the disk and the losses.
    pub fn new(setting: &Setting, on_disk: &Measured, lost: Option<&Losses>, half_a_ring: f64) -> Row {
        let seconds = on_disk.seconds().max(f64::MIN_POSITIVE);
        let throughput = on_disk.acknowledged as f64 / seconds;
        let syncs_per_second = on_disk.syncs as f64 / seconds;
        let hz = setting.hz.map_or(syncs_per_second, f64::from);
        let rate = on_disk.due as f64 / seconds;
        // The cuts use another load, whose syncs take the times of the recorder.
        let (cut_rate, cut_sync) = lost.map_or((rate, &on_disk.sync), |lost| {
            (lost.measured.acknowledged as f64 / lost.measured.seconds(), &lost.measured.sync)
        });
        let plain = model::plain(setting, hz);
        let refined_loss = model::refined(setting, cut_rate, cut_sync, 0.0).lost;
        let refined_ack = model::refined(setting, rate, &on_disk.sync, on_disk.head_start).ack_ms;
        let (worst, worst_age) = model::worst(setting, rate, on_disk.sync.max);
        let means = lost.map(Losses::mean);
        let evidence = Evidence {
            throughput,
            sync: on_disk.sync.mean,
            head_start: on_disk.head_start,
            log_bytes_per_second: on_disk.log_bytes as f64 / seconds,
            half_a_ring,
            late: on_disk.put_late_ms,
            measured: on_disk.ack_ms_mean,
            error: 0.0,
            plain: plain.ack_ms,
            refined: refined_ack,
        };
        let (deviation, why) = match means {
            _ if setting.scheme.waits() => (of(on_disk.ack_ms_mean, plain.ack_ms), model::why(setting, &evidence)),
            Some((mean, error)) => {
                let throughput = cut_rate;
                let of_loss = Evidence {
                    throughput,
                    sync: cut_sync.mean,
                    late: 0.0,
                    measured: mean,
                    error,
                    plain: plain.lost,
                    refined: refined_loss,
                    ..evidence
                };
                (of(mean, plain.lost), model::why(setting, &of_loss))
            }
            None => (None, Vec::new()),
        };
        Row {
            setting: setting.in_words(),
            scheme: setting.scheme.name(),
            fsync_hz: hz,
            on_commit: setting.hz.is_none(),
            rate: setting.rate,
            lost_mean: means.map(|(mean, _)| mean),
            lost_mean_error: means.map(|(_, error)| error),
            lost_max: lost.map(|lost| lost.most().0),
            lost_predicted: plain.lost,
            lost_refined: refined_loss,
            lost_worst: worst,
            at_risk_ms_max: lost.map(|lost| lost.most().1.as_secs_f64() * 1e3),
            at_risk_ms_worst: worst_age * 1e3,
            cuts: lost.map_or(0, |lost| lost.cuts.len() as u64),
            ack_ms_mean: on_disk.ack_ms_mean,
            ack_ms_p50: on_disk.ack_ms_p50,
            ack_ms_p99: on_disk.ack_ms_p99,
            ack_ms_p999: on_disk.ack_ms_p999,
            ack_ms_max: on_disk.ack_ms_max,
            ack_predicted_ms: plain.ack_ms,
            ack_refined_ms: refined_ack,
            put_late_ms: on_disk.put_late_ms,
            late: on_disk.late as f64 / on_disk.due.max(1) as f64,
            throughput,
            fsyncs: on_disk.syncs,
            fsyncs_per_second: syncs_per_second,
            fsync_ms: on_disk.sync.mean * 1e3,
            fsync_ms_max: on_disk.sync.max * 1e3,
            bytes_written: on_disk.bytes_written,
            seconds,
            deviation,
            why: why.join("; "),
        }
    }

    /// Returns the configured sync frequency as text.
    pub fn frequency(&self) -> String {
        if self.on_commit { "on commit".into() } else { format!("{} Hz", self.fsync_hz) }
    }
}

fn of(measured: f64, predicted: f64) -> Option<f64> {
    (predicted > 0.0).then(|| (measured - predicted) / predicted)
}

/// Returns the rows as CSV: a line with the names and a line for each setting.
///
/// # Errors
/// If a row can't be written, which does not happen.
pub fn csv(rows: &[Row]) -> Result<Vec<u8>, String> {
    let mut to = csv::Writer::from_writer(Vec::new());
    for row in rows {
        to.serialize(row).map_err(|error| error.to_string())?;
    }
    to.into_inner().map_err(|error| error.to_string())
}
