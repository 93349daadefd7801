//! The tests of the log, in one program. Separate programs would each compile the same generic code
//! again.

mod common;
mod damage;
mod failed_calls;
mod follow;
mod format;
mod headers;
mod interleavings;
mod power;
mod room;
mod wire;
