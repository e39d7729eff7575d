//! One member: Patroni with its PostgreSQL.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::cluster::{ClusterOptions, NAMESPACE, SCOPE, merge};
use crate::http::{Access, Target};
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
}

/// A started member. Its directory holds `patroni.yml`, `data/` and `log`.
#[derive(Debug)]
pub struct Member {
    name: String,
    address: Ipv4Addr,
    access: Option<Access>,
    server: Server,
}

impl Member {
    /// Writes the configuration and starts Patroni, which makes the database or copies it from the leader.
    pub fn start(
        site: &Site,
        index: u8,
        endpoints: &[SocketAddr],
        cluster: &ClusterOptions,
        options: &MemberOptions,
    ) -> Result<Self> {
        let name = member_name(index);
        let address = site.addresses.member(index);
        let directory = site.subdirectory(&name)?;
        let mut settings = configuration(site, &name, address, endpoints, cluster, options);
        merge(&mut settings, &cluster.patroni);
        if let Some(patch) = &options.patroni {
            merge(&mut settings, patch);
        }
        // JSON is YAML.
        std::fs::write(directory.join("patroni.yml"), serde_json::to_string_pretty(&settings)?)?;
        let server = start_server(site, &directory)?;
        Ok(Self { name, address, access: access(&settings)?, server })
    }

    /// `pg1`, `pg2`, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where PostgreSQL listens.
    pub fn postgres(&self) -> SocketAddr {
        SocketAddr::from((self.address, POSTGRES_PORT))
    }

    /// Where Patroni's REST API listens.
    pub fn rest(&self) -> SocketAddr {
        SocketAddr::from((self.address, REST_PORT))
    }

    /// The same, with what its own configuration says of how to be let in.
    pub fn api(&self) -> Target {
        match &self.access {
            Some(access) => Target::over_tls(self.rest(), access.clone()),
            None => self.rest().into(),
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
        let body = http::get(self.api(), "/patroni").await?.json()?;
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

    /// Starts a killed member again, on its old data.
    pub async fn restart(&mut self, site: &Site) -> Result<()> {
        self.server.kill().await?;
        self.server = start_server(site, self.server.directory())?;
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

fn member_name(index: u8) -> String {
    format!("pg{}", index + 1)
}

/// How Patroni itself would ask another member: by `restapi` (over TLS or not, the password) and `ctl` (certificates).
fn access(settings: &Value) -> Result<Option<Access>> {
    let text = |pointer| settings.pointer(pointer).and_then(Value::as_str);
    if text("/restapi/certfile").is_none() {
        return Ok(None);
    }
    let file =
        |pointer| text(pointer).map(Path::new).with_context(|| format!("patroni.yml has no {pointer}"));
    let login = text("/restapi/authentication/username").zip(text("/restapi/authentication/password"));
    Access::new(file("/ctl/cacert")?, file("/ctl/certfile")?, file("/ctl/keyfile")?, login).map(Some)
}

fn start_server(site: &Site, directory: &Path) -> Result<Server> {
    Server::start(site, RunAs::Servers, directory, &site.tools.patroni, ["patroni.yml"])
}

fn configuration(
    site: &Site,
    name: &str,
    address: Ipv4Addr,
    endpoints: &[SocketAddr],
    cluster: &ClusterOptions,
    options: &MemberOptions,
) -> Value {
    let rest = format!("{address}:{REST_PORT}");
    let postgres = format!("{address}:{POSTGRES_PORT}");
    let hosts: Vec<String> = endpoints.iter().map(SocketAddr::to_string).collect();
    json!({
        "scope": SCOPE,
        "namespace": NAMESPACE,
        "name": name,
        "restapi": { "listen": rest, "connect_address": rest },
        "etcd3": { "hosts": hosts },
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
