//! The command line. `run` is the virtual IP, `check` reads the file; everything else asks a running process through its socket.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use pointsman_config::{Config, VrrpProtocol};
use pointsman_process::VIP;
use pointsman_process::cli::{self, CONFIG, ConfigFile, UNAVAILABLE, count, pretty, print};
use pointsman_process::client::{Client, ClientError, escape};
use pointsman_process::table::clean;
use serde_json::Value;

mod show;

/// Keeps virtual addresses on the best of several load-balancer hosts.
#[derive(Debug, Parser)]
#[command(name = "pointsman-vip", version, subcommand_required = true, arg_required_else_help = true)]
#[command(long_about = "Keeps virtual addresses on the best of several load-balancer hosts.\n\n\
    pointsman-vip speaks VRRP (RFC 9568, and version 2), so that it can stand beside keepalived in one virtual router, and \
    signals its own kind directly, so that an address moves in milliseconds. It follows the proxy on its host.")]
#[command(after_help = "\
Examples:
  pointsman-vip check                every error of /etc/pointsman/pointsman.toml at once
  pointsman-vip run                  the virtual IP, in the foreground
  pointsman-vip status               who holds which address, and what is wrong
  pointsman-vip yield                hand all addresses over: before work on this host
  pointsman-vip resume               take part again
  pointsman-vip status --json | jq . for scripts

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 69 pointsman-vip does not answer, 77 not permitted, 78 wrong
configuration.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the virtual IP in the foreground
    #[command(
        long_about = "Run the virtual IP in the foreground. SIGTERM and SIGINT hand the addresses over and end, SIGHUP reads the \
        configuration anew. The log goes to standard error. It needs the capabilities NET_ADMIN and NET_RAW."
    )]
    Run(ConfigFile),
    /// The process that does the work; `run` starts it.
    #[command(hide = true)]
    Worker {
        /// The configuration file
        #[command(flatten)]
        file: ConfigFile,
        /// The descriptor on which `run` listens
        #[arg(long, value_name = "DESCRIPTOR")]
        link: i32,
    },
    /// Check the configuration file and print every error at once
    Check(ConfigFile),
    /// What a running process is asked.
    #[command(flatten)]
    Question(Question),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  pointsman-vip completions bash > /etc/bash_completion.d/pointsman-vip"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, or write one for each command
    Man {
        /// Write pointsman-vip.1, pointsman-vip-run.1, … into this directory
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

/// What a running process is asked, through its socket.
#[derive(Debug, Subcommand)]
pub enum Question {
    /// Show who holds which address, the other hosts, and what is wrong
    Status(Socket),
    /// Hand the addresses over, and take them again only when nobody else can
    #[command(after_help = "\
Examples:
  pointsman-vip yield              all addresses of this host
  pointsman-vip yield eth0-51      those of one virtual router, by its name in `pointsman-vip status`

It lasts until `pointsman-vip resume`, or until the process is started anew.")]
    Yield(Wish),
    /// End a `yield`: take part as the priority says
    Resume(Wish),
}

/// How to reach the running process.
#[derive(Clone, Debug, Args)]
pub struct Socket {
    #[command(flatten)]
    config: ConfigFile,
    /// Its socket [default: that of the configuration file, else /run/pointsman/vip.sock]
    #[arg(long = "socket", value_name = "PATH")]
    path: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A wish concerning one virtual router, or all.
#[derive(Clone, Debug, Args)]
pub struct Wish {
    #[command(flatten)]
    socket: Socket,
    /// One virtual router [default: all of them]
    #[arg(value_name = "ROUTER")]
    router: Option<String>,
}

/// The two programs in this one.
#[derive(Clone, Copy, Debug)]
pub struct Programs {
    /// `run`: the guard.
    pub guard: fn(&Config, &Path) -> ExitCode,
    /// `worker`: what the guard starts, with the descriptor that leads back to it.
    pub worker: fn(Config, &Path, i32) -> ExitCode,
}

impl Cli {
    /// Carries the command out.
    pub fn carry_out(self, programs: Programs) -> ExitCode {
        match self.command {
            Command::Run(file) => match load(&file.config) {
                Ok(config) => (programs.guard)(&config, &file.config),
                Err(code) => code,
            },
            Command::Worker { file, link } => match load(&file.config) {
                Ok(config) => (programs.worker)(config, &file.config, link),
                Err(code) => code,
            },
            Command::Check(file) => check(&file.config),
            Command::Question(question) => match ask(&question) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("pointsman-vip: {error}");
                    ExitCode::from(if error.is_refusal() { 1 } else { UNAVAILABLE })
                }
            },
            Command::Completions { shell } => cli::completions(VIP, Self::command(), shell),
            Command::Man { out } => cli::man(VIP, Self::command(), out.as_deref()),
        }
    }
}

