//! `pointsman-vip`: the virtual IP, and the command line that asks it.

use std::os::fd::RawFd;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use pointsman_config::Config;
use pointsman_process::logging::Logging;
use pointsman_vip::cli::{Cli, Programs};

fn main() -> ExitCode {
    Cli::parse().carry_out(Programs { guard, worker })
}

fn guard(config: &Config, file: &Path) -> ExitCode {
    logged(config, || {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        pointsman_vip::guard::run(config, file)
    })
}

fn worker(config: Config, file: &Path, link: RawFd) -> ExitCode {
    logged(&config.clone(), || pointsman_vip::worker::run(config, file, link))
}

/// Does its work with a log, the last line of which is written before the process ends.
fn logged(config: &Config, work: impl FnOnce() -> ExitCode) -> ExitCode {
    match Logging::start(config.log) {
        Ok(_logging) => work(),
        Err(error) => {
            eprintln!("pointsman-vip: {error}");
            ExitCode::FAILURE
        }
    }
}
