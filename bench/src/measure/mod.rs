//! Clocks, counters and what is made of them.

pub mod histogram;
pub mod machine;
pub mod memory;
pub mod processes;
pub mod statistics;
pub mod syscalls;
pub mod usage;
