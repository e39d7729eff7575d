//! The I/O shell of the virtual IP: raw sockets, netlink, ARP and neighbour advertisements.
//!
//! * [`guard`]: the process that outlives the worker, and what the two say to each other.
//! * [`worker`]: carries out what `pointsman_vrrp` decides, and tells it what happens.
//! * [`side`]: the thread of everything that may wait: HTTP, the proxy's readiness, hooks. [`cli`]: the command line.
//! * [`netlink`]: interfaces and addresses. [`raw`]: VRRP's packets. [`neighbours`]: ARP and neighbour advertisements.
//! * [`peers`]: what the hosts tell each other beside VRRP.
//! * [`privileges`]: what it may do, and what it gives up. [`cli`]: the command line.

pub mod cli;
pub mod guard;
pub mod neighbours;
pub mod netlink;
pub mod peers;
pub mod privileges;
pub mod raw;
mod readiness;
pub mod side;
mod sys;
pub mod worker;
