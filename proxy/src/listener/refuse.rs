//! Telling a client why it is not served, so that the words arrive.
//!
//! libpq hides an error that answers an `SSLRequest`: encryption is refused first, and the error answers
//! the `StartupMessage`. Then our side is shut down and the client's last bytes are read, because closing
//! with unread input would send an RST that destroys the message.

use std::time::{Duration, Instant};

use pointsman_core::close::CloseReason;
use pointsman_core::error_response::{ErrorResponse, SqlState};
use pointsman_core::startup::FirstMessage;

use super::Shared;
use super::client::{Client, ClientError};
use crate::engine::timeout_at;
use crate::socket::discard;

/// How long a client may take to come to its start-up message, and to take our answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// A wait that is shorter than this is not worth a word: it would read "0.0 s".
const TOLD_FROM: Duration = Duration::from_millis(50);
/// How long we wait for the client to close after our answer.
const LINGER: Duration = Duration::from_secs(1);
/// How much of what it still sends we read meanwhile, in bytes.
const LINGER_BYTES: usize = 64 * 1024;

/// Explains, within bounds. `unanswered`: the message that the client waits on.
pub(crate) async fn explain(client: &mut Client, unanswered: Option<FirstMessage>, response: &[u8]) {
    let telling = async {
        to_startup(client, unanswered).await?;
        client.send(response);
        Ok::<(), ClientError>(())
    };
    if let Ok(Ok(())) = timeout_at(Instant::now() + PATIENCE, telling).await {
        finish(client).await;
    }
}

/// Answers nonsense: there is no message to wait for.
pub(crate) async fn answer_nonsense(client: &Client, response: &[u8]) {
    client.send(response);
    finish(client).await;
}

async fn finish(client: &Client) {
    client.stream.shut_down_write();
    discard(&client.stream, LINGER_BYTES, LINGER).await;
}

/// Goes on until the client waits for the answer to its `StartupMessage`.
async fn to_startup(client: &mut Client, unanswered: Option<FirstMessage>) -> Result<(), ClientError> {
    let mut next = unanswered;
    loop {
        let message = match next.take() {
            Some(message) => message,
            None => client.next_message().await?,
        };
        match message {
            FirstMessage::Ssl | FirstMessage::Gss => client.send(b"N"),
            FirstMessage::Startup(_) => return Ok(()),
            // Nobody reads an error there.
            FirstMessage::Cancel(_) | FirstMessage::DirectTls => return Err(ClientError::Closed),
        }
    }
}

/// The error for a client, as it goes onto the wire. `None`: this end is not told.
pub(crate) fn response(shared: &Shared, reason: &CloseReason, held: Duration) -> Option<Vec<u8>> {
    let whose = format!("pointsman (cluster \"{}\", listener \"{}\")", shared.cluster, shared.name);
    let (sqlstate, message) = if *reason == CloseReason::Drained {
        // libpq goes on to the next host of its list for this code, and only for this one.
        (SqlState::CANNOT_CONNECT_NOW, format!("{whose}: shutting down"))
    } else {
        (reason.sqlstate()?, format!("{whose}: {reason}"))
    };
    let limits = &shared.settings.load().listener;
    let detail = if *reason == CloseReason::ListenerFull {
        Some(format!("The listener takes {} connections at once.", limits.max_connections))
    } else if *reason == CloseReason::QueueFull {
        Some(format!("The listener holds {} connections at once.", limits.max_held))
    } else {
        // Without a `hold` the queue keeps nobody for longer than it takes to say so.
        let waited = !limits.hold.is_zero() && held >= TOLD_FROM;
        waited.then(|| format!("The connection was held for {:.1} s.", held.as_secs_f64()))
    };
    let why = if let CloseReason::HeldTooLong(why) = reason { why.clone() } else { shared.no_route() };
    let hint = why.filter(|_| lacks_route(reason)).map(|why| why.hint());
    Some(ErrorResponse { sqlstate, message: &message, detail: detail.as_deref(), hint }.encode())
}

/// Whether the lack of a route is what the client suffers from.
fn lacks_route(reason: &CloseReason) -> bool {
    matches!(reason, CloseReason::HeldTooLong(_) | CloseReason::QueueFull)
}
