//! What several integration tests share; each uses a part of it.

#[allow(dead_code, reason = "each test uses a part of it")]
pub(crate) mod recording;
