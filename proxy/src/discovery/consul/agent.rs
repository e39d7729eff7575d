//! One Consul agent or server, over one connection that is kept.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{StatusCode, Uri};
use pointsman_config::{Consul, Endpoint, Scheme};
use pointsman_core::consul::{KvEntry, parse_kv};
use pointsman_core::view::Revision;
use tokio::time::timeout;

use super::files::Files;
use super::{CALL, ConsulError, SILENCE, STALE_CALL, WAIT};
use crate::http::{self, Client, Origin};
use crate::stats::Counter;

/// A cluster's keys have some KiB, and base64 makes a third more of them.
const MAX_BODY: usize = 16 << 20;
/// So much of an error message is shown.
const MAX_MESSAGE: usize = 200;

/// One address.
pub(super) struct Agent {
    endpoint: Endpoint,
    origin: Origin,
    client: Client,
    files: Files,
    headers: HeaderMap,
    prefix: String,
    datacenter: Option<String>,
    requests: Arc<Counter>,
}

/// A whole answer to a recursive read.
#[derive(Debug)]
pub(super) struct Answer {
    /// Consul's index for the next blocking query; `None` where it is 0, which would not block.
    pub(super) index: Option<u64>,
    /// The server knows who leads Consul.
    pub(super) knows_leader: bool,
    /// Empty: there are no keys.
    pub(super) body: Bytes,
}

impl Answer {
    /// The index as a revision.
    pub(super) fn revision(&self) -> Revision {
        Revision(self.index.unwrap_or_default())
    }

    /// The keys.
    pub(super) fn entries(&self, prefix: &str) -> Result<Vec<KvEntry>, ConsulError> {
        if self.body.is_empty() {
            return Ok(Vec::new());
        }
        Ok(parse_kv(&self.body, prefix)?)
    }
}

impl Agent {
    /// Reads the token; the connection comes with the first call.
    pub(super) async fn open(
        consul: &Consul,
        endpoint: &Endpoint,
        prefix: &str,
        requests: &Arc<Counter>,
    ) -> Self {
        let tls = endpoint.scheme == Scheme::Https;
        let (host, port) = (endpoint.address.host().to_owned(), endpoint.address.port());
        let mut agent = Self {
            endpoint: endpoint.clone(),
            origin: Origin { tls, host, port },
            client: Client::new(consul.tls.clone(), MAX_BODY),
            files: Files::read(consul, tls).await,
            headers: HeaderMap::new(),
            prefix: prefix.to_owned(),
            datacenter: consul.datacenter.clone(),
            requests: Arc::clone(requests),
        };
        agent.use_token();
        agent
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Every key: now, or when Consul's index is no longer `after`, at the latest after [`WAIT`].
    pub(super) async fn list(&mut self, after: Option<u64>) -> Result<Answer, ConsulError> {
        let news = self.files.follow().await;
        if news.tls {
            self.client.forget();
        }
        if news.token {
            self.use_token();
        }
        let (query, what, deadline) = match after {
            None => ("recurse=true".to_owned(), "a read", CALL),
            Some(index) => {
                let query = format!("recurse=true&index={index}&wait={}ms", WAIT.as_millis());
                (query, "a blocking query", SILENCE)
            }
        };
        let answer = match self.list_with(&query, what, deadline).await {
            // Perhaps the token has been replaced in this second.
            Err(ConsulError::Denied { .. }) if self.files.refresh().await.token => {
                self.use_token();
                self.list_with(&query, what, deadline).await?
            }
            other => other?,
        };
        if answer.knows_leader { Ok(answer) } else { Err(ConsulError::Stale) }
    }

    /// Every key as this server remembers it, whether or not Consul has a leader.
    pub(super) async fn stale(&mut self) -> Result<Answer, ConsulError> {
        self.list_with("recurse=true&stale=true", "a stale read", STALE_CALL).await
    }

    /// Whether the token may read one key, which need not be there.
    pub(super) async fn may_read(&mut self, key: &str) -> Result<bool, ConsulError> {
        match self.get(key, "", "a read", CALL).await {
            Ok(_) => Ok(true),
            Err(ConsulError::Denied { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn list_with(
        &mut self,
        query: &str,
        what: &'static str,
        deadline: Duration,
    ) -> Result<Answer, ConsulError> {
        let answer = self.get("", query, what, deadline).await?;
        if header(&answer, "x-consul-results-filtered-by-acls") == Some("true") {
            return Err(ConsulError::Hidden { key: String::new() });
        }
        let index = header(&answer, "x-consul-index").and_then(|index| index.parse::<u64>().ok());
        let index = index.ok_or(ConsulError::NotConsul)?;
        // A leader answers by itself; more than a moment means that somebody between answers from memory.
        let contact = header(&answer, "x-consul-lastcontact").and_then(|millis| millis.parse::<u128>().ok());
        let knows_leader = header(&answer, "x-consul-knownleader") != Some("false")
            && contact.is_none_or(|millis| millis < CALL.as_millis());
        let body = if answer.status == StatusCode::OK { answer.body } else { Bytes::new() };
        Ok(Answer { index: (index > 0).then_some(index), knows_leader, body })
    }

    /// 200 or 404 (no such key); anything else is an error.
    async fn get(
        &mut self,
        key: &str,
        query: &str,
        what: &'static str,
        deadline: Duration,
    ) -> Result<http::Answer, ConsulError> {
        let uri = uri(&self.prefix, key, query, self.datacenter.as_deref());
        self.requests.add(1);
        let call = self.client.get(&self.origin, &uri, &self.headers);
        let answer = timeout(deadline, call).await;
        let answer = answer.map_err(|_| ConsulError::NoAnswer { call: what, after: deadline })??;
        match answer.status {
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(answer),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                Err(ConsulError::Denied { message: message(&answer) })
            }
            status => Err(ConsulError::Refused { status: status.as_u16(), message: message(&answer) }),
        }
    }

    fn use_token(&mut self) {
        self.headers.clear();
        let token = self.files.token().and_then(|token| HeaderValue::try_from(token.expose()).ok());
        if let Some(mut token) = token {
            token.set_sensitive(true);
            self.headers.insert("x-consul-token", token);
        }
    }
}

fn header<'a>(answer: &'a http::Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name)?.to_str().ok()
}

/// The beginning of what Consul says, on one line.
fn message(answer: &http::Answer) -> String {
    let text = String::from_utf8_lossy(&answer.body);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect()
}

/// Where a key, or with `recurse` every key below the prefix, is read.
fn uri(prefix: &str, key: &str, query: &str, datacenter: Option<&str>) -> Uri {
    let mut text = "/v1/kv/".to_owned();
    escape(&mut text, prefix);
    escape(&mut text, key);
    text.push('?');
    text.push_str(query);
    if let Some(datacenter) = datacenter {
        text.push_str("&dc=");
        escape(&mut text, datacenter);
    }
    // Nothing is left in it that a path may not hold.
    text.parse().unwrap_or_default()
}

/// Percent-encoding (RFC 3986, section 2.1); slashes stay.
fn escape(text: &mut String, part: &str) {
    for byte in part.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            _ => {
                let _ = write!(text, "%{byte:02X}"); // a String takes everything
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_carry_any_name() {
        let uri = uri("service/mäin/", "members/n 1?", "recurse=true", Some("dc 1"));
        assert_eq!(uri.to_string(), "/v1/kv/service/m%C3%A4in/members/n%201%3F?recurse=true&dc=dc%201");
    }
}
