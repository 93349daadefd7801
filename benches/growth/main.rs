//! Measures how the time of a read, the time of a put and the bytes per record grow with the number
//! of entries, the size of a value, the number of processes, and the age of the oldest snapshot.
//! `cargo bench --bench growth`; `-- --quick` takes some twenty seconds. `docs/performance.md`
//! explains the results.
//!
//! - `load`: the store, its operations, and how long one takes
//! - `worker`: the other processes that use the store
//! - `axis`: the varied properties, and the measured points of each
//! - `report`, `log_chart`: the table and the charts

mod arguments;
mod axis;
mod load;
#[path = "../log_chart/mod.rs"]
mod log_chart;
mod report;
mod worker;

use arguments::Arguments;
use std::io;

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if worker::work_if_asked(&words) {
        return Ok(());
    }
    let arguments = Arguments::read(words.into_iter());
    let mut curves = Vec::new();
    for axis in axis::ALL {
        eprintln!("{}", axis.title);
        curves.push((axis, (axis.measure)(&arguments)));
    }
    print!("{}", report::table(&curves));
    report::write(&arguments.report, &curves)?;
    eprintln!("charts: {}", arguments.report.display());
    Ok(())
}
