//! A small HTTP client: one request, one connection, a deadline.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

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

/// `GET path`.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    timed(DEADLINE, address, Method::GET, path, String::new()).await
}

/// `METHOD path` with a JSON body.
pub async fn send(
    address: SocketAddr,
    method: Method,
    path: &str,
    body: &serde_json::Value,
) -> Result<Answer> {
    timed(DEADLINE, address, method, path, body.to_string()).await
}

/// `METHOD path` with a body of plain text.
pub async fn send_text(address: SocketAddr, method: Method, path: &str, body: &str) -> Result<Answer> {
    timed(DEADLINE, address, method, path, body.to_owned()).await
}

/// As [`send`], for requests that take as long as a switchover takes.
pub async fn send_slow(
    address: SocketAddr,
    method: Method,
    path: &str,
    body: &serde_json::Value,
) -> Result<Answer> {
    timed(SLOW_DEADLINE, address, method, path, body.to_string()).await
}

async fn timed(
    deadline: Duration,
    address: SocketAddr,
    method: Method,
    path: &str,
    body: String,
) -> Result<Answer> {
    let what = format!("{method} http://{address}{path}");
    tokio::time::timeout(deadline, exchange(address, method, path, body))
        .await
        .with_context(|| format!("{what}: no answer in {deadline:?}"))?
        .with_context(|| what)
}

async fn exchange(address: SocketAddr, method: Method, path: &str, body: String) -> Result<Answer> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
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
