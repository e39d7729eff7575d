//! Reading and writing what the hosts send each other: big-endian numbers, and names with their length in one byte.
//!
//! Nothing is reserved for a length that is only claimed: what is not there cannot be read.

use pointsman_config::{NodeName, VipName};

/// The longest name (`pointsman_config` takes no longer one).
pub(crate) const MAX_NAME: usize = 64;

/// What has not been read yet.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn word(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.byte()?;
        std::str::from_utf8(self.take(length.into())?).ok()
    }

    pub(crate) fn node(&mut self) -> Option<NodeName> {
        NodeName::new(self.text()?).ok()
    }

    pub(crate) fn vip(&mut self) -> Option<VipName> {
        VipName::new(self.text()?).ok()
    }
}

/// Appends a name with its length.
pub(crate) fn write_name(out: &mut Vec<u8>, name: &str) {
    // Names are short (see `MAX_NAME`); one that is not would be cut off and not be read as anything.
    let name = name.as_bytes();
    let name = name.get(..name.len().min(MAX_NAME)).unwrap_or_default();
    out.push(u8::try_from(name.len()).unwrap_or_default());
    out.extend_from_slice(name);
}
