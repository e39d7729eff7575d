//! What the socket and the addresses of `[vrrp]` answer.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode, Uri};
use pointsman_config::VipName;
use pointsman_process::answer::{self, Answer};
use pointsman_process::request::{self, Change, Door, change, look, query};
use pointsman_process::server::Service;
use pointsman_vrrp::event::State;
use pointsman_vrrp::status::{RouterStatus, Status};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::counters::HookOutcome;
use super::{Command, Reload, Shared, metrics};

/// What a person who guessed wrong is told.
const PATHS: &str = "not found; there is /live, /metrics, /api/v1/status, and through the UNIX socket /api/v1/yield and /api/v1/resume";

/// What a person who came through an address is told.
const INSTEAD: &str =
    "changes are made on the host itself: `pointsman-vip yield|resume`, or POST to the UNIX socket";

/// The router thread shows its state every second; one that has not for so long is stuck.
const STUCK: Duration = Duration::from_secs(5);

/// How long the router thread may take to hear a command, and then to carry it out.
const HEARD: Duration = Duration::from_secs(1);
const DONE: Duration = Duration::from_secs(2);

/// The answers.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    shared: Shared,
    wishes: mpsc::Sender<Command>,
}

/// `/api/v1/status`.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    status: Status,
    pid: u32,
    /// The router thread goes round.
    alive: bool,
    reload: Option<Reload>,
    /// How the hooks of each virtual router ended.
    hooks: Vec<HookCounts>,
}

#[derive(Serialize)]
struct HookCounts {
    router: VipName,
    outcome: HookOutcome,
    count: u64,
}

#[derive(Serialize)]
struct Done {
    done: String,
}

impl Service for Pages {
    async fn answer(&self, door: Door, request: Request<Incoming>) -> Answer {
        let parts = request::parts(request.uri());
        let parts: Vec<_> = parts.iter().map(AsRef::as_ref).collect();
        let answer = match parts.as_slice() {
            ["api", "v1", wish @ ("yield" | "resume")] => match change(&request, door, INSTEAD) {
                Change::Allowed => self.wish(request.uri(), *wish == "yield").await,
                Change::Refused(answer) => answer,
            },
            parts => look(&request, || self.page(parts)),
        };
        request::unread(&request, answer)
    }
}

impl Pages {
    pub(super) fn new(shared: Shared, wishes: mpsc::Sender<Command>) -> Self {
        Self { shared, wishes }
    }

    fn page(&self, parts: &[&str]) -> Answer {
        match parts {
            ["live"] => self.live(),
            ["metrics"] => answer::of(StatusCode::OK, metrics::CONTENT_TYPE, metrics::render(&self.shared)),
            ["api", "v1", "status"] => answer::json(StatusCode::OK, &self.document()),
            _ => answer::problem(StatusCode::NOT_FOUND, PATHS),
        }
    }

    fn is_alive(&self) -> bool {
        self.shared.shown.borrow().made.elapsed() < STUCK
    }

    fn live(&self) -> Answer {
        if self.is_alive() {
            answer::json(StatusCode::OK, &Done { done: "the router thread goes round".to_owned() })
        } else {
            answer::problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "the router thread has shown nothing for seconds",
            )
        }
    }

    fn document(&self) -> Document {
        let status = self.shared.shown.borrow().now();
        let hooks = status.routers.iter().flat_map(|router| {
            HookOutcome::ALL.into_iter().map(|outcome| HookCounts {
                router: router.name.clone(),
                outcome,
                count: self.shared.counters.hooks(&router.name, outcome),
            })
        });
        let hooks = hooks.collect();
        let reload = self.shared.reload.borrow().clone();
        Document { status, pid: std::process::id(), alive: self.is_alive(), reload, hooks }
    }

    /// `POST /api/v1/yield[?router=NAME]` and `/api/v1/resume`.
    async fn wish(&self, uri: &Uri, wants_yield: bool) -> Answer {
        let name = query(uri, "router");
        let router = match self.router(name.as_deref()) {
            Ok(router) => router,
            Err(sentence) => return answer::problem(StatusCode::NOT_FOUND, &sentence),
        };
        let (answer, heard) = oneshot::channel();
        let command = if wants_yield {
            Command::Yield { router: router.clone(), answer }
        } else {
            Command::Resume { router: router.clone(), answer }
        };
        let is_heard =
            self.wishes.try_send(command).is_ok() && matches!(timeout(HEARD, heard).await, Ok(Ok(())));
        if !is_heard {
            let sentence = "the router thread is busy or gone; try again, then see the log";
            return answer::problem(StatusCode::SERVICE_UNAVAILABLE, sentence);
        }
        let wish = if wants_yield { "yield" } else { "resume" };
        tracing::info!(router = router.as_ref().map(tracing::field::display), wish, "an operator's wish");
        let done = if wants_yield { self.given(router.as_ref()).await } else { resumed(router.as_ref()) };
        answer::json(StatusCode::OK, &Done { done })
    }

    /// The virtual router of this name; `None`: all of them.
    fn router(&self, name: Option<&str>) -> Result<Option<VipName>, String> {
        let Some(name) = name else { return Ok(None) };
        let config = Arc::clone(&self.shared.config.borrow());
        let found = config.vips.iter().find(|vip| vip.name.as_str() == name);
        found.map(|vip| Some(vip.name.clone())).ok_or_else(|| {
            let known: Vec<_> = config.vips.iter().map(|vip| vip.name.as_str()).collect();
            format!("there is no virtual router {name:?}; there is {}", known.join(", "))
        })
    }

    /// Waits until the addresses are in other hands, or it is clear that nobody takes them; says where they are.
    async fn given(&self, router: Option<&VipName>) -> String {
        let mut shown = self.shared.shown.clone();
        let held = |status: &Status| {
            chosen(status, router).any(|one| one.state == State::Active || one.holder.is_none())
        };
        let settled = timeout(DONE, shown.wait_for(|shown| !held(&shown.status))).await;
        drop(settled); // late or not: it is told how things are
        let status = Arc::clone(&self.shared.shown.borrow().status);
        let lines: Vec<_> = chosen(&status, router).map(whereabouts).collect();
        lines.join("; ")
    }
}

fn chosen<'a>(status: &'a Status, router: Option<&'a VipName>) -> impl Iterator<Item = &'a RouterStatus> {
    status.routers.iter().filter(move |one| router.is_none_or(|name| *name == one.name))
}

fn whereabouts(router: &RouterStatus) -> String {
    let name = &router.name;
    match (&router.holder, router.state) {
        (_, State::Active) => format!("{name}: nobody else can take the addresses, so this host keeps them"),
        (Some(holder), _) => {
            let who = holder.node.as_ref().map_or_else(|| holder.address.to_string(), ToString::to_string);
            format!("{name}: {who} holds the addresses")
        }
        (None, _) => format!("{name}: this host does not hold the addresses, and nobody is heard who does"),
    }
}

fn resumed(router: Option<&VipName>) -> String {
    match router {
        Some(name) => format!("{name}: this host takes part again"),
        None => "this host takes part again".to_owned(),
    }
}
