//! A client for one endpoint, over one connection that we opened ourselves.
//!
//! The library would hide a refused connection or a wrong certificate behind retries of its own, and knows
//! neither `verify` nor certificates that are replaced. So it gets a finished connection, and no second one.

use std::future::{Future, Ready, ready};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use etcd_client::{Channel, Client, ConnectOptions, KvClient, WatchClient};
use hyper_util::rt::TokioIo;
use pointsman_config::{Credentials, Endpoint, Etcd, Scheme, Secret, System};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tonic::transport::Uri;
use tower_service::Service;
use tracing::{debug, warn};

use super::{CALL, CONNECT, EtcdError};
use crate::connect::{self, Remembering, TlsParts, Trouble};
use crate::tls;

/// etcd takes values of 1.5 MiB unless told otherwise, and a page may hold many.
const MAX_MESSAGE: usize = 64 << 20;

/// A connected endpoint.
pub(super) struct Store {
    pub(super) endpoint: Endpoint,
    client: Client,
    trouble: Trouble,
}

impl Store {
    pub(super) fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn watcher(&self) -> WatchClient {
        self.client.watch_client().max_decoding_message_size(MAX_MESSAGE)
    }

    /// Awaits a call to etcd, under its deadline.
    pub(super) async fn call<T>(
        &self,
        what: &'static str,
        future: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, EtcdError> {
        call(what, &self.trouble, future).await
    }

    /// What an error of the library means.
    pub(super) fn error(&self, error: &etcd_client::Error) -> EtcdError {
        EtcdError::from_client(error, &self.trouble)
    }
}

async fn call<T>(
    what: &'static str,
    trouble: &Trouble,
    future: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, EtcdError> {
    match timeout(CALL, future).await {
        Ok(result) => result.map_err(|error| EtcdError::from_client(&error, trouble)),
        Err(_) => Err(EtcdError::CallTimeout { call: what, after: CALL }),
    }
}

/// Connects to an endpoint and signs in. Certificates and password are read anew, a name is looked up anew. `turn`: how often
/// it has been tried in a row, so that each address of a name has its turn.
pub(super) async fn open(etcd: &Etcd, endpoint: &Endpoint, turn: usize) -> Result<Store, EtcdError> {
    let (tls, password) = material(etcd, endpoint).await?;
    let connecting = async {
        let stream = connect::tcp_turn(endpoint.address.host(), endpoint.address.port(), turn).await?;
        connect::secure(stream, tls).await
    };
    let connection = timeout(CONNECT, connecting).await;
    let connection = connection.map_err(|_| EtcdError::ConnectTimeout { after: CONNECT })?;
    let (connection, trouble) = Remembering::new(connection.map_err(EtcdError::Connect)?);
    let channel = channel(endpoint, connection).await?;
    let user = etcd.credentials.as_ref().zip(password.as_ref());
    let client = match sign_in(channel.clone(), &trouble, user).await {
        // The credentials are ready for the day on which authentication is enabled.
        Err(EtcdError::Refused { message }) if message.contains("authentication is not enabled") => {
            debug!(%endpoint, "credentials are given, but etcd does not ask for any");
            sign_in(channel, &trouble, None).await?
        }
        other => other?,
    };
    Ok(Store { endpoint: endpoint.clone(), client, trouble })
}

/// What is read from files before a connection.
async fn material(etcd: &Etcd, endpoint: &Endpoint) -> Result<(Option<TlsParts>, Option<Secret>), EtcdError> {
    let tls = (endpoint.scheme == Scheme::Https).then(|| etcd.tls.clone());
    let configured = etcd.credentials.as_ref().map(|credentials| credentials.password.clone());
    let host = endpoint.address.host().to_owned();
    let read = spawn_blocking(move || {
        let password = configured.map(freshest);
        let Some(tls) = tls else { return Ok((None, password)) };
        let config = tls::client_config(tls.as_ref(), &[b"h2"])?;
        let name = tls::server_name(tls.as_ref(), &host)?;
        Ok((Some(TlsParts { config: Arc::new(config), name }), password))
    });
    match timeout(CALL, read).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(EtcdError::Broken(format!("reading certificates failed: {error}"))),
        Err(_) => Err(EtcdError::CallTimeout { call: "the reading of certificates", after: CALL }),
    }
}

/// The password as it stands in its file now; while that cannot be read, as it was read last.
fn freshest(configured: Secret) -> Secret {
    configured.source().read(&System).unwrap_or_else(|error| {
        warn!(%error, "the password of etcd is used as it was read at the start");
        configured
    })
}

/// HTTP/2 over a connection.
async fn channel(endpoint: &Endpoint, connection: Remembering) -> Result<Channel, EtcdError> {
    let broken = |error: &dyn std::error::Error| EtcdError::Broken(error.to_string());
    // The connection is there already, encrypted or not; the scheme says only what it is called.
    let uri = |scheme: &str| format!("{scheme}://{}", endpoint.address).parse::<Uri>();
    let to = uri("http").map_err(|error| broken(&error))?;
    let origin = uri(endpoint.scheme.as_str()).map_err(|error| broken(&error))?;
    let http = tonic::transport::Endpoint::from(to).origin(origin);
    let connecting = http.connect_with_connector(Once(Some(TokioIo::new(connection))));
    match timeout(CALL, connecting).await {
        Ok(Ok(channel)) => Ok(Channel::Tonic(channel)),
        Ok(Err(error)) => Err(EtcdError::Broken(tls::explain(&error).unwrap_or_else(|| error.to_string()))),
        Err(_) => Err(EtcdError::CallTimeout { call: "the beginning of HTTP/2", after: CALL }),
    }
}

async fn sign_in(
    channel: Channel,
    trouble: &Trouble,
    user: Option<(&Credentials, &Secret)>,
) -> Result<Client, EtcdError> {
    let mut options = ConnectOptions::new().with_require_leader(true);
    if let Some((credentials, password)) = user {
        options = options.with_user(credentials.user.as_str(), password.expose());
    }
    call("the sign-in", trouble, Client::from_channel(channel, Some(options))).await
}

/// Gives its connection away once; when that has ended, the client is to end too.
struct Once(Option<TokioIo<Remembering>>);

impl Service<Uri> for Once {
    type Response = TokioIo<Remembering>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let ended = || io::Error::new(io::ErrorKind::NotConnected, "the connection has ended");
        ready(self.0.take().ok_or_else(ended))
    }
}
