//! One member's Patroni, over HTTP.
//!
//! The status code says nothing that the body does not say better: only the body counts. (Something in front of Patroni
//! that wants a password says so by its code.)

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use hyper::{StatusCode, Uri};
use pointsman_config::{Credentials, Rest, Secret, System};
use pointsman_core::event::{AskError, Status};
use pointsman_core::patroni::parse_status;
use pointsman_core::view::{ApiUrl, MemberName};
use tokio::task::spawn_blocking;

use super::Failure;
use crate::http::{Client, HttpError, Origin};

/// A status has some KiB, most of it the list of standbys; a cluster of a hundred members some 50 KiB.
const MAX_BODY: usize = 256 << 10;

/// The connection to one member's Patroni.
#[derive(Debug)]
pub(crate) struct Patroni {
    credentials: Option<Credentials>,
    wants_tls: bool,
    client: Client,
    headers: HeaderMap,
}

impl Patroni {
    pub(crate) fn new(rest: &Rest) -> Self {
        let client = Client::new(rest.tls.clone(), MAX_BODY);
        let (credentials, wants_tls) = (rest.credentials.clone(), rest.tls.is_some());
        Self { credentials, wants_tls, client, headers: HeaderMap::new() }
    }

    /// Gives up the connection.
    pub(crate) fn forget(&mut self) {
        self.client.forget();
    }

    /// What it says of its member: `GET /patroni`.
    pub(crate) async fn status(
        &mut self,
        api: &ApiUrl,
        scope: &str,
        member: &MemberName,
    ) -> Result<Status, Failure> {
        let body = self.get(api, &Uri::from_static("/patroni")).await?;
        parse_status(&body, scope, member)
    }

    /// The body of one path.
    pub(crate) async fn get(&mut self, api: &ApiUrl, path: &Uri) -> Result<Bytes, Failure> {
        let (host, port) = (api.address.host.clone(), api.address.port);
        let origin = Origin { tls: api.tls, host, port };
        if self.client.is_fresh(&origin) {
            // Where TLS is configured, the password does not travel without it, whatever address a store names.
            let safe = api.tls || !self.wants_tls;
            self.headers = authorization(self.credentials.clone().filter(|_| safe)).await;
        }
        let answer = self.client.get(&origin, path, &self.headers).await.map_err(|error| failure(&error))?;
        if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let why = format!("it answers {}: check rest.user and its password", answer.status);
            return Err((AskError::Denied, why));
        }
        Ok(answer.body)
    }
}

fn failure(error: &HttpError) -> Failure {
    let kind = match error {
        HttpError::NotHttp(_) | HttpError::TooLong { .. } => AskError::Nonsense,
        _ if error.is_refused() => AskError::Refused,
        HttpError::Connect(_) | HttpError::Tls(_) | HttpError::Broken(_) => AskError::Unreachable,
    };
    (kind, error.to_string())
}

/// The password is read anew with each connection; while that fails, it is the one of the configuration.
async fn authorization(credentials: Option<Credentials>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let Some(credentials) = credentials else { return headers };
    let configured = credentials.password.clone();
    let read =
        spawn_blocking(move || credentials.password.source().read(&System).unwrap_or(credentials.password));
    let password = read.await.unwrap_or(configured);
    if let Ok(mut value) = HeaderValue::try_from(basic(&credentials.user, &password)) {
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    headers
}

/// `Authorization: Basic …` (RFC 7617).
fn basic(user: &str, password: &Secret) -> String {
    format!("Basic {}", base64(format!("{user}:{}", password.expose()).as_bytes()))
}

/// RFC 4648, section 4.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place)) & 63;
            let letter = ALPHABET.get(index as usize).copied().map_or('=', char::from);
            text.push(if place <= chunk.len() { letter } else { '=' });
        }
    }
    text
}
