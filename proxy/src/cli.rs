//! The command line. Everything but `run` and `check` asks a running process through its admin socket.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use pointsman_config::Config;
use pointsman_process::cli::{self, CONFIG, ConfigFile, UNAVAILABLE, count, pretty, print};
use pointsman_process::client::{self, Client, ClientError};
use pointsman_process::{PROXY, table};

use crate::unbuilt::unbuilt;

mod show;

/// Sets every PostgreSQL connection onto the right server.
#[derive(Debug, Parser)]
#[command(name = "pointsman", version, subcommand_required = true, arg_required_else_help = true)]
#[command(long_about = "Sets every PostgreSQL connection onto the right server.\n\n\
    Pointsman watches a PostgreSQL cluster (Patroni's store, Patroni itself, or the servers) and routes clients to the \
    primary and to the replicas. While there is no primary, new connections wait instead of failing.")]
#[command(after_help = "\
Examples:
  pointsman check                     every error of /etc/pointsman/pointsman.toml at once
  pointsman run                       the proxy, in the foreground
  pointsman status                    who is primary, and why; which listeners are open
  pointsman events --follow           what happens, as it happens
  pointsman drain main/pg2            no new sessions to pg2; `pointsman ready main/pg2` takes it back
  pointsman sessions --json | jq .    for scripts

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 69 pointsman does not answer, 78 wrong configuration.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy in the foreground
    #[command(
        long_about = "Run the proxy in the foreground. SIGTERM drains and ends, SIGINT ends at once, SIGHUP \
        reads the configuration anew. The log goes to standard error."
    )]
    Run(ConfigFile),
    /// Check the configuration file and print every error at once
    Check(ConfigFile),
    /// What a running process is asked.
    #[command(flatten)]
    Question(Question),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  pointsman completions bash > /etc/bash_completion.d/pointsman")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, or write one for each command
    Man {
        /// Write pointsman.1, pointsman-run.1, … into this directory
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

/// What a running process is asked, through its admin socket.
#[derive(Debug, Subcommand)]
pub enum Question {
    /// Show who is primary, the source's state and the listeners
    Status(Socket),
    /// Show every member: role, lag, health, sessions, and why it is not used
    Members(Socket),
    /// Show the live sessions, the oldest first
    Sessions {
        /// How to reach it
        #[command(flatten)]
        socket: Socket,
        /// Show at most so many
        #[arg(long, default_value_t = 1000)]
        limit: u64,
    },
    /// Show what happened: fail-overs, confirmations, members in and out
    Events {
        /// How to reach it
        #[command(flatten)]
        socket: Socket,
        /// Wait for further events until interrupted
        #[arg(long, short)]
        follow: bool,
        /// Only events after this number
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        since: u64,
    },
    /// Send no new sessions to a member; the old ones finish
    Drain(Change),
    /// Take a member out: no new sessions, no probes
    Maint(Change),
    /// Take a member back into service
    Ready(Change),
    /// End sessions now
    #[command(after_help = "\
Examples:
  pointsman kill 1742               one session, by its number in `pointsman sessions`
  pointsman kill --member main/pg2  every session on a member")]
    Kill {
        /// How to reach it
        #[command(flatten)]
        socket: Socket,
        /// Numbers of sessions
        #[arg(required_unless_present = "member", conflicts_with = "member", value_name = "SESSION")]
        sessions: Vec<u64>,
        /// Every session on this member
        #[arg(long, value_name = "CLUSTER/MEMBER")]
        member: Option<MemberPath>,
    },
}

/// How to reach the running process.
#[derive(Clone, Debug, Args)]
pub struct Socket {
    #[command(flatten)]
    config: ConfigFile,
    /// The admin socket [default: that of the configuration file, else /run/pointsman/admin.sock]
    #[arg(long = "socket", value_name = "PATH")]
    path: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A change to one member.
#[derive(Clone, Debug, Args)]
pub struct Change {
    #[command(flatten)]
    socket: Socket,
    /// The member
    #[arg(value_name = "CLUSTER/MEMBER")]
    member: MemberPath,
}

/// `CLUSTER/MEMBER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberPath {
    cluster: String,
    member: String,
}

impl std::str::FromStr for MemberPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((cluster, member)) if !cluster.is_empty() && !member.is_empty() => {
                Ok(Self { cluster: cluster.to_owned(), member: member.to_owned() })
            }
            _ => Err("a member is named with its cluster, as in main/pg1 (see `pointsman members`)"),
        }
    }
}

impl Cli {
    /// Carries the command out; `serve` is what `run` does with a configuration and its file.
    pub fn carry_out(self, serve: impl FnOnce(Config, &Path) -> ExitCode) -> ExitCode {
        match self.command {
            Command::Run(file) => match load(&file.config) {
                Ok(config) => serve(config, &file.config),
                Err(code) => code,
            },
            Command::Check(file) => check(&file.config),
            Command::Question(question) => match ask(question) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("pointsman: {error}");
                    ExitCode::from(if error.is_refusal() { 1 } else { UNAVAILABLE })
                }
            },
            Command::Completions { shell } => cli::completions(PROXY, Self::command(), shell),
            Command::Man { out } => cli::man(PROXY, Self::command(), out.as_deref()),
        }
    }
}

