//! Telling the neighbours on a link who has an address, and hearing what others tell them: whole frames out, ARP and
//! neighbour advertisements in. What they look like is [`pointsman_vrrp::frame`]'s matter.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::raw::{RETURN, RawError};
use crate::readiness;
use crate::sys;

/// Room for any ARP frame or neighbour advertisement that can be right.
pub const BUFFER: usize = 2048;

/// `ETH_P_ARP` of `linux/if_ether.h`.
const ARP: u16 = 0x0806;
/// The type of a neighbour advertisement (RFC 4861, section 4.4).
const ADVERTISEMENT: u8 = 136;
/// What may wait in a socket, in bytes as the kernel counts them.
const QUEUE: usize = 256 * 1024;
/// How many errors in a row that say "the interface is down now" are passed over.
const DOWN_IN_A_ROW: u32 = 4;

/// Sends whole Ethernet frames by one interface.
#[derive(Debug)]
pub struct FrameSender {
    socket: Socket,
    interface: String,
}

impl FrameSender {
    /// Opens it in the network namespace of this thread. `interface` is for messages.
    pub fn open(index: u32, interface: &str) -> Result<Self, RawError> {
        let open = || {
            let socket = packet_socket()?;
            sys::packet::bind(socket.as_fd(), index, 0)?;
            Ok(socket)
        };
        let interface = interface.to_owned();
        match open() {
            Ok(socket) => Ok(Self { socket, interface }),
            Err(source) => Err(RawError::Open { what: "packet", interface, source }),
        }
    }

    /// Sends a frame, without waiting: what the interface cannot take is an error.
    pub fn send(&self, frame: &[u8]) -> Result<(), RawError> {
        match send(&self.socket, frame, SendFlags::DONTWAIT) {
            Ok(_) => Ok(()),
            Err(error) => Err(RawError::Frame { interface: self.interface.clone(), source: error.into() }),
        }
    }
}

/// Hears the ARP frames of one interface that say who has certain addresses.
#[derive(Debug)]
pub struct ArpListener {
    socket: AsyncFd<Socket>,
    interface: String,
}

impl ArpListener {
    /// Opens it in the network namespace of this thread, within a tokio runtime. The kernel drops whatever does not have one
    /// of these addresses as its sender: a busy network does not wake us. `interface` is for messages.
    pub fn open(index: u32, interface: &str, senders: &[Ipv4Addr]) -> Result<Self, RawError> {
        let open = || {
            let socket = packet_socket()?;
            socket.set_recv_buffer_size(QUEUE)?;
            socket.attach_filter(&only_from(senders))?; // before it is bound: nothing comes before that
            sys::packet::bind(socket.as_fd(), index, ARP)?;
            sys::socket::watch(socket)
        };
        let interface = interface.to_owned();
        match open() {
            Ok(socket) => Ok(Self { socket, interface }),
            Err(source) => Err(RawError::Open { what: "ARP", interface, source }),
        }
    }

    /// Takes the next frame, from its Ethernet header on, if there is one now.
    pub fn try_receive<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>, RawError> {
        let length = take(&self.socket, "ARP", &self.interface, |socket| {
            Ok(recv(socket, &mut *buffer, RecvFlags::DONTWAIT)?.0)
        })?;
        Ok(length.and_then(|length| buffer.get(..length)))
    }

    /// Waits until [`Self::try_receive`] may have something. Cancel-safe.
    pub async fn readable(&self) -> Result<(), RawError> {
        readable(&self.socket, "ARP", &self.interface).await
    }
}

/// Hears the neighbour advertisements of one interface.
#[derive(Debug)]
pub struct AdvertisementListener {
    socket: AsyncFd<Socket>,
    interface: String,
}

/// A neighbour advertisement as it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement<'b> {
    /// Its sender.
    pub source: Ipv6Addr,
    /// The hop limit that was left: 255 unless it comes from another network.
    pub hop_limit: u8,
    /// From its ICMP header on. The kernel has checked its checksum.
    pub message: &'b [u8],
}

impl AdvertisementListener {
    /// Opens it in the network namespace of this thread, within a tokio runtime. `interface` is for messages.
    pub fn open(index: u32, interface: &str) -> Result<Self, RawError> {
        let open = || {
            let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
            socket.set_nonblocking(true)?;
            sys::socket::take_only_icmpv6(socket.as_fd(), ADVERTISEMENT)?;
            sys::socket::bind_to_interface(socket.as_fd(), index)?;
            socket.set_recv_buffer_size(QUEUE)?;
            socket.set_recv_hoplimit_v6(true)?;
            sys::socket::watch(socket)
        };
        let interface = interface.to_owned();
        match open() {
            Ok(socket) => Ok(Self { socket, interface }),
            Err(source) => Err(RawError::Open { what: "neighbour advertisement", interface, source }),
        }
    }

    /// Takes the next advertisement, if there is one now.
    pub fn try_receive<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Option<Advertisement<'b>>, RawError> {
        let arrival = take(&self.socket, "neighbour advertisement", &self.interface, |socket| {
            sys::message::receive_v6(socket.as_fd(), buffer)
        })?;
        Ok(arrival.and_then(|arrival| {
            let (source, hop_limit) = (arrival.source, arrival.hop_limit?);
            Some(Advertisement { source, hop_limit, message: buffer.get(..arrival.length)? })
        }))
    }

    /// Waits until [`Self::try_receive`] may have something. Cancel-safe.
    pub async fn readable(&self) -> Result<(), RawError> {
        readable(&self.socket, "neighbour advertisement", &self.interface).await
    }
}

/// Receives nothing until it is bound with a protocol.
fn packet_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn take<T>(
    socket: &AsyncFd<Socket>,
    what: &'static str,
    interface: &str,
    mut receive: impl FnMut(&Socket) -> io::Result<T>,
) -> Result<Option<T>, RawError> {
    for _ in 0..DOWN_IN_A_ROW {
        match readiness::take(socket, &mut receive) {
            // Said once when the interface goes down. It is told by its event; the socket stays good.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(source) => {
                return Err(RawError::Receive { what, interface: interface.to_owned(), source });
            }
            Ok(taken) => return Ok(taken),
        }
    }
    Ok(None)
}

async fn readable(socket: &AsyncFd<Socket>, what: &'static str, interface: &str) -> Result<(), RawError> {
    match socket.readable().await {
        Ok(mut ready) => {
            ready.retain_ready();
            Ok(())
        }
        Err(source) => Err(RawError::Receive { what, interface: interface.to_owned(), source }),
    }
}

/// A program for the kernel (classic BPF) that lets frames through whose ARP sender is one of these.
fn only_from(senders: &[Ipv4Addr]) -> Vec<SockFilter> {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS of linux/filter.h
    const IS: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    /// Behind the Ethernet header (14 bytes), hardware and protocol (8) and the sender's Ethernet address (6).
    const SENDER: u32 = 28;
    let mut program = vec![SockFilter::new(LOAD, 0, 0, SENDER)];
    for sender in senders {
        program.push(SockFilter::new(IS, 0, 1, u32::from(*sender)));
        program.push(SockFilter::new(RETURN, 0, 0, u32::MAX)); // all of the frame
    }
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program
}
