//! What is wrong with a file: every error at once, each with its place.

use std::fmt;
/// PLACEHOLDER
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {}
impl fmt::Display for Diagnostic {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
/// PLACEHOLDER
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
}
impl Diagnostics {
    /// All.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }
    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }
    /// Never.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for d in &self.list {
            writeln!(f, "{d}")?;
        }
        Ok(())
    }
}
impl std::error::Error for Diagnostics {}
