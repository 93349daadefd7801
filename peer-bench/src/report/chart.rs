//! Charts of horizontal bars as SVGs that stand by themselves, readable on a light page and on a
//! dark one: one chart, or several side by side.

use std::fmt::Write;

/// A bar, with a line from the smallest to the largest value.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) range: (f64, f64),
    pub(crate) label: String,
}

/// Bars of one unit.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bar>,
}

/// The horizontal measures of a chart.
struct Layout {
    width: f64,
    /// Where the bars begin, right of their names.
    left: f64,
    /// Room for the label right of the longest bar.
    right: f64,
    title_size: f64,
}

/// A chart that stands alone.
const SINGLE: Layout = Layout { width: 720.0, left: 150.0, right: 110.0, title_size: 16.0 };
/// One of two charts side by side.
const HALF: Layout = Layout { width: 400.0, left: 76.0, right: 96.0, title_size: 13.0 };
const TOP: f64 = 44.0;
const ROW: f64 = 28.0;
const BAR: f64 = 18.0;

/// Colours of Okabe and Ito, which people with any color vision can tell apart: the first bar is
/// the store that the others are compared with.
const STYLE: &str = "\
.c{color:#1b1b1b;font:13px system-ui,sans-serif}.p{fill:#fff}.a{fill:#0072b2}.b{fill:#9aa5b1}.r{stroke:#1b1b1b}\
@media screen and (prefers-color-scheme:dark){.c{color:#e6e6e6}.p{fill:#16181c}.a{fill:#56b4e9}.b{fill:#5d6772}\
.r{stroke:#e6e6e6}}";

impl Chart {
    /// Returns the picture.
    pub(crate) fn svg(&self) -> String {
        picture(SINGLE.width, self.height(), &self.title, &self.drawn(&SINGLE))
    }

    fn height(&self) -> f64 {
        TOP + ROW * self.bars.len() as f64 + 12.0
    }

    /// Returns the elements of the chart, from the origin to the right and down.
    fn drawn(&self, layout: &Layout) -> String {
        let Layout { width, left, right, title_size } = layout;
        let largest = self.bars.iter().map(|bar| bar.range.1).fold(f64::MIN_POSITIVE, f64::max);
        let x = |value: f64| left + value / largest * (width - left - right);
        let mut svg = format!(
            "<text x=\"16\" y=\"26\" fill=\"currentColor\" font-size=\"{title_size}\" font-weight=\"600\">{}</text>\n",
            escape(&self.title)
        );
        for (index, bar) in self.bars.iter().enumerate() {
            let top = TOP + ROW * index as f64;
            let middle = top + BAR / 2.0;
            let (tick, baseline) = (middle - 3.0, middle + 4.5);
            let class = if bar.name == super::results::OWN { "a" } else { "b" };
            let (low, high) = (x(bar.range.0), x(bar.range.1));
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{baseline:.1}\" text-anchor=\"end\" fill=\"currentColor\">{}</text>\
                 <rect class=\"{class}\" x=\"{left}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{BAR}\"/>\
                 <path class=\"r\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {tick:.1}v6M{high:.1} {tick:.1}v6\"/>\
                 <text x=\"{:.1}\" y=\"{baseline:.1}\" fill=\"currentColor\">{}</text>",
                left - 8.0,
                escape(&bar.name),
                (x(bar.value) - left).max(1.0),
                high + 8.0,
                escape(&bar.label),
            );
        }
        svg
    }
}

/// Returns a picture of the charts, two in each row.
pub(crate) fn side_by_side(title: &str, charts: &[Chart]) -> String {
    let (mut drawn, mut top) = (String::new(), 0.0);
    for row in charts.chunks(2) {
        for (column, chart) in row.iter().enumerate() {
            let left = HALF.width * column as f64;
            let _ = writeln!(drawn, "<g transform=\"translate({left} {top})\">\n{}</g>", chart.drawn(&HALF));
        }
        top += row.iter().map(Chart::height).fold(0.0, f64::max);
    }
    picture(2.0 * HALF.width, top, title, &drawn)
}

fn picture(width: f64, height: f64, label: &str, drawn: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" class=\"c\" role=\"img\" \
         aria-label=\"{}\"><style>{STYLE}</style><rect class=\"p\" width=\"{width}\" height=\"{height}\"/>\n{drawn}</svg>\n",
        escape(label)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_each_bar_and_escapes_names() {
        let bar = |name: &str, value: f64| Bar { name: name.into(), value, range: (value, value), label: "1".into() };
        let chart = Chart { title: "a < b & c".into(), bars: vec![bar("untorn", 1.0), bar("<x>", 0.0)] };
        let svg = chart.svg();
        assert_eq!(svg.matches("<rect").count(), 3);
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains("&lt;x>"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn charts_are_side_by_side_in_rows_of_two() {
        let chart = |bars: u32| {
            let bar = |n: u32| Bar { name: n.to_string(), value: 1.0, range: (1.0, 2.0), label: "1".into() };
            Chart { title: "t".into(), bars: (0..bars).map(bar).collect() }
        };
        let svg = side_by_side("all", &[chart(1), chart(3), chart(2)]);
        assert!(svg.contains("viewBox=\"0 0 800 252\""), "{svg}");
        let places = ["translate(0 0)", "translate(400 0)", "translate(0 140)"];
        assert!(places.iter().all(|place| svg.contains(place)), "{svg}");
    }
}
