//! Kills all processes while a thread is held at a named point. The other processes continue for a
//! short time as far as they can. Then all processes are killed and a kernel crash is simulated.
//! Everything that was acknowledged as durable must be there.
//!
//! This is the strictest test of an acknowledgement, because no surviving process can repair the
//! store afterwards. The acknowledgements of a writer, of a message-passing writer and of a
//! follower of the durable feed are checked.

use crate::outcome::{Finding, Kind};
use crate::processes::instrumented;
use crate::processes::loggers::crash_kernel;
use crate::processes::process::{Checked, Process, start_role};
use crate::workload;
use crate::workload::misbehaved;
use crate::workload::oracle::{self, Acknowledged};
use std::path::Path;
use std::time::Duration;

/// How long the other processes continue: the time of some tens of flushes.
const MEANWHILE: Duration = Duration::from_millis(150);

/// The processes that run beside the stopped one.
pub struct Others {
    messenger: Process,
    follower: Process,
}

impl Others {
    /// Starts the processes.
    pub fn start(path: &Path) -> Others {
        let own = instrumented::own();
        let follower = start_role(&own, "follower", path, &["durable"], &[]);
        Others { messenger: start_role(&own, "messenger", path, &["m"], &[]), follower }
    }

    fn all(&mut self) -> [&mut Process; 2] {
        [&mut self.messenger, &mut self.follower]
    }
}

/// Kills all processes after one was held, and checks the store. There are no `others` if the
/// process was held before it had done any work, or if it had to be alone with its logger.
///
/// # Errors
/// The first violation.
pub fn end(path: &Path, mut writer: Process, mut others: Option<Others>) -> Result<(), Finding> {
    std::thread::sleep(MEANWHILE);
    // A blocked process is no finding here, but a process that found damage is.
    for process in std::iter::once(&mut writer).chain(others.iter_mut().flat_map(Others::all)) {
        process.refuse_finding()?;
        process.kill();
        process.refuse_finding()?;
    }
    crash_kernel(path);
    let store = workload::open(path)?;
    oracle::kept(&store, [("writer", Acknowledged::by(&writer))], true)?;
    if let Some(Others { messenger, follower }) = &others {
        oracle::kept(&store, [("m", Acknowledged::by_messenger(messenger))], true)?;
        let found = oracle::check(&store.snapshot().map_err(misbehaved("snapshot"))?)?;
        for name in ["writer", "before", "m"] {
            let (heard, there) = (follower.newest(&format!("F {name} ")), found.get(name).copied().unwrap_or(0));
            if there < heard {
                let what = format!("{name}: the durable feed delivered transaction {heard}, {there} is there");
                return Err(Finding::new(Kind::LostAcked, what));
            }
        }
    }
    no_version_twice(&store, writer.newest("S "))?;
    oracle::verified(&store)
}

/// Checks that a cell's version, once returned, never identifies another value, even if the value
/// is lost.
fn no_version_twice(store: &untorn::Store, given: u64) -> Result<(), Finding> {
    let Some(cell) = store.find_cell("cell of writer").map_err(misbehaved("find_cell"))? else { return Ok(()) };
    let mut value = vec![0; cell.size()];
    cell.load(&mut value).map_err(misbehaved("load"))?;
    let next = cell.store(&value).map_err(misbehaved("store"))?.as_u64();
    if next > given {
        return Ok(());
    }
    let what =
        format!("version {given} of a cell was returned before a loss, version {next} after it: two values share it");
    Err(Finding::new(Kind::OrderViolation, what))
}
