//! What the hosts tell each other beside VRRP: one TCP connection to each, whose end tells that its process has ended, and sealed
//! reports in datagrams. Both use the address of this host in `[vrrp] peers`.
//!
//! A report counts when its seal is right, when it was sent by the process that has proved who it is over the last connection,
//! and when it is newer than all before. That trust outlives a connection that breaks, so that a partition heals with the first
//! datagram that gets through; it ends with the process.
//!
//! Tasks: one that accepts, one for each host that is called, one for each connection; all owned by [`Peers`] and ended with it.
//! Bounds: [`STRANGERS`] connections that have not proved anything yet, a second for each; 64 news that wait for the router
//! thread; one datagram at a time.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::NodeName;
use pointsman_vrrp::event::{Event, Wire};
use pointsman_vrrp::report::{Incarnation, Key, MAX_SIZE, Report, Sender, Unsealed, open, seal};
use ring::rand::{SecureRandom as _, SystemRandom};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[cfg(test)]
mod tests;
mod wire;

/// Connections at once that have not proved who they are.
pub const STRANGERS: usize = 16;

/// News of connections that may wait.
const NEWS: usize = 64;

/// How long the last word to each host may take.
const FAREWELL: Duration = Duration::from_millis(50);

/// Why the hosts cannot signal each other.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// `[vrrp] peers` does not name this host.
    #[error("vrrp.peers: there is no address for this host, {0}")]
    Unnamed(NodeName),
    /// The address of this host cannot be used.
    #[error("vrrp.peers: cannot listen on {address} ({what}): {error}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// TCP or UDP.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The system has no random numbers for us.
    #[error("no random numbers: the keys of the peers cannot be used safely")]
    Random,
}

/// What this host says of itself to all others.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) node: NodeName,
    pub(crate) incarnation: Incarnation,
    pub(crate) key: Key,
    pub(crate) others: BTreeMap<NodeName, SocketAddr>,
    pub(crate) random: SystemRandom,
}

/// What became of a connection. `id`: which one, since a new one may be there before the old one's end is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) node: NodeName,
    pub(crate) id: u64,
    pub(crate) incarnation: Incarnation,
    pub(crate) wire: Wire,
}

/// Whose reports count.
#[derive(Clone, Copy, Debug)]
struct Trust {
    incarnation: Incarnation,
    /// The connection that established it, while it is there.
    connection: Option<u64>,
    /// The last report that was taken.
    sequence: u64,
    ended: bool,
}

/// What was refused, for metrics and the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Datagrams, by [`Unsealed::label`]; `stale`: recorded, doubled, or of a process that is not trusted.
    pub datagrams: BTreeMap<&'static str, u64>,
}

