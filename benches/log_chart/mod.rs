//! A chart with two logarithmic axes as a self-contained SVG, readable on a light page, a dark one
//! and in print.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 82.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 58.0;
/// The row of the series' names, below the plot.
const LEGEND_ROW: f64 = 20.0;

/// Points of one colour, and the line through them.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// The model, if there is one; drawn over the range of the points.
    pub(crate) line: Option<Box<dyn Fn(f64) -> f64>>,
}

/// A marked position on the horizontal axis.
pub(crate) struct Mark {
    pub(crate) x: f64,
    pub(crate) text: String,
}

/// The unit of an axis.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Bytes,
    Count,
    Nanoseconds,
}

pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: (&'static str, Unit),
    pub(crate) y: (&'static str, Unit),
    pub(crate) series: Vec<Series>,
    pub(crate) marks: Vec<Mark>,
}

/// Colours that colour-blind readers can distinguish (Okabe and Ito), with darker ones on a light
/// page.
const STYLE: &str = "\
.c{color:#1b1b1b;font:13px system-ui,sans-serif}.p{fill:#fff}.g{stroke:#dcdcdc}.m{stroke:#666;stroke-dasharray:3 4}\
.s0{color:#0072b2}.s1{color:#c24e00}.s2{color:#007a5a}.s3{color:#a8437f}.s4{color:#8a6d00}.s5{color:#5b5b5b}\
@media screen and (prefers-color-scheme:dark){.c{color:#e6e6e6}.p{fill:#16181c}.g{stroke:#33373d}.m{stroke:#9aa0a6}\
.s0{color:#56b4e9}.s1{color:#ff9d4d}.s2{color:#3fd0a4}.s3{color:#e59ac5}.s4{color:#e8cf4a}.s5{color:#b8b8b8}}";

/// One axis: maps the range from the least to the greatest value to a length, by logarithm.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let share = (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln());
        self.from + share * (self.to - self.from)
    }
}

impl Chart {
    /// Returns the chart as SVG.
    pub(crate) fn svg(&self) -> String {
        let height = HEIGHT + self.series.len() as f64 * LEGEND_ROW;
        let all = || self.series.iter().flat_map(|series| series.points.iter().copied());
        let range = |values: &mut dyn Iterator<Item = f64>, room: f64| {
            let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
            (low / room, high * room)
        };
        let (low, high) = range(&mut all().map(|point| point.0), 1.25);
        let x = Axis { low, high, from: LEFT, to: WIDTH - RIGHT };
        let (low, high) = range(&mut all().map(|point| point.1), 1.6);
        let y = Axis { low, high, from: HEIGHT - BOTTOM, to: TOP };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" class=\"c\" role=\"img\" \
             aria-label=\"{0}\"><style>{STYLE}</style><rect class=\"p\" width=\"{WIDTH}\" height=\"{height}\"/>\
             <text x=\"{LEFT}\" y=\"26\" fill=\"currentColor\" font-size=\"16\" font-weight=\"600\">{0}</text>\n",
            escape(&self.title)
        );
        self.draw_axes(&mut svg, &x, &y);
        self.draw_marks(&mut svg, &x);
        for (index, series) in self.series.iter().enumerate() {
            draw_series(&mut svg, &x, &y, index, series);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn draw_axes(&self, svg: &mut String, x: &Axis, y: &Axis) {
        for value in ticks(self.x.1, x.low, x.high) {
            let at = x.at(value);
            let _ = writeln!(
                svg,
                "<path class=\"g\" d=\"M{at:.1} {TOP}V{:.1}\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" \
                 fill=\"currentColor\">{}</text>",
                y.from,
                y.from + 18.0,
                label(self.x.1, value)
            );
        }
        for value in ticks(self.y.1, y.low, y.high) {
            let at = y.at(value);
            let _ = writeln!(
                svg,
                "<path class=\"g\" d=\"M{LEFT} {at:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" \
                 fill=\"currentColor\">{}</text>",
                x.to,
                LEFT - 8.0,
                at + 4.5,
                label(self.y.1, value)
            );
        }
        let (middle, below) = ((x.from + x.to) / 2.0, HEIGHT - 16.0);
        let _ = writeln!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{below:.1}\" text-anchor=\"middle\" fill=\"currentColor\">{}</text>\
             <text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\" fill=\"currentColor\">{}</text>",
            self.x.0,
            (y.from + y.to) / 2.0,
            self.y.0
        );
    }

