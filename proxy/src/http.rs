//! HTTP/1.1 to one server of the control side (Patroni's REST interface, Consul), over one connection that is kept as
//! long as it works.
//!
//! Nothing here has a deadline of its own: the caller's deadline covers the whole. A call that was dropped half-way
//! leaves no connection behind, so its late answer cannot be taken for the next one.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use pointsman_config::ClientTls;
use tokio::task::{JoinSet, spawn_blocking};

use crate::connect::{self, TlsParts};
use crate::tls::{self, TlsError};

/// Where a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// `https` if true, else `http`.
    pub(crate) tls: bool,
    /// An address, or a name to look up; IPv6 without brackets.
    pub(crate) host: String,
    /// TCP port.
    pub(crate) port: u16,
}

impl Origin {
    /// As the header `Host` wants it.
    fn authority(&self) -> String {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// No connection.
    #[error("{}", connect::explain(.0))]
    Connect(io::Error),
    /// The files for TLS are of no use.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The connection was made, and broke.
    #[error("{0}")]
    Broken(String),
    /// It does not speak HTTP.
    #[error("the answer is not HTTP: {0}")]
    NotHttp(String),
    /// The answer is longer than any that makes sense.
    #[error("the answer is longer than {} KiB", limit >> 10)]
    TooLong {
        /// Bytes.
        limit: usize,
    },
}

impl HttpError {
    /// Nobody listens there, or whoever listened does not any more.
    pub(crate) fn is_refused(&self) -> bool {
        match self {
            Self::Connect(error) => {
                matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset)
            }
            Self::Broken(_) => true,
            Self::Tls(_) | Self::NotHttp(_) | Self::TooLong { .. } => false,
        }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// The connection to one server at a time.
#[derive(Debug)]
pub(crate) struct Client {
    tls: Option<ClientTls>,
    /// Longest body that is read, in bytes.
    limit: usize,
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    origin: Origin,
    requests: SendRequest<Empty<Bytes>>,
    /// Moves the bytes; ends with this connection.
    _driver: JoinSet<()>,
}

impl Client {
    /// `tls`: for `https`. `limit`: the longest body that is read, in bytes.
    pub(crate) fn new(tls: Option<ClientTls>, limit: usize) -> Self {
        Self { tls, limit, kept: None }
    }

    /// Gives up the connection: certificates, for one, are read anew by the next.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }

    /// Whether the next call would need a new connection.
    pub(crate) fn is_fresh(&self, origin: &Origin) -> bool {
        !self.kept.as_ref().is_some_and(|kept| kept.origin == *origin && !kept.requests.is_closed())
    }

    /// `GET`: the whole answer, whatever its status code. `path` begins with a slash.
    pub(crate) async fn get(
        &mut self,
        origin: &Origin,
        path: &Uri,
        headers: &HeaderMap,
    ) -> Result<Answer, HttpError> {
        // Taken out: if this call is dropped, so is the connection.
        if let Some(mut kept) = self.kept.take().filter(|kept| kept.origin == *origin) {
            // A kept connection may have been closed meanwhile: then a new one is tried at once.
            if let Ok(response) = kept.request(path, headers).await {
                return self.finish(kept, response).await;
            }
        }
        let mut fresh = self.connect(origin).await?;
        let response = fresh.request(path, headers).await.map_err(|error| broken(&error))?;
        self.finish(fresh, response).await
    }

    /// Reads the body, and keeps the connection if the server does.
    async fn finish(&mut self, kept: Kept, response: Response<Incoming>) -> Result<Answer, HttpError> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, self.limit).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return HttpError::TooLong { limit: self.limit };
            }
            error.downcast_ref().map_or_else(|| HttpError::Broken(error.to_string()), broken)
        })?;
        self.kept = Some(kept);
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    }

    async fn connect(&self, origin: &Origin) -> Result<Kept, HttpError> {
        // First the port: while nobody listens there, no certificate is read.
        let stream = connect::tcp(&origin.host, origin.port).await.map_err(HttpError::Connect)?;
        let tls = if origin.tls { Some(self.material(&origin.host).await?) } else { None };
        let connection = connect::secure(stream, tls).await.map_err(HttpError::Connect)?;
        let (requests, driver) = handshake(TokioIo::new(connection)).await.map_err(|error| broken(&error))?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let _ = driver.await; // its error reaches the request as well
        });
        Ok(Kept { origin: origin.clone(), requests, _driver: task })
    }

    /// What is read from files before a connection.
    async fn material(&self, host: &str) -> Result<TlsParts, HttpError> {
        let (tls, host) = (self.tls.clone(), host.to_owned());
        let read = spawn_blocking(move || -> Result<_, TlsError> {
            let config = Arc::new(tls::client_config(tls.as_ref(), &[b"http/1.1"])?);
            Ok(TlsParts { config, name: tls::server_name(tls.as_ref(), &host)? })
        });
        match read.await {
            Ok(result) => Ok(result?),
            Err(error) => Err(HttpError::Broken(format!("reading certificates failed: {error}"))),
        }
    }
}

impl Kept {
    async fn request(&mut self, path: &Uri, headers: &HeaderMap) -> hyper::Result<Response<Incoming>> {
        self.requests.ready().await?;
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = path.clone();
        *request.headers_mut() = headers.clone();
        if let Ok(host) = HeaderValue::try_from(self.origin.authority()) {
            request.headers_mut().insert(HOST, host);
        }
        self.requests.send_request(request).await
    }
}

/// No answer over a connection.
fn broken(error: &hyper::Error) -> HttpError {
    if let Some(tls) = tls::explain(error) {
        // With TLS 1.3 the refusal of our certificate comes as late as this.
        return HttpError::Connect(io::Error::other(tls));
    }
    if error.is_parse() {
        return HttpError::NotHttp(error.to_string());
    }
    HttpError::Broken(format!("the connection broke: {error}"))
}
