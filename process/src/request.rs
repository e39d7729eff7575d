//! Requests: who may change what, and what a path and a query say.

use std::borrow::Cow;

use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::{Method, Request, StatusCode, Uri};

use crate::answer::{self, Answer};

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// An address: look, and nothing else.
    Tcp,
    /// The UNIX socket: an operator, by the socket's permissions.
    Unix,
}

/// What a method may do with a path that changes something.
#[derive(Debug)]
pub enum Change {
    /// It may be carried out.
    Allowed,
    /// It may not: this is the answer.
    Refused(Answer),
}

/// Reading: GET and HEAD.
pub fn look<B>(request: &Request<B>, page: impl FnOnce() -> Answer) -> Answer {
    const ALLOW: &str = "GET, HEAD, OPTIONS";
    match *request.method() {
        Method::GET | Method::HEAD => page(),
        Method::OPTIONS => answer::allowed(StatusCode::NO_CONTENT, ALLOW),
        _ => answer::allowed(StatusCode::METHOD_NOT_ALLOWED, ALLOW),
    }
}

/// Changing: POST, through the UNIX socket. `instead`: what a person who came through an address is told.
pub fn change<B>(request: &Request<B>, door: Door, instead: &str) -> Change {
    const ALLOW: &str = "POST, OPTIONS";
    Change::Refused(match (request.method(), door) {
        (&Method::POST, Door::Unix) => return Change::Allowed,
        (&Method::POST, Door::Tcp) => answer::problem(StatusCode::FORBIDDEN, instead),
        (&Method::OPTIONS, _) => answer::allowed(StatusCode::NO_CONTENT, ALLOW),
        _ => answer::allowed(StatusCode::METHOD_NOT_ALLOWED, ALLOW),
    })
}

/// Bodies are never read, and what was sent and not read would be taken for the next request's head: the connection is closed.
pub fn unread<B>(request: &Request<B>, answer: Answer) -> Answer {
    let headers = request.headers();
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if has_body { answer::closing(answer) } else { answer }
}

/// The parts of the path, decoded.
pub fn parts(uri: &Uri) -> Vec<Cow<'_, str>> {
    uri.path().split('/').skip(1).map(decode).collect()
}

/// A number in the query, or what it is without one.
pub fn number(uri: &Uri, name: &str, default: u64) -> Result<u64, String> {
    match query(uri, name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| format!("{name} must be a whole number")),
    }
}

/// The first value of a key in the query.
pub fn query(uri: &Uri, name: &str) -> Option<String> {
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
