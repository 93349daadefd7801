//! Outcomes as a table for the terminal.

use crate::outcome::Outcome;
use std::fmt::Write;

/// Largest length of a line about items that are not covered. The HTML report contains the whole
/// text.
const LINE_MAX: usize = 160;

/// Returns a line per suite, then everything that was skipped, not covered, or violated.
pub fn text(outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "\n{:<16} {:>8} {:>10} {:>8} {:>6} {:>6} {:>6} {:>6} {:>8}  verdict\n",
        "suite", "seconds", "states", "kills", "torn", "lost", "half", "order", "blocked"
    );
    for o in outcomes {
        let uncaught = o.variants.iter().filter(|variant| !variant.caught).count();
        let verdict = match (o.violations.len(), uncaught) {
            (0, 0) if o.states == 0 => "nothing tried".into(),
            (0, 0) if o.variants.is_empty() => "nothing violated".into(),
            (0, 0) => format!("each of {} planted bugs caught", o.variants.len()),
            (0, uncaught) => format!("{uncaught} PLANTED BUGS NOT CAUGHT"),
            (1, _) => "1 VIOLATION".into(),
            (violations, _) => format!("{violations} VIOLATIONS"),
        };
        let _ = writeln!(
            text,
            "{:<16} {:>8.1} {:>10} {:>8} {:>6} {:>6} {:>6} {:>6} {:>8}  {verdict}",
            o.suite,
            o.seconds,
            o.states,
            o.kills,
            o.torn_reads,
            o.lost_acked,
            o.half_applied,
            o.order_violations,
            o.blocked_readers
        );
    }
    for o in outcomes {
        text += &crate::tradeoff::table::text(o);
        for variant in &o.variants {
            let caught = if variant.caught { "caught" } else { "NOT CAUGHT" };
            let _ = writeln!(
                text,
                "{}: {caught} {} by {}, {} states",
                o.suite, variant.name, variant.suite, variant.states
            );
        }
        for skipped in &o.skipped {
            let _ = writeln!(text, "{}: SKIPPED {}: {}", o.suite, skipped.what, skipped.why);
        }
        for what in o.uncovered_in_short() {
            let cut = what.char_indices().nth(LINE_MAX).map(|(at, _)| at);
            let (what, more) = cut.map_or((what.as_str(), ""), |at| (&what[..at], " ..."));
            let _ = writeln!(text, "{}: not covered: {what}{more}", o.suite);
        }
        for violation in &o.violations {
            let _ =
                writeln!(text, "{}: {:?}: {}\n  replay: {}", o.suite, violation.kind, violation.what, violation.replay);
        }
    }
    if let Some(first) = outcomes.first() {
        let _ = writeln!(text, "seed {}", first.seed);
    }
    text
}
