//! HTTP/1.1 to one member, over one connection that is kept as long as it works.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use pointsman_config::{Rest, System};
use pointsman_core::event::AskError;
use pointsman_core::view::ApiUrl;
use tokio::task::{JoinSet, spawn_blocking};

use crate::connect::{self, TlsParts};
use crate::tls::{self, TlsError};

/// A status has some KiB, most of it the list of standbys.
const MAX_BODY: usize = 256 << 10;

type Failure = (AskError, String);

/// The connection to one member.
pub(super) struct Connections {
    rest: Rest,
    kept: Option<Kept>,
}

struct Kept {
    api: ApiUrl,
    requests: SendRequest<Empty<Bytes>>,
    authorization: Option<HeaderValue>,
    /// Moves the bytes; ends with this connection.
    _driver: JoinSet<()>,
}

impl Connections {
    pub(super) fn new(rest: &Rest) -> Self {
        Self { rest: rest.clone(), kept: None }
    }

    /// Gives up the connection, so that nothing that it still brings is used.
    pub(super) fn forget(&mut self) {
        self.kept = None;
    }

    /// The body of `GET /patroni`. Not cancel-safe: call [`Self::forget`] after a timeout.
    pub(super) async fn get(&mut self, api: &ApiUrl) -> Result<Bytes, Failure> {
        if let Some(mut kept) = self.kept.take().filter(|kept| kept.api == *api) {
            // A kept connection may have been closed meanwhile: then a new one is tried at once.
            if let Ok(response) = kept.request().await {
                return self.finish(kept, response).await;
            }
        }
        let mut fresh = self.connect(api).await?;
        let response = fresh.request().await.map_err(|error| broken(&error))?;
        self.finish(fresh, response).await
    }

    /// Reads the body, and keeps the connection if the server does.
    async fn finish(&mut self, kept: Kept, response: Response<Incoming>) -> Result<Bytes, Failure> {
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return (AskError::Nonsense, format!("the answer is longer than {} KiB", MAX_BODY >> 10));
            }
            error.downcast_ref().map_or_else(|| (AskError::Nonsense, error.to_string()), broken)
        })?;
        self.kept = Some(kept);
        Ok(body.to_bytes())
    }

    async fn connect(&self, api: &ApiUrl) -> Result<Kept, Failure> {
        // First the port: while nobody listens there, no certificate is read.
        let stream =
            connect::tcp(&api.address.host, api.address.port).await.map_err(|error| refused(&error))?;
        let (tls, authorization) = self.material(api).await?;
        let connection = connect::secure(stream, tls).await.map_err(|error| refused(&error))?;
        let (requests, driver) = handshake(TokioIo::new(connection)).await.map_err(|error| broken(&error))?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let _ = driver.await; // its error reaches the request as well
        });
        Ok(Kept { api: api.clone(), requests, authorization, _driver: task })
    }

    /// What is read from files before a connection.
    async fn material(&self, api: &ApiUrl) -> Result<(Option<TlsParts>, Option<HeaderValue>), Failure> {
        if !api.tls && self.rest.credentials.is_none() {
            return Ok((None, None));
        }
        let (rest, host, tls) = (self.rest.clone(), api.address.host.clone(), api.tls);
        let read = spawn_blocking(move || {
            let authorization = rest.credentials.as_ref().and_then(|credentials| {
                // Unreadable just now: the password that was read with the configuration.
                let fresh = credentials.password.source().read(&System);
                let password = fresh.unwrap_or_else(|_| credentials.password.clone());
                let mut value = HeaderValue::try_from(super::basic(&credentials.user, &password)).ok()?;
                value.set_sensitive(true);
                Some(value)
            });
            let parts = tls.then(|| -> Result<_, TlsError> {
                let config = Arc::new(tls::client_config(rest.tls.as_ref(), &[b"http/1.1"])?);
                Ok(TlsParts { config, name: tls::server_name(rest.tls.as_ref(), &host)? })
            });
            Ok::<_, TlsError>((parts.transpose()?, authorization))
        });
        match read.await {
            Ok(result) => result.map_err(|error| (AskError::Unreachable, error.to_string())),
            Err(error) => Err((AskError::Unreachable, format!("reading certificates failed: {error}"))),
        }
    }
}

impl Kept {
    async fn request(&mut self) -> hyper::Result<Response<Incoming>> {
        self.requests.ready().await?;
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = hyper::Uri::from_static("/patroni");
        if let Ok(host) = HeaderValue::try_from(self.api.address.to_string()) {
            request.headers_mut().insert(HOST, host);
        }
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        self.requests.send_request(request).await
    }
}

/// No connection.
fn refused(error: &io::Error) -> Failure {
    let refused = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset);
    let kind = if refused { AskError::Refused } else { AskError::Unreachable };
    (kind, connect::explain(error))
}

/// No answer over a connection.
fn broken(error: &hyper::Error) -> Failure {
    if let Some(tls) = tls::explain(error) {
        return (AskError::Unreachable, tls);
    }
    if error.is_parse() {
        return (AskError::Nonsense, format!("the answer is not HTTP: {error}"));
    }
    // Reset, or closed in the middle: whoever listened does not any more.
    (AskError::Refused, format!("the connection broke: {error}"))
}
