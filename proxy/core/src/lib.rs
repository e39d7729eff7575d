//! The decisions of Pointsman.

pub mod error_response;
pub mod startup;
pub mod time;
