//! Charts of the comparison as self-contained SVG, for a page or a file: logarithmic axes, a panel
//! for each rate, a mark for each setting.
//!
//! A logarithmic axis has no position for 0, so 0 has a separate position beside it. Schemes differ
//! by shape and by color (the palette of Okabe and Ito, which color-blind readers can distinguish).
//! Dark pages and paper have their own colors.

use super::row::Row;
use super::setting::SCHEMES;
use super::table::short;
use crate::report::html::{escape, grouped};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Width of a chart in user units.
const WIDTH: f64 = 960.0;
/// Width of the left margin, which contains the numbers of the vertical axis.
const LEFT: f64 = 62.0;
/// Height of the area above the panels, for the legend and the panels' titles.
const TOP: f64 = 62.0;
/// Height of the area below the panels, for the numbers and the name of the horizontal axis.
const BOTTOM: f64 = 46.0;
/// Height of a panel.
const HEIGHT: f64 = 250.0;
/// Gap between two panels.
const GAP: f64 = 14.0;
/// Size of a label. A label that would cover another is omitted.
const LABEL: (f64, f64) = (24.0, 9.0);
/// Space beside an axis for the value 0.
const ZERO: f64 = 30.0;

/// The mark of a row.
#[derive(Clone, Copy)]
struct Mark {
    x: f64,
    y: f64,
    /// Upper end of the mark's line: the maximum or the 99th percentile.
    up_to: Option<f64>,
    /// The prediction of the refined model.
    refined: Option<f64>,
}

/// A value as a function of the frequency and the rate.
type Curve = fn(f64, f64) -> f64;

/// The content of a chart.
struct Chart<'a> {
    name: &'static str,
    x: &'static str,
    y: &'static str,
    mark: fn(&Row) -> Option<Mark>,
    /// The plain model's name and its curve.
    model: Option<(&'static str, Curve)>,
    /// Whether each mark is labeled with its frequency, because no axis shows it.
    has_labels: bool,
    rows: &'a [Row],
}

/// Returns all charts of the rows: the names of their files, their captions, and the SVG.
pub fn all(rows: &[Row]) -> Vec<(&'static str, &'static str, String)> {
    let loss = Chart {
        name: "loss",
        x: "syncs per second",
        y: "records lost",
        mark: |row| {
            let up_to = row.lost_max.map(|most| most as f64);
            Some(Mark { x: row.fsync_hz, y: row.lost_mean?, up_to, refined: Some(row.lost_refined) })
        },
        model: Some(("model r/(2f)", |hz, rate| rate / (2.0 * hz))),
        has_labels: false,
        rows,
    };
    let latency = Chart {
        name: "latency",
        x: "syncs per second",
        y: "acknowledged after, ms",
        mark: |row| {
            let refined = Some(row.ack_refined_ms);
            Some(Mark { x: row.fsync_hz, y: row.ack_ms_mean, up_to: Some(row.ack_ms_p99), refined })
        },
        model: Some(("model 1/(2f)", |hz, _| 500.0 / hz)),
        has_labels: false,
        rows,
    };
    let frontier = Chart {
        name: "frontier",
        x: "records lost",
        y: "acknowledged after, ms",
        mark: |row| Some(Mark { x: row.lost_mean?, y: row.ack_ms_mean, up_to: None, refined: None }),
        model: None,
        has_labels: true,
        rows,
    };
    let with_captions = [
        (
            loss,
            "Acknowledged records that a power cut loses, on average (mark) and at most (upright line), against the rate of syncs.",
        ),
        (
            latency,
            "Time to the acknowledgement, on average (mark) and 99th percentile (upright line), against the rate of syncs.",
        ),
        (
            frontier,
            "The frontier: loss in a crash against time to the acknowledgement. The numbers are syncs per second (c: at each commit). A larger mark means more records acknowledged per second. A number that would cover another is omitted; hover over the mark for it. Left and below is better.",
        ),
    ];
    with_captions.into_iter().map(|(chart, caption)| (chart.name, caption, chart.draw())).collect()
}

