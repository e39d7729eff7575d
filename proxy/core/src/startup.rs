//! The first bytes of a `PostgreSQL` connection, in both directions, read by a proxy.
//!
//! - [`StartupParser`]: what the client sends first (`SSLRequest`, `GSSENCRequest`, `CancelRequest`,
//!   `StartupMessage`, or a TLS handshake).
//! - [`EncryptionAnswer`], [`ServerReply`]: how the server answers that.
//! - [`HotStandbyScanner`]: what the server says about its role while a session starts in clear text.
//!
//! Everything is sans-IO and bounded: memory grows with the bytes received, never with a length claimed.
//! Source: `PostgreSQL` documentation, "Message Formats"; `src/backend/tcop/backend_startup.c` for limits.

use std::borrow::Cow;
use std::fmt;

use crate::error_response::SqlState;

mod hot_standby;
mod reply;
#[cfg(test)]
mod tests;

pub use hot_standby::HotStandbyScanner;
pub use reply::{Encryption, EncryptionAnswer, ServerReply};

/// The longest body of a first message that `PostgreSQL` takes, in bytes, without the four of the length.
pub const MAX_BODY: u32 = 10_000;

/// Four bytes of length, which count themselves, and four of the protocol or request code.
const HEADER: u32 = 8;
/// Protocol 3.2 (`PostgreSQL` 18) allows keys of this length; protocol 3.0 has four bytes always.
const KEY_LENGTHS: std::ops::RangeInclusive<u32> = 4..=256;

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const TLS_HANDSHAKE: u8 = 0x16;

/// The first message of a connection, or the first after an encryption request was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FirstMessage {
    /// `SSLRequest`: may we speak TLS? One byte is the answer.
    Ssl,
    /// `GSSENCRequest`: may we speak GSSAPI encryption? One byte is the answer.
    Gss,
    /// `CancelRequest`: end the query that another connection runs. No answer.
    Cancel(CancelRequest),
    /// `StartupMessage`: who wants to talk to which database.
    Startup(StartupMessage),
    /// A TLS handshake without an `SSLRequest` before it (`sslnegotiation=direct`). Nothing is consumed.
    DirectTls,
}

/// A client asks to cancel the query of the session with this process id and key.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// The server process, from `BackendKeyData`.
    pub process_id: u32,
    /// The secret of that session, 4 to 256 bytes.
    pub key: Vec<u8>,
}

impl CancelRequest {
    /// The request as it goes onto the wire.
    pub fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.key.len()).unwrap_or(u32::MAX).saturating_add(HEADER + 4);
        let mut out = Vec::with_capacity(self.key.len() + 12);
        for word in [length, CANCEL_REQUEST, self.process_id] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&self.key);
        out
    }
}

impl fmt::Debug for CancelRequest {
    /// Without the key: whoever knows it can cancel queries.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelRequest").field("process_id", &self.process_id).finish_non_exhaustive()
    }
}

/// A well-formed `StartupMessage`, kept as it came so that it can be forwarded unchanged.
#[derive(Clone, PartialEq, Eq)]
pub struct StartupMessage {
    raw: Vec<u8>,
    version: ProtocolVersion,
}

impl StartupMessage {
    /// The whole message as it was received.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The protocol version that the client asks for; its major number is 3.
    pub fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// All parameters in the order they came, as bytes: their encoding is not known yet.
    pub fn parameters(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        Parameters { rest: self.raw.get(8..).unwrap_or_default() }
    }

    /// The value of a parameter. The last one wins when a name comes twice, as in the server.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.parameters().filter(|(n, _)| *n == name.as_bytes()).map(|(_, value)| value).last()
    }

    /// The value of a parameter for logs and pages: control characters and broken UTF-8 are replaced.
    pub fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.get(name).map(printable)
    }

    /// The user who wants to log in; `None` will be refused by the server.
    pub fn user(&self) -> Option<Cow<'_, str>> {
        self.text("user")
    }

    /// The database, which is the user's name when it is absent or empty.
    pub fn database(&self) -> Option<Cow<'_, str>> {
        self.get("database").filter(|name| !name.is_empty()).map(printable).or_else(|| self.user())
    }

    /// What the client calls itself.
    pub fn application_name(&self) -> Option<Cow<'_, str>> {
        self.text("application_name")
    }

    /// Whether this wants to be a replication connection.
    pub fn replication(&self) -> Replication {
        match self.get("replication") {
            Some(b"database") => Replication::Logical,
            Some(value) if is_true(value) => Replication::Physical,
            _ => Replication::No,
        }
    }
}

impl fmt::Debug for StartupMessage {
    /// Without `options` and the like, which may hold anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartupMessage")
            .field("version", &self.version)
            .field("user", &self.user())
            .field("database", &self.database())
            .field("length", &self.raw.len())
            .finish_non_exhaustive()
    }
}

/// What the `replication` parameter of a `StartupMessage` asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replication {
    /// An ordinary session. Also for values that the server is going to refuse.
    No,
    /// `replication=true`: a streaming standby or `pg_basebackup`.
    Physical,
    /// `replication=database`: logical decoding.
    Logical,
}

