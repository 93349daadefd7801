//! Presentation of outcomes: a table on the terminal, JSON for programs, an HTML page.

pub mod html;
pub mod json;
mod machine;
mod map;
pub mod table;
