//! Loopback addresses: a /24 for each run, so that servers keep their usual ports and runs never meet.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

use anyhow::{Result, bail};

/// How far apart the addresses of clusters beside each other begin.
const PLACE: u8 = 30;

/// A /24 of 127.0.0.0/8. Linux lets anybody bind any address of it.
///
/// The /24 is held by an abstract Unix socket named after it: the kernel hands it to one process only, and takes it back
/// when the last descriptor is closed, however that comes about. It is local to the network namespace, as the addresses are.
#[derive(Debug)]
pub struct Addresses {
    net: [u8; 3],
    lock: OwnedFd,
}

impl Addresses {
    /// The first free /24 of 127.64.0.0/10, looked for from a place that differs between processes.
    pub fn reserve() -> Result<Self> {
        let start = std::process::id();
        for step in 0..1000_u32 {
            let [.., high, low] = start.wrapping_add(step).to_be_bytes();
            if let Some(addresses) = Self::lock([127, 64 | (high & 63), low])? {
                return Ok(addresses);
            }
        }
        bail!("a thousand loopback networks are in use: are there runs that never ended?")
    }

    /// 127.0.0.0/24, for the demo. There is one of it: a second taker is told so.
    pub fn demo() -> Result<Self> {
        match Self::lock([127, 0, 0])? {
            Some(addresses) => Ok(addresses),
            None => bail!("another demo runs on this machine: stop it first"),
        }
    }

    fn lock(net: [u8; 3]) -> Result<Option<Self>> {
        let [a, b, c] = net;
        let name = UnixAddr::from_abstract_name(format!("pointsman-net-{a}.{b}.{c}"))?;
        match UnixListener::bind_addr(&name) {
            Ok(socket) => Ok(Some(Self { net, lock: socket.into() })),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A second handle of the lock, for the process that cleans up after us.
    pub(crate) fn share_lock(&self) -> Result<OwnedFd> {
        Ok(self.lock.try_clone()?)
    }

    fn host(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.net;
        Ipv4Addr::new(a, b, c, last)
    }

    /// Load-balancer host `index` (0, 1, …): x.x.x.1 and up.
    pub fn balancer(&self, index: u8) -> Ipv4Addr {
        self.host(1 + index)
    }

    /// etcd node `index` (0, 1, 2): x.x.x.10, .9, .8; at places 1 and 2 with .40 and .70 as the first.
    pub fn etcd(&self, place: u8, index: u8) -> Ipv4Addr {
        self.host(10 + PLACE * place - index)
    }

    /// Consul server `index` (0, 1, 2): x.x.x.10, .9, .8. A cluster has one kind of store.
    pub fn consul(&self, index: u8) -> Ipv4Addr {
        self.etcd(0, index)
    }

    /// PostgreSQL host `index` (0, 1, …): x.x.x.11 and up; at places 1 and 2 from .41 and .71.
    pub fn member(&self, place: u8, index: u8) -> Ipv4Addr {
        self.host(11 + PLACE * place + index)
    }

    /// Any other address, for what a test wants to place itself: x.x.x.100 and up.
    pub fn other(&self, index: u8) -> Ipv4Addr {
        self.host(100 + index)
    }
}

/// Sixteen ports of `::1` that no other run uses: IPv6 has one loopback address only.
///
/// Below the ports that the kernel hands out. Held as [`Addresses`] are.
#[derive(Debug)]
pub struct Ports6 {
    first: u16,
    _lock: OwnedFd,
}

impl Ports6 {
    /// The first free block, looked for from a place that differs between processes.
    pub fn reserve() -> Result<Self> {
        const BLOCKS: u32 = 1_000;
        for step in 0..BLOCKS {
            let block = u16::try_from(std::process::id().wrapping_add(step) % BLOCKS)?;
            let name = UnixAddr::from_abstract_name(format!("pointsman-ports6-{block}"))?;
            match UnixListener::bind_addr(&name) {
                Ok(socket) => return Ok(Self { first: 10_000 + block * 16, _lock: socket.into() }),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error.into()),
            }
        }
        bail!("all blocks of ports of ::1 are in use: are there runs that never ended?")
    }

    /// Port `index` (0 to 15) of the block.
    pub fn at(&self, index: u16) -> SocketAddr {
        SocketAddr::from((Ipv6Addr::LOCALHOST, self.first + index % 16))
    }
}
