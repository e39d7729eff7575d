//! A small HTTP client: one request, one connection, a deadline; over TLS where the place says so.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// For a whole request, from the connect to the last byte of the body.
const DEADLINE: Duration = Duration::from_secs(5);
/// Patroni answers a switchover when it is over.
const SLOW_DEADLINE: Duration = Duration::from_secs(60);
const BODY_LIMIT: usize = 16 << 20;

/// Where a request goes, and how. An address alone: in the clear.
#[derive(Debug, Clone)]
pub struct Place {
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    authorization: Option<String>,
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        Self { address, tls: None, authorization: None }
    }
}

impl Place {
    /// The same with a header `Authorization`.
    #[must_use]
    pub fn authorized(self, by: String) -> Self {
        Self { authorization: Some(by), ..self }
    }

    /// The same over TLS.
    #[must_use]
    pub fn over(self, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { tls, ..self }
    }
}

/// TLS that trusts `ca` and shows a certificate (`cert`, `key`).
pub fn tls(ca: &Path, cert: &Path, key: &Path) -> Result<Arc<ClientConfig>> {
    let certificates = |file: &Path| {
        CertificateDer::pem_file_iter(file)?.collect::<Result<Vec<_>, _>>().map_err(anyhow::Error::from)
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots);
    let config = builder.with_client_auth_cert(certificates(cert)?, PrivateKeyDer::from_pem_file(key)?)?;
    Ok(Arc::new(config))
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {:?}", self.body))
    }
}

/// `GET path`.
pub async fn get(place: impl Into<Place>, path: &str) -> Result<Answer> {
    timed(DEADLINE, place.into(), Method::GET, path, String::new()).await
}

/// `METHOD path` with a JSON body.
pub async fn send(
    place: impl Into<Place>,
    method: Method,
    path: &str,
    body: &serde_json::Value,
) -> Result<Answer> {
    timed(DEADLINE, place.into(), method, path, body.to_string()).await
}

/// `METHOD path` with a body of plain text.
pub async fn send_text(address: SocketAddr, method: Method, path: &str, body: &str) -> Result<Answer> {
    timed(DEADLINE, address.into(), method, path, body.to_owned()).await
}

/// As [`send`], for requests that take as long as a switchover takes.
pub async fn send_slow(
    place: impl Into<Place>,
    method: Method,
    path: &str,
    body: &serde_json::Value,
) -> Result<Answer> {
    timed(SLOW_DEADLINE, place.into(), method, path, body.to_string()).await
}

async fn timed(deadline: Duration, place: Place, method: Method, path: &str, body: String) -> Result<Answer> {
    let what = format!("{method} {}{path}", place.address);
    tokio::time::timeout(deadline, exchange(place, method, path, body))
        .await
        .with_context(|| format!("{what}: no answer in {deadline:?}"))?
        .with_context(|| what)
}

/// A connection, in the clear or not.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

async fn connect(place: &Place) -> Result<Box<dyn Connection>> {
    let stream = TcpStream::connect(place.address).await?;
    Ok(match &place.tls {
        None => Box::new(stream),
        Some(tls) => {
            let name = ServerName::from(place.address.ip());
            Box::new(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?)
        }
    })
}

async fn exchange(place: Place, method: Method, path: &str, body: String) -> Result<Answer> {
    let stream = connect(&place).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, place.address.to_string())
        .header(header::CONNECTION, "close")
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(by) = place.authorization {
        request = request.header(header::AUTHORIZATION, by);
    }
    let request = request.body(Full::new(Bytes::from(body)))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the body: {error}"))?.to_bytes();
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    };
    // The connection is driven beside the exchange, and dropped with it.
    let drive = async {
        drop(connection.await);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = answer => answer,
        () = drive => unreachable!("never ends"),
    }
}
