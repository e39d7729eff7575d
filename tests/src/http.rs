//! A small HTTP client: one request, one connection, a deadline. In the clear, or over TLS with a password.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
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

/// Whom to ask. A bare address is asked in the clear.
#[derive(Debug, Clone)]
pub struct Target {
    address: SocketAddr,
    access: Option<Access>,
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { address, access: None }
    }
}

impl Target {
    /// A server that speaks TLS.
    pub fn over_tls(address: SocketAddr, access: Access) -> Self {
        Self { address, access: Some(access) }
    }
}

/// How to be let in by a server that speaks TLS.
#[derive(Clone)]
pub struct Access {
    tls: TlsConnector,
    authorization: Option<String>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

impl Access {
    /// With these files (PEM), and a user and password where they are given.
    pub fn new(ca: &Path, cert: &Path, key: &Path, login: Option<(&str, &str)>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca)?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(cert)?],
                PrivateKeyDer::from_pem_file(key)?,
            )?;
        let encoded = |(user, password): (&str, &str)| {
            format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
            )
        };
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), authorization: login.map(encoded) })
    }
}

/// `GET path`.
pub async fn get(to: impl Into<Target>, path: &str) -> Result<Answer> {
    timed(DEADLINE, to.into(), Method::GET, path, String::new()).await
}

/// `METHOD path` with a JSON body.
pub async fn send(
    to: impl Into<Target>,
    method: Method,
    path: &str,
    body: &serde_json::Value,
) -> Result<Answer> {
    timed(DEADLINE, to.into(), method, path, body.to_string()).await
}

/// As [`send`], for requests that take as long as a switchover takes.
pub async fn send_slow(
    to: impl Into<Target>,
    method: Method,
    path: &str,
    body: &serde_json::Value,
) -> Result<Answer> {
    timed(SLOW_DEADLINE, to.into(), method, path, body.to_string()).await
}

async fn timed(deadline: Duration, to: Target, method: Method, path: &str, body: String) -> Result<Answer> {
    let scheme = if to.access.is_some() { "https" } else { "http" };
    let what = format!("{method} {scheme}://{}{path}", to.address);
    tokio::time::timeout(deadline, connect(to, method, path, body))
        .await
        .with_context(|| format!("{what}: no answer in {deadline:?}"))?
        .with_context(|| what)
}

async fn connect(to: Target, method: Method, path: &str, body: String) -> Result<Answer> {
    let stream = TcpStream::connect(to.address).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, to.address.to_string())
        .header(header::CONNECTION, "close")
        .header(header::CONTENT_TYPE, "application/json");
    let Some(Access { tls, authorization }) = to.access else {
        return exchange(stream, request.body(Full::new(Bytes::from(body)))?).await;
    };
    let request = match authorization {
        Some(authorization) => request.header(header::AUTHORIZATION, authorization),
        None => request,
    };
    let stream = tls.connect(ServerName::from(to.address.ip()), stream).await?;
    exchange(stream, request.body(Full::new(Bytes::from(body)))?).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Full<Bytes>>,
) -> Result<Answer> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
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
