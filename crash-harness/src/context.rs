//! What a suite works with: its seed, its limit, a place for its stores, and a bar that shows how
//! far it has come.

use crate::scratch::Scratch;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// How much a suite may do.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Limit {
    /// About so many seconds.
    Seconds(u64),
    /// So many states or kill points.
    States(u64),
}

impl Limit {
    /// The first suite's share, of those that are still to run, when so many seconds are gone.
    /// Suites get time by weight.
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

/// From so much on a suite leaves nothing out.
const LONG_SECONDS: u64 = 1200;
/// See there.
const LONG_STATES: u64 = 100_000;

/// So many bytes must be free where stores go.
const FREE_MIN: u64 = 1 << 30;

/// Set by Ctrl-C.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on Ctrl-C ends the suites early, with all that they have found; a second one ends the
/// process at once.
///
/// # Errors
/// If the system does not let the signal be handled.
pub fn end_at_interrupt() -> std::io::Result<()> {
    // The first to be registered is the first to be asked: it acts when the flag is set already.
    signal_hook::flag::register_conditional_shutdown(libc::SIGINT, INTERRUPTED_CODE.into(), INTERRUPTED.clone())?;
    signal_hook::flag::register(libc::SIGINT, INTERRUPTED.clone()).map(drop)
}

/// Whether somebody has pressed Ctrl-C.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Exit code of a run that Ctrl-C has ended.
pub const INTERRUPTED_CODE: u8 = 130;

/// One run of a suite.
pub struct Context {
    /// The suite's name.
    pub suite: &'static str,
    /// What its random choices follow.
    pub seed: u64,
    /// How much it may do.
    pub limit: Limit,
    /// The one thing that is to be done again, from a replay line.
    pub only: Option<String>,
    /// Other suites want some of the time, too.
    pub is_one_of_several: bool,
    /// How much may be at risk, if somebody asks: what advice is wanted for besides the usual.
    pub limits: Vec<crate::tradeoff::advice::Limit>,
    /// Ends with the first violation: whoever asks wants to know whether there is one.
    pub until_first: bool,
    /// Whether there was one. Set by the outcome.
    pub is_violated: Arc<AtomicBool>,
    start: Instant,
    bar: ProgressBar,
    scratch: Scratch,
    /// In memory, where the system has such a place, and enough of it.
    in_memory: Option<Scratch>,
}

impl Context {
    /// Begins a run.
    ///
    /// # Errors
    /// If there is no place for its stores.
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
        // A store on a full disk does what it must not do elsewhere; and the memory of a container
        // is often small.
        if scratch.free() < FREE_MIN {
            let place = std::env::temp_dir();
            return Err(format!("less than 1 GiB is free in {}; TMPDIR can name another place", place.display()));
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

    /// Random choices, the same for the same seed and purpose.
    pub fn random(&self, purpose: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Where stores go; it goes with the context.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// A directory for one store, which is not there yet.
    pub fn place(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// As [`Context::place`], in memory if the system has such a place: for stores of which only
    /// the processes are killed.
    pub fn place_in_memory(&self, name: &str) -> PathBuf {
        self.in_memory.as_ref().unwrap_or(&self.scratch).path().join(name)
    }

    /// Whether there is time for everything, and not only for a good part of it.
    pub fn is_long(&self) -> bool {
        match self.limit {
            Limit::Seconds(seconds) => seconds >= LONG_SECONDS,
            Limit::States(states) => states >= LONG_STATES,
        }
    }

    /// How long it has run.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Shows how far it has come, and says whether it may go on after so many states.
    pub fn may_go_on(&self, states: u64, doing: &str) -> bool {
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

    /// Whether a thing is to be done: all are, unless a replay line names one.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == name)
    }

    /// The command that does one thing of this run again.
    pub fn replay(&self, only: &str) -> String {
        format!("{} {} --seed {} --states 1 --only '{only}'", program(), self.suite, self.seed)
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// How a person starts this build of the harness. One with crash points and planted bugs is no
/// build that cargo would run again, and what it found may be the bug that its environment names.
fn program() -> String {
    if !cfg!(untorn_instrumented) {
        return "cargo run --release -p crash-harness --".into();
    }
    let bug = std::env::var("UNTORN_BUG").map(|bug| format!("UNTORN_BUG={bug} ")).unwrap_or_default();
    format!("{bug}{}", crate::instrumented::own().display())
}
