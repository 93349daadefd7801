//! Write transactions: how they begin and end, what they remove, undo and number.

mod begin;
mod composed;
mod deadlines;
mod delete_range;
mod ids;
mod savepoints;
mod versions;
