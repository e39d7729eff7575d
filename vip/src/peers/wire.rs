//! The connections: of each two hosts, the one whose name comes first calls the other.
//!
//! After the handshake nothing is said until the farewell. What is waited for is the end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pointsman_config::NodeName;
use pointsman_vrrp::event::Wire;
use pointsman_vrrp::handshake::{Failure, Handshake, Heard, Hello, NONCE, Peer, Progress, Role, Stream};
use ring::rand::SecureRandom as _;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Identity, News, STRANGERS, new_socket};

/// For the connection, and again for the handshake.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two calls: at first, and at most.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A host that was switched off says nothing when it is back; these questions find out (its kernel knows no such connection).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// The same failure is told once in so many calls.
const TOLD_EVERY: u32 = 60;

/// What every task needs.
#[derive(Clone, Debug)]
pub(super) struct Wires {
    identity: Arc<Identity>,
    news: mpsc::Sender<News>,
    tasks: TaskTracker,
    stop: CancellationToken,
    strangers: Arc<Semaphore>,
    ids: Arc<AtomicU64>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum WireError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer within {} ms", PATIENCE.as_millis())]
    TimedOut,
    #[error("the other side closed the connection before it had proved who it is")]
    Closed,
    #[error("{0}")]
    Handshake(Failure),
    #[error("{0} answered there: are two addresses in `peers` mixed up?")]
    SomebodyElse(NodeName),
    #[error("{0} called, which is not in `peers`, or should be called by us")]
    Unexpected(NodeName),
    #[error("no random numbers")]
    Random,
}

impl Wires {
    pub(super) fn new(
        identity: Arc<Identity>,
        news: mpsc::Sender<News>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        Self { identity, news, tasks, stop, strangers, ids: Arc::default() }
    }