    fn draw_marks(&self, svg: &mut String, x: &Axis) {
        let inside = self.marks.iter().filter(|mark| mark.x > x.low && mark.x < x.high);
        for (index, mark) in inside.enumerate() {
            let at = x.at(mark.x);
            // A label in the right half is put to the left of its line, so that it stays in the
            // picture.
            let is_left = at > (x.from + x.to) / 2.0;
            let (text_at, anchor) = if is_left { (at - 5.0, "end") } else { (at + 5.0, "start") };
            let _ = writeln!(
                svg,
                "<path class=\"m\" d=\"M{at:.1} {TOP}V{:.1}\"/><text x=\"{text_at:.1}\" y=\"{:.1}\" \
                 text-anchor=\"{anchor}\" fill=\"currentColor\" font-size=\"12\">{}</text>",
                HEIGHT - BOTTOM,
                TOP + 13.0 + 15.0 * index as f64,
                escape(&mark.text)
            );
        }
    }
}

fn draw_series(svg: &mut String, x: &Axis, y: &Axis, index: usize, series: &Series) {
    let _ = writeln!(svg, "<g class=\"s{}\" fill=\"currentColor\">", index % 6);
    if let Some(line) = &series.line {
        let (first, last) = (series.points.first(), series.points.last());
        if let (Some((first, _)), Some((last, _))) = (first, last) {
            let point = |step: u32| {
                let value = first * (last / first).powf(f64::from(step) / 120.0);
                // A line may leave the plot where the model does not hold.
                (x.at(value), y.at(line(value)).clamp(y.to, y.from))
            };
            let path: Vec<_> = (0..=120).map(point).map(|(px, py)| format!("{px:.1} {py:.1}")).collect();
            let _ = writeln!(
                svg,
                "<path d=\"M{}\" fill=\"none\" stroke=\"currentColor\" stroke-width=\"1.6\" opacity=\".75\"/>",
                path.join("L")
            );
        }
    }
    for (px, py) in &series.points {
        let _ = writeln!(svg, "{}", symbol(index, x.at(*px), y.at(*py)));
    }
    let (at_x, at_y) = (LEFT, HEIGHT + index as f64 * LEGEND_ROW);
    let _ = writeln!(
        svg,
        "{}<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"12\">{}</text></g>",
        symbol(index, at_x, at_y),
        at_x + 12.0,
        at_y + 4.0,
        escape(&series.name)
    );
}

/// Returns a shape for each series, for prints without colour.
fn symbol(index: usize, x: f64, y: f64) -> String {
    match index % 3 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"),
        1 => format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"7\" height=\"7\"/>", x - 3.5, y - 3.5),
        _ => format!("<path d=\"M{x:.1} {:.1}l4.6 8h-9.2z\"/>", y - 4.8),
    }
}

/// Returns powers of 4 for bytes, and of 10 otherwise.
fn ticks(unit: Unit, low: f64, high: f64) -> Vec<f64> {
    let (first, base): (f64, f64) = match unit {
        Unit::Bytes => (1.0, 4.0),
        Unit::Count | Unit::Nanoseconds => (1.0, 10.0),
    };
    let all = (0..40).map(|power| first * base.powi(power)).filter(|value| *value >= low && *value <= high);
    let all: Vec<f64> = all.collect();
    // Only every second one is used if all would be too close together.
    if all.len() > 12 { all.into_iter().step_by(2).collect() } else { all }
}

/// Formats a value with its unit.
pub(crate) fn label(unit: Unit, value: f64) -> String {
    let scaled = |steps: &[(f64, &str)]| {
        let (scale, name) = steps.iter().rev().find(|(scale, _)| value >= *scale).unwrap_or(&steps[0]);
        let shown = value / scale;
        if shown >= 100.0 || (shown - shown.round()).abs() < 1e-6 {
            format!("{} {name}", shown.round())
        } else if shown >= 10.0 {
            format!("{shown:.1} {name}")
        } else {
            format!("{shown:.2} {name}")
        }
    };
    match unit {
        Unit::Bytes => scaled(&[(1.0, "B"), (1024.0, "KiB"), (1_048_576.0, "MiB")]),
        Unit::Count => format!("{value:.0}"),
        Unit::Nanoseconds => scaled(&[(1.0, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s")]),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