/// The connections and datagrams of this host.
#[derive(Debug)]
pub struct Peers {
    identity: Arc<Identity>,
    udp: UdpSocket,
    news: mpsc::Receiver<News>,
    trust: BTreeMap<NodeName, Trust>,
    sequence: u64,
    refused: Refused,
    pending: Vec<Event>,
    buffer: Box<[u8]>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Peers {
    /// Binds this host's address and starts to call the others. On a runtime.
    pub fn start(config: &pointsman_config::Peers, node: &NodeName) -> Result<Self, PeersError> {
        let address = *config.nodes.get(node).ok_or_else(|| PeersError::Unnamed(node.clone()))?;
        let failed = |what| move |error| PeersError::Bind { address, what, error };
        let listener = bind_tcp(address).map_err(failed("TCP"))?;
        let udp = bind_udp(address).map_err(failed("UDP"))?;
        let random = SystemRandom::new();
        let mut number = [0; 8];
        random.fill(&mut number).map_err(|_| PeersError::Random)?;
        let others = config.nodes.iter().filter(|(name, _)| *name != node);
        let identity = Arc::new(Identity {
            node: node.clone(),
            incarnation: Incarnation(u64::from_ne_bytes(number)),
            key: Key::derive(config.key.expose().as_bytes()),
            others: others.map(|(name, address)| (name.clone(), *address)).collect(),
            random,
        });
        let (sender, news) = mpsc::channel(NEWS);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let wires = wire::Wires::new(Arc::clone(&identity), sender, tasks.clone(), stop.clone());
        wires.start(listener);
        Ok(Self {
            identity,
            udp,
            news,
            trust: BTreeMap::new(),
            sequence: 0,
            refused: Refused::default(),
            pending: Vec::new(),
            buffer: vec![0; MAX_SIZE + 1].into(),
            tasks,
            stop,
        })
    }

    /// The next thing that another host says, or that becomes of its connection. Cancel-safe.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.take() {
                return event;
            }
            tokio::select! {
                biased;
                Some(news) = self.news.recv() => self.hear(&news),
                ready = self.udp.readable() => if ready.is_err() {
                    std::future::pending::<()>().await; // the runtime ends
                },
            }
        }
    }

    /// What has arrived already, without waiting.
    pub fn take(&mut self) -> Option<Event> {
        if self.pending.is_empty()
            && let Ok(news) = self.news.try_recv()
        {
            self.hear(&news);
        }
        if !self.pending.is_empty() {
            return Some(self.pending.remove(0));
        }
        self.read_report()
    }

    /// What was refused so far.
    pub const fn refused(&self) -> &Refused {
        &self.refused
    }

    /// Sends a report to every host that has met us. It never waits: one that does not go out now is followed by the next.
    pub fn send(&mut self, report: &Report) {
        self.sequence += 1;
        let sender = Sender {
            node: self.identity.node.clone(),
            incarnation: self.identity.incarnation,
            sequence: self.sequence,
        };
        let datagram = seal(&self.identity.key, &sender, report);
        let met = self.trust.iter().filter(|(_, trust)| !trust.ended);
        for address in met.filter_map(|(node, _)| self.identity.others.get(node)) {
            let _ = self.udp.try_send_to(&datagram, *address); // lost, as any datagram may be
        }
    }

    /// Says good-bye to every host and ends all connections.
    pub async fn farewell(self) {
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(FAREWELL, self.tasks.wait()).await; // who does not listen is not waited for
    }

    fn hear(&mut self, news: &News) {
        let node = news.node.clone();
        let event = |wire| Event::Wire { node: node.clone(), wire };
        let known = self.trust.get_mut(&news.node);
        if news.wire == Wire::Connected {
            // Another process at its place: the one that we knew has ended, whether or not we saw it.
            let succeeds = known.is_some_and(|trust| trust.incarnation != news.incarnation && !trust.ended);
            self.pending.extend(succeeds.then(|| event(Wire::Ended)));
            let same = self.trust.get(&news.node).filter(|trust| trust.incarnation == news.incarnation);
            let sequence = same.map_or(0, |trust| trust.sequence);
            let trust =
                Trust { incarnation: news.incarnation, connection: Some(news.id), sequence, ended: false };
            self.trust.insert(news.node.clone(), trust);
        } else {
            // The end of a connection that has been succeeded by another one says nothing.
            let Some(trust) = known.filter(|trust| trust.connection == Some(news.id)) else { return };
            trust.connection = None;
            trust.ended = matches!(news.wire, Wire::Ended | Wire::Farewell);
        }
        self.pending.push(event(news.wire));
    }

    /// The next datagram that counts.
    fn read_report(&mut self) -> Option<Event> {
        loop {
            match self.udp.try_recv_from(&mut self.buffer) {
                Ok((length, _)) => {
                    let event = self.judge(length);
                    if event.is_some() {
                        return event;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // A host that is away: its port is closed (ICMP), and that is told to whom we did not ask.
                Err(_) => {}
            }
        }
    }

    fn judge(&mut self, length: usize) -> Option<Event> {
        let datagram = self.buffer.get(..length)?;
        let (sender, report) = match open(&self.identity.key, datagram) {
            Ok(opened) => opened,
            Err(error) => {
                self.refuse(error.label());
                if let Unsealed::Version { .. } = error {
                    tracing::debug!(%error, "a report of another host cannot be read");
                }
                return None;
            }
        };
        let trust = self.trust.get_mut(&sender.node);
        let fresh = trust.filter(|trust| {
            !trust.ended && trust.incarnation == sender.incarnation && sender.sequence > trust.sequence
        });
        let Some(trust) = fresh else {
            self.refuse("stale");
            return None;
        };
        trust.sequence = sender.sequence;
        Some(Event::Report { node: sender.node, report })
    }

    fn refuse(&mut self, label: &'static str) {
        *self.refused.datagrams.entry(label).or_default() += 1;
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The address may come later (an interface that is not up yet).
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(address, Type::STREAM, Protocol::TCP)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = new_socket(address, Type::DGRAM, Protocol::UDP)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn new_socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
        // Before the bulk of sessions, where a switch or a queue on the way can tell (RFC 2474, CS6).
        socket.set_tos_v4(0xc0)?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}
