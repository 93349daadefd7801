//! Interleavings of one operation with other processes. A process that reads or adds to a counter
//! is stepped to its k-th instruction. Then another process overwrites the data that the first was
//! about to read. The first process then continues without single steps. All data that it reads
//! must be whole.
//!
//! In the other steps a writer is stopped and readers check the state. Here a reader is stopped and
//! writers continue. Few instants matter: those before and after each instruction with which the
//! operation changes shared memory (a pin, an addition). All of these are tried, and others at
//! regular intervals.

use super::memory::Memory;
use super::trace::{Stopped, Traced, stand_still};
use crate::context::Context;
use crate::outcome::{Finding, Kind, Outcome};
use crate::processes::instrumented;
use crate::processes::loggers::signal_loggers;
use crate::processes::process::start_role;
use crate::processes::sealed::{sealed, unsealed};
use crate::workload::{self, misbehaved};
use rand::Rng;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::path::Path;
use untorn::{Cell, Counter, Durability, Keyspace, Store};

/// The operations.
pub const OPERATIONS: &[&str] = &["cell load", "counter addition", "snapshot read"];
/// Length of the cell in bytes.
const CELL: usize = 256;
/// Number of values that are stored. They overwrite all copies of a cell.
const STORES: u64 = 5;
/// Number of commits before and after a checkpoint. They reuse pages of the state before the first
/// of these commits. Without that checkpoint, the newest checkpoint may be of that very state, so
/// that none of its pages is reused. The sum is less than the number of commit slots: a reader
/// repeats its pin if the slot of its transaction was reused.
const COMMITS: [u64; 2] = [8, 40];
/// Number of instants that are tried before and after an instruction that changes shared memory.
const AROUND: u64 = 16;
/// Number of further instants in a short run.
const SPREAD: u64 = 20;
/// More instructions than any of these operations has.
const STEPS_MAX: u64 = 1_000_000;

/// The handles that both sides have open.
struct Shared {
    store: Store,
    left: Keyspace,
    right: Keyspace,
    cell: Cell,
    counter: Counter,
}

impl Shared {
    fn open(path: &Path) -> Result<Shared, Finding> {
        let mut options = workload::options();
        let store = options.durability(Durability::Visible).open(path).map_err(misbehaved("opening"))?;
        let open = || -> untorn::Result<Shared> {
            Ok(Shared {
                left: store.keyspace("left")?,
                right: store.keyspace("right")?,
                cell: store.cell("between", CELL)?,
                counter: store.counter("between, counted")?,
                store: store.clone(),
            })
        };
        open().map_err(misbehaved("opening what is shared"))
    }

    /// Sets everything to one number: `n`, or the base of the transaction.
    fn write(&self, operation: &str, n: u64) -> untorn::Result<()> {
        match operation {
            "cell load" => self.cell.store(&sealed(n, CELL)).map(drop),
            "counter addition" => self.counter.add(1),
            _ => {
                let mut txn = self.store.begin()?;
                let base = txn.base_txn_id().as_u64();
                for i in 0..4u64 {
                    txn.put(&self.left, &i.to_be_bytes(), &sealed(base, 900))?;
                    txn.put(&self.right, &i.to_be_bytes(), &sealed(base, 900))?;
                }
                txn.commit().map(drop)
            }
        }
    }

    /// Performs the operation and checks its result.
    fn operate(&self, operation: &str) -> Result<(), Finding> {
        match operation {
            "cell load" => {
                let mut bytes = [0; CELL];
                self.cell.load(&mut bytes).map_err(misbehaved("load"))?;
                Ok(unsealed(&bytes).map(drop)?)
            }
            "counter addition" => self.counter.add(1).map_err(misbehaved("add")),
            _ => {
                let snapshot = self.store.snapshot().map_err(misbehaved("snapshot"))?;
                // The values must also match the transaction: two pages that were reused together
                // would agree.
                let mut numbers = BTreeSet::from([Some(snapshot.txn_id().as_u64() - 1)]);
                for (keyspace, i) in [(&self.left, 0u64), (&self.right, 3)] {
                    let value = snapshot.get(keyspace, &i.to_be_bytes()).map_err(misbehaved("get"))?;
                    numbers.insert(value.map(unsealed).transpose()?);
                }
                if numbers.len() == 1 {
                    return Ok(());
                }
                Err(Finding::new(Kind::HalfApplied, format!("a snapshot has parts of transactions after {numbers:?}")))
            }
        }
    }
}

