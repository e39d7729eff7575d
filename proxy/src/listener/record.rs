//! One line for each finished session (tracing target `session`).

use std::net::SocketAddr;
use std::time::Duration;

use pointsman_core::close::CloseReason;
use tracing::{Level, enabled};

use crate::sessions::{Session, SessionId};

/// What a session did before it was established: the rest of its line is in [`Session`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Dials that were made.
    pub(crate) tries: u32,
    /// Time held, all waits together.
    pub(crate) held: Duration,
    /// From the start of the dial that succeeded to the server's first byte.
    pub(crate) dialled: Duration,
}

macro_rules! line {
    ($level:ident, $session:expr, $tally:expr, $reason:expr) => {{
        let (session, tally, reason) = ($session, $tally, $reason);
        let SessionId(id) = session.id;
        let granted = session.granted();
        let login = session.login();
        tracing::$level!(
            target: "session",
            id,
            client = %session.client(),
            listener = %session.listener(),
            cluster = %session.cluster(),
            member = granted.as_ref().map(|granted| tracing::field::display(&granted.member)),
            server = granted.as_ref().map(|granted| tracing::field::display(granted.server)),
            role = granted.as_ref().map(|granted| granted.role.as_str()),
            user = login.as_ref().and_then(|login| login.user.as_deref()),
            database = login.as_ref().and_then(|login| login.database.as_deref()),
            bytes_in = session.bytes_in(),
            bytes_out = session.bytes_out(),
            duration_ms = millis(session.age()),
            held_ms = millis(tally.held),
            dial_ms = millis(tally.dialled),
            tries = tally.tries,
            reason = reason.label(),
            side = reason.side().label(),
            "session ended: {reason}"
        );
    }};
}
/// Writes the line of a session that has ended. `loud`: the configuration wants session lines; what nobody
/// needs to see (a health check that connects and closes) is written at debug level only.
pub(crate) fn write(session: &Session, tally: Tally, reason: &CloseReason, loud: bool, quiet: bool) {
    if loud && !quiet {
        if enabled!(target: "session", Level::INFO) {
            line!(info, session, tally, reason);
        }
    } else if enabled!(target: "session", Level::DEBUG) {
        line!(debug, session, tally, reason);
    }
}

/// The line of a connection that was turned away at the door.
pub(crate) fn turned_away(listener: &str, client: SocketAddr, reason: &CloseReason) {
    tracing::debug!(
        target: "session",
        %client,
        listener,
        reason = reason.label(),
        side = reason.side().label(),
        "connection refused: {reason}"
    );
}

/// Milliseconds with three decimals.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}
