//! Outcomes as a table on the terminal.

use crate::outcome::Outcome;

/// Prints a line per suite, then what was skipped and what the time did not suffice for.
pub fn print(outcomes: &[Outcome]) {
    println!(
        "\n{:<10} {:>8} {:>10} {:>8} {:>6} {:>6} {:>6} {:>6} {:>8}  verdict",
        "suite", "seconds", "states", "kills", "torn", "lost", "half", "order", "blocked"
    );
    for o in outcomes {
        let verdict =
            if o.is_good() { "nothing violated".into() } else { format!("{} VIOLATIONS", o.violations.len()) };
        println!(
            "{:<10} {:>8.1} {:>10} {:>8} {:>6} {:>6} {:>6} {:>6} {:>8}  {verdict}",
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
        for variant in &o.variants {
            let caught = if variant.caught { "caught" } else { "NOT CAUGHT" };
            println!(
                "{:>10}: {caught:<10} {} by {} in {} states",
                o.suite, variant.name, variant.suite, variant.states
            );
        }
        for skipped in &o.skipped {
            println!("{:>10}: SKIPPED {}: {}", o.suite, skipped.what, skipped.why);
        }
        for what in &o.uncovered {
            println!("{:>10}: not covered: {what}", o.suite);
        }
        for violation in &o.violations {
            println!("{:>10}: {:?}: {}\n            {}", o.suite, violation.kind, violation.what, violation.replay);
        }
    }
    let seeds: Vec<String> = outcomes.iter().take(1).map(|o| o.seed.to_string()).collect();
    println!("seed {}", seeds.join(", "));
}
