//! `pointsman`: the proxy, and the command line that asks it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use pointsman::cli::Cli;
use pointsman::run::{run, runtime};
use pointsman_config::Config;
use pointsman_process::logging::Logging;

fn main() -> ExitCode {
    Cli::parse().carry_out(serve)
}

fn serve(config: Config, file: &Path) -> ExitCode {
    let started = Logging::start(config.log).map_err(anyhow::Error::from).and_then(|logging| {
        let runtime = runtime(&config.relay)?;
        Ok((logging, runtime))
    });
    let (logging, runtime) = match started {
        Ok(started) => started,
        Err(error) => {
            eprintln!("pointsman: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let ended = runtime.block_on(run(config, file, &logging));
    // Threads that read a slow disk or wait for a name server can be left to themselves.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
