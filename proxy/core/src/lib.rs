//! The decisions of Pointsman.

pub mod time;
