//! Fake servers: one task for each, with a script for each of its connections.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A listener on loopback that hands its connections, with their number from 0, to a script.
pub(crate) struct FakeServer {
    pub(crate) port: u16,
    connections: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl FakeServer {
    pub(crate) async fn start<F>(script: impl Fn(usize, TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut scripts = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                scripts.spawn(script(count.fetch_add(1, Ordering::SeqCst), stream));
            }
        });
        Self { port, connections, _task: task }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Passes everything on to another server, until it is muted: then its connections stay open and say nothing.
pub(crate) async fn forwarder(to: String, mute: tokio::sync::watch::Receiver<bool>) -> FakeServer {
    FakeServer::start(move |_, near| {
        let (to, mut mute) = (to.clone(), mute.clone());
        async move {
            let far = TcpStream::connect(to).await.unwrap();
            let (mut near_in, mut near_out) = near.into_split();
            let (mut far_in, mut far_out) = far.into_split();
            tokio::select! {
                _ = tokio::io::copy(&mut near_in, &mut far_out) => {}
                _ = tokio::io::copy(&mut far_in, &mut near_out) => {}
                () = async { drop(mute.wait_for(|mute| *mute).await) } => std::future::pending().await,
            }
        }
    })
    .await
}

/// A port on which nobody listens.
pub(crate) async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Reads one request, without a body; `None` when the client has gone.
pub(crate) async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// Answers with a status and a body.
pub(crate) async fn respond(stream: &mut (impl AsyncWrite + Unpin), status: u16, body: &str) {
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
}
