//! The I/O shell of the proxy: it carries out what `pointsman_core` decides.
//!
//! * [`routes`]: where the control task publishes, and the fences that end sessions.
//! * [`sessions`]: the register of live sessions. [`stats`]: counters of listeners and servers.
//! * [`state`]: the read side of all that; [`timeline`]: what happened; [`metrics`]: `/metrics`.

pub mod admin;
pub mod life;
pub mod logging;
pub mod metrics;
pub mod routes;
pub mod sessions;
pub mod state;
pub mod stats;
pub mod timeline;
pub mod unbuilt;
