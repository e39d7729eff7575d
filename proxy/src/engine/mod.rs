//! The relay engine.
#![allow(dead_code, reason = "nothing uses it yet")]

#[cfg(test)]
mod conformance;
mod driver;
mod sys;
mod uring;
