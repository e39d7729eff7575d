//! PostgreSQL servers without Patroni: made and started one by one, and what repmgr does with them.
//!
//! [`Plain::initdb`] makes a server, [`Plain::clone_of`] a standby of another one (`repmgr standby clone`). The role
//! [`ASKER`] is what the documentation tells people to create for Pointsman; it comes in over TLS, with a password.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use tokio::process::Command;

use crate::member::POSTGRES_PORT;
use crate::pki::Pki;
use crate::process::{RunAs, Server};
use crate::site::Site;
use crate::tools::Account;
use crate::{sql, wait};

/// Pointsman's role.
pub const ASKER: &str = "pointsman";
/// Its password.
pub const PASSWORD: &str = "points and signals";

const START_DEADLINE: Duration = Duration::from_secs(30);
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// For every server alike; what differs stands on its command line.
const SETTINGS: &str = "\
unix_socket_directories = '..'
dynamic_shared_memory_type = mmap
shared_buffers = 16MB
fsync = off
wal_level = logical
wal_log_hints = on
max_connections = 200
max_wal_senders = 10
max_replication_slots = 10
max_worker_processes = 16
track_commit_timestamp = on
password_encryption = scram-sha-256
ssl = on
";

const HBA: &str = "\
local all all trust
hostssl all pointsman 127.0.0.0/8 scram-sha-256
host all pointsman 127.0.0.0/8 reject
host all all 127.0.0.0/8 trust
host replication all 127.0.0.0/8 trust
";

/// One server. Its directory holds `data/`, `repmgr.conf` and `log`.
#[derive(Debug)]
pub struct Plain {
    name: String,
    number: u8,
    address: Ipv4Addr,
    directory: PathBuf,
    server: Option<Server>,
    settings: Vec<String>,
}

