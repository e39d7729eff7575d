//! The I/O shell of the proxy: it carries out what `pointsman_core` decides.
//!
//! * [`routes`]: where the control task publishes, and the fences that end sessions.
//! * [`discovery`]: the source of a cluster's views. [`ask`], [`probe`]: questions to single members.
//! * [`sessions`]: the register of live sessions. [`stats`]: counters of listeners and servers.

pub mod ask;
pub mod clock;
mod connect;
pub mod discovery;
pub mod probe;
pub mod routes;
pub mod sessions;
pub mod stats;
pub mod tls;
