//! Why a question over SQL failed, for the topology and for people. No sentence holds a password: servers do not say any,
//! and ours go into nothing but the exchange itself.

use std::error::Error as _;
use std::io;

use pointsman_core::event::AskError;
use tokio_postgres::Error;
use tokio_postgres::error::{DbError, SqlState};

use crate::ask::Failure;
use crate::connect;
use crate::tls;

/// The longest sentence of a server that is passed on.
const LONGEST: usize = 200;

/// The kind of a failure, and a sentence.
pub(super) fn failure(error: &Error) -> Failure {
    if let Some(server) = error.as_db_error() {
        return (of_state(server), short(server.message()));
    }
    if let Some(io) = io_error(error) {
        return of_io(io);
    }
    // The library does not say the kind but in words.
    let text = error.to_string();
    if error.is_closed() {
        return (AskError::Unreachable, "the connection was closed by the other side".to_owned());
    }
    let kind = if text.starts_with("authentication error") || text.starts_with("invalid configuration") {
        AskError::Denied
    } else if text.starts_with("error performing TLS handshake") {
        AskError::Unreachable
    } else {
        AskError::Nonsense
    };
    let source = error.source().map_or_else(|| text.clone(), ToString::to_string);
    (kind, short(&in_our_words(&source)))
}

/// Whether it might work without TLS: the handshake failed, or `pg_hba.conf` has no line for a connection with TLS.
pub(super) fn is_by_tls(error: &Error) -> bool {
    let by_server = error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
    by_server || error.to_string().starts_with("error performing TLS handshake")
}

/// A connection that was refused, or broke.
pub(super) fn of_io(error: &io::Error) -> Failure {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, InvalidData, InvalidInput, TimedOut};
    let is = |kinds: &[io::ErrorKind]| kinds.contains(&error.kind());
    let kind = if is(&[ConnectionRefused, ConnectionReset]) {
        AskError::Refused
    } else if is(&[TimedOut]) {
        AskError::TimedOut
    } else if is(&[InvalidInput, InvalidData]) && tls::explain(error).is_none() {
        AskError::Nonsense
    } else {
        AskError::Unreachable
    };
    (kind, in_our_words(&connect::explain(error)))
}

/// The keys of TLS have other names here.
fn in_our_words(text: &str) -> String {
    text.replace("tls.server_name", "the address, or use tls = \"verify-ca\"")
        .replace("tls.c", "sql.c")
        .replace("tls.key", "sql.key")
}

fn io_error(error: &Error) -> Option<&io::Error> {
    error.source()?.downcast_ref()
}

fn of_state(error: &DbError) -> AskError {
    match error.code().code() {
        "57P01" | "57P02" | "57P03" => AskError::NotReady,
        "57014" => AskError::TimedOut, // our statement_timeout
        // No such database, no right to a function; full. It answers, but not us.
        "3D000" | "42501" | "53300" => AskError::Denied,
        state if state.starts_with("28") => AskError::Denied,
        _ => AskError::Nonsense,
    }
}

fn short(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(LONGEST).collect()
}
