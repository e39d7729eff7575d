//! Pointsman's configuration file: one TOML file for `pointsman` and `pointsman-vip` on every host.
//!
//! A [`Config`] holds only values that can be used: newtypes and enums in which a wrong state cannot be
//! written. Reading one reports every error of the file at once ([`Diagnostics`]), each with line, column,
//! the offending text underlined and what to write instead.

mod choice;
mod cluster;
mod diagnostics;
mod host;
mod listener;
mod names;
mod process;
mod read;
mod reader;
mod secret;
mod suggest;
mod units;
mod vip;

use std::path::{Path, PathBuf};

pub use ipnet::IpNet;

pub use crate::{
    cluster::{
        ClientTls, Cluster, ConnectTo, Consul, Discovery, Etcd, PatroniRest, Probe, Rest, ServerTls, Sql,
        SqlTls, StalePrimary, StaticMember, StaticMembers, Verify,
    },
    diagnostics::{Diagnostic, Diagnostics, Severity},
    host::{Host, System},
    listener::{
        Balance, Fallback, Keepalive, Listener, ListenerTls, OnPromote, ProxyVersion, Refuse, Target,
    },
    names::{ClusterName, ListenerName, MemberName, NameError, NodeName, VipName},
    process::{Admin, Engine, Log, LogFormat, LogLevel, PasswordHash, Relay, Role, Shutdown, User},
    secret::{Credentials, Secret, SecretError, SecretSource},
    units::{Bytes, Centiseconds, Endpoint, HostPort, Scheme},
    vip::{Checksum, Peers, Track, TrackProxy, Vip, Vrrp, VrrpProtocol},
};

/// The whole file, validated. Relative paths of the file are already joined to the file's own directory.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The name of this host among the load balancers; the host name unless given.
    pub node: NodeName,
    /// Where the last view of each cluster is kept.
    pub state_dir: PathBuf,
    /// In the order of their names.
    pub clusters: Vec<Cluster>,
    /// In the order of the file.
    pub listeners: Vec<Listener>,
    /// Dashboard, metrics, health answers, command line.
    pub admin: Admin,
    /// `pointsman-vip` as a whole; `None` when the file has neither `[vrrp]` nor `[[vips]]`.
    pub vrrp: Option<Vrrp>,
    /// The virtual IPs, in the order of the file.
    pub vips: Vec<Vip>,
    /// The engine of established sessions.
    pub relay: Relay,
    /// What is logged.
    pub log: Log,
    /// How the process ends.
    pub shutdown: Shutdown,
    /// What is allowed, but probably not meant.
    pub warnings: Vec<Diagnostic>,
}

impl Config {
    /// Reads and validates a file on this machine. Relative paths in it start at its own directory.
    pub fn load(path: &Path) -> Result<Self, Diagnostics> {
        let file_name = path.display().to_string();
        let base_dir = path.parent().unwrap_or(Path::new(""));
        let content = System.read_file(path).map_err(|error| {
            let message = format!("cannot read the file: {error}");
            Diagnostics::of_file(&file_name, message, "name a file that the user of this process may read")
        })?;
        match String::from_utf8(content) {
            Ok(source) => Self::parse(&source, &file_name, base_dir),
            Err(error) => Err(Diagnostics::not_text(&file_name, &error)),
        }
    }

    /// Validates a text as if it were the file `file_name`, on this machine; relative paths start at `base_dir`.
    pub fn parse(source: &str, file_name: &str, base_dir: &Path) -> Result<Self, Diagnostics> {
        Self::parse_on(&System, source, file_name, base_dir)
    }

    /// The same on a machine of the caller's choice: see [`Host`].
    pub fn parse_on(
        host: &dyn Host,
        source: &str,
        file_name: &str,
        base_dir: &Path,
    ) -> Result<Self, Diagnostics> {
        read::read(host, source, file_name, base_dir)
    }

    /// The cluster of this name.
    pub fn cluster(&self, name: &ClusterName) -> Option<&Cluster> {
        self.clusters.iter().find(|cluster| cluster.name == *name)
    }
}
