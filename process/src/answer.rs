//! Answers: every one says that it must not be stored, and what it is.

use std::convert::Infallible;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

/// A body that is there as a whole, or comes bit by bit.
pub type Body = BoxBody<Bytes, Infallible>;
/// What a request is answered.
pub type Answer = Response<Body>;

/// The page takes scripts, styles and data from us alone, and runs nothing that is written in the page.
const CONTENT_SECURITY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// An answer of any type.
pub fn of(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    with_body(status, content_type, Full::new(body.into()).boxed())
}

/// An answer with a body that comes bit by bit.
pub fn with_body(status: StatusCode, content_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    set(&mut answer, header::CONTENT_TYPE, content_type);
    finish(answer)
}

/// JSON.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(mut text) => {
            text.push(b'\n');
            of(status, "application/json", text)
        }
        // No type of ours can fail here (a map with keys that are no strings would).
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// A JSON object with one sentence.
pub fn problem(status: StatusCode, sentence: &str) -> Answer {
    #[derive(Serialize)]
    struct Problem<'a> {
        error: &'a str,
    }
    json(status, &Problem { error: sentence })
}

/// Nothing but a status and what may be asked.
pub fn allowed(status: StatusCode, allow: &'static str) -> Answer {
    let mut answer = if status.is_success() {
        finish(Response::new(Full::default().boxed()))
    } else {
        problem(status, &format!("this path answers {allow}"))
    };
    *answer.status_mut() = status;
    set(&mut answer, header::ALLOW, allow);
    answer
}

/// Closes the connection after this answer.
pub fn closing(mut answer: Answer) -> Answer {
    set(&mut answer, header::CONNECTION, "close");
    answer
}

fn finish(mut answer: Answer) -> Answer {
    set(&mut answer, header::CACHE_CONTROL, "no-store");
    set(&mut answer, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(&mut answer, header::REFERRER_POLICY, "no-referrer");
    set(&mut answer, header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY);
    answer
}

fn set(answer: &mut Answer, name: HeaderName, value: &'static str) {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
}
