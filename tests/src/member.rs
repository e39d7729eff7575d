//! One member: Patroni with its PostgreSQL.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio_rustls::rustls::ClientConfig;

use crate::cluster::{ClusterOptions, NAMESPACE, merge};
use crate::process::{RunAs, Server};
use crate::site::Site;
use crate::{http, sql};

/// PostgreSQL's port on every member.
pub const POSTGRES_PORT: u16 = 5432;
/// Patroni's REST port on every member.
pub const REST_PORT: u16 = 8008;

/// What is special about one member.
#[derive(Debug, Clone, Default)]
pub struct MemberOptions {
    /// Patroni's tags, as a JSON object: `{"noloadbalance": true}`.
    pub tags: Option<Value>,
    /// Laid over this member's configuration file of Patroni, after the cluster's own patch (RFC 7396).
    pub patroni: Option<Value>,
    /// Where PostgreSQL and Patroni's REST API listen, instead of the usual ports of an address of its own.
    pub at: Option<(SocketAddr, SocketAddr)>,
    /// Another Patroni than the newest.
    pub program: Option<PathBuf>,
    /// A command in front of Patroni that runs it in its own place: `env NAME=VALUE`, say.
    pub wrapper: Vec<String>,
}

/// A started member. Its directory holds `patroni.yml`, `data/` and `log`.
#[derive(Debug)]
pub struct Member {
    name: String,
    postgres: SocketAddr,
    rest: SocketAddr,
    /// What runs Patroni.
    command: Vec<String>,
    server: Server,
    /// How its REST API is spoken to, where that is not in the clear.
    tls: Option<Arc<ClientConfig>>,
    /// The password that its REST API wants, as a header `Authorization`.
    login: Option<String>,
}

impl Member {
    /// Writes the configuration and starts Patroni, which makes the database or copies it from the leader. `store`: the part
    /// of the configuration that names the store.
    pub fn start(
        site: &Site,
        index: u8,
        store: &Value,
        cluster: &ClusterOptions,
        options: &MemberOptions,
    ) -> Result<Self> {
        let name = format!("pg{}", index + 1);
        let address = site.addresses.member(cluster.place, index);
        let usual = (SocketAddr::from((address, POSTGRES_PORT)), SocketAddr::from((address, REST_PORT)));
        let (postgres, rest) = options.at.unwrap_or(usual);
        let directory = match cluster.place {
            0 => site.subdirectory(&name)?,
            _ => site.subdirectory(&format!("{}-{name}", cluster.scope))?,
        };
        let mut settings = configuration(site, &name, (postgres, rest), cluster, options);
        merge(&mut settings, store);
        merge(&mut settings, &cluster.patroni);
        if let Some(patch) = &options.patroni {
            merge(&mut settings, patch);
        }
        // JSON is YAML.
        std::fs::write(directory.join("patroni.yml"), serde_json::to_string_pretty(&settings)?)?;
        let program = options.program.clone().unwrap_or_else(|| site.tools.patroni.clone());
        let command =
            [&options.wrapper[..], &[program.display().to_string(), "patroni.yml".to_owned()]].concat();
        let server = start_server(site, &directory, &command)?;
        Ok(Self {
            name,
            postgres,
            rest,
            command,
            server,
            tls: rest_tls(&settings)?,
            login: rest_login(&settings),
        })
    }

    /// `pg1`, `pg2`, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where PostgreSQL listens.
    pub fn postgres(&self) -> SocketAddr {
        self.postgres
    }

    /// Where Patroni's REST API listens.
    pub fn rest(&self) -> SocketAddr {
        self.rest
    }

    /// Where and how Patroni's REST API is spoken to.
    pub fn rest_place(&self) -> http::Place {
        let place = http::Place::from(self.rest()).over(self.tls.clone());
        match self.login.clone() {
            Some(login) => place.authorized(login),
            None => place,
        }
    }

    /// A libpq connection string that goes directly to this server.
    pub fn conninfo(&self) -> String {
        sql::conninfo(self.postgres())
    }

    /// The process and its log.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// An error when Patroni has ended.
    pub fn check_running(&mut self) -> Result<()> {
        self.server.check_running()
    }

    /// Patroni's answer to `GET /patroni`; its status code says little and is ignored.
    pub async fn status(&self) -> Result<Status> {
        let body = http::get(self.rest_place(), "/patroni").await?.json()?;
        Ok(Status { name: self.name.clone(), body })
    }

    /// The number of the postmaster.
    pub fn postmaster(&self) -> Result<Pid> {
        let file = self.server.directory().join("data/postmaster.pid");
        let text = std::fs::read_to_string(&file).with_context(|| format!("{} runs no server", self.name))?;
        let number = text.lines().next().unwrap_or_default().trim().parse()?;
        Pid::from_raw(number).context("postmaster.pid holds no number")
    }

    /// Sends `signal` to the postmaster alone. KILL: a crash; INT: a fast shutdown. Patroni starts it again.
    pub fn signal_postmaster(&self, signal: Signal) -> Result<()> {
        Ok(rustix::process::kill_process(self.postmaster()?, signal)?)
    }

    /// Sends `signal` to Patroni alone.
    pub fn signal_patroni(&self, signal: Signal) -> Result<()> {
        self.server.signal(signal)
    }

    /// Kills Patroni and PostgreSQL, and waits until they are gone.
    pub async fn kill(&mut self) -> Result<()> {
        self.server.kill().await
    }

    /// Stops Patroni and PostgreSQL in their tracks: their connections stay open and silent.
    pub fn freeze(&self) -> Result<()> {
        ensure!(self.server.signal_all(Signal::STOP) > 0, "{} does not run", self.name);
        Ok(())
    }

