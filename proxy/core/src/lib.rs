//! The decisions of Pointsman.

pub mod balance;
pub mod close;
pub mod error_response;
pub mod hold;
pub mod startup;
pub mod time;
