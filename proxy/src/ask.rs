//! Questions to members' Patroni ([`Effect::Ask`](pointsman_core::event::Effect::Ask)): `GET /patroni`.
//!
//! One task for each member that is asked, with one kept-alive connection and one question at a time: each
//! request costs Patroni a thread, with TLS a handshake. A task ends by itself after a minute without a
//! question, or when its [`Asker`] is dropped. Every question brings exactly one answer, at the latest at its
//! deadline. While the member is being asked, one more question waits (within its own deadline); any further
//! one is answered at once with [`AskError::TimedOut`].
//!
//! The status code says nothing that the body does not say better: only the body counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::{Rest, Secret};
use pointsman_core::event::{Answer, AskError, Event};
use pointsman_core::view::{ApiUrl, MemberName};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Sender};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::clock::Clock;

mod http;
#[cfg(test)]
mod tests;

use http::Connections;

/// A member that is asked nothing for so long costs nothing any more.
const IDLE: Duration = Duration::from_secs(60);

/// Asks the members of one cluster.
#[derive(Debug)]
pub struct Asker {
    shared: Arc<Shared>,
    members: BTreeMap<MemberName, Sender<Question>>,
}

#[derive(Debug)]
struct Shared {
    scope: String,
    rest: Rest,
    clock: Clock,
    events: Sender<Event>,
    tracker: TaskTracker,
}

/// A question, with the time at which its answer must be there.
struct Question {
    api: ApiUrl,
    deadline: Instant,
}

impl Asker {
    /// `scope`: the cluster's, which an answer must carry. Answers go into `events`; `tracker` owns the tasks.
    pub fn new(scope: &str, rest: Rest, clock: Clock, events: Sender<Event>, tracker: TaskTracker) -> Self {
        let shared = Shared { scope: scope.to_owned(), rest, clock, events, tracker };
        Self { shared: Arc::new(shared), members: BTreeMap::new() }
    }

    /// Asks a member. Returns at once; exactly one [`Event::Answer`] follows, at the latest after `deadline`
    /// (connecting and TLS included).
    pub fn ask(&mut self, member: MemberName, api: ApiUrl, deadline: Duration) {
        self.members.retain(|_, mailbox| !mailbox.is_closed());
        let mut question = Question { api, deadline: Instant::now() + deadline };
        if let Some(mailbox) = self.members.get(&member) {
            match mailbox.try_send(question) {
                Ok(()) => return,
                Err(TrySendError::Full(_)) => return self.busy(member),
                Err(TrySendError::Closed(unasked)) => question = unasked,
            }
        }
        let (mailbox, questions) = mpsc::channel(1);
        let answering = answer_all(Arc::clone(&self.shared), member.clone(), questions);
        self.shared.tracker.spawn(answering);
        // A new mailbox has room for one.
        if mailbox.try_send(question).is_ok() {
            self.members.insert(member, mailbox);
        }
    }

    /// Two questions at a time are not asked. Said by a task, because the way to the listener may be full.
    fn busy(&self, member: MemberName) {
        let shared = Arc::clone(&self.shared);
        let asked_at = shared.clock.moment();
        self.shared.tracker.spawn(async move {
            let outcome = Err(AskError::TimedOut);
            let _ = shared.events.send(Event::Answer(Answer { member, asked_at, outcome })).await;
        });
    }
}

/// The task of one member.
async fn answer_all(shared: Arc<Shared>, member: MemberName, mut questions: mpsc::Receiver<Question>) {
    let mut connections = Connections::new(&shared.rest);
    let mut known = None;
    while let Ok(Some(question)) = timeout(IDLE, questions.recv()).await {
        answer(&shared, &member, &mut connections, &question, &mut known).await;
    }
    // A question that came just now is not lost: no other can follow it, and this one is answered.
    questions.close();
    while let Some(question) = questions.recv().await {
        answer(&shared, &member, &mut connections, &question, &mut known).await;
    }
}

/// Answers one question. `known`: what was wrong last time, so that it is logged once.
async fn answer(
    shared: &Shared,
    member: &MemberName,
    connections: &mut Connections,
    question: &Question,
    known: &mut Option<String>,
) {
    let asked_at = shared.clock.moment();
    let body = timeout_at(question.deadline, connections.get(&question.api)).await;
    let outcome = match body {
        Err(_) => {
            connections.forget(); // its late answer must not be taken for the next one
            Err((AskError::TimedOut, "no answer before the deadline".to_owned()))
        }
        Ok(Err(error)) => Err(error),
        Ok(Ok(body)) => pointsman_core::patroni::parse_status(&body, &shared.scope, member),
    };
    let why = outcome.as_ref().err().map(|(_, why)| why.clone());
    if why != *known {
        let api = &question.api;
        let why = why.as_deref().unwrap_or("it answers");
        debug!(scope = shared.scope, %member, %api, why, "asked a member's Patroni");
    }
    *known = why;
    let outcome = outcome.map_err(|(error, _)| error);
    let answer = Answer { member: member.clone(), asked_at, outcome };
    let _ = shared.events.send(Event::Answer(answer)).await; // nobody listens: shutdown
}

/// `Authorization: Basic …` (RFC 7617).
fn basic(user: &str, password: &Secret) -> String {
    format!("Basic {}", base64(format!("{user}:{}", password.expose()).as_bytes()))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
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
