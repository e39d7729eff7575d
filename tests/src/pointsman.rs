//! The proxy as a process: its configuration, its start, its end.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::cluster::{Cluster, SCOPE};
use crate::process::{RunAs, Server};
use crate::site::Site;
use crate::{http, sql, tools, wait};

const PRIMARY_PORT: u16 = 5000;
const REPLICAS_PORT: u16 = 5001;
const ADMIN_PORT: u16 = 7000;
const READY_DEADLINE: Duration = Duration::from_secs(20);
const STORE_DEADLINE: Duration = Duration::from_secs(60);

/// A running `pointsman`. Dropping it kills it; [`Pointsman::stop`] lets it drain.
#[derive(Debug)]
pub struct Pointsman {
    address: Ipv4Addr,
    server: Server,
}

impl Pointsman {
    /// Starts load balancer `index` (0, 1, …) of `cluster`, on 5000, 5001 and 7000 of its own address, and waits until
    /// its `/ready` says 200.
    pub async fn start(cluster: &Cluster, index: u8) -> Result<Self> {
        let address = cluster.site.addresses.balancer(index);
        let text = configuration(address, &cluster.etcd.endpoints());
        Self::start_with(&cluster.site, index, &text).await
    }

    /// Starts load balancer `index` with a configuration of the test's own. Its `[admin]` must be bound to port 7000 of
    /// the balancer's address.
    pub async fn start_with(site: &Site, index: u8, configuration: &str) -> Result<Self> {
        Self::start_under(site, index, configuration, &[]).await
    }

    /// The same behind a command that runs it in its own place: `env NAME=VALUE`, say.
    pub async fn start_under(
        site: &Site,
        index: u8,
        configuration: &str,
        wrapper: &[String],
    ) -> Result<Self> {
        let program = program().await?;
        let name = format!("pointsman{}", index + 1);
        let directory = site.directory().join(&name);
        // Runs as we do, so the directory stays ours. It exists when the balancer is started again.
        if !directory.is_dir() {
            std::fs::create_dir(&directory)?;
        }
        std::fs::write(directory.join("pointsman.toml"), at_home(configuration))?;
        let own = [program.display().to_string()].into_iter();
        let own: Vec<_> = own.chain(["run", "--config", "pointsman.toml"].map(str::to_owned)).collect();
        let command = [wrapper, &own].concat();
        let (program, arguments) = command.split_first().context("no program")?;
        let server = Server::start(site, RunAs::Caller, &directory, Path::new(program), arguments)?;
        let mut pointsman = Self { address: site.addresses.balancer(index), server };
        pointsman.wait_ready().await?;
        Ok(pointsman)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let admin = self.admin();
        let server = &mut self.server;
        let ready = wait::until(format!("{} to be ready", server.name()), READY_DEADLINE, async || {
            server.check_running()?;
            let answer = http::get(admin, "/ready").await?;
            ensure!(answer.status == 200, "/ready: {} {}", answer.status, answer.body);
            Ok(())
        });
        ready.await.with_context(|| self.server.tail())
    }

    /// The write port.
    pub fn primary(&self) -> SocketAddr {
        SocketAddr::from((self.address, PRIMARY_PORT))
    }

    /// The read port.
    pub fn replicas(&self) -> SocketAddr {
        SocketAddr::from((self.address, REPLICAS_PORT))
    }

    /// Dashboard, metrics, health answers.
    pub fn admin(&self) -> SocketAddr {
        SocketAddr::from((self.address, ADMIN_PORT))
    }

    /// A libpq connection string for the write port.
    pub fn primary_conninfo(&self) -> String {
        sql::conninfo(self.primary())
    }

    /// A libpq connection string for the read port.
    pub fn replicas_conninfo(&self) -> String {
        sql::conninfo(self.replicas())
    }

    /// The process and its log.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// `/api/v1/status`.
    pub async fn status(&self) -> Result<Value> {
        http::get(self.admin(), "/api/v1/status").await?.json()
    }

    /// What wants a person, by its own account.
    pub async fn alarms(&self) -> Result<Vec<String>> {
        let status = self.status().await?;
        let all =
            status.pointer("/clusters/0/status/alarms").and_then(Value::as_array).context("no alarms")?;
        Ok(all.iter().filter_map(|alarm| Some(alarm.as_str()?.to_owned())).collect())
    }

    /// Waits until the read port has `count` candidates: a member's key says that it streams only after Patroni's next
    /// look, which may be later than [`Cluster::wait_ready`].
    pub async fn wait_replicas(&self, count: usize) -> Result<()> {
        let serving = wait::until(format!("{count} replicas to serve"), READY_DEADLINE, async || {
            let status = self.status().await?;
            let primary = status.pointer("/clusters/0/status/primary/state").cloned();
            let candidates = status.pointer("/listeners/1/candidates").and_then(Value::as_array);
            let serving = candidates.map_or(0, Vec::len);
            ensure!(
                primary == Some(json!("confirmed")) && serving == count,
                "primary {primary:?}, candidates {candidates:?}"
            );
            Ok(())
        });
        serving.await.with_context(|| self.server.tail())
    }

