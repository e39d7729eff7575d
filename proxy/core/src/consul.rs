//! The answer of Consul's KV store to a recursive read: `GET /v1/kv/PREFIX?recurse`.
//!
//! A list of objects, of which `Key`, `Value` (base64, or null for an empty one) and `ModifyIndex` are read. Anything
//! else than such a list is no answer at all: it does not come from Consul, so nothing of it is taken over. Whether
//! a value makes sense is [`crate::patroni`]'s business.

use std::borrow::Cow;

use serde::Deserialize;

use crate::patroni::excerpt;
use crate::view::Revision;

#[cfg(test)]
mod tests;

/// A cluster has some dozens of keys; with more than this the prefix is not Patroni's.
pub const MAX_KEYS: usize = 10_000;

/// One key of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEntry {
    /// Its name, without the prefix.
    pub key: String,
    /// Its value, as it was written.
    pub value: Vec<u8>,
    /// Consul's `ModifyIndex`: when it was written last.
    pub revision: Revision,
}

/// Why an answer cannot be Consul's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// It is not a JSON list of keys.
    #[error("the answer is no list of keys: {0}")]
    Shape(String),
    /// More than [`MAX_KEYS`].
    #[error("there are {count} keys, more than {MAX_KEYS}: is the prefix Patroni's?")]
    TooManyKeys {
        /// So many.
        count: usize,
    },
    /// A key that was not asked for.
    #[error("the answer holds {key}, which was not asked for")]
    Foreign {
        /// The beginning of its name.
        key: String,
    },
    /// A value that is not base64.
    #[error("the value of {key} is not base64")]
    Value {
        /// The beginning of its name.
        key: String,
    },
}

/// As it is sent. The names are Consul's.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Sent<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow, default)]
    value: Option<Cow<'a, str>>,
    modify_index: u64,
}

/// Reads a whole answer. `prefix`: what was asked for, as `service/main/`; the key that is called just so (a folder,
/// as Consul's pages make them) is left out.
pub fn parse_kv(body: &[u8], prefix: &str) -> Result<Vec<KvEntry>, KvError> {
    let sent: Vec<Sent<'_>> =
        serde_json::from_slice(body).map_err(|error| KvError::Shape(error.to_string()))?;
    if sent.len() > MAX_KEYS {
        return Err(KvError::TooManyKeys { count: sent.len() });
    }
    let entries = sent.into_iter().filter(|sent| sent.key != prefix).map(|sent| entry(&sent, prefix));
    entries.collect()
}

fn entry(sent: &Sent<'_>, prefix: &str) -> Result<KvEntry, KvError> {
    let Some(key) = sent.key.strip_prefix(prefix) else {
        return Err(KvError::Foreign { key: excerpt(&sent.key) });
    };
    let encoded = sent.value.as_deref().unwrap_or_default();
    let value = base64(encoded.as_bytes()).ok_or_else(|| KvError::Value { key: excerpt(key) })?;
    Ok(KvEntry { key: key.to_owned(), value, revision: Revision(sent.modify_index) })
}

/// Decodes base64 (RFC 4648, section 4): padded, nothing between the letters, no bits left over.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let mut chunks = text.chunks_exact(4);
    while let Some(chunk) = chunks.next() {
        let padding = chunk.iter().rev().take_while(|letter| **letter == b'=').count();
        let letters = chunk.get(..4 - padding).filter(|letters| letters.len() >= 2)?;
        let last = chunks.len() == 0;
        if padding > 0 && !last {
            return None;
        }
        let mut bits = 0_u32;
        for letter in letters {
            bits = bits << 6 | sextet(*letter)?;
        }
        bits <<= 6 * padding;
        let [_, decoded @ ..] = bits.to_be_bytes();
        let (whole, rest) = decoded.split_at_checked(3 - padding)?;
        if rest.iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(whole);
    }
    chunks.remainder().is_empty().then_some(bytes)
}

fn sextet(letter: u8) -> Option<u32> {
    let value = match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}
