//! `pointsman`: the proxy.
fn main() {}
