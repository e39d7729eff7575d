//! The I/O shell of the proxy: it carries out what `pointsman_core` decides.
//!
//! * [`run`]: the story of a process, from the configuration to the last session.
//! * [`cluster`], [`control`]: one control task for each cluster, around its topology: the only writer of routes.
//! * [`routes`]: where the control task publishes, and the fences that end sessions.
//! * [`discovery`]: the source of a cluster's views. [`ask`], [`probe`]: questions to single members. [`http`]: what speaks HTTP to both.
//! * [`listener`]: from accept to the end of a session, on the cores of the [`engine`]. [`sessions`], [`stats`]: what can be seen of
//!   it, counted by each core for itself ([`shard`]). [`backlog`]: who waits for accept.
//! * [`memory`]: what is kept of a cluster on disk. [`state`]: the read side of all that; [`timeline`]: what happened. [`admin`], [`metrics`]: who shows it.
//! * [`vip`]: what is shown of `pointsman-vip` on this host.
//! * [`life`]: the process as the system sees it. [`cli`]: the command line. (What both programs need is in `pointsman_process`.)

pub mod admin;
pub mod ask;
pub mod backlog;
pub mod cli;
pub mod clock;
pub mod cluster;
mod connect;
pub mod control;
mod dial;
pub mod discovery;
pub mod engine;
mod http;
pub mod life;
pub mod listener;
pub mod memory;
pub mod metrics;
pub mod probe;
mod reload;
pub mod routes;
pub mod run;
pub mod sessions;
pub mod shard;
mod socket;
pub mod state;
pub mod stats;
pub mod timeline;
pub mod tls;
pub mod unbuilt;
pub mod vip;
