//! Socket options that no library offers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Owns one descriptor for as long as it lives.
pub(crate) trait Owner: AsRawFd {}
impl Owner for OwnedFd {}
impl Owner for Socket {}

/// Lets the runtime watch a socket for something to read.
pub(crate) fn watch<S: Owner>(socket: S) -> io::Result<AsyncFd<S>> {
    // SAFETY: an `Owner` has one open descriptor, always the same, and closes it when it is dropped and not before; the
    // `AsyncFd` owns it from here on.
    let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

/// `SOL_NETLINK`, `NETLINK_GET_STRICT_CHK`: a dump obeys the filter in its request, such as one interface.
pub(crate) fn set_netlink_strict(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, &1_i32)
}

/// `SO_BINDTOIFINDEX`: the socket takes and sends packets of this interface only. A name could mean another one by now.
pub(crate) fn bind_to_interface(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let index = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    set(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, &index)
}

/// `IP_PKTINFO`'s brother: every packet comes with where it went to and the interface it came by.
pub(crate) fn set_receive_destination_v6(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, &1_i32)
}

/// `IP_MTU_DISCOVER`: packets leave without "don't fragment", as VRRP's do everywhere.
pub(crate) fn set_may_fragment_v4(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_DONT)
}

/// `ICMP6_FILTER`: of all ICMP messages an IPv6 socket takes those of one type.
pub(crate) fn take_only_icmpv6(socket: BorrowedFd<'_>, message: u8) -> io::Result<()> {
    /// `ICMP6_FILTER` of linux/icmpv6.h; at the level `IPPROTO_ICMPV6`.
    const ICMP6_FILTER: libc::c_int = 1;
    let mut blocked = [u32::MAX; 8]; // `struct icmp6_filter`: a set bit is a type that is blocked
    let word = usize::from(message / 32);
    blocked[word] &= !(1 << (message % 32));
    set(socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &blocked)
}

/// What the kernel may read as bytes: no padding, no pointers.
trait Plain {}
impl Plain for i32 {}
impl Plain for [u32; 8] {}

fn set<T: Plain>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open while it is borrowed; the kernel reads `length` bytes, which is the size of the
    // value that is pointed to, and a `Plain` value is bytes throughout.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
