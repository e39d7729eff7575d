//! One connection to a server of the control side (etcd, Patroni's REST interface): TCP, and TLS over it.
//!
//! Nothing here has a deadline of its own: the caller's deadline covers the whole.

use std::error::Error as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use crate::tls;

/// A connection, in the clear or over TLS.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// What TLS needs for one connection.
#[derive(Clone)]
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

/// Connects to a host (looked up if it is a name; every address is tried in turn), without Nagle's delay.
pub(crate) async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
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
