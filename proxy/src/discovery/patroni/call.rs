//! One question to one Patroni.

use std::time::Duration;

use bytes::Bytes;
use hyper::Uri;
use pointsman_core::event::AskError;
use pointsman_core::patroni::Asked;
use pointsman_core::view::{ApiUrl, MemberName};
use tokio::time::timeout;

use crate::ask::Failure;
use crate::ask::rest::Patroni;
use crate::clock::Clock;

/// For a whole call: connection, TLS, answer. Patroni asks its store before it answers a look.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Who is there, and who leads: `GET /cluster`.
    Look,
    /// The dynamic configuration: `GET /config`.
    Config,
    /// The ends of timelines: `GET /history`.
    History,
    /// How this member fares: `GET /patroni`.
    Status(MemberName),
}

/// A question on its way.
pub(super) struct Call {
    pub(super) whom: ApiUrl,
    pub(super) line: Patroni,
    pub(super) question: Question,
    pub(super) clock: Clock,
}

/// What came back; the line with it.
pub(super) struct Answer {
    pub(super) question: Question,
    pub(super) asked: Asked,
    pub(super) line: Patroni,
    pub(super) outcome: Result<Bytes, Failure>,
}

impl Call {
    /// Asks. Always ends, at the latest at the [`DEADLINE`].
    pub(super) async fn answer(self) -> Answer {
        let Self { whom, mut line, question, clock } = self;
        let path = Uri::from_static(match question {
            Question::Look => "/cluster",
            Question::Config => "/config",
            Question::History => "/history",
            Question::Status(_) => "/patroni",
        });
        let asked_at = clock.moment();
        let outcome = timeout(DEADLINE, line.get(&whom, &path)).await.unwrap_or_else(|_| {
            line.forget(); // a late answer must not be taken for the next one
            let store =
                if question == Question::Look { " (it hangs, or does not reach its store)" } else { "" };
            Err((AskError::TimedOut, format!("no answer within {} s{store}", DEADLINE.as_secs())))
        });
        let asked = Asked { whom, asked_at, answered_at: clock.moment() };
        Answer { question, asked, line, outcome }
    }
}
