//! What is told: the log, what is shown, the line for systemd.

use std::sync::Arc;
use std::time::Instant;

use pointsman_vrrp::event::State;
use pointsman_vrrp::note::{Note, Transition};
use pointsman_vrrp::status::{RouterStatus, Status};

use super::{SHOW, TOLD_EVERY, Worker};
use crate::side::Notice;

impl Worker {
    pub(super) fn note(&mut self, note: Note) {
        log(&note);
        if let Note::Transition(Transition { router, to: State::Active, .. }) = &note {
            self.ends.tell(Notice::Took { router: router.clone() });
        }
        self.ends.tell(Notice::Note(note));
    }

    /// Publishes what is shown.
    pub(super) fn show(&mut self) {
        let now = self.now();
        self.show_at = now + SHOW;
        let status = self.node.status(now);
        self.guard.status(&line(&status));
        self.ends.show(Arc::new(status));
    }

    /// Tells of a failure, not more often than somebody can read it.
    pub(super) fn complain(&mut self, what: &'static str, error: &dyn std::error::Error) {
        let now = Instant::now();
        let silent = self.told.get(what).is_some_and(|told| now.duration_since(*told) < TOLD_EVERY);
        if !silent {
            self.told.insert(what, now);
            tracing::warn!(error = %error, "the system does not do what it is asked to");
        }
    }
}

/// For `systemctl status`: `eth0-51 active (priority 150); lb2 alive, lb3 lost`.
fn line(status: &Status) -> String {
    let router =
        |router: &RouterStatus| format!("{} {} (priority {})", router.name, router.state, router.priority);
    let routers: Vec<_> = status.routers.iter().map(router).collect();
    let peers: Vec<_> =
        status.peers.iter().map(|peer| format!("{} {}", peer.node, peer.state.as_str())).collect();
    let parts = [routers.join(", "), peers.join(", ")];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

fn log(note: &Note) {
    match note {
        Note::Transition(Transition { router, from, to, reason, priority }) => {
            tracing::info!(%router, %from, %to, priority, reason = reason.label(), "{router} is {to}: {reason}");
        }
        Note::Alarm { router, alarm } => {
            tracing::warn!(%router, alarm = alarm.kind().as_str(), "{router}: {alarm}");
        }
        Note::AlarmOver { router, kind } => {
            tracing::info!(%router, alarm = kind.as_str(), "{router}: the alarm {} is over", kind.as_str());
        }
        // A stranger can cause twenty in a second; what is wrong then is an alarm.
        Note::Repaired { router, by } => {
            tracing::debug!(%router, by = by.label(), "{router}: the neighbours are told anew who has the addresses");
        }
        Note::Peer { node, news } => tracing::info!(%node, "{node}: {news}"),
    }
}
