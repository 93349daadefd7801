//! The context of a suite's run: its seed, its limit, directories for its stores, and a progress
//! bar.

use crate::scratch::Scratch;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// The budget of a suite.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Limit {
    /// Approximate run time in seconds.
    Seconds(u64),
    /// Number of states or kill points.
    States(u64),
}

impl Limit {
    /// Returns the budget of the first suite in `left`, after the earlier suites used `gone`
    /// seconds. The remaining time is divided by the suites' weights.
    pub fn share(self, gone: f64, left: &[crate::suites::Suite]) -> Limit {
        match self {
            Limit::States(_) => self,
            Limit::Seconds(seconds) => {
                let rest = (seconds as f64 - gone).max(1.0);
                let weights: f64 = left.iter().map(|suite| suite.weight).sum();
                Limit::Seconds((rest * left[0].weight / weights).ceil() as u64)
            }
        }
    }
}

/// A suite with at least this many seconds skips nothing.
const LONG_SECONDS: u64 = 1200;
/// A suite with at least this many states skips nothing.
const LONG_STATES: u64 = 100_000;

/// Free bytes that the directory for stores must have.
const FREE_MIN: u64 = 1 << 30;

/// Set by Ctrl-C.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Installs a handler for Ctrl-C. The first Ctrl-C ends the suites early and keeps their findings.
/// The second one ends the process at once.
///
/// # Errors
/// If the system does not allow a handler for the signal.
pub fn end_at_interrupt() -> std::io::Result<()> {
    // Handlers run in the order of registration. The shutdown handler acts only if an earlier
    // Ctrl-C has set the flag.
    signal_hook::flag::register_conditional_shutdown(libc::SIGINT, INTERRUPTED_CODE.into(), INTERRUPTED.clone())?;
    signal_hook::flag::register(libc::SIGINT, INTERRUPTED.clone()).map(drop)
}

/// Returns whether Ctrl-C was pressed.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Exit code of a run that Ctrl-C ended.
pub const INTERRUPTED_CODE: u8 = 130;

/// One run of a suite.
pub struct Context {
    /// The suite's name.
    pub suite: &'static str,
    /// Seed of the random choices.
    pub seed: u64,
    /// The budget of the run.
    pub limit: Limit,
    /// The single item to repeat, from a replay line.
    pub only: Option<String>,
    /// Whether other suites share the time.
    pub is_one_of_several: bool,
    /// Additional limits on the data at risk. `tradeoff` prints advice for these and for its usual
    /// limits.
    pub limits: Vec<crate::tradeoff::advice::Limit>,
    /// Whether the run ends at the first violation. A control only needs to know whether there is a
    /// violation.
    pub until_first: bool,
    /// Whether a violation was found; set by the outcome.
    pub is_violated: Arc<AtomicBool>,
    start: Instant,
    bar: ProgressBar,
    scratch: Scratch,
    /// A directory in memory, if the system has one with enough free space.
    in_memory: Option<Scratch>,
}

impl Context {
    /// Begins a run.
    ///
    /// # Errors
    /// If no directory for the stores can be made.
    pub fn new(suite: &'static str, seed: u64, limit: Limit, only: Option<String>) -> Result<Context, String> {
        let length = match limit {
            Limit::Seconds(seconds) => seconds,
            Limit::States(states) => states,
        };
        let bar = ProgressBar::new(length);
        let style = ProgressStyle::with_template("{prefix:>9} {bar:30} {pos}/{len} {msg}").expect("a template");
        bar.set_style(style);
        bar.set_prefix(suite);
        let scratch = Scratch::new(&std::env::temp_dir());
        let scratch = scratch.map_err(|error| format!("a directory for the stores: {error}"))?;
        // A full disk makes stores fail for reasons that are not under test. The in-memory file
        // system of a container is often small.
        if scratch.free() < FREE_MIN {
            let parent = std::env::temp_dir();
            return Err(format!("less than 1 GiB is free in {}; TMPDIR can name another directory", parent.display()));
        }
        let in_memory = Scratch::new("/dev/shm".as_ref()).ok().filter(|scratch| scratch.free() >= FREE_MIN);
        Ok(Context {
            suite,
            seed,
            limit,
            only,
            is_one_of_several: false,
            limits: Vec::new(),
            until_first: false,
            is_violated: Arc::default(),
            start: Instant::now(),
            bar,
            scratch,
            in_memory,
        })
    }

    /// Returns a random generator that is the same for the same seed and purpose.
    pub fn random(&self, purpose: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Returns the directory for stores. Dropping the context removes the directory.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Returns the path of a store that does not exist yet.
    pub fn directory(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// As [`Context::directory`], but in memory if the system has such a directory. For stores
    /// whose tests only kill processes.
    pub fn directory_in_memory(&self, name: &str) -> PathBuf {
        self.in_memory.as_ref().unwrap_or(&self.scratch).path().join(name)
    }

    /// Returns whether the budget suffices for everything instead of a sample.
    pub fn is_long(&self) -> bool {
        match self.limit {
            Limit::Seconds(seconds) => seconds >= LONG_SECONDS,
            Limit::States(states) => states >= LONG_STATES,
        }
    }

    /// Returns the time since the run began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Updates the progress bar and returns whether the budget allows more after `states` states.
    pub fn may_continue(&self, states: u64, doing: &str) -> bool {
        self.bar.set_message(format!("{states} states, {doing}"));
        if self.until_first && self.is_violated.load(Ordering::Relaxed) {
            return false;
        }
        if is_interrupted() {
            return false;
        }
        match self.limit {
            Limit::Seconds(seconds) => {
                self.bar.set_position(self.start.elapsed().as_secs().min(seconds));
                self.start.elapsed().as_secs() < seconds
            }
            Limit::States(most) => {
                self.bar.set_position(states.min(most));
                states < most
            }
        }
    }

    /// Returns whether an item is to be run. A replay line restricts the run to one item.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == name)
    }

    /// Returns the command that repeats one item of this run.
    pub fn replay(&self, only: &str) -> String {
        format!("{} {} --seed {} --states 1 --only '{only}'", program(), self.suite, self.seed)
    }

    /// Removes the progress bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Returns the command line that starts this build of the harness. For an instrumented build, the
/// command contains the path of the program, because `cargo run` would start an ordinary build. It
/// also contains the planted bug that the environment names, because the finding may be that bug.
fn program() -> String {
    if !cfg!(untorn_instrumented) {
        return "cargo run --release -p crash-harness --".into();
    }
    let bug = std::env::var("UNTORN_BUG").map(|bug| format!("UNTORN_BUG={bug} ")).unwrap_or_default();
    format!("{bug}{}", crate::processes::instrumented::own().display())
}
