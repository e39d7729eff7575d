//! rtnetlink(7), as much as the lab needs: to do something to an interface at a known time, and to hear of addresses.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use super::namespace::Namespace;

const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_REPLACE: u16 = 0x100;
const NLMSG_ERROR: u16 = 2;
const IFLA_MASTER: u16 = 10;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFF_UP: u32 = 1;
const IFA_F_NODAD: u8 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const HEADER: usize = 16;
/// Changes of links and of addresses of both families.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// A socket that asks for changes.
#[derive(Debug)]
pub struct Route {
    socket: Mutex<OwnedFd>,
}

/// What a monitor hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AddressChange {
    pub(super) address: IpAddr,
    pub(super) present: bool,
}

impl Route {
    /// One that speaks for `namespace`.
    pub fn open(namespace: &Namespace) -> Result<Self> {
        let socket = namespace.within(|| open(0))?;
        Ok(Self { socket: Mutex::new(socket) })
    }

    /// Sets an interface up or down; answers when it was asked to.
    pub fn set_up(&self, index: u32, up: bool) -> Result<Instant> {
        self.request(RTM_SETLINK, 0, &link(index, if up { IFF_UP } else { 0 }, IFF_UP))
    }

    /// Makes an interface a port of a bridge, or of none; answers when it was asked to.
    pub fn set_master(&self, index: u32, bridge: Option<u32>) -> Result<Instant> {
        let mut body = link(index, 0, 0);
        attribute(&mut body, IFLA_MASTER, &bridge.unwrap_or(0).to_ne_bytes());
        self.request(RTM_SETLINK, 0, &body)
    }

    /// Adds an address to an interface, for ever.
    pub fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<Instant> {
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &interface_address(index, address, prefix))
    }

    /// Removes an address from an interface.
    pub fn remove_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<Instant> {
        self.request(RTM_DELADDR, 0, &interface_address(index, address, prefix))
    }

    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> Result<Instant> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let length = u32::try_from(HEADER + body.len())?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        let at = Instant::now();
        send(&*socket, &message, SendFlags::empty())?;
        let mut buffer = [0; 4096];
        let (received, _) = recv(&*socket, &mut buffer, RecvFlags::empty())?;
        let answer = messages(buffer.get(..received).unwrap_or_default()).next().context("no answer")?;
        ensure!(answer.kind == NLMSG_ERROR, "netlink answered {}", answer.kind);
        let error = answer.body.first_chunk().map_or(i32::MIN, |bytes| i32::from_ne_bytes(*bytes));
        if error != 0 {
            bail!("netlink: {}", std::io::Error::from_raw_os_error(-error));
        }
        Ok(at)
    }
}

fn open(groups: u32) -> Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups)).context("cannot bind a netlink socket")?;
    Ok(socket)
}

/// `struct ifinfomsg`.
fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [index, flags, change] {
        body.extend(word.to_ne_bytes());
    }
    body
}

/// `struct ifaddrmsg` with the address.
fn interface_address(index: u32, address: IpAddr, prefix: u8) -> Vec<u8> {
    let (family, octets) = match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    };
    let mut body = vec![family, prefix, IFA_F_NODAD, 0];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &octets);
    attribute(&mut body, IFA_ADDRESS, &octets);
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A socket that hears of changes.
#[derive(Debug)]
pub(super) struct Monitor {
    socket: OwnedFd,
}

impl Monitor {
    pub(super) fn open(namespace: &Namespace) -> Result<Self> {
        Ok(Self { socket: namespace.within(|| open(GROUPS))? })
    }

    /// What has become known since the last call; does not wait.
    pub(super) fn changes(&self) -> Result<Vec<AddressChange>> {
        let mut found = Vec::new();
        let mut buffer = [0; 16_384];
        loop {
            match recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((received, _)) => {
                    let received = buffer.get(..received).unwrap_or_default();
                    found.extend(messages(received).filter_map(|message| message.address_change()));
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(found),
                Err(error) => return Err(error).context("the monitor of addresses"),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

struct Message<'a> {
    kind: u16,
    body: &'a [u8],
}

impl Message<'_> {
    fn address_change(&self) -> Option<AddressChange> {
        let present = match self.kind {
            RTM_NEWADDR => true,
            RTM_DELADDR => false,
            _ => return None,
        };
        let mut attributes = self.body.get(8..)?;
        let mut address = None;
        while let Some((length, rest)) = attributes.split_first_chunk::<2>() {
            let length = usize::from(u16::from_ne_bytes(*length));
            let kind = u16::from_ne_bytes(*rest.first_chunk::<2>()?);
            let value = attributes.get(4..length)?;
            // IFA_LOCAL is the address itself where both are given.
            if kind == IFA_LOCAL || (kind == IFA_ADDRESS && address.is_none()) {
                address = match value.len() {
                    4 => Some(IpAddr::from(*value.first_chunk::<4>()?)),
                    16 => Some(IpAddr::V6(Ipv6Addr::from(*value.first_chunk::<16>()?))),
                    _ => None,
                };
            }
            attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Some(AddressChange { address: address?, present })
    }
}

fn messages(mut data: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*data.first_chunk::<4>()?)).ok()?;
        let kind = u16::from_ne_bytes(*data.get(4..)?.first_chunk::<2>()?);
        let body = data.get(HEADER..length)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, body })
    })
}
