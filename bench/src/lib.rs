//! Load generators and the side-by-side comparison of Pointsman with its peers.
//!
//! One program: it moves into namespaces of its own ([`sandbox`]), starts a server ([`backend`]), the proxies
//! ([`peers`]) and a load ([`load`]) there, looks at clocks and counters before and after ([`measure`]), and writes
//! tables and plots ([`report`]). [`rows`] names the workloads, [`comparison`] runs them in turns.
//! [`scale`] looks at Pointsman alone, and at how its costs grow.
//!
//! Threads, not tasks: what is measured here are system calls, and the tool must not be what is slow.

pub mod arguments;
pub mod backend;
pub mod comparison;
pub mod load;
pub mod measure;
pub mod peers;
pub mod postgres;
pub mod process;
pub mod report;
pub mod rows;
pub mod sandbox;
pub mod scale;
pub mod site;
pub mod wire;
