//! `pointsman-vip`: the virtual IP, and the command line that asks it.

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
    with_log(config, |_| {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        pointsman_vip::guard::run(config, file)
    })
}

fn worker(config: Config, file: &Path, link: i32) -> ExitCode {
    with_log(&config.clone(), |logging| pointsman_vip::worker::run(config, file, link, logging))
}

fn with_log(config: &Config, run: impl FnOnce(&Logging) -> ExitCode) -> ExitCode {
    match Logging::start(config.log) {
        Ok(logging) => run(&logging),
        Err(error) => {
            eprintln!("pointsman-vip: {error}");
            ExitCode::FAILURE
        }
    }
}
