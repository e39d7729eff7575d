//! Questions to members ([`Effect::Ask`](pointsman_core::event::Effect::Ask)): `GET /patroni` of their Patroni, or
//! `pg_is_in_recovery()` of their server.
//!
//! One task for each member and witness that is asked, with one kept connection and one question at a time: each
//! request costs Patroni a thread, with TLS a handshake, and each connection costs PostgreSQL a process. A task ends by
//! itself after a minute without a question, or when its [`Asker`] is dropped. Every question brings exactly one answer,
//! at the latest at its deadline. While the member is being asked, one more question waits (within its own deadline); any
//! further one is answered at once with [`AskError::TimedOut`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::{Cluster, Rest, Sql};
use pointsman_core::event::{Answer, AskError, Event, Question, Status, Witness};
use pointsman_core::view::MemberName;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Sender};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::clock::Clock;

pub(crate) mod rest;
pub(crate) mod sql;
#[cfg(test)]
mod tests;

/// A member that is asked nothing for so long costs nothing any more.
const IDLE: Duration = Duration::from_secs(60);

/// Asks the members of one cluster.
#[derive(Debug)]
pub struct Asker {
    shared: Arc<Shared>,
    members: BTreeMap<(MemberName, Witness), Sender<Asked>>,
}

#[derive(Debug)]
struct Shared {
    scope: String,
    rest: Rest,
    sql: Option<Sql>,
    clock: Clock,
    events: Sender<Event>,
    tracker: TaskTracker,
}

/// A question, with the time at which its answer must be there.
struct Asked {
    question: Question,
    deadline: Instant,
}

/// Why a question brought no answer: for the topology, and in a sentence for people.
pub(crate) type Failure = (AskError, String);

impl Asker {
    /// Answers go into `events`; `tracker` owns the tasks.
    pub fn new(cluster: &Cluster, clock: Clock, events: Sender<Event>, tracker: TaskTracker) -> Self {
        let (scope, rest, sql) = (cluster.scope.clone(), cluster.rest.clone(), cluster.sql.clone());
        Self {
            shared: Arc::new(Shared { scope, rest, sql, clock, events, tracker }),
            members: BTreeMap::new(),
        }
    }

    /// Asks a member. Returns at once; exactly one [`Event::Answer`] follows, at the latest after `deadline`
    /// (connecting and TLS included).
    pub fn ask(&mut self, member: MemberName, question: Question, deadline: Duration) {
        self.members.retain(|_, mailbox| !mailbox.is_closed());
        let key = (member.clone(), question.witness());
        let mut asked = Asked { question, deadline: Instant::now() + deadline };
        if let Some(mailbox) = self.members.get(&key) {
            match mailbox.try_send(asked) {
                Ok(()) => return,
                Err(TrySendError::Full(_)) => return self.busy(member, key.1),
                Err(TrySendError::Closed(unasked)) => asked = unasked,
            }
        }
        let (mailbox, questions) = mpsc::channel(1);
        let answering = answer_all(Arc::clone(&self.shared), member, questions);
        self.shared.tracker.spawn(answering);
        // A new mailbox has room for one.
        if mailbox.try_send(asked).is_ok() {
            self.members.insert(key, mailbox);
        }
    }

    /// Two questions at a time are not asked. Said by a task, because the way to the listener may be full.
    fn busy(&self, member: MemberName, by: Witness) {
        let shared = Arc::clone(&self.shared);
        let asked_at = shared.clock.moment();
        self.shared.tracker.spawn(async move {
            let outcome = Err(AskError::TimedOut);
            let _ = shared.events.send(Event::Answer(Answer { member, by, asked_at, outcome })).await;
        });
    }
}

/// The connections of one member's task.
struct Lines {
    rest: rest::Patroni,
    sql: Option<sql::Server>,
}

impl Lines {
    async fn ask(
        &mut self,
        question: &Question,
        scope: &str,
        member: &MemberName,
    ) -> Result<Status, Failure> {
        match (question, &mut self.sql) {
            (Question::Rest(api), _) => self.rest.status(api, scope, member).await,
            (Question::Sql(addresses), Some(sql)) => sql.status(addresses).await,
            (Question::Sql(_), None) => {
                Err((AskError::Unreachable, "no credentials for SQL are given".to_owned()))
            }
        }
    }

    /// A late answer must not be taken for the next one.
    fn forget(&mut self) {
        self.rest.forget();
        if let Some(sql) = &mut self.sql {
            sql.forget();
        }
    }
}

/// The task of one member.
async fn answer_all(shared: Arc<Shared>, member: MemberName, mut questions: mpsc::Receiver<Asked>) {
    let mut lines =
        Lines { rest: rest::Patroni::new(&shared.rest), sql: shared.sql.as_ref().map(sql::Server::new) };
    let mut known = None;
    while let Ok(Some(asked)) = timeout(IDLE, questions.recv()).await {
        answer(&shared, &member, &mut lines, &asked, &mut known).await;
    }
    // A question that came just now is not lost: no other can follow it, and this one is answered.
    questions.close();
    while let Some(asked) = questions.recv().await {
        answer(&shared, &member, &mut lines, &asked, &mut known).await;
    }
}

/// Answers one question. `known`: what was wrong last time, so that it is logged once.
async fn answer(
    shared: &Shared,
    member: &MemberName,
    lines: &mut Lines,
    asked: &Asked,
    known: &mut Option<String>,
) {
    let asked_at = shared.clock.moment();
    let asking = timeout_at(asked.deadline, lines.ask(&asked.question, &shared.scope, member)).await;
    let outcome = asking.unwrap_or_else(|_| {
        lines.forget();
        Err((AskError::TimedOut, "no answer before the deadline".to_owned()))
    });
    let by = asked.question.witness();
    let why = outcome.as_ref().err().map(|(_, why)| why.clone());
    if why != *known {
        let why = why.as_deref().unwrap_or("it answers");
        if matches!(outcome, Err((AskError::Denied, _))) {
            warn!(scope = shared.scope, %member, by = by.as_str(), why, "a member does not let us in");
        } else {
            debug!(scope = shared.scope, %member, by = by.as_str(), why, "asked a member");
        }
    }
    *known = why;
    let outcome = outcome.map_err(|(error, _)| error);
    let answer = Answer { member: member.clone(), by, asked_at, outcome };
    let _ = shared.events.send(Event::Answer(answer)).await; // nobody listens: shutdown
}