/// A logarithmic axis over some decades, with a position for 0 before them if it is needed.
#[derive(Clone, Copy)]
struct Axis {
    first: i32,
    last: i32,
    has_zero: bool,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: &[f64], from: f64, to: f64) -> Axis {
        let positive = || values.iter().copied().filter(|value| *value > 0.0);
        let (least, most) = (positive().fold(f64::MAX, f64::min), positive().fold(f64::MIN, f64::max));
        let (first, last) = if least > most { (0, 1) } else { (decade(least), decade(most * 0.999) + 1) };
        Axis { first, last: last.max(first + 1), has_zero: values.iter().any(|value| *value <= 0.0), from, to }
    }

    /// Returns the position of a value.
    fn at(&self, value: f64) -> f64 {
        let direction = (self.to - self.from).signum();
        if value <= 0.0 {
            return self.from + direction * ZERO / 2.0;
        }
        let from = self.from + if self.has_zero { direction * ZERO } else { 0.0 };
        let part = (value.log10() - f64::from(self.first)) / f64::from(self.last - self.first);
        from + part.clamp(0.0, 1.0) * (self.to - from)
    }

    /// Returns the labeled values with their labels: each decade, or every second one if there are
    /// many.
    fn ticks(&self) -> Vec<(f64, String)> {
        let step = if self.last - self.first > 7 { 2 } else { 1 };
        let decades = (self.first..=self.last).step_by(step).map(|decade| (10_f64.powi(decade), power(decade)));
        self.has_zero.then(|| (0.0, "0".to_string())).into_iter().chain(decades).collect()
    }
}

fn decade(value: f64) -> i32 {
    value.log10().floor() as i32
}

fn power(decade: i32) -> String {
    if decade >= 0 {
        grouped(10_u64.pow(decade as u32))
    } else {
        format!("{:.*}", -decade as usize, 10_f64.powi(decade))
    }
}

