//! How a server answers a first message, read in clear text.

use crate::error_response::SqlState;

use super::{c_string, printable, to_usize, word};

#[cfg(test)]
mod tests;

/// After the bytes that tell us what a server thinks of a `StartupMessage`.
///
/// Only a refusal that asks to come back later is of interest; everything else belongs to the client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerReply {
    /// Not enough to say. Never the answer to [`ServerReply::MAX_INSPECTED`] bytes or more.
    NeedMore,
    /// The server is starting up, shutting down or recovering: nothing of this is for the client.
    NotReady {
        /// 57P03, 57P01 or 57P02.
        sqlstate: SqlState,
        /// The server's words, made printable, possibly cut.
        message: String,
    },
    /// Anything else: forward every byte received.
    Other,
}

impl ServerReply {
    /// How many bytes are looked at before we give up and forward them.
    pub const MAX_INSPECTED: usize = 2_048;

    /// Judges all that the server has sent so far, from its first byte after the `StartupMessage`.
    ///
    /// Call it again with the longer buffer after [`ServerReply::NeedMore`].
    pub fn inspect(received: &[u8]) -> Self {
        let (window, is_full) = match received.get(..Self::MAX_INSPECTED) {
            Some(window) => (window, true),
            None => (received, false),
        };
        let reply = Self::inspect_window(window, is_full);
        if is_full && reply == Self::NeedMore { Self::Other } else { reply }
    }

    fn inspect_window(window: &[u8], is_full: bool) -> Self {
        match (window.first(), word(window, 1)) {
            (None | Some(b'v' | b'E'), None) => Self::NeedMore,
            // NegotiateProtocolVersion is sent before the server looks whether it can accept connections.
            (Some(b'v'), Some(length)) => match window.get(to_usize(length).saturating_add(1)..) {
                _ if length < 4 => Self::Other,
                Some([b'v', ..]) => Self::Other,
                Some(next) => Self::inspect_window(next, is_full),
                None => Self::NeedMore,
            },
            (Some(b'E'), Some(length)) if is_old_form(length) => old_form(window),
            (Some(b'E'), Some(length)) => {
                let body = window.get(5..).unwrap_or_default();
                match body.get(..to_usize(length) - 4) {
                    Some(body) => error_fields(body, true),
                    None => error_fields(body, is_full),
                }
            }
            (Some(_) | None, _) => Self::Other,
        }
    }
}

/// libpq's rule: what cannot be a length of a protocol-3 error is text of the form before it.
fn is_old_form(length: u32) -> bool {
    !(8..=30_000).contains(&length)
}

/// Reads the fields of an `ErrorResponse`. `is_all`: nothing more is coming that we would wait for.
fn error_fields(mut rest: &[u8], is_all: bool) -> ServerReply {
    let mut sqlstate = None;
    let mut text = None;
    while let Some((&kind, after)) = rest.split_first() {
        let field = c_string(after);
        match (kind, field) {
            (0, _) => break,
            (b'C', Some((code, _))) => match SqlState::parse(code) {
                Some(code) if is_not_ready(code) => sqlstate = Some(code),
                _ => return ServerReply::Other,
            },
            (b'M', Some((message, _))) => text = Some(message),
            (b'M', None) => text = text.or(is_all.then_some(after)),
            _ => {}
        }
        match field {
            Some((_, next)) => rest = next,
            None => break,
        }
        if sqlstate.is_some() && text.is_some() {
            break;
        }
    }
    match (sqlstate, text) {
        (Some(sqlstate), Some(text)) => not_ready(sqlstate, text),
        (Some(sqlstate), None) if is_all => not_ready(sqlstate, b""),
        _ if is_all => ServerReply::Other,
        _ => ServerReply::NeedMore,
    }
}

fn is_not_ready(code: SqlState) -> bool {
    [SqlState::CANNOT_CONNECT_NOW, SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN].contains(&code)
}

fn not_ready(sqlstate: SqlState, text: &[u8]) -> ServerReply {
    ServerReply::NotReady { sqlstate, message: printable(text).into_owned() }
}

/// `E`, text, zero: what servers sent before protocol 3, and what a postmaster sends that cannot fork.
/// It carries no SQLSTATE, so the server's English words have to do; anything else is the client's.
fn old_form(window: &[u8]) -> ServerReply {
    const NOT_READY: [&str; 5] = [
        "the database system is starting up",
        "the database system is shutting down",
        "the database system is in recovery mode",
        "the database system is not yet accepting connections",
        "the database system is not accepting connections",
    ];
    let Some((text, _)) = c_string(window.get(1..).unwrap_or_default()) else { return ServerReply::NeedMore };
    let text = printable(text.trim_ascii());
    if NOT_READY.iter().any(|known| text.contains(known)) {
        return ServerReply::NotReady { sqlstate: SqlState::CANNOT_CONNECT_NOW, message: text.into_owned() };
    }
    ServerReply::Other
}

/// Which kind of encryption was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encryption {
    /// By `SSLRequest`.
    Ssl,
    /// By `GSSENCRequest`.
    Gss,
}

/// A server's answer to `SSLRequest` or `GSSENCRequest`, when we asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EncryptionAnswer {
    /// Nothing, or an error that is not complete.
    NeedMore,
    /// `S` or `G`, and nothing behind it: the handshake may begin.
    Accepted,
    /// `N`: go on in clear text.
    Refused,
    /// An error instead of an answer. [`ServerReply::NotReady`] or [`ServerReply::Other`].
    Error(ServerReply),
    /// The server accepts, but sent bytes before the handshake: somebody injects clear text. Close.
    TrailingBytes,
    /// A byte that is no answer: this is not a `PostgreSQL` server.
    Unexpected(u8),
}

impl EncryptionAnswer {
    /// Judges all that the server has sent so far, from its first byte after the request.
    pub fn inspect(asked: Encryption, received: &[u8]) -> Self {
        let yes = match asked {
            Encryption::Ssl => b'S',
            Encryption::Gss => b'G',
        };
        match received.split_first() {
            None => Self::NeedMore,
            Some((&first, rest)) if first == yes => {
                if rest.is_empty() {
                    Self::Accepted
                } else {
                    Self::TrailingBytes
                }
            }
            Some((b'N', _)) => Self::Refused,
            Some((b'E', _)) => match ServerReply::inspect(received) {
                ServerReply::NeedMore => Self::NeedMore,
                reply @ (ServerReply::NotReady { .. } | ServerReply::Other) => Self::Error(reply),
            },
            Some((&byte, _)) => Self::Unexpected(byte),
        }
    }
}