/// Plays the stepped process: repeats the operation, and stops before each one.
///
/// # Errors
/// The first violation.
pub fn play(path: &Path, operation: &str) -> Result<(), Finding> {
    let shared = Shared::open(path)?;
    // Completes the one-time setup of a first call.
    shared.operate(operation)?;
    for nth in 0.. {
        stand_still(nth == 0)?;
        shared.operate(operation)?;
    }
    Ok(())
}

/// Tries one operation at all instants that matter.
pub(super) fn try_all(context: &Context, path: &Path, operation: &str, outcome: &mut Outcome) -> Result<(), Finding> {
    let shared = Shared::open(path)?;
    let [times, times_after_checkpoint] = match operation {
        "cell load" => [STORES, 0],
        "counter addition" => [1, 0],
        _ => COMMITS,
    };
    let others = |n: &mut u64| {
        let write = |n: &mut u64| {
            *n += 1;
            shared.write(operation, *n).map_err(misbehaved("writing in between"))
        };
        (0..times).try_for_each(|_| write(n))?;
        if times_after_checkpoint > 0 {
            shared.store.checkpoint().map_err(misbehaved("checkpoint in between"))?;
        }
        (0..times_after_checkpoint).try_for_each(|_| write(n))
    };
    let mut n = 0;
    others(&mut n)?;
    let role = format!("between {operation}");
    let mut stepped = Traced::start(start_role(&instrumented::own(), "stepped", path, &[&role], &[]))?;
    // Writes precede each tried operation, which then takes another path than a repeated operation.
    others(&mut n)?;
    // No other process may change anything while the changes of the operation are recorded.
    signal_loggers(path, Signal::STOP);
    let measured = measure(path, &mut stepped);
    signal_loggers(path, Signal::CONT);
    let (length, changes) = measured?;
    let mut points: BTreeSet<u64> =
        changes.iter().flat_map(|at| at.saturating_sub(AROUND)..=(at + AROUND).min(length)).collect();
    if context.is_long() {
        points.extend(0..length);
    } else {
        let stride = (length / SPREAD).max(1);
        points.extend((context.random(length).random_range(0..stride)..length).step_by(stride as usize));
    }
    // Additions so far: the earlier ones, the setup call of the stepped process, and the measured
    // one.
    let mut added = n + 2;
    let mut tried = 0_u64;
    for at in &points {
        if context.only.is_none() && !context.may_continue(outcome.states, &format!("{operation}, others at {at}")) {
            outcome.uncovered.push(format!("{operation}, others in between, from instruction {at} of {length} on"));
            break;
        }
        let mut is_over = false;
        for _ in 0..*at {
            is_over |= stepped.step()? == Stopped::AtTheEnd;
            if is_over {
                break;
            }
        }
        others(&mut n)?;
        added += times + 1;
        if !is_over {
            stepped.run_on()?;
        }
        outcome.states += 1;
        tried += 1;
        let count = shared.counter.get().map_err(misbehaved("get of a counter"))?;
        if operation == "counter addition" && count != added {
            let what = format!("at instruction {at}: {added} additions, the counter is {count}");
            return Err(Finding::new(Kind::LostAcked, what));
        }
    }
    outcome.figures.insert(format!("{operation}: instants at which others wrote"), tried as f64);
    stepped.kill();
    Ok(())
}

/// Returns the number of instructions of the operation, and those at which it changes shared
/// memory.
fn measure(path: &Path, stepped: &mut Traced) -> Result<(u64, Vec<u64>), Finding> {
    let (mut memory, mut steps, mut changes) = (Memory::of(path)?, 0, Vec::new());
    loop {
        let is_over = stepped.step()? == Stopped::AtTheEnd;
        steps += 1;
        if memory.has_changed() {
            changes.push(steps);
            memory.look();
        }
        if is_over {
            return Ok((steps, changes));
        }
        if steps > STEPS_MAX {
            return Err(Finding::new(Kind::BlockedReader, format!("not finished after {STEPS_MAX} instructions")));
        }
    }
}
