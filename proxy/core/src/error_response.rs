//! What we tell a `PostgreSQL` client when we end its connection ourselves: the `ErrorResponse` message.
//!
//! Source: `PostgreSQL` documentation, "Message Formats" and "Error and Notice Message Fields".

use std::fmt;

#[cfg(test)]
mod tests;

/// The longest text of one field, in bytes; longer ones are cut at a character's end.
///
/// libpq takes a message of more than 30,000 bytes for nonsense; four fields of this length stay far below.
pub const MAX_FIELD: usize = 2_000;

/// A five-character SQLSTATE code (`PostgreSQL` documentation, appendix A).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// 08P01: the client or the server broke the protocol.
    pub const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    /// 08006: the connection failed after it was established.
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    /// 0A000: feature not supported, here a protocol version.
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    /// 28000: invalid authorization specification; our access rules refuse the address.
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    /// 53300: too many connections.
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    /// 57P01: the server, or the proxy, is being shut down by its administrator.
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    /// 57P02: another server process crashed.
    pub const CRASH_SHUTDOWN: Self = Self(*b"57P02");
    /// 57P03: cannot connect now: starting up, shutting down, in recovery, or no server known.
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    /// 57P05: an idle session was ended.
    pub const IDLE_SESSION_TIMEOUT: Self = Self(*b"57P05");
    /// XX000: internal error.
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");

    /// Reads a code: five digits or capital letters, or it is none.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let code: [u8; 5] = text.try_into().ok()?;
        code.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()).then_some(Self(code))
    }

    /// The code as text.
    pub fn as_str(&self) -> &str {
        // Always ASCII: `parse` is the only way in from outside.
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A FATAL error for a client: the connection ends after it.
///
/// libpq shows message, detail and hint verbatim when it answers a `StartupMessage`; as the answer to an
/// `SSLRequest` it hides the text, so answer `N` first (or send it inside TLS).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErrorResponse<'a> {
    /// The code that programs act on. With 57P03, libpq goes on to the next host of its list.
    pub sqlstate: SqlState,
    /// One sentence in the style of `PostgreSQL`: no capital, no full stop.
    pub message: &'a str,
    /// What exactly is the case; whole sentences.
    pub detail: Option<&'a str>,
    /// What the reader can do; whole sentences.
    pub hint: Option<&'a str>,
}

impl<'a> ErrorResponse<'a> {
    /// An error without detail and hint.
    pub const fn new(sqlstate: SqlState, message: &'a str) -> Self {
        Self { sqlstate, message, detail: None, hint: None }
    }

    /// The whole message as it goes onto the wire, protocol 3.
    ///
    /// Zero bytes, which would end a field early, are left out; each field is at most [`MAX_FIELD`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Vec::with_capacity(64 + self.message.len().min(MAX_FIELD));
        put_field(&mut fields, b'S', "FATAL");
        put_field(&mut fields, b'V', "FATAL");
        put_field(&mut fields, b'C', self.sqlstate.as_str());
        put_field(&mut fields, b'M', self.message);
        for (kind, text) in [(b'D', self.detail), (b'H', self.hint)] {
            if let Some(text) = text {
                put_field(&mut fields, kind, text);
            }
        }
        fields.push(0);

        // Six bounded fields: the length always fits. It counts itself, but not the type byte.
        let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(fields.len() + 5);
        message.push(b'E');
        message.extend_from_slice(&length.to_be_bytes());
        message.append(&mut fields);
        message
    }
}

fn put_field(out: &mut Vec<u8>, kind: u8, text: &str) {
    out.push(kind);
    let end = (0..=MAX_FIELD.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let text = text.get(..end).unwrap_or_default();
    out.extend(text.bytes().filter(|byte| *byte != 0));
    out.push(0);
}
