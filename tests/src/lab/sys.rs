//! Packet sockets (packet(7)): what the standard library and rustix have no words for.
#![allow(unsafe_code, reason = "addresses of packet sockets and filters are C structures")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "constants and sizes of structures that C keeps in smaller types"
)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// All protocols, in the byte order of the network.
const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();

/// One instruction of a classic filter (bpf(4)): code, jump if true, jump if false, operand.
pub(super) type Instruction = (u16, u8, u8, u32);

/// A socket for whole Ethernet frames, in the network namespace of the calling thread. Without protocol it receives
/// nothing until it is bound.
pub(super) fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a descriptor that is not negative is new and ours.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Lets it receive what passes interface `index`, or any if that is 0, and send there.
pub(super) fn bind(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ALL;
    address.sll_ifindex = index.cast_signed();
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address and its length are those of a local value.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Only what the filter lets through is received.
pub(super) fn attach_filter(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> =
        program.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let length = size_of_val(&program) as libc::socklen_t;
    // SAFETY: the kernel copies the program, whose length is right, before the call returns.
    let result = unsafe {
        let value = (&raw const program).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, value, length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The next frame that waits: its length and the number of the interface; `None` when none waits.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<(usize, u32)>> {
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
    let mut length = size_of_val(&from) as libc::socklen_t;
    // SAFETY: buffer and address are borrowed for the call, with their lengths.
    let received = unsafe {
        let data = buffer.as_mut_ptr().cast();
        let from = (&raw mut from).cast();
        libc::recvfrom(socket.as_raw_fd(), data, buffer.len(), libc::MSG_DONTWAIT, from, &raw mut length)
    };
    match usize::try_from(received) {
        Ok(received) => Ok(Some((received, from.sll_ifindex.cast_unsigned()))),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        },
    }
}
