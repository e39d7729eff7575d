//! One connection to a server of the control side (etcd, Patroni's REST interface): TCP, and TLS over it.
//!
//! Nothing here has a deadline of its own: the caller's deadline covers the whole.

use std::error::Error as _;
use std::io;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use crate::tls;

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

/// Connects to a host (looked up if it is a name; every address is tried in turn), without Nagle's delay.
pub(crate) async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects, over TLS if its parts are given.
pub(crate) async fn open(host: &str, port: u16, tls: Option<TlsParts>) -> io::Result<Box<dyn Connection>> {
    let stream = tcp(host, port).await?;
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
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused: nothing listens there".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => "the connection was closed".to_owned(),
        _ => error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}")),
    }
}
