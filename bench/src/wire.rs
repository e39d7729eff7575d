//! The few bytes of PostgreSQL's protocol that every session begins with.
//!
//! A proxy that reads the start-up message before it routes gets a real one, and every other proxy the same. The name of
//! the database tells our server what the session is for. Sources: PostgreSQL's documentation, "Message Formats".

use std::fmt;

/// `AuthenticationOk`, `ReadyForQuery` (idle): what the server says to every start-up message.
pub const ANSWER: [u8; 15] = *b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";

/// The longest first message that is read; a start-up message of ours has some 50 bytes.
pub const MAX_FIRST_MESSAGE: usize = 512;

/// The largest request of a session that is echoed.
pub const MAX_ECHO: usize = 64 * 1024;

/// Bytes in a request for a block.
pub const ASK: usize = 64;

const PROTOCOL: u32 = 196_608;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// What a session does after its start-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// The server answers every `size` bytes with `size` bytes.
    Echo {
        /// Bytes in a request, and in its answer.
        size: usize,
    },
    /// The server answers every [`ASK`] bytes with `size` bytes.
    Give {
        /// Bytes in an answer.
        size: usize,
    },
    /// The server sends until the client closes.
    Source,
    /// The server reads until the client closes.
    Sink,
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo { size } => write!(formatter, "echo-{size}"),
            Self::Give { size } => write!(formatter, "give-{size}"),
            Self::Source => formatter.write_str("source"),
            Self::Sink => formatter.write_str("sink"),
        }
    }
}

impl Pattern {
    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "source" => Some(Self::Source),
            "sink" => Some(Self::Sink),
            _ => {
                let (word, size) = name.split_once('-')?;
                let size = size.parse().ok().filter(|size| *size > 0)?;
                match word {
                    "echo" if size <= MAX_ECHO => Some(Self::Echo { size }),
                    "give" => Some(Self::Give { size }),
                    _ => None,
                }
            }
        }
    }
}

/// A `StartupMessage` for `user` and `database`.
pub fn startup(user: &str, database: &str) -> Vec<u8> {
    let parameters = format!("user\0{user}\0database\0{database}\0\0");
    let length = u32::try_from(8 + parameters.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(8 + parameters.len());
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(&PROTOCOL.to_be_bytes());
    message.extend_from_slice(parameters.as_bytes());
    message
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// Not all of it is there yet.
    Incomplete,
    /// A question for encryption, which is answered with `N`: a proxy's health probe.
    Encryption,
    /// A start-up message.
    Startup {
        /// What the session is for.
        pattern: Pattern,
        /// Bytes in the message.
        length: usize,
    },
    /// Nothing that we send.
    Strange,
}

/// Reads the first message of a connection.
pub fn first_message(bytes: &[u8]) -> First {
    let Some((length, rest)) = split_u32(bytes) else { return First::Incomplete };
    let length = length as usize;
    if !(8..=MAX_FIRST_MESSAGE).contains(&length) {
        return First::Strange;
    }
    let Some(message) = bytes.get(..length) else { return First::Incomplete };
    match split_u32(rest) {
        Some((SSL_REQUEST | GSSENC_REQUEST, _)) => First::Encryption,
        Some((PROTOCOL, _)) => {
            match database(message.get(8..).unwrap_or_default()).and_then(Pattern::parse) {
                Some(pattern) => First::Startup { pattern, length },
                None => First::Strange,
            }
        }
        _ => First::Strange,
    }
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

/// The value of `database` among pairs of strings that end in zero bytes.
fn database(parameters: &[u8]) -> Option<&str> {
    let mut strings = parameters.split(|byte| *byte == 0);
    loop {
        let (name, value) = (strings.next()?, strings.next()?);
        if name == b"database" {
            return std::str::from_utf8(value).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_startup_message_names_its_pattern() {
        for pattern in
            [Pattern::Echo { size: 16_384 }, Pattern::Give { size: 5 }, Pattern::Source, Pattern::Sink]
        {
            let message = startup("bench", &pattern.to_string());
            assert_eq!(first_message(&message), First::Startup { pattern, length: message.len() });
            for end in 0..message.len() {
                assert_eq!(first_message(&message[..end]), First::Incomplete, "the first {end} bytes");
            }
        }
    }

    #[test]
    fn other_first_messages() {
        assert_eq!(first_message(&startup("bench", "echo-65537")), First::Strange);
        assert_eq!(first_message(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]), First::Encryption);
        assert_eq!(first_message(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30]), First::Encryption);
        assert_eq!(first_message(&startup("bench", "echo-0")), First::Strange);
        assert_eq!(first_message(&startup("bench", "postgres")), First::Strange);
        assert_eq!(first_message(b"GET / HTTP/1.1\r\n"), First::Strange);
    }

    #[test]
    fn the_answer_is_two_messages() {
        let (authentication, ready) = ANSWER.split_at(9);
        assert_eq!(authentication, b"R\0\0\0\x08\0\0\0\0");
        assert_eq!(ready, b"Z\0\0\0\x05I");
    }
}
