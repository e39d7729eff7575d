//! Connections that the kernel has completed and nobody has accepted yet.
//!
//! Each listening socket has a queue of them. When it is full the kernel drops what comes: the client tries again after
//! a second, and sees nothing but slowness. So the queues are shown, and it is told when one overflows.
//!
//! Sources: `/proc/net/tcp` and `tcp6` (of a listening socket, `rx_queue` is the length of its accept queue; the listening
//! ones come first, so a host with many connections costs no more), and `TcpExt` of `/proc/net/netstat`. Both are of this
//! network namespace.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;

use crate::socket::BACKLOG;

/// The accept queue of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Backlog {
    /// The address.
    pub address: SocketAddr,
    /// Connections that wait to be accepted. One more than `limit` may.
    pub waiting: u64,
    /// How many may wait before the kernel drops more: what we ask for, capped by `net.core.somaxconn` as it is now.
    pub limit: u64,
}

/// The accept queues of this network namespace at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queues(BTreeMap<SocketAddr, Waiting>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Waiting {
    connections: u64,
    sockets: u64,
}

impl Queues {
    /// As they are now; none where the kernel does not tell.
    pub fn read() -> Self {
        let mut queues = Self::default();
        for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
            let Ok(file) = File::open(path) else { continue };
            let lines = BufReader::with_capacity(4096, file).lines().skip(1).map_while(Result::ok);
            queues.add(lines);
        }
        queues
    }

    fn add(&mut self, lines: impl Iterator<Item = String>) {
        for (address, waiting) in lines.map_while(|line| listening(&line)) {
            let queue = self.0.entry(address).or_default();
            queue.connections += waiting;
            queue.sockets += 1;
        }
    }

    /// The queue of one of our addresses, over all sockets that listen there. `None`: none does.
    pub fn of(&self, address: SocketAddr) -> Option<Backlog> {
        let queue = self.0.get(&address)?;
        Some(Backlog { address, waiting: queue.connections, limit: limit() * queue.sockets })
    }
}

/// The queue length that the kernel grants to each of our sockets.
fn limit() -> u64 {
    let asked = u64::try_from(BACKLOG).unwrap_or(0);
    let most = fs::read_to_string("/proc/sys/net/core/somaxconn").ok();
    most.and_then(|most| most.trim().parse().ok()).map_or(asked, |most: u64| most.min(asked))
}

/// Address and queue length of a line of `/proc/net/tcp` or `tcp6`. `None`: not of a listening socket.
fn listening(line: &str) -> Option<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let mut columns = line.split_ascii_whitespace();
    let local = columns.nth(1)?;
    let state = columns.nth(1)?;
    let (_, waiting) = columns.next()?.split_once(':')?;
    if state != LISTEN {
        return None;
    }
    Some((address(local)?, u64::from_str_radix(waiting, 16).ok()?))
}

/// `0100007F:1388`: the words of the address as this processor reads them, the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    match ip.len() {
        8 => Some((Ipv4Addr::from(word(0)?), port).into()),
        32 => {
            let mut octets = [0; 16];
            for (at, place) in octets.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(at)?);
            }
            Some((Ipv6Addr::from(octets), port).into())
        }
        _ => None,
    }
}

/// How often a connection was dropped because of a listening socket, whoever's it was, since the network namespace exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overflows {
    /// The accept queue was full (`ListenOverflows`).
    pub overflows: u64,
    /// For any reason, a full queue among them (`ListenDrops`).
    pub drops: u64,
}

impl Overflows {
    /// As of now. `None`: the kernel does not tell.
    pub fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/net/netstat").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let (names, values) = (lines.next()?, lines.next()?);
        let value = |wanted: &str| {
            let at = names.split_ascii_whitespace().position(|name| name == wanted)?;
            values.split_ascii_whitespace().nth(at)?.parse().ok()
        };
        Some(Self { overflows: value("ListenOverflows")?, drops: value("ListenDrops")? })
    }
}