    /// Lets a frozen member go on.
    pub fn thaw(&self) -> Result<()> {
        ensure!(self.server.signal_all(Signal::CONT) > 0, "{} does not run", self.name);
        Ok(())
    }

    /// Merges `patch` into its configuration file (RFC 7396) and has Patroni read it again (SIGHUP).
    pub fn reconfigure(&self, patch: &Value) -> Result<()> {
        let file = self.server.directory().join("patroni.yml");
        let mut settings = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        merge(&mut settings, patch);
        std::fs::write(&file, serde_json::to_string_pretty(&settings)?)?;
        self.signal_patroni(Signal::HUP)
    }

    /// Starts a killed member again, on its old data.
    pub async fn restart(&mut self, site: &Site) -> Result<()> {
        self.server.kill().await?;
        self.server = start_server(site, self.server.directory(), &self.command)?;
        Ok(())
    }
}

/// What Patroni says of its member.
#[derive(Debug)]
pub struct Status {
    name: String,
    body: Value,
}

impl Status {
    fn text(&self, key: &str) -> &str {
        self.body.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// The timeline; 0 when it is not said.
    pub fn timeline(&self) -> u64 {
        self.body.get("timeline").and_then(Value::as_u64).unwrap_or_default()
    }

    /// Patroni sees that the cluster is paused.
    pub fn is_paused(&self) -> bool {
        self.body.get("pause").and_then(Value::as_bool).unwrap_or_default()
    }

    /// An error, unless it is a running primary.
    pub fn check_primary(&self) -> Result<()> {
        let primary = matches!(self.text("role"), "primary" | "master") && self.text("state") == "running";
        ensure!(primary, "{} is no running primary: {}", self.name, self.body);
        Ok(())
    }

    /// An error, unless it is a running primary, or the running leader of a standby cluster.
    pub fn check_leader(&self) -> Result<()> {
        if self.text("role") == "standby_leader" && self.text("state") == "running" {
            return Ok(());
        }
        self.check_primary()
    }

    /// An error, unless it is a running replica that streams from `primary` and has replayed what that had written.
    pub fn check_replica_of(&self, primary: &Self) -> Result<()> {
        // Absent also while the server waits for its replication slot; Patroni 3.0 never says it.
        let says_nothing = self
            .body
            .pointer("/patroni/version")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .starts_with("3.0");
        let streams = says_nothing || self.text("replication_state") == "streaming";
        let position =
            |status: &Self, pointer| status.body.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
        let replayed = position(self, "/xlog/replayed_location") >= position(primary, "/xlog/location");
        let replica = self.text("role") == "replica" && self.text("state") == "running";
        ensure!(
            replica && streams && replayed && self.timeline() == primary.timeline(),
            "{} is behind {}: {} against {}",
            self.name,
            primary.name,
            self.body,
            primary.body
        );
        Ok(())
    }
}

/// `command`: Patroni with its configuration file, and what runs it.
fn start_server(site: &Site, directory: &Path, command: &[String]) -> Result<Server> {
    let (program, arguments) = command.split_first().context("no program")?;
    Server::start(site, RunAs::Servers, directory, Path::new(program), arguments)
}

/// As another member's Patroni would speak to this one: `ctl` in its configuration.
fn rest_tls(settings: &Value) -> Result<Option<Arc<ClientConfig>>> {
    if settings.pointer("/restapi/certfile").is_none() {
        return Ok(None);
    }
    let file = |pointer| settings.pointer(pointer).and_then(Value::as_str).context(pointer).map(Path::new);
    http::tls(file("/ctl/cacert")?, file("/ctl/certfile")?, file("/ctl/keyfile")?).map(Some)
}

/// `restapi.authentication` in its configuration.
fn rest_login(settings: &Value) -> Option<String> {
    let text = |key| settings.pointer(key).and_then(Value::as_str);
    let (user, password) =
        text("/restapi/authentication/username").zip(text("/restapi/authentication/password"))?;
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    Some(format!("Basic {encoded}"))
}

fn configuration(
    site: &Site,
    name: &str,
    (postgres, rest): (SocketAddr, SocketAddr),
    cluster: &ClusterOptions,
    options: &MemberOptions,
) -> Value {
    json!({
        "scope": cluster.scope,
        "namespace": NAMESPACE,
        "name": name,
        "restapi": { "listen": rest, "connect_address": rest },
        "bootstrap": {
            "dcs": cluster.dynamic_configuration(),
            "initdb": [{ "encoding": "UTF8" }, { "locale": "C.UTF-8" }, "data-checksums", "no-sync"],
        },
        "postgresql": {
            "listen": postgres,
            "connect_address": postgres,
            "data_dir": "data",
            "bin_dir": site.tools.postgres_bin,
            "pgpass": "pgpass",
            "authentication": {
                "superuser": { "username": sql::USER },
                "replication": { "username": "replicator" },
            },
            "basebackup": [{ "checkpoint": "fast" }, "no-sync"],
            "pg_hba": [
                "local all all trust",
                "host all all 127.0.0.0/8 trust",
                "host replication replicator 127.0.0.0/8 trust",
                "host all all ::1/128 trust",
                "host replication replicator ::1/128 trust",
            ],
            "parameters": {
                // The path of a socket is limited to 107 bytes: relative to the data directory it always fits. Not
                // inside it, or pg_basebackup would copy its lock file.
                "unix_socket_directories": "..",
                // Memory in files of the data directory: it goes with them, however the server ends.
                "dynamic_shared_memory_type": "mmap",
                "shared_buffers": "16MB",
                "fsync": if cluster.fsync { "on" } else { "off" },
            },
        },
        "tags": options.tags.clone().unwrap_or_else(|| json!({})),
    })
}