    /// A field of what it says of its cluster's store: `state`, `age_ms`, `error`.
    pub async fn store(&self, field: &str) -> Result<Value> {
        let status = self.status().await?;
        let value = status.pointer(&format!("/clusters/0/status/store/{field}"));
        value.cloned().with_context(|| format!("the status has no store/{field}"))
    }

    /// Waits until it says that the store is `alive` or `lost`.
    pub async fn wait_store(&self, state: &str) -> Result<()> {
        wait::until(format!("the store to be {state}"), STORE_DEADLINE, async || {
            let now = self.store("state").await?;
            ensure!(now == state, "{now}: {}", self.store("error").await?);
            Ok(())
        })
        .await
    }

    /// What the command line says of it: `status`, `members`, …
    pub async fn ask(&self, command: &str) -> Result<String> {
        let mut ask = Command::new(program().await?);
        ask.args([command, "--config", "pointsman.toml"]).current_dir(self.server.directory());
        let output = ask.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "pointsman {command}: {err}");
        Ok(out)
    }

    /// How many sessions are held, at all listeners.
    pub async fn held(&self) -> Result<u64> {
        let status = self.status().await?;
        let listeners = status.get("listeners").and_then(Value::as_array).context("no listeners")?;
        Ok(listeners.iter().filter_map(|listener| listener.get("held")?.as_u64()).sum())
    }

    /// What it has to say against a key of the store (`members/pg1`), if anything.
    pub async fn complaint(&self, key: &str) -> Result<Option<Value>> {
        let status = self.status().await?;
        let all = status.pointer("/clusters/0/status/complaints").and_then(Value::as_array);
        let mut all = all.context("no complaints")?.iter();
        Ok(all.find(|complaint| complaint.get("key").is_some_and(|named| named == key)).cloned())
    }

    /// What it has logged so far.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.server.directory().join("log"))?)
    }

    /// An error, with the end of its log, when it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        self.server.check_running().with_context(|| self.server.tail())
    }

    /// Sends a signal: HUP to read the configuration again, TERM to drain, …
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.server.signal(signal)
    }

    /// SIGTERM, then waits until it has drained and ended; answers its exit code.
    pub async fn stop(mut self, deadline: Duration) -> Result<i32> {
        self.server.signal(Signal::TERM)?;
        self.server.ended(deadline).await
    }
}

/// A configuration whose process keeps what it remembers in its own directory, not in the host's.
pub(crate) fn at_home(configuration: &str) -> String {
    if configuration.contains("state_dir") || !configuration.contains("[clusters.") {
        return configuration.to_owned();
    }
    format!("state_dir = \"state\"\n{configuration}")
}

/// The shortest useful configuration, for one cluster in etcd.
pub fn configuration(address: Ipv4Addr, endpoints: &[String]) -> String {
    format!(
        r#"[clusters.{SCOPE}]
discovery = {{ etcd = {{ endpoints = {endpoints:?} }} }}

[[listeners]]
bind = "{address}:{PRIMARY_PORT}"
target = "primary"

[[listeners]]
bind = "{address}:{REPLICAS_PORT}"
target = "replicas"

[admin]
bind = "{address}:{ADMIN_PORT}"
socket = "admin.sock"
"#
    )
}

/// The proxy's program: `POINTSMAN_BIN`, or the one beside this program. Under `cargo test` it is built first, so that
/// no stale one is tested.
pub async fn program() -> Result<PathBuf> {
    static PROGRAM: OnceCell<PathBuf> = OnceCell::const_new();
    PROGRAM.get_or_try_init(find_program).await.cloned()
}

async fn find_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("POINTSMAN_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "POINTSMAN_BIN names no file: {}", path.display());
        return Ok(path.canonicalize()?);
    }
    if let Some(cargo) = std::env::var_os("CARGO") {
        build(&cargo).await?;
    }
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2).map(|directory| directory.join("pointsman"));
    beside.into_iter().find(|path| path.is_file()).context(
        "there is no `pointsman` beside this program: run cargo build -p pointsman, or set POINTSMAN_BIN",
    )
}

async fn build(cargo: &std::ffi::OsStr) -> Result<()> {
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "pointsman", "--bin", "pointsman"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    command.current_dir(tools::repository()).stdin(Stdio::null()).kill_on_drop(true);
    let status = tokio::time::timeout(Duration::from_secs(900), command.status()).await??;
    ensure!(status.success(), "cargo build -p pointsman failed");
    Ok(())
}
