//! The proxy as its operator meets it: an address, a directory with a configuration file, signals, a log, a command line.
//!
//! [`crate::Pointsman`] is the short form for tests that only want to go through it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::cluster::{Cluster, SCOPE};
use crate::http::{self, Answer};
use crate::pointsman::{at_home, program};
use crate::process::{RunAs, Server};
use crate::site::Site;
use crate::wait;

/// For what takes a moment; a busy machine may need some seconds.
pub const SOON: Duration = Duration::from_secs(20);

/// A load-balancer host and the `pointsman` on it. Dropping it kills the process.
#[derive(Debug)]
pub struct Balancer {
    /// Its own address: every listener of it is bound here.
    pub address: Ipv4Addr,
    directory: PathBuf,
    environment: Vec<String>,
    descriptors: Option<u32>,
    program: PathBuf,
    server: Option<Server>,
}

impl Balancer {
    /// A host with an address of its own (x.x.x.100 and up), and nothing on it yet.
    pub async fn new(site: &Site) -> Result<Self> {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let index = NEXT.fetch_add(1, Ordering::Relaxed);
        ensure!(index < 150, "there are no more addresses");
        let directory = site.directory().join(format!("balancer{index}"));
        std::fs::create_dir(&directory)?;
        Ok(Self {
            address: site.addresses.other(index),
            directory,
            environment: Vec::new(),
            descriptors: None,
            program: program().await?,
            server: None,
        })
    }

    /// A running, ready one with [`Balancer::configuration`].
    pub async fn ready(cluster: &Cluster) -> Result<Self> {
        let mut balancer = Self::new(&cluster.site).await?;
        balancer.write(&balancer.configuration(cluster))?;
        balancer.start(&cluster.site)?;
        balancer.wait_ready().await?;
        Ok(balancer)
    }

    /// A running, ready one with `configuration`, in which `HOST` stands for its address.
    pub async fn ready_with(cluster: &Cluster, configuration: &str) -> Result<Self> {
        let mut balancer = Self::new(&cluster.site).await?;
        balancer.write(configuration)?;
        balancer.start(&cluster.site)?;
        balancer.wait_ready().await?;
        Ok(balancer)
    }

    /// A configuration with the usual ports.
    pub fn configuration(&self, cluster: &Cluster) -> String {
        configuration(&cluster.etcd.endpoints())
    }

