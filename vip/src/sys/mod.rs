//! What cannot be said without `unsafe`, behind safe interfaces.
#![allow(
    unsafe_code,
    reason = "the kernel is handed addresses of our memory; each block says why that is sound"
)]

pub(crate) mod message;
pub(crate) mod packet;
pub(crate) mod process;
pub(crate) mod socket;