/// A protocol version: major number in the upper 16 bits, minor number in the lower.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ProtocolVersion(pub u32);

impl ProtocolVersion {
    /// The part that decides whether two sides understand each other at all.
    pub const fn major(self) -> u32 {
        self.0 >> 16
    }

    /// The part that a server may negotiate down.
    pub const fn minor(self) -> u32 {
        self.0 & 0xffff
    }
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

/// Why a first message is none that we can serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartupError {
    /// The length is over the limit.
    #[error("start-up message of {length} bytes is too long")]
    TooLong {
        /// As claimed, including the length itself.
        length: u32,
    },
    /// The length leaves no room for a header.
    #[error("start-up message of {length} bytes is too short")]
    TooShort {
        /// As claimed, including the length itself.
        length: u32,
    },
    /// A request of a fixed form has a length that does not fit it.
    #[error("{request} of {length} bytes has the wrong length")]
    WrongLength {
        /// Which request.
        request: &'static str,
        /// As claimed, including the length itself.
        length: u32,
    },
    /// Neither protocol 3 nor a known request code.
    #[error("unsupported frontend protocol {}", ProtocolVersion(*.0))]
    UnknownProtocol(u32),
    /// The parameters of a `StartupMessage` do not end with the message.
    #[error("invalid start-up message: expected a terminator as the last byte")]
    NotTerminated,
    /// An encryption request was already answered on this connection.
    #[error("{request} was sent twice")]
    Repeated {
        /// Which request.
        request: &'static str,
    },
    /// The client speaks HTTP.
    #[error("this is a PostgreSQL port, but the client speaks HTTP")]
    LooksLikeHttp,
    /// The client speaks SSH.
    #[error("this is a PostgreSQL port, but the client speaks SSH")]
    LooksLikeSsh,
    /// An outer balancer sends a PROXY header that this listener does not expect.
    #[error("the client sends a PROXY protocol header, but accept_proxy is off for this listener")]
    LooksLikeProxyHeader,
}

impl StartupError {
    /// All labels, for counters that start at zero.
    pub const LABELS: [&'static str; 9] = [
        "too-long",
        "too-short",
        "wrong-length",
        "unknown-protocol",
        "not-terminated",
        "repeated",
        "http",
        "ssh",
        "proxy-header",
    ];

    /// The kind, as a metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too-long",
            Self::TooShort { .. } => "too-short",
            Self::WrongLength { .. } => "wrong-length",
            Self::UnknownProtocol(_) => "unknown-protocol",
            Self::NotTerminated => "not-terminated",
            Self::Repeated { .. } => "repeated",
            Self::LooksLikeHttp => "http",
            Self::LooksLikeSsh => "ssh",
            Self::LooksLikeProxyHeader => "proxy-header",
        }
    }

    /// The code that the server itself would answer with.
    pub const fn sqlstate(&self) -> SqlState {
        match self {
            Self::UnknownProtocol(_) => SqlState::FEATURE_NOT_SUPPORTED,
            Self::TooLong { .. }
            | Self::TooShort { .. }
            | Self::WrongLength { .. }
            | Self::NotTerminated
            | Self::Repeated { .. }
            | Self::LooksLikeHttp
            | Self::LooksLikeSsh
            | Self::LooksLikeProxyHeader => SqlState::PROTOCOL_VIOLATION,
        }
    }
}

/// What feeding bytes has led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// All bytes were taken; the message is not complete.
    NeedMore,
    /// A message, and how many bytes *of this feed* belong to it.
    ///
    /// Bytes after an [`FirstMessage::Ssl`] or [`FirstMessage::Gss`] that came before its answer must not be
    /// trusted once encryption has begun: drop the connection if encryption is accepted with bytes left.
    Message(FirstMessage, usize),
    /// The connection cannot be served. Feeding more gives the same error.
    Bad(StartupError),
}

/// Reads the first message of a connection, and the next ones after refused encryption requests.
///
/// After a [`Parsed::Message`] the parser is ready for the next one; each encryption request is allowed once,
/// so a connection has at most three first messages.
#[derive(Debug)]
pub struct StartupParser {
    limit: u32,
    received: Vec<u8>,
    seen_ssl: bool,
    seen_gss: bool,
}

impl Default for StartupParser {
    fn default() -> Self {
        Self::new(MAX_BODY)
    }
}

impl StartupParser {
    /// A parser that takes bodies up to `limit` bytes, counted as the server does (see [`MAX_BODY`]).
    pub fn new(limit: u32) -> Self {
        Self { limit, received: Vec::new(), seen_ssl: false, seen_gss: false }
    }

