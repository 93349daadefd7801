//! Crash points, where a test kills, stops or holds the process, and planted bugs.
//!
//! In ordinary builds the macro expands to nothing. With `--cfg untorn_instrumented`, the variable
//! `UNTORN_CRASH=name[@n]:action` acts when this process passes the point `name` for the n-th time
//! (from 1; 0: each time). The actions are:
//!
//! - `kill`;
//! - `stop`: SIGSTOP, until the process is continued;
//! - `panic`;
//! - `hold=PATH`: waits until the file `PATH` exists, and keeps `PATH.reached` there meanwhile;
//! - `pause=MS`: sleeps for this many milliseconds;
//! - `fail`: the call at the point returns an I/O error.
//!
//! Several settings are separated by commas. With `UNTORN_CRASH_ONCE=PATH` a point acts once over
//! all processes that inherit the variables: the process that creates the file `PATH-name` acts.
//! With `UNTORN_CRASH_TIMES=n` as well, it acts n times; the second time creates `PATH-name-2`.
//! With `UNTORN_CRASH_CLIENT=1` no point acts in a spawned logger, which inherits the variables and
//! passes points of its own.

pub mod points;

/// Passes a crash point.
#[cfg(not(untorn_instrumented))]
macro_rules! crash_point {
    ($name:literal) => {
        const _: () = assert!($crate::crash::points::has($name), "not in the catalogue of crash points");
    };
}

/// Passes a crash point.
#[cfg(untorn_instrumented)]
macro_rules! crash_point {
    ($name:literal) => {{
        const _: () = assert!($crate::crash::points::has($name), "not in the catalogue of crash points");
        $crate::crash::pass($name)
    }};
}

/// Whether the planted bug of this name is enabled (`UNTORN_BUG=name`); false in ordinary builds.
/// The catalogue is [`untorn_wal::planted_bugs`].
macro_rules! planted_bug {
    ($name:literal) => {
        untorn_wal::planted_bug!($name)
    };
}

#[cfg(untorn_instrumented)]
pub(crate) use active::*;

/// Runs `work`, in which no crash point of this thread acts or counts.
#[cfg(not(untorn_instrumented))]
pub(crate) fn without_points<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[cfg(untorn_instrumented)]
mod active {
    use crate::environment;
    use std::cell::Cell;
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    enum Action {
        Kill,
        Stop,
        Panic,
        Hold(PathBuf),
        Pause(Duration),
        Fail,
    }

    struct Armed {
        name: String,
        /// Acts when passed for this time, counted from 1; 0 acts each time.
        nth: u64,
        passed: AtomicU64,
        action: Action,
    }

    fn variable(name: &str) -> Result<String, ()> {
        environment::variable(name).and_then(|value| value.into_string().ok()).ok_or(())
    }

    fn armed() -> &'static [Armed] {
        static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();
        ARMED.get_or_init(|| {
            let Ok(text) = variable("UNTORN_CRASH") else { return Vec::new() };
            let is_logger = std::env::args_os().next().is_some_and(|name| name == "untorn-logger");
            if is_logger && variable("UNTORN_CRASH_CLIENT").is_ok() {
                return Vec::new();
            }
            text.split(',').filter(|part| !part.is_empty()).map(parse).collect()
        })
    }

    fn parse(part: &str) -> Armed {
        let (point, action) = part.split_once(':').expect("UNTORN_CRASH is name[@n]:action");
        let (name, nth) = match point.split_once('@') {
            Some((name, nth)) => (name, nth.parse().expect("UNTORN_CRASH counts passages")),
            None => (point, 1),
        };
        let action = match action.split_once('=') {
            Some(("hold", path)) => Action::Hold(path.into()),
            Some(("pause", ms)) => Action::Pause(Duration::from_millis(ms.parse().expect("pause=MS is a number"))),
            _ if action == "kill" => Action::Kill,
            _ if action == "stop" => Action::Stop,
            _ if action == "panic" => Action::Panic,
            _ if action == "fail" => Action::Fail,
            _ => panic!("UNTORN_CRASH knows kill, stop, panic, fail, hold=PATH and pause=MS, not {action:?}"),
        };
        Armed { name: name.into(), nth, passed: AtomicU64::new(0), action }
    }

    thread_local! {
        /// Whether crash points of this thread are disabled.
        static IS_QUIET: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs `work`, in which no crash point of this thread acts or counts.
    pub(crate) fn without_points<T>(work: impl FnOnce() -> T) -> T {
        let before = IS_QUIET.replace(true);
        let done = work();
        IS_QUIET.set(before);
        done
    }

    fn reached(name: &str, mut act: impl FnMut(&Action)) {
        if IS_QUIET.get() {
            return;
        }
        for point in armed().iter().filter(|point| point.name == name) {
            let passage = point.passed.fetch_add(1, Ordering::Relaxed) + 1;
            if (point.nth == 0 || passage == point.nth) && is_first(name) {
                act(&point.action);
            }
        }
    }

    fn is_first(name: &str) -> bool {
        match variable("UNTORN_CRASH_ONCE") {
            Ok(path) => {
                let times = variable("UNTORN_CRASH_TIMES").map_or(1, |times| times.parse().expect("a number"));
                let mark = |time| if time == 1 { format!("{path}-{name}") } else { format!("{path}-{name}-{time}") };
                (1..=times).any(|time| std::fs::File::create_new(mark(time)).is_ok())
            }
            Err(_) => true,
        }
    }

    /// Passes the crash point `name`, and kills, stops or holds the process there if the variable
    /// requests it.
    pub(crate) fn pass(name: &str) {
        reached(name, |action| match action {
            Action::Kill => {
                let me = rustix::process::getpid();
                let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
                std::thread::sleep(Duration::from_secs(60));
            }
            Action::Stop => {
                let me = rustix::process::getpid();
                let _ = rustix::process::kill_process(me, rustix::process::Signal::STOP);
            }
            Action::Hold(path) => {
                while !path.exists() {
                    let reached = path.with_extension("reached");
                    if !reached.exists() {
                        let _ = std::fs::write(reached, name);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Action::Pause(time) => std::thread::sleep(*time),
            Action::Panic => panic!("the crash point {name}"),
            Action::Fail => {}
        });
    }

    /// Returns whether the call at the crash point `name` must report a failure.
    pub(crate) fn fails(name: &str) -> bool {
        let mut fails = false;
        reached(name, |action| fails |= matches!(action, Action::Fail));
        fails
    }
}
