//! What happens, as lines of the log: one for each note, and each says why.

use pointsman_vrrp::event::State;
use pointsman_vrrp::note::{Note, PeerNews, Reason, Repair};

/// Writes the line. Never waits: the log has a queue.
pub(super) fn log(note: &Note) {
    match note {
        Note::Transition(change) => {
            let (router, from, to) = (&change.router, change.from, change.to);
            let (reason, priority) = (change.reason.label(), change.priority);
            let fault = matches!(change.reason, Reason::LinkLost(_) | Reason::Unwell { .. });
            if fault && from == State::Active {
                tracing::warn!(%router, %from, %to, reason, priority, "{}", change.reason);
            } else {
                tracing::info!(%router, %from, %to, reason, priority, "{}", change.reason);
            }
        }
        Note::Alarm { router, alarm } => {
            tracing::warn!(%router, alarm = alarm.kind().as_str(), "{alarm}");
        }
        Note::AlarmOver { router, kind } => {
            tracing::info!(%router, alarm = kind.as_str(), "this alarm is over");
        }
        Note::Repaired { router, by } => {
            tracing::info!(%router, by = by.label(), "the neighbours are told anew: {}", claim(*by));
        }
        Note::Peer { node, news } => match news {
            PeerNews::Alive => tracing::info!(peer = %node, "it is heard"),
            PeerNews::Lost(loss) => tracing::warn!(peer = %node, "it is lost: {loss}"),
            PeerNews::Farewell => tracing::info!(peer = %node, "it has said good-bye"),
        },
    }
}

/// What somebody did that made us tell the neighbours anew.
pub(super) const fn claim(by: Repair) -> &'static str {
    match by {
        Repair::Advert => "another host sent an advert of lower priority",
        Repair::Neighbour => "another host told the neighbours that it has the addresses",
        Repair::Return => "a host is back that may have held the addresses",
        Repair::Report => "another host reported that it was active",
        Repair::Restored => "the addresses were removed from the interface, and put back",
    }
}
