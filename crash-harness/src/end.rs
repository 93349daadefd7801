//! The end of everybody at one named point: the thread that comes by it is held there, the others
//! go on for a moment, as long as they can, then all are killed, and the kernel "crashes". What any
//! of them was told to be durable must be there.
//!
//! This is the sharpest question to ask of an acknowledgement: nobody comes after the death who
//! might put things right. A writer, a writer by messages and a follower of the durable feed are
//! asked what they were told.

use crate::oracle::{self, Acknowledged};
use crate::outcome::{Finding, Kind};
use crate::process::{Process, crash_kernel};
use crate::workload::misbehaved;
use crate::{instrumented, workload};
use std::path::Path;
use std::time::Duration;

/// How long the others may go on: some tens of flushes.
const MEANWHILE: Duration = Duration::from_millis(150);

/// Those who work beside the one that stops.
pub struct Others {
    messenger: Process,
    follower: Process,
}

impl Others {
    /// Starts them.
    pub fn start(path: &Path) -> Others {
        let own = instrumented::own();
        let follower = Process::start(&own, "follower", path, &["durable"], &[]);
        Others { messenger: Process::start(&own, "messenger", path, &["m"], &[]), follower }
    }

    fn all(&mut self) -> [&mut Process; 2] {
        [&mut self.messenger, &mut self.follower]
    }
}

/// Ends it all, after somebody was held, and looks what is left. Where that was before anything
/// worked, there are no others.
///
/// # Errors
/// What does not hold.
pub fn end(path: &Path, mut writer: Process, mut others: Option<Others>) -> Result<(), Finding> {
    std::thread::sleep(MEANWHILE);
    // Some of them can't go on, which is no finding; but none may have met damage.
    for process in std::iter::once(&mut writer).chain(others.iter_mut().flat_map(Others::all)) {
        process.refuse_finding()?;
        process.kill();
        process.refuse_finding()?;
    }
    crash_kernel(path);
    let store = workload::open(path)?;
    oracle::kept(&store, [("victim", Acknowledged::by(&writer))], true)?;
    if let Some(Others { messenger, follower }) = &others {
        oracle::kept(&store, [("m", Acknowledged::by_messenger(messenger))], true)?;
        let found = oracle::check(&store.snapshot().map_err(misbehaved("snapshot"))?)?;
        for name in ["victim", "before", "m"] {
            let (heard, there) = (follower.newest(&format!("F {name} ")), found.get(name).copied().unwrap_or(0));
            if there < heard {
                let what = format!("{name}: the durable feed told of transaction {heard}, {there} is there");
                return Err(Finding::new(Kind::LostAcked, what));
            }
        }
    }
    no_version_twice(&store, writer.newest("S "))?;
    oracle::verified(&store)
}

/// A version of a cell that was given never names another value, also if the value is lost.
fn no_version_twice(store: &untorn::Store, given: u64) -> Result<(), Finding> {
    let Some(cell) = store.find_cell("cell of victim").map_err(misbehaved("find_cell"))? else { return Ok(()) };
    let mut value = vec![0; cell.size()];
    cell.load(&mut value).map_err(misbehaved("load"))?;
    let next = cell.store(&value).map_err(misbehaved("store"))?.as_u64();
    if next > given {
        return Ok(());
    }
    let what = format!("version {given} of a cell was given, and after a loss version {next}: they name two values");
    Err(Finding::new(Kind::OrderViolation, what))
}
