//! The results of all stores as a table on the terminal.

use crash_harness::outcome::Outcome;
use crash_harness::store_under_test::About;

/// A store and its result in each run.
pub(crate) struct Row {
    /// Its description.
    pub(crate) about: About,
    /// The outcomes in the order of the runs.
    pub(crate) outcomes: Vec<Outcome>,
}

/// Describes a store in a line: version, settings, promises.
pub(crate) fn describe(about: &About) -> String {
    let control = match about.control_of {
        [] => String::new(),
        runs => format!("; a control, in which {} must find a violation", runs.join(", ")),
    };
    format!(
        "{} {}: {}; promises to keep {} after a kill, {} after a power cut{}{}",
        about.name,
        about.version,
        about.settings,
        about.after_kill,
        about.after_cut,
        if about.many_processes { "; several writing processes" } else { "; one process" },
        control,
    )
}

/// Prints the table, followed by everything that was found, skipped and not covered.
pub(crate) fn print(rows: &[Row]) {
    println!(
        "\n{:<28} {:>7} {:>7} {:>6} {:>6} {:>6} {:>6} {:>7}  verdict",
        "", "states", "kills", "torn", "lost", "half", "order", "other"
    );
    for row in rows {
        for o in &row.outcomes {
            let counted = o.torn_reads + o.lost_acked + o.half_applied + o.order_violations;
            let all =
                o.figures.get("violations found in this control").map_or(o.violations.len() as u64, |n| *n as u64);
            let verdict = match o.variants.first() {
                Some(variant) if variant.caught => "control: caught".into(),
                Some(_) => "control: NOT CAUGHT".into(),
                None if o.states == 0 => "not tried".into(),
                None if all == 0 => "kept its promise".into(),
                None => format!("{all} violations"),
            };
            println!(
                "{:<28} {:>7} {:>7} {:>6} {:>6} {:>6} {:>6} {:>7}  {verdict}",
                o.suite,
                o.states,
                o.kills,
                o.torn_reads,
                o.lost_acked,
                o.half_applied,
                o.order_violations,
                all.saturating_sub(counted)
            );
        }
    }
    println!();
    for row in rows {
        println!("{}", describe(&row.about));
        for o in &row.outcomes {
            for (name, value) in &o.figures {
                println!("    {}: {name}: {value}", o.suite);
            }
            for skipped in &o.skipped {
                println!("    {}: SKIPPED {}: {}", o.suite, skipped.what, skipped.why);
            }
            for what in &o.uncovered {
                println!("    {}: not covered: {what}", o.suite);
            }
            for what in &o.remarks {
                println!("    {}: remark: {what}", o.suite);
            }
            for violation in &o.violations {
                println!("    {:?}: {}\n        {}", violation.kind, violation.what, violation.replay);
            }
        }
    }
}