    pub(super) fn start(self, listener: TcpListener) {
        for (node, address) in self.identity.others.clone() {
            if self.identity.node < node {
                let wires = self.clone();
                let stop = self.stop.clone();
                self.tasks.spawn(async move {
                    stop.run_until_cancelled(wires.keep_calling(&node, address)).await;
                });
            }
        }
        let tasks = self.tasks.clone();
        let stop = self.stop.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(self.accept(&listener)).await;
        });
    }

    /// Calls a host for ever.
    async fn keep_calling(&self, node: &NodeName, address: SocketAddr) {
        let mut pause = PAUSE;
        let mut failures = 0_u32;
        loop {
            match self.call(node, address).await {
                Ok(()) => (pause, failures) = (PAUSE, 0),
                Err(error) => {
                    if failures.is_multiple_of(TOLD_EVERY) {
                        tracing::info!(%node, %address, %error, "no connection to another load balancer");
                    }
                    failures += 1;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            sleep(self.jittered(pause)).await;
        }
    }

    /// Three quarters to all of it, so that hosts that lost each other do not call in step.
    fn jittered(&self, pause: Duration) -> Duration {
        let mut byte = [0];
        let _ = self.identity.random.fill(&mut byte); // without, they call in step
        pause * (768 + u32::from(byte[0])) / 1024
    }

    async fn call(&self, node: &NodeName, address: SocketAddr) -> Result<(), WireError> {
        let mut stream = timeout(PATIENCE, connect(address)).await.map_err(|_| WireError::TimedOut)??;
        let (peer, rest) = self.meet(&mut stream, Role::Caller).await?;
        if peer.node != *node {
            return Err(WireError::SomebodyElse(peer.node));
        }
        self.follow(stream, peer, rest).await;
        Ok(())
    }

    /// Takes calls for ever.
    async fn accept(&self, listener: &TcpListener) {
        loop {
            let Ok(permit) = Arc::clone(&self.strangers).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a call of another load balancer");
                    sleep(LONGEST_PAUSE).await;
                    continue;
                }
            };
            let wires = self.clone();
            self.tasks.spawn(async move {
                let mut stream = stream;
                let met = wires.stop.run_until_cancelled(wires.meet(&mut stream, Role::Callee)).await;
                drop(permit);
                match met {
                    None => {}
                    Some(Ok((peer, rest))) if wires.expects(&peer.node) => {
                        wires.follow(stream, peer, rest).await;
                    }
                    Some(Ok((peer, _))) => {
                        tracing::warn!(error = %WireError::Unexpected(peer.node), "a call was refused");
                    }
                    Some(Err(error)) => tracing::debug!(%error, "a call came to nothing"),
                }
            });
        }
    }

    fn expects(&self, node: &NodeName) -> bool {
        *node < self.identity.node && self.identity.others.contains_key(node)
    }

    /// The handshake.
    async fn meet(&self, stream: &mut TcpStream, role: Role) -> Result<(Peer, Stream), WireError> {
        prepare(stream);
        timeout(PATIENCE, self.shake_hands(stream, role)).await.map_err(|_| WireError::TimedOut)?
    }

    async fn shake_hands(&self, stream: &mut TcpStream, role: Role) -> Result<(Peer, Stream), WireError> {
        let mut nonce = [0; NONCE];
        self.identity.random.fill(&mut nonce).map_err(|_| WireError::Random)?;
        let hello = Hello { node: self.identity.node.clone(), incarnation: self.identity.incarnation, nonce };
        let mut handshake = Handshake::new(self.identity.key.clone(), hello, role);
        let mut buffer = [0; 512];
        stream.write_all(&handshake.outgoing()).await?;
        loop {
            let length = stream.read(&mut buffer).await?;
            let received = buffer.get(..length).filter(|bytes| !bytes.is_empty()).ok_or(WireError::Closed)?;
            let progress = handshake.feed(received);
            stream.write_all(&handshake.outgoing()).await?;
            match progress {
                Progress::NeedMore => {}
                Progress::Failed(failure) => return Err(WireError::Handshake(failure)),
                Progress::Done(peer) => {
                    return handshake.into_stream().map(|rest| (peer, rest)).ok_or(WireError::Closed);
                }
            }
        }
    }

    /// Waits for the end of a connection, or for ours.
    async fn follow(&self, mut stream: TcpStream, peer: Peer, mut rest: Stream) {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let news = |wire| News { node: peer.node.clone(), id, incarnation: peer.incarnation, wire };
        self.tell(news(Wire::Connected)).await;
        let ended = self.stop.run_until_cancelled(wait_for_end(&mut stream, &mut rest)).await;
        if let Some(wire) = ended {
            self.tell(news(wire)).await;
        } else {
            let _ = stream.write_all(&rest.farewell()).await; // to whom is gone already, nothing needs to be said
            let _ = stream.shutdown().await;
        }
    }

    async fn tell(&self, news: News) {
        let _ = self.news.send(news).await; // nobody listens any more at the end
    }
}

/// How a connection ends.
async fn wait_for_end(stream: &mut TcpStream, rest: &mut Stream) -> Wire {
    let mut buffer = [0; 64];
    let mut heard = rest.feed(&[]);
    loop {
        match heard {
            Heard::Nothing => {}
            Heard::Farewell => return Wire::Farewell,
            Heard::Nonsense => return Wire::Broken,
        }
        match stream.read(&mut buffer).await {
            Ok(0) => return Wire::Ended,
            Ok(length) => heard = rest.feed(buffer.get(..length).unwrap_or_default()),
            // An RST can be anybody's: a firewall's, or of a kernel that has been started anew.
            Err(_) => return Wire::Broken,
        }
    }
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = new_socket(to, socket2::Type::STREAM, socket2::Protocol::TCP)?;
    tokio::net::TcpSocket::from_std_stream(socket.into()).connect(to).await
}

fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(5);
    // Precautions: the connection works without them.
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_nodelay(true);
}
