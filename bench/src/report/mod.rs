//! Tables and plots of what was measured.

pub mod csv;
pub mod summary;
pub mod terminal;
