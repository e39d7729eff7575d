//! The command line; `make bench` passes its variables through the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use regex::Regex;

use crate::site::BACKEND;

/// Measures Pointsman beside other proxies, in a network of its own.
///
/// Needs root: everything runs inside namespaces that vanish with it, and touches no other network. Examples:
///
///   pointsman-bench                                       the whole table: most of an hour
///   pointsman-bench --quick                               the rows that matter: under five minutes
///   pointsman-bench --rows 'pingpong-64-32$' --peers 'pointsman|haproxy$' --runs 5 --seconds 2
///   pointsman-bench --pointsman target/release/pointsman --rows bulk --pinned-only
///   pointsman-bench scale                                 how costs grow with sessions, members and listeners
///   pointsman-bench --list                                names of rows and peers
#[derive(Debug, Parser)]
#[command(name = "pointsman-bench", version, verbatim_doc_comment)]
pub struct Arguments {
    /// What else it can be.
    #[command(subcommand)]
    pub part: Option<Part>,
    /// What is measured.
    #[command(flatten)]
    pub plan: Plan,
}

/// Parts that it starts itself.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// The server behind the proxies.
    #[command(hide = true)]
    Backend {
        /// How many loops.
        threads: usize,
        /// Where it listens.
        #[arg(default_value_t = BACKEND)]
        address: SocketAddr,
    },
    /// How costs grow with idle sessions, members, listeners, and sessions under a leader change: under four minutes.
    ///
    /// The last part of a whole table, too. Of the options, these have a meaning: --rows (idle, members, listeners, fence), --peers
    /// (the engines), --runs, --pointsman, --out, --nice.
    Scale,
}

/// What is measured, and how long.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Debug, Clone, Args)]
pub struct Plan {
    /// Only the rows that matter, with ourselves, HAProxy and the ceiling, three runs of a second each.
    #[arg(long, env = "QUICK", value_parser = clap::builder::BoolishValueParser::new(), default_value = "false",
          num_args = 0..=1, default_missing_value = "true")]
    pub quick: bool,
    /// Only rows whose name matches this regular expression.
    #[arg(long, env = "ROWS", global = true, value_name = "REGEX", default_value = "")]
    pub rows: Regex,
    /// Only peers whose name matches this regular expression.
    #[arg(long, env = "PEERS", global = true, value_name = "REGEX", default_value = "")]
    pub peers: Regex,
    /// Runs of each peer in each row; by default 5 in the rows that matter and 3 in the others.
    #[arg(long, env = "RUNS", global = true, value_name = "COUNT")]
    pub runs: Option<usize>,
    /// Length of the measured window of a run; by default 2, in a quick run 1.
    // Not from the environment: a shell counts seconds in a variable of that name.
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<f64>,
    /// Idle sessions; each number is a row.
    #[arg(long, env = "IDLE", value_name = "COUNT", value_delimiter = ',')]
    pub idle: Vec<usize>,
    /// Only with the proxy on one core and the load on the other.
    #[arg(long)]
    pub pinned_only: bool,
    /// Only without pinning.
    #[arg(long, conflicts_with = "pinned_only")]
    pub unpinned_only: bool,
    /// Count system calls of the proxies, by perf. It costs them time: not to be mixed with other runs.
    #[arg(long)]
    pub syscalls: bool,
    /// The proxy to measure; by default the one beside this program.
    #[arg(long, env = "POINTSMAN_BIN", global = true, value_name = "FILE")]
    pub pointsman: Option<PathBuf>,
    /// Where the results go; by default docs/bench for the whole table and target/bench for anything less.
    #[arg(long, env = "OUT", global = true, value_name = "DIRECTORY")]
    pub out: Option<PathBuf>,
    /// Priority of everything that is started, against other work on the machine; 0: none.
    #[arg(long, env = "NICE", global = true, value_name = "-20..19", default_value_t = -10, allow_negative_numbers = true)]
    pub nice: i32,
    /// The repository, for what is installed in its cache.
    #[arg(long, global = true, value_name = "DIRECTORY", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/.."), hide = true)]
    pub repository: PathBuf,
    /// Names the rows and the peers, and ends.
    #[arg(long)]
    pub list: bool,
}

