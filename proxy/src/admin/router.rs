//! Which path answers what.

use std::borrow::Cow;

use hyper::header::CONTENT_LENGTH;
use hyper::{Method, Request, StatusCode, Uri};

use super::answer::{self, Answer};
use super::{Context, Door, actions, api, events, health, pages};

/// What a person who guessed wrong is told.
const PATHS: &str = "not found; there is / (also /stats), /metrics, /live, /ready, /primary, /replicas, \
     /api/v1/status, /api/v1/members, /api/v1/sessions, /api/v1/listeners, /api/v1/timeline, /api/v1/events";

/// Answers one request. Its body is never read: nothing here takes one.
pub(super) fn handle<B>(context: &Context, door: Door, request: &Request<B>) -> Answer {
    let uri = request.uri();
    let parts: Vec<_> = uri.path().split('/').skip(1).map(decode).collect();
    let parts: Vec<_> = parts.iter().map(AsRef::as_ref).collect();
    let answer = match parts.as_slice() {
        [name @ ("live" | "ready" | "primary" | "replicas")] => return probe(context, request, name),
        ["api", "v1", "members", cluster, member, action] => {
            change(request, door, || actions::member(&context.app, cluster, member, action))
        }
        ["api", "v1", "sessions", id, "kill"] => change(request, door, || actions::kill(&context.app, id)),
        parts => look(request, || page(context, request, parts)),
    };
    // What was sent and not read would be taken for the next request's head.
    if has_body(request) { answer::closing(answer) } else { answer }
}

/// What anybody may look at.
fn page<B>(context: &Context, request: &Request<B>, parts: &[&str]) -> Answer {
    let (app, uri) = (&context.app, request.uri());
    match parts {
        ["" | "stats"] => pages::dashboard(),
        ["dashboard.css"] => pages::style(),
        ["dashboard.js"] => pages::script(),
        ["favicon.ico" | "icon.svg"] => pages::icon(),
        ["metrics"] => pages::metrics(app),
        ["api", "v1", "status"] => answer::json(StatusCode::OK, &api::status(app)),
        ["api", "v1", "members"] => answer::json(StatusCode::OK, &api::members(app)),
        ["api", "v1", "listeners"] => answer::json(StatusCode::OK, &api::listeners(app)),
        ["api", "v1", "sessions"] => match number(uri, "limit", api::SESSIONS) {
            Ok(limit) => answer::json(StatusCode::OK, &api::sessions(app, limit)),
            Err(sentence) => answer::problem(StatusCode::BAD_REQUEST, &sentence),
        },
        ["api", "v1", "timeline"] => match number(uri, "since", 0) {
            Ok(since) => answer::json(StatusCode::OK, &api::timeline(app, since)),
            Err(sentence) => answer::problem(StatusCode::BAD_REQUEST, &sentence),
        },
        ["api", "v1", "events"] => events::stream(context, request),
        _ => answer::problem(StatusCode::NOT_FOUND, PATHS),
    }
}

/// Health answers: the connection is closed, so that a balancer's next check is a new one.
fn probe<B>(context: &Context, request: &Request<B>, name: &str) -> Answer {
    let app = &context.app;
    let cluster = query(request.uri(), "cluster");
    let cluster = cluster.as_deref();
    answer::closing(match *request.method() {
        Method::GET | Method::HEAD | Method::OPTIONS => {
            let verdict = match name {
                "live" => Ok(health::live(app)),
                "ready" => health::ready(app, cluster),
                "primary" => health::primary(app, cluster),
                _ => health::replicas(app, cluster),
            };
            match verdict {
                Ok(verdict) => health::answer(request.method(), &verdict),
                Err(sentence) => answer::problem(StatusCode::NOT_FOUND, &sentence),
            }
        }
        _ => answer::allowed(StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD, OPTIONS"),
    })
}

/// Reading: GET and HEAD.
fn look<B>(request: &Request<B>, page: impl FnOnce() -> Answer) -> Answer {
    const ALLOW: &str = "GET, HEAD, OPTIONS";
    match *request.method() {
        Method::GET | Method::HEAD => page(),
        Method::OPTIONS => answer::allowed(StatusCode::NO_CONTENT, ALLOW),
        _ => answer::allowed(StatusCode::METHOD_NOT_ALLOWED, ALLOW),
    }
}

/// Changing: POST, through the UNIX socket.
fn change<B>(request: &Request<B>, door: Door, act: impl FnOnce() -> Answer) -> Answer {
    const ALLOW: &str = "POST, OPTIONS";
    match (request.method(), door) {
        (&Method::POST, Door::Unix) => act(),
        (&Method::POST, Door::Tcp) => answer::problem(
            StatusCode::FORBIDDEN,
            "changes are made on the host itself: `pointsman drain|maint|ready|kill`, or POST to the UNIX socket",
        ),
        (&Method::OPTIONS, _) => answer::allowed(StatusCode::NO_CONTENT, ALLOW),
        _ => answer::allowed(StatusCode::METHOD_NOT_ALLOWED, ALLOW),
    }
}

fn has_body<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    headers.contains_key(hyper::header::TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
}

/// A number in the query, or what it is without one.
fn number(uri: &Uri, name: &str, default: u64) -> Result<u64, String> {
    match query(uri, name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| format!("{name} must be a whole number")),
    }
}

/// The first value of a key in the query.
pub(super) fn query(uri: &Uri, name: &str) -> Option<String> {
    uri.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name).then(|| decode(value).into_owned())
    })
}

/// Percent-decoding (RFC 3986, 2.1). What cannot be decoded stays as it is: it names nothing that we have.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8(bytes).map_or(Cow::Borrowed(text), Cow::Owned)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_and_nonsense_stays() {
        for (text, decoded) in [
            ("pg1", "pg1"),
            ("a%2Fb", "a/b"),
            ("a%20%c3%a9", "a é"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("%ff", "%ff"),
        ] {
            assert_eq!(decode(text), decoded, "{text}");
        }
    }

    #[test]
    fn the_first_value_of_a_key_counts() {
        let uri: Uri = "/ready?x=1&cluster=a%2Eb&cluster=c".parse().unwrap();
        assert_eq!(query(&uri, "cluster").as_deref(), Some("a.b"));
        assert_eq!(query(&uri, "y"), None);
        assert_eq!(number(&uri, "x", 7), Ok(1));
        assert_eq!(number(&uri, "since", 7), Ok(7));
        assert!(number(&uri, "cluster", 7).is_err());
    }
}