impl Plain {
    /// Makes server `index` (0: `pg1`) with a certificate of `pki`, and starts it. `settings` go onto its command line.
    pub async fn initdb(site: &Site, pki: &Pki, index: u8, settings: &[&str]) -> Result<Self> {
        let mut plain = Self::prepare(site, pki, index, settings)?;
        let arguments =
            ["-D", "data", "-U", sql::USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"];
        plain.run(site, &site.tools.postgres_bin.join("initdb"), &arguments).await?;
        let data = plain.directory.join("data");
        let main = std::fs::read_to_string(data.join("postgresql.conf"))?;
        std::fs::write(data.join("postgresql.conf"), main + SETTINGS)?;
        std::fs::write(data.join("pg_hba.conf"), HBA)?;
        plain.start(site).await?;
        let role = format!("create role {ASKER} login password '{PASSWORD}'");
        plain.sql(&role).await?;
        Ok(plain)
    }

    /// Makes server `index` as a standby of another, as people do it with repmgr, and starts it. The other one must be
    /// registered.
    pub async fn clone_of(site: &Site, pki: &Pki, index: u8, primary: &Self) -> Result<Self> {
        let mut plain = Self::prepare(site, pki, index, &[])?;
        plain.clone_anew(site, primary).await?;
        Ok(plain)
    }

    /// Throws its data away and clones it again from another server.
    pub async fn clone_anew(&mut self, site: &Site, primary: &Self) -> Result<()> {
        self.kill().await?;
        let host = primary.address.to_string();
        self.repmgr(
            site,
            &[
                "-h",
                &host,
                "-U",
                "repmgr",
                "-d",
                "repmgr",
                "standby",
                "clone",
                "--force",
                "--fast-checkpoint",
            ],
        )
        .await?;
        self.start(site).await?;
        self.repmgr(site, &["standby", "register", "--force"]).await
    }

    /// Makes repmgr's role and database, and registers this server as the primary.
    pub async fn register_primary(&self, site: &Site) -> Result<()> {
        self.sql("create role repmgr superuser login").await?;
        self.sql("create database repmgr owner repmgr").await?;
        self.repmgr(site, &["primary", "register"]).await
    }

    /// `repmgr standby promote`.
    pub async fn promote(&self, site: &Site) -> Result<()> {
        self.repmgr(site, &["standby", "promote"]).await
    }

    /// `repmgr standby follow`: to whoever is primary now.
    pub async fn follow(&self, site: &Site) -> Result<()> {
        self.repmgr(site, &["standby", "follow"]).await
    }

    async fn repmgr(&self, site: &Site, arguments: &[&str]) -> Result<()> {
        let all: Vec<&str> = ["-f", "repmgr.conf"].into_iter().chain(arguments.iter().copied()).collect();
        self.run(site, &site.tools.postgres_bin.join("repmgr"), &all).await
    }

    fn prepare(site: &Site, pki: &Pki, index: u8, settings: &[&str]) -> Result<Self> {
        let (number, address) = (index + 1, site.addresses.member(0, index));
        let name = format!("pg{number}");
        let directory = site.subdirectory(&name)?;
        pki.leaf(site, &name, &[IpAddr::V4(address)], &[])?;
        let bin = site.tools.postgres_bin.display();
        let file = format!(
            "node_id = {number}\nnode_name = '{name}'\ndata_directory = '{}'\npg_bindir = '{bin}'\n\
             conninfo = 'host={address} user=repmgr dbname=repmgr connect_timeout=2'\n",
            directory.join("data").display()
        );
        std::fs::write(directory.join("repmgr.conf"), file)?;
        let own = [
            format!("listen_addresses={address}"),
            format!("port={POSTGRES_PORT}"),
            format!("ssl_cert_file={}", pki.path(&format!("{name}.pem")).display()),
            format!("ssl_key_file={}", pki.path(&format!("{name}.key")).display()),
        ];
        let settings = own.into_iter().chain(settings.iter().map(|&setting| setting.to_owned())).collect();
        Ok(Self { name, number, address, directory, server: None, settings })
    }

    /// Starts it on its data, as what it was, and waits until it answers.
    pub async fn start(&mut self, site: &Site) -> Result<()> {
        let settings = self.settings.iter().flat_map(|setting| ["-c".to_owned(), setting.clone()]);
        let arguments: Vec<String> =
            ["-D".to_owned(), "data".to_owned()].into_iter().chain(settings).collect();
        let program = site.tools.postgres_bin.join("postgres");
        let server =
            self.server.insert(Server::start(site, RunAs::Servers, &self.directory, &program, arguments)?);
        let address = SocketAddr::from((self.address, POSTGRES_PORT));
        let started = wait::until(format!("{} to start", self.name), START_DEADLINE, async || {
            server.check_running()?;
            sql::who(address, Duration::from_secs(5)).await
        });
        started.await.with_context(|| server.tail()).map(drop)
    }

    /// Runs a program as the servers' account in this server's directory.
    async fn run(&self, site: &Site, program: &Path, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &self.directory)
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null())
            .current_dir(&self.directory)
            .kill_on_drop(true);
        if let Account::Postgres { uid, gid } = site.account() {
            command.uid(uid).gid(gid);
        }
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let output = tokio::time::timeout(COMMAND_DEADLINE, command.output())
            .await
            .with_context(|| format!("{name} of {} did not end", self.name))??;
        if !output.status.success() {
            let (said, error) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            bail!("{name} {arguments:?} of {} failed: {said}{error}", self.name);
        }
        Ok(())
    }

    /// `pg1`, `pg2`, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// 1, 2, …
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Where it listens.
    pub fn postgres(&self) -> SocketAddr {
        SocketAddr::from((self.address, POSTGRES_PORT))
    }

    /// Runs statements as the superuser, directly on this server.
    pub async fn sql(&self, statements: &str) -> Result<()> {
        self.sql_in(sql::DATABASE, statements).await
    }

    /// The same, in another database.
    pub async fn sql_in(&self, database: &str, statements: &str) -> Result<()> {
        let client = sql::Client::connect_to(self.postgres(), database, START_DEADLINE).await?;
        client.session.batch_execute(statements).await.with_context(|| statements.to_owned())
    }

    /// The first field of the first row, as text.
    pub async fn value(&self, statement: &str) -> Result<String> {
        let client = sql::Client::connect(self.postgres(), START_DEADLINE).await?;
        client.value(statement).await
    }

    /// Kills it like a power cut; does nothing when it does not run.
    pub async fn kill(&mut self) -> Result<()> {
        match self.server.take() {
            Some(mut server) => server.kill().await,
            None => Ok(()),
        }
    }

    /// Stops it in its tracks: connections stay open and silent.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen one go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let server = self.server.as_ref().with_context(|| format!("{} does not run", self.name))?;
        ensure!(server.signal_all(signal) > 0, "{} does not run", self.name);
        Ok(())
    }

    /// What it has logged so far.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.directory.join("log"))?)
    }
}