    /// The bytes taken so far that make no complete message yet.
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// Takes bytes as they come, in pieces of any size, up to the end of the message.
    pub fn feed(&mut self, bytes: &[u8]) -> Parsed {
        if self.received.is_empty() && bytes.first() == Some(&TLS_HANDSHAKE) {
            return Parsed::Message(FirstMessage::DirectTls, 0);
        }
        let mut consumed = self.take(bytes, 4);
        let Some(length) = word(&self.received, 0) else { return Parsed::NeedMore };
        if let Err(error) = self.check_length(length) {
            return Parsed::Bad(error);
        }
        // The header first, so that a wrong one is known before its body is awaited.
        consumed += self.take(bytes.get(consumed..).unwrap_or_default(), HEADER);
        let Some(code) = word(&self.received, 4) else { return Parsed::NeedMore };
        if let Err(error) = self.check_code(code, length) {
            return Parsed::Bad(error);
        }
        consumed += self.take(bytes.get(consumed..).unwrap_or_default(), length);
        if self.received.len() < to_usize(length) {
            return Parsed::NeedMore;
        }
        match self.finish(code) {
            Ok(message) => Parsed::Message(message, consumed),
            Err(error) => Parsed::Bad(error),
        }
    }

    /// Moves bytes into the buffer until it holds `wanted` of the message; says how many were moved.
    fn take(&mut self, bytes: &[u8], wanted: u32) -> usize {
        let missing = to_usize(wanted).saturating_sub(self.received.len());
        let taken = bytes.get(..missing).unwrap_or(bytes);
        self.received.extend_from_slice(taken);
        taken.len()
    }

    fn check_length(&self, length: u32) -> Result<(), StartupError> {
        if length < HEADER {
            return Err(StartupError::TooShort { length });
        }
        if length - 4 <= self.limit {
            return Ok(());
        }
        // Text read as a length is a huge one: say what it is.
        Err(match &length.to_be_bytes() {
            b"GET " | b"POST" | b"HEAD" | b"PUT " | b"DELE" | b"OPTI" | b"PATC" | b"CONN" | b"TRAC"
            | b"PRI " => StartupError::LooksLikeHttp,
            b"SSH-" => StartupError::LooksLikeSsh,
            b"PROX" | b"\r\n\r\n" => StartupError::LooksLikeProxyHeader,
            _ => StartupError::TooLong { length },
        })
    }

    fn check_code(&self, code: u32, length: u32) -> Result<(), StartupError> {
        let (request, fits, repeated) = match code {
            SSL_REQUEST => ("SSLRequest", length == HEADER, self.seen_ssl),
            GSSENC_REQUEST => ("GSSENCRequest", length == HEADER, self.seen_gss),
            // `check_length` has seen that the header fits; the process id takes four bytes more.
            CANCEL_REQUEST => {
                ("CancelRequest", KEY_LENGTHS.contains(&length.saturating_sub(HEADER + 4)), false)
            }
            _ if ProtocolVersion(code).major() == 3 => return Ok(()),
            _ => return Err(StartupError::UnknownProtocol(code)),
        };
        match (fits, repeated) {
            (false, _) => Err(StartupError::WrongLength { request, length }),
            (true, true) => Err(StartupError::Repeated { request }),
            (true, false) => Ok(()),
        }
    }

    /// The buffer holds a whole message with a known code. It is emptied unless the message is bad.
    fn finish(&mut self, code: u32) -> Result<FirstMessage, StartupError> {
        let message = match code {
            SSL_REQUEST => {
                self.seen_ssl = true;
                FirstMessage::Ssl
            }
            GSSENC_REQUEST => {
                self.seen_gss = true;
                FirstMessage::Gss
            }
            CANCEL_REQUEST => {
                let process_id = word(&self.received, 8).unwrap_or_default();
                let key = self.received.get(12..).unwrap_or_default().to_vec();
                FirstMessage::Cancel(CancelRequest { process_id, key })
            }
            _ => {
                let mut parameters = Parameters { rest: self.received.get(8..).unwrap_or_default() };
                parameters.by_ref().for_each(drop);
                if parameters.rest != [0] {
                    return Err(StartupError::NotTerminated);
                }
                let raw = std::mem::take(&mut self.received);
                FirstMessage::Startup(StartupMessage { raw, version: ProtocolVersion(code) })
            }
        };
        self.received.clear();
        Ok(message)
    }
}

/// Name/value pairs of C strings. Stops before an empty name or an incomplete pair, which stay in `rest`.
struct Parameters<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Parameters<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, rest) = c_string(self.rest).filter(|(name, _)| !name.is_empty())?;
        let (value, rest) = c_string(rest)?;
        self.rest = rest;
        Some((name, value))
    }
}

/// Splits after the first zero byte, which belongs to neither side.
fn c_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

/// The big-endian 32-bit word at `offset`.
fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|word| u32::from_be_bytes(*word))
}

/// Lengths of 32 bits fit every machine that this runs on.
fn to_usize(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// Text of a peer for people's eyes: nothing in it can move a cursor or forge a log line.
fn printable(bytes: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(bytes);
    if text.chars().any(char::is_control) {
        return Cow::Owned(text.chars().map(|c| if c.is_control() { '?' } else { c }).collect());
    }
    text
}

/// The server's reading of a boolean: any case, any unambiguous beginning of a word.
fn is_true(value: &[u8]) -> bool {
    let value = value.to_ascii_lowercase();
    let begins = |word: &[u8], least: usize| value.len() >= least && word.starts_with(&value);
    value == b"1" || begins(b"true", 1) || begins(b"yes", 1) || begins(b"on", 2)
}
