//! One short test for each rule of routing, in the order of the design.

mod bench;
mod clusters;
mod leader;
mod listeners;
mod memory;
mod replicas;
mod time;
mod without_store;
