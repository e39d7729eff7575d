//! What several integration tests share.

pub(crate) mod certs;
pub(crate) mod etcd;
pub(crate) mod source;