impl Chart<'_> {
    fn draw(&self) -> String {
        let rates: Vec<u32> = self.rows.iter().map(|row| row.rate).collect::<BTreeSet<_>>().into_iter().collect();
        let marks: Vec<Mark> = self.rows.iter().filter_map(|row| (self.mark)(row)).collect();
        let height = TOP + HEIGHT + BOTTOM;
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' class=tradeoff viewBox='0 0 {WIDTH} {height}' role='img' aria-label='{} against {}'>{STYLE}",
            self.y, self.x
        )
        .replace("class=tradeoff", "class='tradeoff'");
        self.legend(&mut svg);
        let ys: Vec<f64> = marks.iter().flat_map(|mark| [Some(mark.y), mark.up_to]).flatten().collect();
        let xs: Vec<f64> = marks.iter().map(|mark| mark.x).collect();
        let y = Axis::over(&ys, TOP + HEIGHT, TOP);
        let width = (WIDTH - LEFT - 8.0 + GAP) / rates.len().max(1) as f64 - GAP;
        for (value, name) in y.ticks() {
            let _ = write!(svg, "<text class='n' x='{}' y='{:.1}'>{name}</text>", LEFT - 6.0, y.at(value) + 4.0);
        }
        let _ = write!(
            svg,
            "<text class='m' transform='translate(12 {:.1}) rotate(-90)'>{}</text>",
            TOP + HEIGHT / 2.0,
            escape(self.y)
        );
        for (nth, rate) in rates.iter().enumerate() {
            let left = LEFT + nth as f64 * (width + GAP);
            // Keeps the marks clear of the frame.
            let x = Axis::over(&xs, left + 20.0, left + width - 20.0);
            self.panel(&mut svg, *rate, left, width, x, y);
        }
        svg.push_str("</svg>");
        svg
    }

    fn legend(&self, svg: &mut String) {
        let mut x = LEFT;
        for (nth, scheme) in SCHEMES.iter().enumerate() {
            shape(svg, nth, x + 5.0, 14.0, 5.0, "");
            let _ = write!(svg, "<text x='{}' y='18'>{}</text>", x + 15.0, scheme.name());
            x += 130.0;
        }
        if let Some((name, _)) = self.model {
            let _ = write!(svg, "<path class='model' d='M{x} 14h26'/><text x='{}' y='18'>{name}</text>", x + 32.0);
            x += 130.0;
            let _ =
                write!(svg, "<path class='refined' d='M{x} 14h14'/><text x='{}' y='18'>refined model</text>", x + 20.0);
        }
    }

    fn panel(&self, svg: &mut String, rate: u32, left: f64, width: f64, x: Axis, y: Axis) {
        let (middle, bottom) = (left + width / 2.0, TOP + HEIGHT);
        let _ = write!(
            svg,
            "<text class='m' x='{middle:.1}' y='{}'>{} records/s</text><rect class='frame' x='{left:.1}' y='{TOP}' width='{width:.1}' height='{HEIGHT}'/>",
            TOP - 8.0,
            grouped(u64::from(rate))
        );
        for (value, _) in y.ticks() {
            let _ = write!(svg, "<path class='grid' d='M{left:.1} {:.1}h{width:.1}'/>", y.at(value));
        }
        // A narrow panel omits some labels.
        let ticks = x.ticks();
        let every = (ticks.len() as f64 * 46.0 / width).ceil().max(1.0) as usize;
        for (nth, (value, name)) in ticks.iter().enumerate() {
            let at = x.at(*value);
            let _ = write!(svg, "<path class='grid' d='M{at:.1} {TOP}v{HEIGHT}'/>");
            if nth % every == 0 {
                let _ = write!(svg, "<text class='m' x='{at:.1}' y='{}'>{name}</text>", bottom + 16.0);
            }
        }
        let _ = write!(svg, "<text class='m' x='{middle:.1}' y='{}'>{}</text>", bottom + 36.0, escape(self.x));
        if let Some((_, model)) = self.model {
            self.curve(svg, rate, x, y, model);
        }
        let mut labels = Vec::new();
        for row in self.rows.iter().filter(|row| row.rate == rate) {
            self.row(svg, row, x, y, &mut labels);
        }
    }

    /// Draws the model's curve within the panel.
    fn curve(&self, svg: &mut String, rate: u32, x: Axis, y: Axis, model: Curve) {
        let value = |tenth: i32| 10_f64.powf(f64::from(tenth) / 20.0);
        let (low, high) = (10_f64.powi(y.first), 10_f64.powi(y.last));
        let mut path = String::new();
        for hz in (x.first * 20..=x.last * 20).map(value) {
            let predicted = model(hz, f64::from(rate));
            if (low..=high).contains(&predicted) {
                let _ =
                    write!(path, "{}{:.1} {:.1}", if path.is_empty() { "M" } else { "L" }, x.at(hz), y.at(predicted));
            }
        }
        let _ = write!(svg, "<path class='model' d='{path}'/>");
    }

    /// Draws a row's mark. `labels` are the positions of the panel's labels.
    fn row(&self, svg: &mut String, row: &Row, x: Axis, y: Axis, labels: &mut Vec<(f64, f64)>) {
        let Some(mark) = (self.mark)(row) else { return };
        let nth = SCHEMES.iter().position(|scheme| scheme.name() == row.scheme).unwrap_or(0);
        // Marks are shifted sideways so that they do not cover each other.
        let aside = if self.has_labels { 0.0 } else { (nth as f64 - 1.5) * 7.0 };
        let (at_x, at_y) = (x.at(mark.x) + aside, y.at(mark.y));
        if let Some(up_to) = mark.up_to.filter(|up_to| *up_to > mark.y) {
            let _ = write!(svg, "<path class='l{nth}' d='M{at_x:.1} {at_y:.1}V{:.1}'/>", y.at(up_to));
        }
        // A value below the axis is not drawn.
        if let Some(refined) = mark.refined.filter(|refined| *refined >= 10_f64.powi(y.first)) {
            let _ = write!(svg, "<path class='refined' d='M{:.1} {:.1}h14'/>", at_x - 7.0, y.at(refined));
        }
        let size = if self.has_labels { 3.5 + (row.throughput.max(10.0).log10() - 1.0) * 0.8 } else { 5.0 };
        let title = format!(
            "{}, {}, {} records/s: {} lost on average, acknowledged after {} ms, {:.0} records/s, {:.0} syncs/s",
            row.scheme,
            row.frequency(),
            grouped(u64::from(row.rate)),
            row.lost_mean.map_or("?".into(), short),
            short(row.ack_ms_mean),
            row.throughput,
            row.fsyncs_per_second
        );
        shape(svg, nth, at_x, at_y, size, &title);
        if self.has_labels {
            let label = if row.on_commit { "c".into() } else { format!("{}", row.fsync_hz) };
            // Each scheme has its own side for labels, so that labels of close marks do not
            // collide.
            let (class, dx, dy) = [("m", 0.0, -9.0), ("m", 0.0, 18.0), ("n", -9.0, 4.0), ("", 9.0, 4.0)][nth];
            let position = (at_x + dx, at_y + dy);
            let is_free = |(x, y): &(f64, f64)| (x - position.0).abs() >= LABEL.0 || (y - position.1).abs() >= LABEL.1;
            if labels.iter().all(is_free) {
                let _ = write!(
                    svg,
                    "<text class='{class} small' x='{:.1}' y='{:.1}'>{label}</text>",
                    position.0, position.1
                );
                labels.push(position);
            }
        }
    }
}

