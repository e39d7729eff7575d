//! Tables and plots of what was measured.

pub mod csv;
pub mod goals;
pub mod machine;
pub mod markdown;
pub mod plots;
pub mod scale;
pub mod summary;
pub mod svg;
pub mod terminal;

#[cfg(test)]
mod tests;
