//! How outcomes are shown: a table on the terminal, JSON for programs, a page for people.

pub mod html;
pub mod json;
pub mod table;