impl Plan {
    /// The measured window of a run.
    pub fn window(&self) -> Result<Duration> {
        let seconds = self.seconds.unwrap_or(if self.quick { 1.0 } else { 2.0 });
        ensure!((0.1..=600.0).contains(&seconds), "a window of {seconds} seconds makes no sense");
        Ok(Duration::from_secs_f64(seconds))
    }

    /// Before the window.
    pub fn warm(&self) -> Duration {
        Duration::from_millis(if self.quick { 200 } else { 500 })
    }

    /// Numbers of idle sessions, none larger than `possible`. A quick run has one: to open and close them takes time.
    pub fn idle(&self, possible: u64) -> Vec<usize> {
        let wanted: &[usize] = match (self.idle.is_empty(), self.quick) {
            (false, _) => &self.idle,
            (true, true) => &[10_000],
            (true, false) => &[10_000, 50_000],
        };
        let possible = usize::try_from(possible).unwrap_or(usize::MAX);
        let mut counts: Vec<usize> = wanted.iter().map(|count| (*count).min(possible)).collect();
        counts.dedup();
        counts
    }

    /// Nothing is left out.
    pub fn is_whole(&self) -> bool {
        !self.quick
            && self.rows.as_str().is_empty()
            && self.peers.as_str().is_empty()
            && !self.pinned_only
            && !self.unpinned_only
            && !self.syscalls
    }

    /// Where the results go.
    pub fn out(&self) -> PathBuf {
        let place = if self.is_whole() { "docs/bench" } else { "target/bench" };
        self.out.clone().unwrap_or_else(|| self.repository.join(place))
    }

    /// The proxy to measure; `None` if there is none and none was asked for.
    pub fn pointsman(&self) -> Result<Option<PathBuf>> {
        if let Some(path) = &self.pointsman {
            ensure!(path.is_file(), "--pointsman names no file: {}", path.display());
            return Ok(Some(path.clone()));
        }
        let own = std::env::current_exe().context("this program has no path")?;
        Ok(own.parent().map(|directory| directory.join("pointsman")).filter(|path| path.is_file()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(arguments: &[&str]) -> Plan {
        Arguments::parse_from([&["pointsman-bench"], arguments].concat()).plan
    }

    #[test]
    fn only_the_whole_table_goes_to_the_documentation() {
        assert!(plan(&[]).out().ends_with("docs/bench"));
        for less in [&["--quick"][..], &["--rows", "churn"], &["--peers", "haproxy"], &["--pinned-only"]] {
            assert!(plan(less).out().ends_with("target/bench"), "{less:?}");
        }
        assert!(plan(&["--quick", "--out", "/x"]).out().ends_with("/x"));
    }

    #[test]
    fn the_part_about_scale_takes_the_same_options() {
        let arguments = Arguments::parse_from(["pointsman-bench", "scale", "--rows", "fence", "--runs", "1"]);
        assert!(matches!(arguments.part, Some(Part::Scale)));
        assert!(arguments.plan.rows.is_match("fence") && arguments.plan.runs == Some(1));
        let whole = Arguments::parse_from(["pointsman-bench", "scale"]).plan;
        assert!(whole.out().ends_with("docs/bench") && !arguments.plan.is_whole());
    }

    #[test]
    fn times() {
        assert_eq!(plan(&["--quick"]).window().unwrap(), Duration::from_secs(1));
        assert_eq!(plan(&["--quick", "--seconds", "0.5"]).window().unwrap(), Duration::from_millis(500));
        assert!(plan(&["--seconds", "0"]).window().is_err());
        assert_eq!(plan(&["--idle", "5,6"]).idle(100), [5, 6]);
        assert_eq!(plan(&[]).idle(9_400), [9_400]);
        assert_eq!(plan(&["--quick"]).idle(u64::MAX), [10_000]);
    }
}
