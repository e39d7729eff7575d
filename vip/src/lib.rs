//! The I/O shell of the virtual IP: raw sockets, netlink, ARP and neighbour advertisements.
//!
//! * [`guard`]: the process that outlives the worker, and what the two say to each other.
//! * [`netlink`]: interfaces and addresses. [`raw`]: VRRP's packets. [`neighbours`]: ARP and neighbour advertisements.
//! * [`privileges`]: what it may do, and what it gives up.

pub mod guard;
pub mod neighbours;
pub mod netlink;
pub mod privileges;
pub mod raw;
mod readiness;
mod sys;
