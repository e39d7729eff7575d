//! A network that can fail: a forwarder of connections to one address, in the test's own process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the network does with what is sent through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Passes it on.
    Fair,
    /// Connections break, and new ones are closed as soon as they are made.
    Cut,
    /// Nothing moves and nothing ends: lost packets, as far as the two can tell.
    Frozen,
}

/// Forwards every connection that is made to [`FakeNetwork::address`]. Dropping it ends all of them.
#[derive(Debug)]
pub struct FakeNetwork {
    address: SocketAddr,
    weather: Arc<watch::Sender<Weather>>,
    _task: JoinSet<()>,
}

impl FakeNetwork {
    /// Listens on `address` and forwards to `server`.
    pub async fn start(address: SocketAddr, server: SocketAddr) -> Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let weather = Arc::new(watch::channel(Weather::Fair).0);
        let mut task = JoinSet::new();
        task.spawn(accept(socket, server, Arc::clone(&weather)));
        Ok(Self { address, weather, _task: task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather, for open connections as for new ones.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn accept(socket: TcpListener, server: SocketAddr, weather: Arc<watch::Sender<Weather>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = socket.accept() => {
                // A client that has gone already.
                let Ok((client, _)) = accepted else { continue };
                connections.spawn(forward(client, server, weather.subscribe()));
            }
            _ = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn forward(client: TcpStream, server: SocketAddr, mut weather: watch::Receiver<Weather>) {
    let (mut there, mut back) = (weather.clone(), weather.clone());
    let pass = async {
        fair(&mut there).await;
        let connected = tokio::time::timeout(Duration::from_secs(5), TcpStream::connect(server)).await;
        let Ok(Ok(server)) = connected else { return };
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::select! {
            () = pump(from_client, to_server, &mut there) => {}
            () = pump(from_server, to_client, &mut back) => {}
        }
    };
    tokio::select! {
        () = pass => {}
        _ = weather.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, weather: &mut watch::Receiver<Weather>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        fair(weather).await;
        if to.write_all(buffer.get(..count).unwrap_or_default()).await.is_err() {
            break;
        }
    }
    fair(weather).await; // an end is held back like everything else
}

async fn fair(weather: &mut watch::Receiver<Weather>) {
    // Fails only when the network is gone, and all of this with it.
    let _ = weather.wait_for(|weather| *weather == Weather::Fair).await;
}
