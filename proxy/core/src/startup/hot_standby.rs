//! A free check of a server's role while a session starts.

use super::{c_string, to_usize, word};

#[cfg(test)]
mod tests;

/// Looks for `ParameterStatus in_hot_standby` (`PostgreSQL` 14 and newer) in what a server sends in clear text
/// from its answer to the `StartupMessage` on: `off` on a primary, `on` on a standby.
///
/// It only listens: the bytes go on to the client as they are. It stops at `ReadyForQuery`, at anything that
/// is no message, and after [`HotStandbyScanner::MAX_SCANNED`] bytes. The one-byte answer to an encryption
/// request must not be fed to it.
#[derive(Debug)]
pub struct HotStandbyScanner {
    state: State,
    scanned: usize,
    /// Header and, where it may be the one, body of the message at hand.
    message: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Collecting the type byte, the length and a short body.
    Reading,
    /// Passing over the rest of a message.
    Skipping(usize),
    Done(Option<bool>),
}

impl Default for HotStandbyScanner {
    fn default() -> Self {
        Self::new()
    }
}

impl HotStandbyScanner {
    /// Where scanning ends at the latest, in bytes. A start-up is some hundreds; GSSAPI tokens are up to 64 KiB.
    pub const MAX_SCANNED: usize = 128 * 1024;
    const HEADER: usize = 5;
    /// `in_hot_standby`, `off` and two zeros need 19 bytes.
    const MAX_KEPT_BODY: usize = 32;

    /// A scanner at the start of the server's stream.
    pub fn new() -> Self {
        Self { state: State::Reading, scanned: 0, message: Vec::new() }
    }

    /// Takes the next bytes. `Some(true)`: the server says it is a standby; `Some(false)`: a primary.
    /// Once known, it stays.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Option<bool> {
        loop {
            let left = Self::MAX_SCANNED.saturating_sub(self.scanned);
            let step = match self.state {
                State::Done(found) => return found,
                _ if left == 0 => {
                    self.finish(None);
                    continue;
                }
                State::Skipping(count) => count.min(bytes.len()).min(left),
                State::Reading => self.missing().min(bytes.len()).min(left),
            };
            if bytes.is_empty() {
                return None;
            }
            let (taken, rest) = bytes.split_at_checked(step).unwrap_or((bytes, &[]));
            bytes = rest;
            self.scanned += taken.len();
            self.advance(taken);
        }
    }

    /// Whether feeding more is pointless.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// How many bytes the message at hand still needs before it can be judged. Never zero while reading.
    fn missing(&self) -> usize {
        let wanted = match self.header() {
            None => Self::HEADER,
            Some((_, body)) => Self::HEADER + body,
        };
        wanted.saturating_sub(self.message.len())
    }

    /// Type and length of the body. A length that does not even count itself makes the type a zero byte.
    fn header(&self) -> Option<(u8, usize)> {
        let kind = *self.message.first()?;
        let length = to_usize(word(&self.message, 1)?);
        Some(length.checked_sub(4).map_or((0, 0), |body| (kind, body)))
    }

    fn advance(&mut self, taken: &[u8]) {
        if let State::Skipping(count) = self.state {
            let left = count.saturating_sub(taken.len());
            self.state = if left == 0 { State::Reading } else { State::Skipping(left) };
            return;
        }
        self.message.extend_from_slice(taken);
        let Some((kind, body)) = self.header() else { return };
        let is_complete = self.message.len() >= Self::HEADER + body;
        match kind {
            b'S' if is_complete => match self.verdict() {
                Some(found) => self.finish(Some(found)),
                None => self.message.clear(),
            },
            b'S' if body <= Self::MAX_KEPT_BODY => {}
            // Authentication, BackendKeyData, notices, NegotiateProtocolVersion, other parameters.
            b'R' | b'K' | b'N' | b'v' | b'S' => {
                self.message.clear();
                if body > 0 {
                    self.state = State::Skipping(body);
                }
            }
            // ReadyForQuery, an error, or no PostgreSQL at all.
            _ => self.finish(None),
        }
    }

    fn verdict(&self) -> Option<bool> {
        let (name, rest) = c_string(self.message.get(Self::HEADER..)?)?;
        let (value, _) = c_string(rest)?;
        match (name, value) {
            (b"in_hot_standby", b"on") => Some(true),
            (b"in_hot_standby", b"off") => Some(false),
            _ => None,
        }
    }

    fn finish(&mut self, found: Option<bool>) {
        self.state = State::Done(found);
        self.message = Vec::new();
    }
}