/// Notices growth of [`Overflows`].
#[derive(Clone, Copy, Debug)]
pub struct Watch(Option<Overflows>);

impl Watch {
    /// From now on.
    pub fn start() -> Self {
        Self(Overflows::read())
    }

    /// What has come since the last call. `None`: no overflow.
    pub fn grown(&mut self) -> Option<Overflows> {
        self.grown_to(Overflows::read())
    }

    fn grown_to(&mut self, now: Option<Overflows>) -> Option<Overflows> {
        let (before, now) = (std::mem::replace(&mut self.0, now)?, now?);
        let overflows = now.overflows.saturating_sub(before.overflows);
        (overflows > 0).then(|| Overflows { overflows, drops: now.drops.saturating_sub(before.drops) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_queue_is_found_with_its_length_and_limit() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = crate::socket::listen(address.parse().unwrap()).unwrap();
            let address = socket.local_addr().unwrap();
            let queue = || Queues::read().of(address);
            assert_eq!(queue().unwrap().waiting, 0);
            let _clients = [(); 3].map(|()| std::net::TcpStream::connect(address).unwrap());
            let began = std::time::Instant::now();
            while queue().unwrap().waiting < 3 {
                assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", queue());
                std::thread::yield_now();
            }
            let found = queue().unwrap();
            assert_eq!((found.address, found.waiting), (address, 3));
            assert!((1..=4096).contains(&found.limit), "{found:?}");
            drop(socket);
            assert_eq!(queue(), None);
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernel_are_understood() {
        let four = "   3: 0100007F:1388 00000000:0000 0A 00000000:00000011 00:00000000 00000000  0  0 1213 1 0 100 0 0 10 0";
        assert_eq!(listening(four), Some(("127.0.0.1:5000".parse().unwrap(), 17)));
        let six = " 0: 00000000000000000000000001000000:1389 00000000000000000000000000000000:0000 0A 00000000:00000000 00:0 0";
        assert_eq!(listening(six), Some(("[::1]:5001".parse().unwrap(), 0)));
        assert_eq!(listening(&four.replace(" 0A ", " 01 ")), None);
        for nonsense in
            ["", "1: 2 3 0A", "1: 0100007F:1388 x 0A 0:y", "1: 01:1388 x 0A 0:0", "1: é100007F:1388 x 0A 0:0"]
        {
            assert_eq!(listening(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn sockets_that_share_an_address_are_added_up_and_the_first_connection_ends_the_search() {
        let line = |state, waiting| format!("0: 0100007F:1388 0:0 {state} 00000000:{waiting:08X} 0");
        let mut queues = Queues::default();
        queues.add([line("0A", 2), line("0A", 3), line("01", 500), line("0A", 7)].into_iter());
        let queue = queues.0.values().next().unwrap();
        assert_eq!((queue.connections, queue.sockets), (5, 2));
    }

    #[test]
    fn growth_is_told_once() {
        let at = |overflows, drops| Some(Overflows { overflows, drops });
        let mut watch = Watch(at(5, 9));
        assert_eq!(watch.grown_to(at(5, 12)), None);
        assert_eq!(watch.grown_to(at(8, 16)), at(3, 4));
        assert_eq!(watch.grown_to(at(8, 16)), None);
        assert_eq!(watch.grown_to(None), None);
        assert_eq!(watch.grown_to(at(9, 17)), None, "it is not known what was before");
    }

    #[test]
    fn the_kernels_table_is_read_by_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows Other ListenDrops\nTcpExt: 1 22 3 44\nIpExt: A\nIpExt: 1\n";
        assert_eq!(Overflows::parse(text), Some(Overflows { overflows: 22, drops: 44 }));
        for nonsense in ["", "TcpExt: ListenOverflows", "TcpExt: ListenOverflows ListenDrops\nTcpExt: 1"] {
            assert_eq!(Overflows::parse(nonsense), None);
        }
    }
}
