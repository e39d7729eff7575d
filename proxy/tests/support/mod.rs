//! What several integration tests share.
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod certs;
pub(crate) mod consul;
pub(crate) mod etcd;
pub(crate) mod fake;
pub(crate) mod source;
