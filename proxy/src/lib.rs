//! The I/O shell of the proxy: it carries out what `pointsman_core` decides.
//!
//! * [`routes`]: where the control task publishes, and the fences that end sessions.
//! * [`sessions`]: the register of live sessions. [`stats`]: counters of listeners and servers.

mod dial;
pub mod listener;
mod relay;
pub mod routes;
pub mod sessions;
mod socket;
pub mod stats;
