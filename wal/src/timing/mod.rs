//! When to flush, and how long commits take.

pub mod estimate;
pub mod flush;
pub mod lead_time;
pub mod response;
