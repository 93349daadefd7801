//! Placement of threads on processors. A hand-over between two threads takes several times longer
//! across processors than on one, and the scheduler's choice changes from run to run.

use crate::store::Result;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::sync::OnceLock;

/// Returns the processors that this process was allowed to use at its start.
pub(crate) fn allowed() -> &'static [usize] {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    ALLOWED.get_or_init(|| {
        let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect()
    })
}

/// Pins the calling thread to a processor, round-robin by its number.
pub(crate) fn pin(number: usize) -> Result<()> {
    let processors = allowed();
    pin_to(*processors.get(number % processors.len().max(1)).ok_or("no processor is allowed")?)
}

/// Pins the calling thread to the processor that the kernel gives this number.
pub(crate) fn pin_to(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    Ok(sched_setaffinity(None, &set)?)
}
