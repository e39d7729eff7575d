//! Sockets for VRRP's packets: protocol 112 on one interface, in one family.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::os::fd::AsFd as _;

use pointsman_vrrp::advert::{Envelope, GROUP_V4, GROUP_V6, HOP_LIMIT, PROTOCOL};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::readiness;
use crate::sys;

/// Room for the longest packet: 255 IPv6 addresses, or the longest IPv4 header and 255 addresses.
pub const BUFFER: usize = 4352;

/// What may wait in a socket, in bytes as the kernel counts them: some hundred packets.
const QUEUE: usize = 256 * 1024;
/// Network control, as all routing protocols use it (RFC 4594).
const CLASS: u32 = 0xc0;
/// How many packets in a row one call may throw away because they are our own.
const OWN_IN_A_ROW: u32 = 64;

/// The family of a virtual router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Where adverts go that are not unicast.
    pub const fn group(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(GROUP_V4),
            Self::V6 => IpAddr::V6(GROUP_V6),
        }
    }

    const fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What can go wrong with a raw socket.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// It cannot be opened.
    #[error("cannot open a {what} socket on the interface {interface}: {source}{}", hint(source))]
    Open {
        /// For which packets.
        what: &'static str,
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// A packet cannot be sent.
    #[error("cannot send a {what} packet from {from} to {to} by the interface {interface}: {source}")]
    Send {
        /// What packet.
        what: &'static str,
        /// Its source.
        from: IpAddr,
        /// Its destination.
        to: IpAddr,
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// A frame cannot be sent.
    #[error("cannot send a frame by the interface {interface}: {source}")]
    Frame {
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// Nothing can be received any more. The socket has to be opened anew.
    #[error("cannot receive {what} packets from the interface {interface}: {source}")]
    Receive {
        /// Which packets.
        what: &'static str,
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
}

/// What to do about it.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "; this needs CAP_NET_RAW (in the unit: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW)"
        }
        Some(libc::ENODEV) => "; there is no such interface (any more), or it has no part in this protocol",
        Some(libc::EAFNOSUPPORT) => "; this kernel has no IPv6",
        Some(_) | None => "",
    }
}

/// The socket of one interface and family: receives all that hosts on this link say as VRRP, and sends.
///
/// It stays good while the interface is down, and ends with it: an interface that was deleted and made again has another
/// index, and needs another socket.
#[derive(Debug)]
pub struct VrrpSocket {
    socket: AsyncFd<Socket>,
    family: Family,
    index: u32,
    interface: String,
    own: Vec<IpAddr>,
}

impl VrrpSocket {
    /// Opens it in the network namespace of this thread, within a tokio runtime. `interface` is for messages.
    pub fn open(family: Family, index: u32, interface: &str) -> Result<Self, RawError> {
        let open = || {
            let socket = Self::socket(family, index)?;
            sys::socket::watch(socket)
        };
        let socket = open().map_err(|source| RawError::Open {
            what: "VRRP",
            interface: interface.to_owned(),
            source,
        })?;
        Ok(Self { socket, family, index, interface: interface.to_owned(), own: Vec::new() })
    }

