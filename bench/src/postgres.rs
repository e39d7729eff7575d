//! A real PostgreSQL, and pgbench as its load.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::load::Pace;
use crate::measure::processes::Pid;
use crate::process::{Server, output, spawn_on};
use crate::site::{Account, Cores, POSTGRES, Site};

const READY_DEADLINE: Duration = Duration::from_secs(20);
/// `pgbench -i -s`: 100,000 rows each; read-only work from memory.
const SCALE: &str = "5";

/// A running server with pgbench's tables in it.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    programs: PathBuf,
    account: Account,
}

/// What pgbench reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PgbenchReport {
    /// Transactions of the whole run.
    pub transactions: u64,
    /// Transactions per second: without the time to connect, unless it connects for each.
    pub rate: f64,
    /// The mean, in milliseconds.
    pub latency: f64,
}

impl Postgres {
    /// Makes a database cluster, starts its server on `cores` and fills pgbench's tables.
    pub fn start(site: &Site, cores: &Cores) -> Result<Self> {
        let programs = programs()?;
        let directory = site.fresh_directory("postgres")?;
        let data = directory.join("data");
        let mut initdb = Command::new(programs.join("initdb"));
        initdb.args([
            "--auth=trust",
            "--no-sync",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
            "-D",
        ]);
        initdb.arg(&data).current_dir(&directory).uid(site.account.uid).gid(site.account.gid);
        output(&mut initdb)?;
        let listen = format!("listen_addresses={}", POSTGRES.ip());
        let port = format!("port={}", POSTGRES.port());
        let settings = [
            &listen,
            &port,
            "unix_socket_directories=",
            "max_connections=400",
            "shared_buffers=256MB",
            "fsync=off",
            "autovacuum=off",
            "dynamic_shared_memory_type=mmap",
        ];
        let arguments =
            ["-D", "data"].into_iter().chain(settings.into_iter().flat_map(|setting| ["-c", setting]));
        let server =
            Server::start(&directory, Some(site.account), cores, &programs.join("postgres"), arguments)?;
        let mut postgres = Self { server, programs, account: site.account };
        let ready = postgres.client("pg_isready", POSTGRES);
        let mut ready = ready;
        postgres
            .server
            .wait_until("to accept connections", READY_DEADLINE, || output(&mut ready).map(drop))?;
        output(postgres.client("pgbench", POSTGRES).args(["-i", "-q", "-s", SCALE]))?;
        Ok(postgres)
    }

    fn client(&self, program: &str, target: SocketAddr) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .env_clear()
            .env("PGHOST", target.ip().to_string())
            .env("PGPORT", target.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            // libpq's own ways of asking for encryption: two round trips that no answer needs.
            .env("PGSSLMODE", "disable")
            .env("PGGSSENCMODE", "disable")
            .current_dir("/")
            .uid(self.account.uid)
            .gid(self.account.gid);
        command
    }

    /// The numbers of its processes.
    pub fn pids(&self) -> Vec<Pid> {
        self.server.family()
    }

    /// Runs `pgbench -S -M prepared`, with `-C` if it is to `reconnect` for each transaction.
    pub fn pgbench(
        &self,
        target: SocketAddr,
        clients: usize,
        reconnect: bool,
        pace: &Pace,
    ) -> Result<PgbenchReport> {
        let threads = pace.threads.min(clients).to_string();
        let seconds = (pace.window.as_secs_f64().round().max(1.0)).to_string();
        let clients = clients.to_string();
        let mut command = self.client("pgbench", target);
        command.args(["-n", "-S", "-M", "prepared", "-c", &clients, "-j", &threads, "-T", &seconds]);
        if reconnect {
            command.arg("-C");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = spawn_on(&pace.cores, &mut command)?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "pgbench failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        PgbenchReport::parse(&text).with_context(|| format!("a strange report of pgbench: {text}"))
    }
}

/// The directory of the newest version.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
    let mut versions: Vec<u32> =
        versions.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    versions.sort_unstable();
    let newest = versions.last().context("PostgreSQL is not installed")?;
    let programs = PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"));
    ensure!(
        programs.join("initdb").is_file() && programs.join("pgbench").is_file(),
        "PostgreSQL is not complete"
    );
    Ok(programs)
}

/// What the server says of its version.
pub fn version() -> Option<String> {
    let text = output(Command::new(programs().ok()?.join("postgres")).arg("--version")).ok()?;
    Some(text.trim().to_owned())
}

impl PgbenchReport {
    fn parse(text: &str) -> Option<Self> {
        let number = |name: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
            rest.split_whitespace().next()?.split('/').next()?.parse::<f64>().ok()
        };
        let transactions = text
            .lines()
            .find_map(|line| line.strip_prefix("number of transactions actually processed: "))?
            .split('/')
            .next()?
            .trim()
            .parse()
            .ok()?;
        Some(Self { transactions, rate: number("tps = ")?, latency: number("latency average = ")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_pgbench() {
        let text = "transaction type: <builtin: select only>
scaling factor: 1
number of clients: 4
duration: 2 s
number of transactions actually processed: 20541
number of failed transactions: 0 (0.000%)
latency average = 0.389 ms
initial connection time = 9.106 ms
tps = 10294.5 (without initial connection time)
";
        let report = PgbenchReport::parse(text).unwrap();
        assert_eq!(report, PgbenchReport { transactions: 20_541, rate: 10_294.5, latency: 0.389 });
        assert_eq!(PgbenchReport::parse("tps = 5\n"), None);
    }
}
