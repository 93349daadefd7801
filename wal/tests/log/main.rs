//! The tests of the log, in one program: each program of its own would compile the same generic code
//! once more.

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