/// Reads the configuration for `run`, or says why it cannot be run.
fn load(path: &Path) -> Result<Config, ExitCode> {
    let config = Config::load(path).map_err(|diagnostics| {
        eprintln!("{diagnostics}");
        ExitCode::from(CONFIG)
    })?;
    let missing = unbuilt(&config);
    if missing.is_empty() {
        return Ok(config);
    }
    eprint!("{}", refusal(path, &missing));
    Err(ExitCode::from(CONFIG))
}

fn refusal(path: &Path, missing: &[String]) -> String {
    let mut text = format!("{}: this version cannot run this configuration yet:\n", path.display());
    for line in missing {
        let _ = writeln!(text, "  {line}");
    }
    text
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
    let missing = unbuilt(&config);
    if !missing.is_empty() {
        eprint!("{}", refusal(path, &missing));
        return ExitCode::from(CONFIG);
    }
    let mut text = format!(
        "{}: the configuration is fine: {}, {}, node {}\n",
        path.display(),
        count(config.listeners.len(), "listener"),
        count(config.clusters.len(), "cluster"),
        config.node,
    );
    if config.vrrp.is_some() || !config.vips.is_empty() {
        let vips = count(config.vips.len(), "virtual IP");
        let _ = writeln!(text, "{vips}: the business of pointsman-vip (`pointsman-vip check`)");
    }
    print(text.as_bytes())
}

/// Asks the running process.
fn ask(question: Question) -> Result<(), ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| ClientError::Broken { program: PROXY, why: error.to_string() })?;
    runtime.block_on(async {
        match question {
            Question::Status(socket) => {
                // Another process is asked for it: without that, the rest is worth showing just the same.
                let vip = if socket.json { None } else { socket.client().get("/api/v1/vip").await.ok() };
                show(&socket, "/api/v1/status", |answer| show::status(answer, vip.as_ref())).await
            }
            Question::Members(socket) => show(&socket, "/api/v1/members", show::members).await,
            Question::Sessions { socket, limit } => {
                show(&socket, &format!("/api/v1/sessions?limit={limit}"), show::sessions).await
            }
            Question::Events { socket, follow: true, since } => follow(&socket, since).await,
            Question::Events { socket, follow: false, since } => {
                show(&socket, &format!("/api/v1/timeline?since={since}"), show::events).await
            }
            Question::Drain(change) => set(&change, "drain").await,
            Question::Maint(change) => set(&change, "maint").await,
            Question::Ready(change) => set(&change, "ready").await,
            Question::Kill { socket, sessions, member } => kill(&socket, &sessions, member.as_ref()).await,
        }
    })
}

async fn show(
    socket: &Socket,
    path: &str,
    table: impl FnOnce(&serde_json::Value) -> String,
) -> Result<(), ClientError> {
    let answer = socket.client().get(path).await?;
    print(if socket.json { pretty(&answer) } else { table(&answer) }.as_bytes());
    Ok(())
}

async fn set(change: &Change, action: &str) -> Result<(), ClientError> {
    act(&change.socket, &change.member.action(action)).await
}

async fn kill(socket: &Socket, sessions: &[u64], member: Option<&MemberPath>) -> Result<(), ClientError> {
    if let Some(member) = member {
        return act(socket, &member.action("kill")).await;
    }
    let mut refused = None;
    for id in sessions {
        // One that has ended meanwhile does not keep the others alive.
        match act(socket, &format!("/api/v1/sessions/{id}/kill")).await {
            Err(error) if error.is_refusal() => refused = Some(error),
            other => other?,
        }
    }
    refused.map_or(Ok(()), Err)
}

async fn act(socket: &Socket, path: &str) -> Result<(), ClientError> {
    let answer = socket.client().post(path).await?;
    let sentence = answer.get("done").and_then(serde_json::Value::as_str).unwrap_or("done");
    print(if socket.json { pretty(&answer) } else { format!("{}\n", table::clean(sentence)) }.as_bytes());
    Ok(())
}

async fn follow(socket: &Socket, since: u64) -> Result<(), ClientError> {
    let path = format!("/api/v1/events?since={since}");
    socket
        .client()
        .events(&path, |name, data| {
            let line = match name {
                _ if socket.json => format!("{data}\n"),
                "note" => {
                    serde_json::from_str(data).map_or_else(|_| String::new(), |entry| show::event(&entry))
                }
                "missed" => "(some events came too fast and were missed)\n".to_owned(),
                _ => return true,
            };
            let mut out = io::stdout().lock();
            out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_ok()
        })
        .await
}

impl MemberPath {
    fn action(&self, action: &str) -> String {
        format!("/api/v1/members/{}/{}/{action}", client::escape(&self.cluster), client::escape(&self.member))
    }
}

impl Socket {
    fn client(&self) -> Client {
        Client::of(PROXY, self.path.as_deref(), &self.config.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_member_is_named_with_its_cluster() {
        let path: MemberPath = "main/pg 1/x".parse().unwrap();
        assert_eq!(path.action("drain"), "/api/v1/members/main/pg%201%2Fx/drain");
        for wrong in ["pg1", "/pg1", "main/", ""] {
            assert!(wrong.parse::<MemberPath>().is_err(), "{wrong}");
        }
    }
}
