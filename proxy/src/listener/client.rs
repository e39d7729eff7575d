//! A client before its session is established: what it has sent, and whether it is still there.

use std::io;

use pointsman_core::startup::{FirstMessage, Parsed, StartupError, StartupParser};

use crate::engine::Stream;

/// The most that is kept of what a client sends before a server has answered, in bytes. A start-up message
/// has at most 10,000, a TLS ClientHello at most 16 KiB.
const MAX_EARLY: usize = 32 * 1024;

/// How much is taken at once, in bytes; a start-up message rarely has more than 200.
const READ: usize = 2048;

/// Why a client cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// A FIN.
    #[error("the client closed the connection")]
    Closed,
    /// An RST, or a dead peer.
    #[error("the client's connection broke: {0}")]
    Broken(io::Error),
    /// Nonsense.
    #[error("{0}")]
    Startup(#[from] StartupError),
    /// More than can be part of a start-up.
    #[error("the client sent more than {MAX_EARLY} bytes before a server answered")]
    Flood,
}

/// A client's connection, its first messages taken off one by one.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: Stream,
    parser: StartupParser,
    /// Received, and not part of a message that was taken off.
    early: Vec<u8>,
}

impl Client {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, parser: StartupParser::default(), early: Vec::new() }
    }

    /// What came after the messages that were taken off. After [`FirstMessage::DirectTls`]: the handshake.
    pub(crate) fn early(&self) -> &[u8] {
        &self.early
    }

    /// The first bytes of what was kept have gone to the server.
    pub(crate) fn forget_early(&mut self, count: usize) {
        self.early.drain(..count.min(self.early.len()));
    }

    /// The socket, and what came after the messages that were taken off.
    pub(crate) fn into_parts(self) -> (Stream, Vec<u8>) {
        (self.stream, self.early)
    }

    /// The next first message. Cancel-safe; the caller has a deadline.
    pub(crate) async fn next_message(&mut self) -> Result<FirstMessage, ClientError> {
        loop {
            if !self.early.is_empty() {
                match self.parser.feed(&self.early) {
                    Parsed::NeedMore => self.early.clear(),
                    Parsed::Message(FirstMessage::DirectTls, _) if !is_whole_record(&self.early) => {}
                    Parsed::Message(message, taken) => {
                        self.early.drain(..taken.min(self.early.len()));
                        return Ok(message);
                    }
                    Parsed::Bad(error) => return Err(error.into()),
                }
            }
            self.receive().await?;
        }
    }

    /// Waits until the client leaves, or misbehaves. Cancel-safe: what it sends meanwhile is kept.
    pub(crate) async fn gone(&mut self) -> ClientError {
        loop {
            if let Err(error) = self.receive().await {
                return error;
            }
        }
    }

    /// Sends an answer of ours, or of a server's.
    pub(crate) fn send(&self, bytes: &[u8]) {
        self.stream.send(bytes);
    }

    /// Waits for bytes, and keeps them.
    async fn receive(&mut self) -> Result<(), ClientError> {
        match self.stream.receive(&mut self.early, READ).await {
            Ok(0) => Err(ClientError::Closed),
            Ok(_) if self.early.len() > MAX_EARLY => Err(ClientError::Flood),
            Ok(_) => Ok(()),
            Err(error) => Err(ClientError::Broken(error)),
        }
    }
}

/// Whether a whole TLS record is there (RFC 8446, section 5.1: type, version, length). A server answers
/// nothing to a part of one, so it is not sent in parts while we wait for the server's first byte.
fn is_whole_record(bytes: &[u8]) -> bool {
    match bytes {
        [_, _, _, high, low, fragment @ ..] => {
            fragment.len() >= usize::from(u16::from_be_bytes([*high, *low]))
        }
        _ => false,
    }
}
