//! `pointsman-vip`: interim.

use std::path::PathBuf;
use std::process::ExitCode;

use pointsman_config::Config;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).cloned()
    };
    let file = PathBuf::from(after("--config").unwrap_or_default());
    let config = match Config::load(&file) {
        Ok(config) => config,
        Err(diagnostics) => {
            eprintln!("{diagnostics}");
            return ExitCode::from(78);
        }
    };
    match after("--link") {
        Some(link) => pointsman_vip::worker::run(config, &file, link.parse().unwrap_or(-1)),
        None => pointsman_vip::guard::run(&config, &file),
    }
}
