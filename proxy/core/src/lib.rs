//! The decisions of Pointsman, pure.
//!
//! Everything here is sans-IO: time comes in as a parameter ([`time::Moment`]), events go in as values,
//! effects come out as values. There is no socket, clock, task, random source or unordered map in this
//! crate, so a seed replays any run exactly (see `tests/simulation.rs`).
//!
//! * [`view`]: what a discovery source claims about a cluster.
//! * [`event`]: everything that can happen, and everything that the shell can be told to do.
//! * [`patroni`]: what Patroni writes, made into a view; what its REST interface answers.
//! * [`consul`]: Consul's form of such keys.
//! * [`topology`]: events in, route tables and revocations out. The only writer of routes.
//! * [`route`]: what is published: candidates for each listener, or the reason why there are none.
//! * [`balance`]: which of several candidates a session goes to.
//! * [`hold`]: the queue of connections that wait for a route.
//! * [`startup`]: the first bytes of a connection, both ways. [`error_response`]: what we answer ourselves.
//! * [`close`]: how sessions end.

pub mod balance;
pub mod close;
pub mod consul;
pub mod error_response;
pub mod event;
pub mod hold;
pub mod patroni;
pub mod route;
pub mod startup;
pub mod status;
pub mod time;
pub mod topology;
pub mod view;
