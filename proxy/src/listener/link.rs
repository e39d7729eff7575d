//! A connection to a server, from the grant to its first answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use pointsman_core::error_response::SqlState;
use pointsman_core::route::GrantRole;
use pointsman_core::startup::{Encryption, EncryptionAnswer, FirstMessage, ServerReply};
use pointsman_core::view::{Address, MemberName};

use super::client::Client;
use crate::dial::{self, DialError};
use crate::engine::{Stream, timeout_at};
use crate::routes::Fence;
use crate::stats::{GaugeGuard, ServerSessions, ServerStats};

/// A member that a session was granted. The fence is of the very table that named the member.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) member: MemberName,
    pub(crate) role: GrantRole,
    pub(crate) addresses: Arc<[Address]>,
    pub(crate) fence: Arc<Fence>,
    pub(crate) stats: Arc<ServerStats>,
    /// Counts the session as the member's load, from before the dial.
    pub(crate) _load: GaugeGuard<ServerSessions>,
}

/// What is asked of a server: one first message of the client.
#[derive(Debug)]
pub(crate) struct Question {
    kind: Kind,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Encryption(Encryption),
    Startup,
    /// Nothing of it is readable to us.
    Opaque,
}

impl Question {
    /// The message as it goes onto the wire.
    pub(crate) fn new(message: &FirstMessage, client: &Client) -> Self {
        const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
        const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
        match message {
            FirstMessage::Ssl => {
                Self { kind: Kind::Encryption(Encryption::Ssl), bytes: SSL_REQUEST.to_vec() }
            }
            FirstMessage::Gss => {
                Self { kind: Kind::Encryption(Encryption::Gss), bytes: GSSENC_REQUEST.to_vec() }
            }
            FirstMessage::Startup(startup) => Self { kind: Kind::Startup, bytes: startup.raw().to_vec() },
            FirstMessage::Cancel(cancel) => Self { kind: Kind::Opaque, bytes: cancel.encode() },
            FirstMessage::DirectTls => Self { kind: Kind::Opaque, bytes: client.early().to_vec() },
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A server's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// No encryption: the client's next message is readable again.
    Refused,
    /// The session has begun: everything from here on is between the two of them.
    Begun,
}

/// A connection to a server that has been sent nothing but start-up messages.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) stream: Stream,
    pub(crate) server: SocketAddr,
    pub(crate) grant: Grant,
    /// What the server has answered.
    pub(crate) received: Vec<u8>,
}

impl Link {
    /// Connects to the granted member.
    pub(crate) async fn dial(grant: Grant, deadline: Instant) -> Result<Self, (Grant, DialError)> {
        let connected = tokio::select! {
            biased;
            _ = grant.fence.wait() => Err(DialError::Revoked),
            connected = dial::connect(&grant.addresses, deadline) => connected,
        };
        match connected {
            Ok((stream, server)) => Ok(Self { stream, server, grant, received: Vec::new() }),
            Err(error) => Err((grant, error)),
        }
    }

    /// Sends a first message and waits until it is clear what the server makes of it. Afterwards
    /// [`Link::received`] holds what the client has to see.
    pub(crate) async fn ask(&mut self, question: &Question, deadline: Instant) -> Result<Answer, DialError> {
        self.received.clear();
        let Self { stream, grant, received, .. } = self;
        stream.send(&question.bytes);
        let answer = tokio::select! {
            biased;
            _ = grant.fence.wait() => Err(DialError::Revoked),
            answer = timeout_at(deadline, answer(stream, question.kind, received)) => {
                answer.unwrap_or(Err(DialError::TimedOut))
            }
        };
        match answer {
            // It said something, then nothing that would make a whole: that is the client's to judge.
            Err(DialError::TimedOut | DialError::Closed) if !self.received.is_empty() => Ok(Answer::Begun),
            // A server owes no answer to half a TLS handshake: its silence says nothing about it.
            Err(DialError::TimedOut) if question.kind == Kind::Opaque => Ok(Answer::Begun),
            answer => answer,
        }
    }

    /// Waits until a server that has nothing to say until the client speaks again is lost, or revoked.
    /// Cancel-safe.
    pub(crate) async fn lost(&self) {
        tokio::select! {
            _ = self.grant.fence.wait() => {}
            // Data would be as strange as an end: dialling anew is right for both.
            () = self.stream.readable() => {}
        }
    }
}

async fn answer(stream: &Stream, kind: Kind, received: &mut Vec<u8>) -> Result<Answer, DialError> {
    loop {
        // Not more than a start-up can be answered with: the rest stays with the stream.
        if stream.receive(received, ServerReply::MAX_INSPECTED).await? == 0 {
            return Err(DialError::Closed);
        }
        match judge(kind, received) {
            Verdict::Wait => {}
            Verdict::Answer(answer) => return Ok(answer),
            Verdict::NotReady(sqlstate, message) => {
                return Err(DialError::NotReady(format!("{message} ({sqlstate})")));
            }
        }
    }
}

enum Verdict {
    Wait,
    Answer(Answer),
    NotReady(SqlState, String),
}

fn judge(kind: Kind, received: &[u8]) -> Verdict {
    let reply = match kind {
        Kind::Opaque => ServerReply::Other,
        Kind::Startup => ServerReply::inspect(received),
        Kind::Encryption(asked) => match EncryptionAnswer::inspect(asked, received) {
            EncryptionAnswer::NeedMore => ServerReply::NeedMore,
            EncryptionAnswer::Refused if received.len() == 1 => return Verdict::Answer(Answer::Refused),
            EncryptionAnswer::Error(reply) => reply,
            // Whatever it is, the two have to settle it: a client checks for bytes before a handshake itself.
            EncryptionAnswer::Accepted
            | EncryptionAnswer::Refused
            | EncryptionAnswer::TrailingBytes
            | EncryptionAnswer::Unexpected(_) => ServerReply::Other,
        },
    };
    match reply {
        ServerReply::NeedMore => Verdict::Wait,
        ServerReply::NotReady { sqlstate, message } => Verdict::NotReady(sqlstate, message),
        ServerReply::Other => Verdict::Answer(Answer::Begun),
    }
}
