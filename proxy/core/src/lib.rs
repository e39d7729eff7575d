//! The decisions of Pointsman.

pub mod balance;
pub mod error_response;
pub mod hold;
pub mod startup;
pub mod time;
