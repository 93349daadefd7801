//! Reading the log back.

pub mod follow;
pub mod scan;