/// Reads the configuration of a process that is to run: without a virtual router there is nothing to do.
fn load(path: &Path) -> Result<Config, ExitCode> {
    let config = Config::load(path).map_err(|diagnostics| {
        eprintln!("{diagnostics}");
        ExitCode::from(CONFIG)
    })?;
    if config.vips.is_empty() {
        eprintln!("{}", no_vips(path));
        return Err(ExitCode::from(CONFIG));
    }
    Ok(config)
}

fn no_vips(path: &Path) -> String {
    format!(
        "{}: there is no [[vips]], so pointsman-vip has nothing to do. Write interface, router_id, priority and addresses \
         of a virtual router (docs/vip.md), or disable the service",
        path.display()
    )
}

fn check(path: &Path) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(diagnostics) => {
            eprintln!("{diagnostics}");
            return ExitCode::from(CONFIG);
        }
    };
    for warning in &config.warnings {
        eprintln!("{warning}");
    }
    if config.vips.is_empty() {
        eprintln!("{}", no_vips(path));
        return ExitCode::from(CONFIG);
    }
    print(fine(path, &config).as_bytes())
}

/// What a file without errors means for this host.
fn fine(path: &Path, config: &Config) -> String {
    let mut text = format!(
        "{}: the configuration is fine: {}, node {}\n",
        path.display(),
        count(config.vips.len(), "virtual router"),
        config.node,
    );
    for vip in &config.vips {
        let version = if matches!(vip.protocol, VrrpProtocol::V2 { .. }) { 2 } else { 3 };
        let addresses: Vec<_> = vip.addresses.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            text,
            "  {}: {} on {}, router_id {}, VRRP version {version}, priority {} on this host",
            vip.name,
            addresses.join(", "),
            vip.interface,
            vip.router_id,
            vip.priority,
        );
    }
    match config.vrrp.as_ref().and_then(|vrrp| vrrp.peers.as_ref()) {
        Some(peers) => {
            let others = peers.nodes.keys().filter(|node| **node != config.node);
            let others: Vec<_> = others.map(ToString::to_string).collect();
            let _ = writeln!(text, "  fast signals to {}", others.join(", "));
        }
        None => text.push_str("  no peers: VRRP's timers alone decide\n"),
    }
    text
}

/// Asks the running process.
fn ask(question: &Question) -> Result<(), ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| ClientError::Broken { program: VIP, why: error.to_string() })?;
    runtime.block_on(async {
        match question {
            Question::Status(socket) => {
                let answer = socket.client().get("/api/v1/status").await?;
                print(if socket.json { pretty(&answer) } else { show::status(&answer) }.as_bytes());
                Ok(())
            }
            Question::Yield(wish) => act(wish, "yield").await,
            Question::Resume(wish) => act(wish, "resume").await,
        }
    })
}

async fn act(wish: &Wish, action: &str) -> Result<(), ClientError> {
    let query = wish.router.as_ref().map(|name| format!("?router={}", escape(name))).unwrap_or_default();
    let answer = wish.socket.client().post(&format!("/api/v1/{action}{query}")).await?;
    let sentence = answer.get("done").and_then(Value::as_str).unwrap_or("done");
    let text = if wish.socket.json { pretty(&answer) } else { format!("{}\n", clean(sentence)) };
    print(text.as_bytes());
    Ok(())
}

impl Socket {
    fn client(&self) -> Client {
        Client::of(VIP, self.path.as_deref(), &self.config.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