    fn socket(family: Family, index: u32) -> io::Result<Socket> {
        let socket = raw_socket(family)?;
        sys::socket::bind_to_interface(socket.as_fd(), index)?;
        socket.set_recv_buffer_size(QUEUE)?;
        match family {
            Family::V4 => {
                socket.set_multicast_all_v4(false)?;
                socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(index))?;
            }
            Family::V6 => {
                // Older kernels do not know it, and do as if it was set.
                let _ = socket.set_multicast_all_v6(false);
                socket.set_recv_hoplimit_v6(true)?;
                sys::socket::set_receive_destination_v6(socket.as_fd())?;
                socket.join_multicast_v6(&GROUP_V6, index)?;
            }
        }
        Ok(socket)
    }

    /// Its family.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// The number of its interface.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Sends a packet from one of our addresses to the group or to a host, without waiting: what the interface cannot take is
    /// an error.
    pub fn send(&mut self, source: IpAddr, destination: IpAddr, packet: &[u8]) -> Result<(), RawError> {
        if !self.own.contains(&source) {
            self.own.push(source);
        }
        sys::message::send(self.socket.get_ref().as_fd(), packet, source, destination, self.index).map_err(
            |error| RawError::Send {
                what: "VRRP",
                from: source,
                to: destination,
                interface: self.interface.clone(),
                source: error,
            },
        )
    }

    /// Takes the next packet, if there is one now. Packets of a source that this socket has sent from are passed over. One
    /// that is longer than the buffer ([`BUFFER`] holds all that can be right) is cut.
    pub fn try_receive<'b>(
        &mut self,
        buffer: &'b mut [u8],
    ) -> Result<Option<(Envelope, &'b [u8])>, RawError> {
        for _ in 0..OWN_IN_A_ROW {
            let family = self.family;
            let next = readiness::take(&self.socket, |socket| receive(family, socket, buffer));
            let next = next.map_err(|source| RawError::Receive {
                what: "VRRP",
                interface: self.interface.clone(),
                source,
            })?;
            match next {
                None => return Ok(None),
                Some(Some((envelope, payload))) if !self.own.contains(&envelope.source) => {
                    return Ok(Some((envelope, buffer.get(payload).unwrap_or_default())));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// Waits until [`Self::try_receive`] may have something. Cancel-safe.
    pub async fn readable(&self) -> Result<(), RawError> {
        match self.socket.readable().await {
            Ok(mut ready) => {
                ready.retain_ready();
                Ok(())
            }
            Err(source) => Err(RawError::Receive { what: "VRRP", interface: self.interface.clone(), source }),
        }
    }
}

/// A raw socket that sends as VRRP wants it: hop limit, class, nothing of it back to ourselves.
fn raw_socket(family: Family) -> io::Result<Socket> {
    let hops = u32::from(HOP_LIMIT);
    let socket = Socket::new(family.domain(), Type::RAW, Some(Protocol::from(i32::from(PROTOCOL))))?;
    socket.set_nonblocking(true)?;
    match family {
        Family::V4 => {
            socket.set_multicast_loop_v4(false)?;
            socket.set_multicast_ttl_v4(hops)?;
            socket.set_ttl_v4(hops)?;
            socket.set_tos_v4(CLASS)?;
            sys::socket::set_may_fragment_v4(socket.as_fd())?;
        }
        Family::V6 => {
            socket.set_multicast_loop_v6(false)?;
            socket.set_multicast_hops_v6(hops)?;
            socket.set_unicast_hops_v6(hops)?;
            socket.set_tclass_v6(CLASS)?;
        }
    }
    Ok(socket)
}

/// `None`: something that is no packet.
fn receive(
    family: Family,
    socket: &Socket,
    buffer: &mut [u8],
) -> io::Result<Option<(Envelope, Range<usize>)>> {
    match family {
        Family::V4 => {
            let (length, _) = recv(socket, &mut *buffer, RecvFlags::DONTWAIT)?;
            Ok(split_v4(buffer.get(..length).unwrap_or_default()))
        }
        Family::V6 => {
            let arrival = sys::message::receive_v6(socket.as_fd(), buffer)?;
            let (Some(destination), Some(hop_limit)) = (arrival.destination, arrival.hop_limit) else {
                return Ok(None);
            };
            let (source, destination) = (arrival.source.into(), destination.into());
            Ok(Some((Envelope { source, destination, hop_limit }, 0..arrival.length)))
        }
    }
}

/// A raw IPv4 packet comes with its header.
fn split_v4(packet: &[u8]) -> Option<(Envelope, Range<usize>)> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes(*packet.get(2..)?.first_chunk()?));
    let end = total.min(packet.len());
    if packet.first()? >> 4 != 4 || header < 20 || end < header {
        return None;
    }
    let source: [u8; 4] = *packet.get(12..)?.first_chunk()?;
    let destination: [u8; 4] = *packet.get(16..)?.first_chunk()?;
    let envelope = Envelope {
        source: Ipv4Addr::from(source).into(),
        destination: Ipv4Addr::from(destination).into(),
        hop_limit: *packet.get(8)?,
    };
    Some((envelope, header..end))
}

/// Sends VRRP packets by any interface, and receives nothing: for whoever has to be quick one day, and until then must cost
/// nothing. Needs no runtime.
#[derive(Debug)]
pub struct VrrpSender {
    v4: Socket,
    /// `None`: this kernel has no IPv6.
    v6: Option<Socket>,
}

impl VrrpSender {
    /// Opens it in the network namespace of this thread.
    pub fn open() -> Result<Self, RawError> {
        let open = |family| {
            let socket = raw_socket(family)?;
            // Refuse all that comes in.
            socket.attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)])?;
            Ok(socket)
        };
        let failed = |source| RawError::Open { what: "VRRP", interface: "any".to_owned(), source };
        let v6 = match open(Family::V6) {
            Ok(socket) => Some(socket),
            Err(error) if is_absent(&error) => None,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { v4: open(Family::V4).map_err(failed)?, v6 })
    }

    /// Sends a packet by an interface, without waiting. `interface` is for messages.
    pub fn send(
        &self,
        index: u32,
        interface: &str,
        envelope: Envelope,
        packet: &[u8],
    ) -> Result<(), RawError> {
        let Envelope { source: from, destination: to, .. } = envelope;
        let socket = match Family::of(to) {
            Family::V4 => Some(&self.v4),
            Family::V6 => self.v6.as_ref(),
        };
        let result = match socket {
            Some(socket) => sys::message::send(socket.as_fd(), packet, from, to, index),
            None => Err(Errno::AFNOSUPPORT.into()),
        };
        result.map_err(|source| RawError::Send {
            what: "VRRP",
            from,
            to,
            interface: interface.to_owned(),
            source,
        })
    }
}

/// `BPF_RET | BPF_K` of linux/filter.h.
pub(crate) const RETURN: u16 = 0x06;

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_header_of_a_raw_packet_is_taken_off() {
        let mut packet = vec![0x45, 0xc0, 0, 24, 0, 1, 0, 0, 255, 112, 0, 0, 10, 99, 0, 11, 224, 0, 0, 18];
        packet.extend([1, 2, 3, 4, 0, 0]); // and two bytes that the Ethernet put behind it
        let (envelope, payload) = split_v4(&packet).unwrap();
        assert_eq!(envelope.to_string(), "10.99.0.11 to 224.0.0.18, hop limit 255");
        assert_eq!(packet[payload], [1, 2, 3, 4]);
    }

    proptest! {
        #[test]
        fn no_bytes_are_fatal(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some((_, payload)) = split_v4(&bytes) {
                prop_assert!(bytes.get(payload).is_some());
            }
        }
    }
}
