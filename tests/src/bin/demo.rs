//! The demo cluster.
fn main() {}
