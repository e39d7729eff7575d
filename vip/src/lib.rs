//! The I/O shell of the virtual IP: raw sockets, netlink, ARP and neighbour advertisements.

pub mod peers;
