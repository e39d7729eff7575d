//! The I/O shell of the virtual IP: raw sockets, netlink, ARP and neighbour advertisements.
//!
//! * [`side`]: the thread of everything that may wait: HTTP, the proxy's readiness, hooks. [`cli`]: the command line.

pub mod cli;
pub mod side;
