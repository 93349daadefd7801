//! A chart of horizontal bars as an SVG that stands by itself, readable on a light page and on a
//! dark one.

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

const WIDTH: f64 = 720.0;
/// Where the bars begin, right of their names.
const LEFT: f64 = 150.0;
/// Room for the label right of the longest bar.
const RIGHT: f64 = 110.0;
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
        let height = TOP + ROW * self.bars.len() as f64 + 12.0;
        let largest = self.bars.iter().map(|bar| bar.range.1).fold(f64::MIN_POSITIVE, f64::max);
        let x = |value: f64| LEFT + value / largest * (WIDTH - LEFT - RIGHT);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" class=\"c\" role=\"img\" \
             aria-label=\"{0}\"><style>{STYLE}</style><rect class=\"p\" width=\"{WIDTH}\" height=\"{height}\"/>\
             <text x=\"16\" y=\"26\" fill=\"currentColor\" font-size=\"16\" font-weight=\"600\">{0}</text>\n",
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
                 <rect class=\"{class}\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{BAR}\"/>\
                 <path class=\"r\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {tick:.1}v6M{high:.1} {tick:.1}v6\"/>\
                 <text x=\"{:.1}\" y=\"{baseline:.1}\" fill=\"currentColor\">{}</text>",
                LEFT - 8.0,
                escape(&bar.name),
                (x(bar.value) - LEFT).max(1.0),
                high + 8.0,
                escape(&bar.label),
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
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
}
