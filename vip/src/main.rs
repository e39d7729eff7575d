//! `pointsman-vip`: the virtual IP, and the command line that asks it.

use std::process::ExitCode;

use clap::Parser as _;
use pointsman_process::cli::UNAVAILABLE;
use pointsman_vip::cli::{Cli, Programs};

fn main() -> ExitCode {
    Cli::parse().carry_out(Programs { guard: |_, _| unavailable(), worker: |_, _, _| unavailable() })
}

fn unavailable() -> ExitCode {
    eprintln!("pointsman-vip: this build has no guard and no worker");
    ExitCode::from(UNAVAILABLE)
}
