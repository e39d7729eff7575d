//! What the command lines of both programs have in common.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

use crate::Program;

/// sysexits(3), `EX_UNAVAILABLE`: nobody answers.
pub const UNAVAILABLE: u8 = 69;

/// sysexits(3), `EX_CONFIG`: the configuration cannot be used.
pub const CONFIG: u8 = 78;

/// The configuration file.
#[derive(Clone, Debug, Args)]
pub struct ConfigFile {
    /// The configuration file
    #[arg(
        long,
        short,
        env = "POINTSMAN_CONFIG",
        default_value = "/etc/pointsman/pointsman.toml",
        value_name = "FILE"
    )]
    pub config: PathBuf,
}

/// Prints a completion script.
pub fn completions(program: Program, mut command: clap::Command, shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, program.name, &mut script);
    print(&script)
}

/// Prints the manual page, or writes one for each command into a directory.
pub fn man(program: Program, command: clap::Command, out: Option<&Path>) -> ExitCode {
    let Some(directory) = out else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(command).render(&mut page);
        return if rendered.is_ok() { print(&page) } else { ExitCode::FAILURE }; // a Vec takes everything
    };
    let written =
        std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(command, directory));
    if let Err(error) = written {
        eprintln!("{}: cannot write manual pages into {}: {error}", program.name, directory.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
pub fn print(text: &[u8]) -> ExitCode {
    match io::stdout().write_all(text).and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// JSON for people.
pub fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// `1 listener`, `2 listeners`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
