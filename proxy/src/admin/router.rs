//! Which path answers what.

use hyper::{Method, Request, StatusCode};
use pointsman_process::answer::{self, Answer};
use pointsman_process::request::{self, Change, Door, look, number, query};

use super::{Context, actions, api, events, health, pages};
use crate::vip::VipView;

/// What a person who guessed wrong is told.
const PATHS: &str = "not found; there is / (also /stats), /metrics, /live, /ready, /primary, /replicas, \
     /api/v1/status, /api/v1/members, /api/v1/sessions, /api/v1/listeners, /api/v1/timeline, /api/v1/events, /api/v1/vip";

/// Answers one request. Its body is never read: nothing here takes one.
pub(super) async fn handle<B: Send>(context: &Context, door: Door, request: Request<B>) -> Answer {
    // The one page for which somebody else is asked first, and only if it is wanted.
    let vip = match request.uri().path() {
        "/api/v1/vip" => Some(context.app.vip.look().await),
        _ => None,
    };
    route(context, door, &request, vip.as_deref())
}

fn route<B>(context: &Context, door: Door, request: &Request<B>, vip: Option<&VipView>) -> Answer {
    let uri = request.uri();
    let parts = request::parts(uri);
    let parts: Vec<_> = parts.iter().map(AsRef::as_ref).collect();
    let answer = match parts.as_slice() {
        [name @ ("live" | "ready" | "primary" | "replicas")] => return probe(context, request, name),
        ["api", "v1", "members", cluster, member, action] => {
            change(request, door, || actions::member(&context.app, cluster, member, action))
        }
        ["api", "v1", "sessions", id, "kill"] => change(request, door, || actions::kill(&context.app, id)),
        ["api", "v1", "addresses", "left"] => {
            change(request, door, || actions::left(&context.app, query(request.uri(), "address").as_deref()))
        }
        ["api", "v1", "vip"] => look(request, || answer::json(StatusCode::OK, &vip)),
        parts => look(request, || page(context, request, parts)),
    };
    request::unread(request, answer)
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

/// Changing: POST, through the UNIX socket.
fn change<B>(request: &Request<B>, door: Door, act: impl FnOnce() -> Answer) -> Answer {
    const INSTEAD: &str =
        "changes are made on the host itself: `pointsman drain|maint|ready|kill`, or POST to the UNIX socket";
    match request::change(request, door, INSTEAD) {
        Change::Allowed => act(),
        Change::Refused(answer) => answer,
    }
}