/// Draws a mark; each scheme has a shape and a color.
fn shape(svg: &mut String, nth: usize, x: f64, y: f64, size: f64, title: &str) {
    let s = size;
    let path = match nth {
        0 => {
            format!("M{:.1} {y:.1}a{s:.1} {s:.1} 0 1 0 {:.1} 0a{s:.1} {s:.1} 0 1 0 {:.1} 0z", x - s, 2.0 * s, -2.0 * s)
        }
        1 => format!("M{:.1} {:.1}h{:.1}v{:.1}h{:.1}z", x - s * 0.9, y - s * 0.9, s * 1.8, s * 1.8, -s * 1.8),
        2 => format!("M{x:.1} {:.1}l{:.1} {:.1}h{:.1}z", y - s * 1.15, s * 1.1, s * 2.0, -s * 2.2),
        _ => format!(
            "M{x:.1} {:.1}l{s:.1} {:.1}l{:.1} {:.1}l{:.1} {:.1}z",
            y - s * 1.3,
            s * 1.3,
            -s,
            s * 1.3,
            -s,
            -s * 1.3
        ),
    };
    let title = if title.is_empty() { String::new() } else { format!("<title>{}</title>", escape(title)) };
    let _ = write!(svg, "<path class='s{nth}' d='{path}'>{title}</path>");
}

const STYLE: &str = "<style>\
.tradeoff{--i:#222;--g:#8883;--c0:#b26a00;--c1:#0072b2;--c2:#00805e;--c3:#b0448a;color:var(--i)}\
@media(prefers-color-scheme:dark){.tradeoff{--i:#ddd;--c0:#f0a830;--c1:#5cb8f0;--c2:#2fcf9f;--c3:#f090cc}}\
@media print{.tradeoff{--i:#000;--g:#8886;--c0:#b26a00;--c1:#0072b2;--c2:#00805e;--c3:#b0448a}}\
.tradeoff text{font:11px system-ui,sans-serif;fill:var(--i)}.tradeoff .small{font-size:9px}.tradeoff .n{text-anchor:end}.tradeoff .m{text-anchor:middle}\
.tradeoff .frame{fill:none;stroke:var(--i);stroke-opacity:.4}.tradeoff .grid{stroke:var(--g);fill:none}\
.tradeoff .model{stroke:var(--i);stroke-dasharray:5 4;fill:none;stroke-opacity:.7}\
.tradeoff .refined{stroke:var(--i);stroke-width:1.5}\
.tradeoff .s0{fill:var(--c0)}.tradeoff .s1{fill:var(--c1)}.tradeoff .s2{fill:var(--c2)}.tradeoff .s3{fill:var(--c3)}\
.tradeoff .l0{stroke:var(--c0)}.tradeoff .l1{stroke:var(--c1)}.tradeoff .l2{stroke:var(--c2)}.tradeoff .l3{stroke:var(--c3)}\
</style>";

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: all decades have the same length, 0 has a position before them, and nothing leaves the
    /// panel.
    #[test]
    fn an_axis_is_logarithmic_and_has_a_place_for_zero() {
        let axis = Axis::over(&[0.0, 2.0, 300.0], 0.0, 330.0);
        assert_eq!((axis.first, axis.last, axis.has_zero), (0, 3, true));
        assert_eq!([0.0, 1.0, 10.0, 100.0, 1000.0].map(|value| axis.at(value)), [15.0, 30.0, 130.0, 230.0, 330.0]);
        assert_eq!(axis.at(1e9), 330.0);
        let names: Vec<String> = axis.ticks().into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["0", "1", "10", "100", "1\u{202f}000"]);
        let upwards = Axis::over(&[1.0, 10.0], 100.0, 0.0);
        assert_eq!([1.0, 10.0].map(|value| upwards.at(value)), [100.0, 0.0]);
        assert_eq!(power(-2), "0.01");
    }
}
