//! What happens to interfaces and addresses, as the kernel tells it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::net::SocketFlags;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use tokio::io::unix::AsyncFd;

use super::message::{self, Content};
use super::{Address, LinkState, NetlinkError, worker};

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR` of linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// Room for some thousand events.
const QUEUE: usize = 1 << 20;
const BUFFER: usize = 32 * 1024;

/// Something has happened to an interface or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetlinkEvent {
    /// An interface is new, or something of it has changed. The same one may be told several times.
    Link(LinkState),
    /// An interface is gone, as it was at last.
    LinkGone(LinkState),
    /// An address was added, refreshed, or became usable; ours are among them.
    AddressAdded {
        /// The interface.
        index: u32,
        /// The address.
        address: Address,
    },
    /// An address is gone: it was removed, by us or by others, or its time was over.
    AddressRemoved {
        /// The interface.
        index: u32,
        /// The address.
        address: Address,
    },
    /// Events were lost: everything has to be read anew.
    Lagging,
}

/// The events, in order, from [`NetlinkEvents::open`] on. First open it, then read how things are, then listen: nothing is
/// missed between the two.
#[derive(Debug)]
pub struct NetlinkEvents {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    waiting: VecDeque<NetlinkEvent>,
}

impl NetlinkEvents {
    /// Opens it in the network namespace of this thread, within a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || -> io::Result<_> {
            let socket = worker::open_socket(GROUPS, SocketFlags::NONBLOCK)?;
            // As much of it as net.core.rmem_max allows.
            let _ = set_socket_recv_buffer_size(&socket, QUEUE);
            crate::sys::socket::watch(socket)
        };
        let socket = open().map_err(|source| NetlinkError::Open { source })?;
        Ok(Self { socket, buffer: vec![0; BUFFER], waiting: VecDeque::new() })
    }

    /// The next event. Cancel-safe: an event that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<NetlinkEvent, NetlinkError> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            let ready = self.socket.readable().await;
            ready.map_err(|source| NetlinkError::Events { source })?.retain_ready();
        }
    }

    /// The next event, if there is one now.
    pub fn try_next(&mut self) -> Result<Option<NetlinkEvent>, NetlinkError> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(Some(event));
            }
            let buffer = &mut self.buffer;
            match crate::readiness::take(&self.socket, |socket| Ok(worker::receive(socket, buffer)?)) {
                Ok(Some(length)) => self.read(length),
                Ok(None) => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.waiting.push_back(NetlinkEvent::Lagging);
                }
                Err(source) => return Err(NetlinkError::Events { source }),
            }
        }
    }

    fn read(&mut self, length: usize) {
        let messages = message::read(&self.buffer[..length]);
        self.waiting.extend(messages.into_iter().filter_map(|message| match message.content {
            Content::Link(state) => Some(NetlinkEvent::Link(state)),
            Content::LinkGone(state) => Some(NetlinkEvent::LinkGone(state)),
            Content::Address(index, address) => Some(NetlinkEvent::AddressAdded { index, address }),
            Content::AddressGone(index, address) => Some(NetlinkEvent::AddressRemoved { index, address }),
            // What cannot be understood may be what matters.
            Content::Senseless(_) => Some(NetlinkEvent::Lagging),
            Content::Acknowledged(_) | Content::End(_) | Content::Other => None,
        }));
    }
}
