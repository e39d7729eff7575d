//! The I/O shell of the virtual IP: raw sockets, netlink, ARP and neighbour advertisements.
//!
//! A skeleton: the crate holds its place in the workspace and its name; see `pointsman_vrrp` for the
//! decisions that it will carry out.

pub use pointsman_vrrp::STATUS;
