//! One connection to a server of the control side (etcd, Patroni's REST interface): TCP, and TLS over it.
//!
//! Nothing here has a deadline of its own: the caller's deadline covers the whole.

use std::error::Error as _;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use crate::tls;

#[cfg(test)]
mod tests;

/// An address that has not answered for so long is not waited for alone (RFC 8305, Connection Attempt Delay).
const STAGGER: Duration = Duration::from_millis(250);
/// More addresses than this no server has; a name server may send what it likes.
const MAX_ADDRESSES: usize = 16;

/// A connection, in the clear or over TLS.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// What TLS needs for one connection.
pub(crate) struct TlsParts {
    /// CAs, client certificate, ALPN.
    pub(crate) config: Arc<ClientConfig>,
    /// The name to expect.
    pub(crate) name: ServerName<'static>,
}

/// A connection that remembers what it broke of. A library on top of it may say no more than "closed"; with
/// TLS 1.3 even the refusal of our certificate comes as late as that.
pub(crate) struct Remembering {
    connection: Box<dyn Connection>,
    trouble: Trouble,
}

/// Why a connection broke, once it has, for people.
pub(crate) type Trouble = Arc<OnceLock<String>>;

impl Remembering {
    pub(crate) fn new(connection: Box<dyn Connection>) -> (Self, Trouble) {
        let trouble = Trouble::default();
        (Self { connection, trouble: Arc::clone(&trouble) }, trouble)
    }

    fn remember<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &outcome {
            self.trouble.get_or_init(|| explain(error));
        }
        outcome
    }
}

impl AsyncRead for Remembering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.connection).poll_read(cx, buf);
        self.remember(outcome)
    }
}

impl AsyncWrite for Remembering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.connection).poll_write(cx, buf);
        self.remember(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.connection).poll_write_vectored(cx, bufs);
        self.remember(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}

/// Connects to a host, without Nagle's delay. A name is looked up each time; see [`tcp_turn`].
pub(crate) async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    tcp_turn(host, port, 0).await
}

/// The same for the `turn`-th time in a row, from 0: if the name has several addresses, each turn begins with the next of
/// them. An address may take connections and then do nothing; only the caller can see that.
pub(crate) async fn tcp_turn(host: &str, port: u16, turn: usize) -> io::Result<TcpStream> {
    let mut addresses: Vec<_> = lookup_host((host, port)).await?.take(MAX_ADDRESSES).collect();
    let first = turn.checked_rem(addresses.len()).unwrap_or_default();
    addresses.rotate_left(first);
    let stream = any_of(addresses).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The first connection to be made. An address is tried when the one before it fails or is slow; nobody is given up.
async fn any_of(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut addresses = addresses.into_iter();
    let mut dials = FuturesUnordered::new();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut next_at = Instant::now();
    loop {
        tokio::select! {
            Some(dialled) = dials.next() => match dialled {
                Ok(stream) => return Ok(stream),
                Err(error) => (failed, next_at) = (error, Instant::now()),
            },
            () = sleep_until(next_at), if addresses.len() > 0 => {
                dials.extend(addresses.next().map(TcpStream::connect));
                next_at = Instant::now() + STAGGER;
            }
            else => return Err(failed),
        }
    }
}

/// Lays TLS over a connection, if its parts are given.
pub(crate) async fn secure(stream: TcpStream, tls: Option<TlsParts>) -> io::Result<Box<dyn Connection>> {
    match tls {
        None => Ok(Box::new(stream)),
        Some(parts) => Ok(Box::new(TlsConnector::from(parts.config).connect(parts.name, stream).await?)),
    }
}

/// A failed connection, in the end of a sentence for people.
pub(crate) fn explain(error: &io::Error) -> String {
    if let Some(tls) = tls::explain(error) {
        return tls;
    }
    let kind = error.kind();
    if kind == io::ErrorKind::ConnectionRefused {
        return "connection refused: nothing listens there".to_owned();
    }
    if matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) {
        return "the connection was closed by the other side".to_owned();
    }
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
