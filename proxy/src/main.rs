//! temporary
fn main() -> anyhow::Result<std::process::ExitCode> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let path = std::path::PathBuf::from(std::env::args().nth(3).unwrap());
    let config = pointsman_config::Config::load(&path)?;
    tokio::runtime::Runtime::new()?.block_on(pointsman::run::run(path, config, pointsman::logging::Logging))
}
