//! The I/O shell of the proxy: it carries out what `pointsman_core` decides.
//!
//! * [`control`]: one task for each cluster, around its topology: the only writer of routes.
//! * [`routes`]: where the control task publishes, and the fences that end sessions.
//! * [`discovery`]: the source of a cluster's views. [`ask`], [`probe`]: questions to single members.
//! * [`listener`]: from accept to the end of a session. [`sessions`], [`stats`]: what can be seen of it.

pub mod ask;
pub mod clock;
mod connect;
mod dial;
pub mod discovery;
pub mod listener;
pub mod probe;
mod relay;
pub mod routes;
pub mod sessions;
mod socket;
pub mod stats;
pub mod tls;
