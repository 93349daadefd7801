//! The measured machine: its processors, its caches, and its other load.

use super::arguments::Arguments;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fmt;

/// The known properties of the machine.
pub(crate) struct Machine {
    model: String,
    processors: usize,
    pub(crate) l1_bytes: usize,
    pub(crate) l2_bytes: usize,
    l3_bytes: usize,
    kernel: String,
    load: String,
    is_pinned: bool,
}

impl Machine {
    pub(crate) fn look(arguments: &Arguments) -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_string();
        let model = read("/proc/cpuinfo");
        let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        // The cache of each level that holds data.
        let cache = |level: &str| {
            let at = |index: usize| format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
            let found = (0..8).find(|&index| {
                read(&format!("{}/level", at(index))) == level && read(&format!("{}/type", at(index))) != "Instruction"
            });
            found.and_then(|index| bytes(&read(&format!("{}/size", at(index))))).unwrap_or(0)
        };
        let or = |found: usize, usual: usize| if found == 0 { usual } else { found };
        Machine {
            model: model.map_or("unknown processor", |(_, name)| name).to_string(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            l1_bytes: or(cache("1"), 32 << 10),
            l2_bytes: or(cache("2"), 512 << 10),
            l3_bytes: cache("3"),
            kernel: read("/proc/sys/kernel/osrelease"),
            load: read("/proc/loadavg").split(' ').next().unwrap_or("?").to_string(),
            is_pinned: arguments.is_pinned,
        }
    }
}

/// Binds this process to one of the processors that it may use. If there are too few, it is not
/// bound.
pub(crate) fn pin(index: usize) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    // A child inherits the single processor to which its parent is bound. Then `index` is the
    // number of the processor itself.
    let cpu = if usable.len() > 1 { usable.get(index).copied() } else { Some(index) };
    if let Some(cpu) = cpu {
        let mut only = CpuSet::new();
        only.set(cpu);
        let _ = sched_setaffinity(None, &only);
    }
}

fn bytes(text: &str) -> Option<usize> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "K" => 1 << 10,
        "M" => 1 << 20,
        "" => 1,
        _ => return None,
    };
    Some(digits.parse::<usize>().ok()? * unit)
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} processors, caches: L1d {} KiB, L2 {} KiB, L3 {} KiB; Linux {}; load {} at the start; {}",
            self.model,
            self.processors,
            self.l1_bytes >> 10,
            self.l2_bytes >> 10,
            self.l3_bytes >> 10,
            self.kernel,
            self.load,
            if self.is_pinned { "each process pinned to a processor of its own" } else { "processes not pinned" }
        )
    }
}
