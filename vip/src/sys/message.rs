//! Datagrams with what belongs to them: where they come from and go to, and how many hops are left (ip(7), ipv6(7)).

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::SockAddr;

/// Room for the control messages that we ask for, and aligned as they have to be.
#[repr(C, align(8))]
struct Control([u8; 128]);

/// What came with a datagram of an IPv6 socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) length: usize,
    pub(crate) source: Ipv6Addr,
    /// `None` when the kernel does not tell: then the options were not set.
    pub(crate) destination: Option<Ipv6Addr>,
    pub(crate) hop_limit: Option<u8>,
}

/// Sends a datagram by an interface, from one of our addresses. Both have to be of one family.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    source: IpAddr,
    destination: IpAddr,
    interface: u32,
) -> io::Result<()> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let to = SockAddr::from(SocketAddrV4::new(destination, 0));
            let index = i32::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?;
            let origin = libc::in_pktinfo {
                ipi_ifindex: index,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(source).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            transmit(socket, packet, &to, libc::IPPROTO_IP, libc::IP_PKTINFO, origin)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            // The scope says by which interface a link-local host is reached; for others it means nothing.
            let to = SockAddr::from(SocketAddrV6::new(destination, 0, 0, interface));
            let origin = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                ipi6_ifindex: interface,
            };
            transmit(socket, packet, &to, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, origin)
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn transmit<T: Copy>(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    to: &SockAddr,
    level: libc::c_int,
    kind: libc::c_int,
    origin: T,
) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let size = u32::try_from(size_of::<T>()).map_err(invalid)?;
    let mut control = Control([0; 128]);
    let mut part = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
    // SAFETY: of integers and pointers, for all of which zero is a value.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: computes a number from a number.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as _;
    // SAFETY: the control buffer is aligned for a header, it has at least `CMSG_SPACE` of an origin (28 or 40 bytes of its
    // 128) and lives until after the call, so the first header lies within it, and after it there is room for the origin,
    // which is written without a demand for alignment.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(size) as _;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(origin);
    }
    // SAFETY: the descriptor is open while it is borrowed; every pointer of the message is to memory that lives until after
    // the call and has the length that is given; the kernel only reads from it.
    let sent = unsafe {
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    match usize::try_from(sent) {
        Ok(length) if length == packet.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Takes the next datagram of an IPv6 socket, without waiting.
pub(crate) fn receive_v6(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Arrival> {
    let mut control = Control([0; 128]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: of integers, for which zero is a value.
    let mut from: libc::sockaddr_in6 = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: of integers and pointers, for all of which zero is a value.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen =
        libc::socklen_t::try_from(size_of_val(&from)).map_err(|_| io::ErrorKind::InvalidInput)?;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: the descriptor is open while it is borrowed; every pointer of the message is to memory that is ours alone,
    // lives until after the call and has the length that is given.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let Ok(length) = usize::try_from(received) else { return Err(io::Error::last_os_error()) };
    let mut arrival = Arrival {
        length: length.min(buffer.len()),
        source: Ipv6Addr::from(from.sin6_addr.s6_addr),
        destination: None,
        hop_limit: None,
    };
    read_control(&message, &mut arrival);
    Ok(arrival)
}

fn read_control(message: &libc::msghdr, arrival: &mut Arrival) {
    // SAFETY: the kernel has filled the control buffer and said how far, in the message; the buffer still lives.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: not null, so it is a header within what the kernel has written.
        let header = unsafe { *next };
        if header.cmsg_level == libc::IPPROTO_IPV6 && header.cmsg_type == libc::IPV6_PKTINFO {
            if let Some(origin) = content::<libc::in6_pktinfo>(next, &header) {
                arrival.destination = Some(Ipv6Addr::from(origin.ipi6_addr.s6_addr));
            }
        } else if header.cmsg_level == libc::IPPROTO_IPV6 && header.cmsg_type == libc::IPV6_HOPLIMIT {
            arrival.hop_limit =
                content::<libc::c_int>(next, &header).and_then(|hops| u8::try_from(hops).ok());
        }
        // SAFETY: as above; it answers null when no further header fits into what was written.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
}

/// What a control message carries, when it is as long as it should be. `T`: integers only.
fn content<T: Copy>(at: *const libc::cmsghdr, header: &libc::cmsghdr) -> Option<T> {
    // SAFETY: computes a number from a number.
    let needed = unsafe { libc::CMSG_LEN(u32::try_from(size_of::<T>()).ok()?) };
    if (header.cmsg_len as u64) < u64::from(needed) {
        return None;
    }
    // SAFETY: the message says that it has room for a `T` after its header, any bytes make one (integers), and the read does
    // not demand alignment.
    Some(unsafe { libc::CMSG_DATA(at).cast::<T>().read_unaligned() })
}
