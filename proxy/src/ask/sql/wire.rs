//! What tokio-postgres needs of a stream: a bound to what it reads, and TLS of ours.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

use crate::connect::TlsParts;
use crate::tls;

/// Nothing is read for one question after this many bytes, TLS included. An answer has some hundred bytes; a handshake has the
/// server's certificates.
const ALLOWANCE: usize = 64 << 10;

/// What may still be read.
#[derive(Clone)]
pub(super) struct Allowance(Arc<AtomicUsize>);

impl Allowance {
    /// For the next question.
    pub(super) fn renew(&self) {
        self.0.store(ALLOWANCE, Ordering::Relaxed);
    }
}

/// A stream that ends with an error after [`ALLOWANCE`] bytes.
pub(super) struct Bounded {
    stream: TcpStream,
    left: Allowance,
}

impl Bounded {
    pub(super) fn new(stream: TcpStream) -> (Self, Allowance) {
        let left = Allowance(Arc::new(AtomicUsize::new(ALLOWANCE)));
        (Self { stream, left: left.clone() }, left)
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.left.0.load(Ordering::Relaxed);
        if left == 0 {
            let error =
                io::Error::new(io::ErrorKind::InvalidData, "the answer is longer than any that makes sense");
            return Poll::Ready(Err(error));
        }
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().len().saturating_sub(before);
        self.left.0.store(left.saturating_sub(read), Ordering::Relaxed);
        outcome
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Lays TLS over a stream. `None`: there is none to lay.
pub(super) struct Handshake(pub(super) Option<TlsParts>);

impl TlsConnect<Bounded> for Handshake {
    type Stream = Secured;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Secured>> + Send>>;

    fn connect(self, stream: Bounded) -> Self::Future {
        Box::pin(async move {
            let parts = self.0.ok_or_else(|| io::Error::other("TLS is not configured"))?;
            let stream = TlsConnector::from(parts.config).connect(parts.name, stream).await?;
            let certificates = stream.get_ref().1.peer_certificates();
            let binding = certificates.and_then(|all| tls::end_point(all.first()?));
            Ok(Secured { stream, binding })
        })
    }
}

/// A stream under TLS, and what ties a password's proof to it.
pub(super) struct Secured {
    stream: tokio_rustls::client::TlsStream<Bounded>,
    binding: Option<Vec<u8>>,
}

impl TlsStream for Secured {
    fn channel_binding(&self) -> ChannelBinding {
        self.binding.clone().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
