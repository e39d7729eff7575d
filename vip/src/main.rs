//! `pointsman-vip`: the virtual IP. A skeleton: it says so and stops.

use std::process::ExitCode;

/// `EX_UNAVAILABLE` of sysexits.h.
const UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    eprintln!(
        "pointsman-vip {}: not built yet. Until it is, keep keepalived for the virtual IP;\n\
         `pointsman` itself runs without it.",
        env!("CARGO_PKG_VERSION")
    );
    ExitCode::from(UNAVAILABLE)
}
