//! Measures the cost of the transfer of a record to another process: by messages and by shared
//! memory, by size of the record and of the batch. `cargo bench --bench ipc`; `-- --quick` takes
//! some seconds. `docs/ipc.md` explains the results.
//!
//! - `channel`: the channels; `channel::memory` and `channel::event_count` are the basis of the
//!   channels by shared memory
//! - `pair`: the other process, and the protocol between the two; `digest` proves that every byte
//!   arrived
//! - `measure`: one record after another, by size; `measure::batch`: by records per message;
//!   `measure::flushes`: by records per fsync; `measure::remote`: puts and gets by
//!   `untorn::Client`, compared with those of a direct client
//! - `fit`, `report::model`: the straight lines through the points
//! - `report`, `log_chart`: the tables, the page and its charts

pub(crate) mod arguments;
pub(crate) mod channel;
pub(crate) mod clock;
pub(crate) mod digest;
pub(crate) mod fit;
#[path = "../log_chart/mod.rs"]
pub(crate) mod log_chart;
pub(crate) mod machine;
pub(crate) mod measure;
pub(crate) mod pair;
pub(crate) mod report;

use arguments::Arguments;
use std::io;

fn main() -> io::Result<()> {
    // The other process of a pair runs this executable as well.
    if pair::consume_if_asked()? {
        return Ok(());
    }
    let arguments = Arguments::read(std::env::args().skip(1));
    let machine = machine::Machine::look(&arguments);
    if arguments.is_pinned {
        machine::pin(0);
    }
    eprintln!("{machine}");
    let points = measure::all(&arguments)?;
    let fits = report::model::Fits::of(&points);
    let batches = measure::batch::all(&arguments, &machine)?;
    let flushes = measure::flushes::all(&arguments)?;
    let calls = measure::remote::all(&arguments)?;
    let found = report::Found { machine, points, fits, batches, flushes, calls };
    print!("{}", report::text(&found));
    let page = report::write(&arguments.report, &found)?;
    eprintln!("charts: {}", page.display());
    Ok(())
}
