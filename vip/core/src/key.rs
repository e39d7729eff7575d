//! The key that all hosts share, and what is sealed with it (HMAC-SHA256, RFC 2104).

use std::fmt;

use ring::hmac;

/// The bytes of a seal.
pub(crate) const SEAL: usize = 32;

/// The key that all hosts share.
///
/// For each use another key is derived from the secret, so that what was sealed for one of them is worth nothing for another.
#[derive(Clone)]
pub struct Key {
    report: hmac::Key,
    proof: hmac::Key,
    farewell: hmac::Key,
}

/// What a seal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Report,
    Proof,
    Farewell,
}

impl Key {
    /// From the content of `key_file`.
    pub fn derive(secret: &[u8]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = |label: &str| {
            let label = format!("pointsman-vip 1 {label}");
            hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, label.as_bytes()).as_ref())
        };
        Self { report: derived("report"), proof: derived("proof"), farewell: derived("farewell") }
    }

    fn for_use(&self, purpose: Use) -> &hmac::Key {
        match purpose {
            Use::Report => &self.report,
            Use::Proof => &self.proof,
            Use::Farewell => &self.farewell,
        }
    }

    pub(crate) fn seal(&self, purpose: Use, content: &[u8]) -> [u8; SEAL] {
        let tag = hmac::sign(self.for_use(purpose), content);
        // SHA-256 has 32 bytes; a seal of zeros would be refused.
        tag.as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// Takes the same time wherever the difference is.
    pub(crate) fn is_sealed(&self, purpose: Use, content: &[u8], seal: &[u8; SEAL]) -> bool {
        hmac::verify(self.for_use(purpose), content, seal).is_ok()
    }
}

impl fmt::Debug for Key {
    /// Without the content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(***)")
    }
}
