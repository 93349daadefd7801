//! What else can go wrong: each call about a file fails in turn, the disk is full, descriptors run out, bits flip at rest and in
//! the shared region, strangers send bytes. Errors must be clear, nobody may crash, nothing acknowledged may be lost, and when
//! the cause is gone, the store must work again.
//!
//! | file | its one job |
//! |---|---|
//! | `calls.rs` | each call fails, once and from then on |
//! | `worker.rs`, `told.rs`, `after.rs` | a writer that copes with errors, what it was told, and what must hold afterwards |

mod after;
mod calls;
mod told;
pub(crate) mod worker;

use crate::context::Context;
use crate::outcome::Outcome;

/// Runs the suite.
pub fn run(context: &Context) -> Outcome {
    let mut outcome = Outcome::of(context);
    calls::run(context, &mut outcome, &|states, doing| context.may_go_on(states, doing));
    outcome.seconds = context.elapsed().as_secs_f64();
    outcome
}
