//! How outcomes are shown: a table on the terminal, JSON for programs, a page for people.

pub mod html;
pub mod json;
mod machine;
mod map;
pub mod table;