    /// Sets an environment variable of the process that is started next.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push(format!("{name}={value}"));
    }

    /// Limits the descriptors of the process that is started next.
    pub fn limit_descriptors(&mut self, limit: u32) {
        self.descriptors = Some(limit);
    }

    /// Writes the configuration file; `HOST` in it stands for the address.
    pub fn write(&self, configuration: &str) -> Result<()> {
        Ok(std::fs::write(self.file(), at_home(&configuration.replace("HOST", &self.address.to_string())))?)
    }

    /// The configuration file.
    pub fn file(&self) -> PathBuf {
        self.directory.join("pointsman.toml")
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The admin socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("admin.sock")
    }

    /// Starts the process, and does not wait for it.
    pub fn start(&mut self, site: &Site) -> Result<()> {
        let mut words = self.environment.clone();
        if let Some(limit) = self.descriptors {
            words.extend(["prlimit".to_owned(), format!("--nofile={limit}:{limit}")]);
        }
        words.push(self.program.display().to_string());
        words.extend(["run", "--config", "pointsman.toml"].map(str::to_owned));
        // env(1) and prlimit(1) become the program: signals go to the right process.
        let server = Server::start(site, RunAs::Caller, &self.directory, Path::new("/usr/bin/env"), words)?;
        self.server = Some(server);
        Ok(())
    }

    fn server(&self) -> Result<&Server> {
        self.server.as_ref().context("it was not started")
    }

    /// Waits until `/ready` says 200.
    pub async fn wait_ready(&mut self) -> Result<()> {
        self.wait_answer("/ready", 200).await.map(drop)
    }

    /// Waits until `path` answers with `status`.
    pub async fn wait_answer(&mut self, path: &str, status: u16) -> Result<Answer> {
        let admin = self.admin();
        let server = self.server.as_mut().context("it was not started")?;
        let answered = wait::until(format!("{path} to answer {status}"), SOON, async || {
            server.check_running()?;
            let answer = http::get(admin, path).await?;
            ensure!(answer.status == status, "{} {}", answer.status, answer.body);
            Ok(answer)
        });
        answered.await.with_context(|| server.tail())
    }

    /// A port of the host.
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address, port))
    }

    /// The write port.
    pub fn primary(&self) -> SocketAddr {
        self.port(5000)
    }

    /// The read port.
    pub fn replicas(&self) -> SocketAddr {
        self.port(5001)
    }

    /// Dashboard, metrics, health answers.
    pub fn admin(&self) -> SocketAddr {
        self.port(7000)
    }

    /// `GET path` on the admin port.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        http::get(self.admin(), path).await
    }

    /// A part of `/api/v1/status`; null when there is none.
    pub async fn status(&self, pointer: &str) -> Result<Value> {
        Ok(self.get("/api/v1/status").await?.json()?.pointer(pointer).cloned().unwrap_or_default())
    }

    /// Waits until a part of `/api/v1/status` is `wanted`.
    pub async fn wait_status(&self, pointer: &str, wanted: &Value) -> Result<()> {
        wait::until(format!("{pointer} to be {wanted}"), SOON, async || {
            let found = self.status(pointer).await?;
            ensure!(found == *wanted, "it is {found}");
            Ok(())
        })
        .await
        .with_context(|| self.tail())
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.server()?.signal(signal)
    }

    /// The number of the process.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.server()?.pid().context("it has ended")?.as_raw_nonzero().get())
    }

    /// Writes another configuration, sends SIGHUP, and waits for the outcome: `process.reload` of the status.
    pub async fn reload(&self, configuration: &str) -> Result<Value> {
        self.write(configuration)?;
        let before = self.status("/process/reload").await?;
        self.signal(Signal::HUP)?;
        wait::until("the reload", SOON, async || {
            let now = self.status("/process/reload").await?;
            ensure!(now != before, "no news of it");
            Ok(now)
        })
        .await
        .with_context(|| self.tail())
    }

    /// Waits until the process has ended by itself; answers its exit code, or the number of the signal that ended it.
    pub async fn ended(&mut self, deadline: Duration) -> Result<i32> {
        let server = self.server.as_mut().context("it was not started")?;
        let ended = server.ended(deadline).await;
        ended.with_context(|| server.tail())
    }

    /// An error when the process has ended.
    pub fn check_running(&mut self) -> Result<()> {
        self.server.as_mut().context("it was not started")?.check_running()
    }

    /// Everything that it has logged.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.directory.join("log"))?).into_owned())
    }

    /// Waits until the log contains `text`; answers the line.
    pub async fn wait_log(&self, text: &str) -> Result<String> {
        wait::until(format!("{text:?} in the log"), SOON, async || {
            let log = self.log()?;
            log.lines().find(|line| line.contains(text)).map(str::to_owned).context("it is not there")
        })
        .await
        .with_context(|| self.tail())
    }

    /// The end of the log, for error messages.
    pub fn tail(&self) -> String {
        self.server.as_ref().map_or_else(String::new, Server::tail)
    }

    /// The open descriptors of the process.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()?))?.count())
    }

    /// The command line, to be run in its directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs the command line in its directory.
    pub async fn run(&self, arguments: &[&str]) -> Result<Said> {
        let output = tokio::time::timeout(SOON, self.command(arguments).output());
        let output = output.await.with_context(|| format!("pointsman {arguments:?} does not end"))??;
        Said::new(&output)
    }

    /// Asks the process by the command line; an error if it fails.
    pub async fn ask(&self, arguments: &[&str]) -> Result<String> {
        let said = self.run(&[arguments, &["--config", "pointsman.toml"]].concat()).await?;
        if said.code != 0 {
            bail!("pointsman {arguments:?}: {said:?}");
        }
        Ok(said.out)
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; -1: a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    fn new(output: &Output) -> Result<Self> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec());
        let code = output.status.code().unwrap_or(-1);
        Ok(Self { code, out: text(&output.stdout)?, err: text(&output.stderr)? })
    }
}

/// A configuration with the usual ports; `HOST` stands for the host's address.
pub fn configuration(endpoints: &[String]) -> String {
    format!(
        r#"node = "lb1"
state_dir = "state"

[clusters.{SCOPE}]
discovery = {{ etcd = {{ endpoints = {endpoints:?} }} }}

[[listeners]]
bind = "HOST:5000"
target = "primary"

[[listeners]]
bind = "HOST:5001"
target = "replicas"

[admin]
bind = "HOST:7000"
socket = "admin.sock"

[log]
level = "info"

[shutdown]
drain = "30s"
"#
    )
}
