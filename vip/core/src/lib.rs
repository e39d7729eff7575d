//! VRRP (RFC 9568), pure: the codec and the state machine of a virtual router.
//!
//! A skeleton: it compiles, holds the crate's place, and says so.

/// What this crate is today, for `pointsman-vip` to show.
pub const STATUS: &str = "not built yet";
