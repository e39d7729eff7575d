//! `pointsman-vip`: its configuration, and what it says of itself.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::keepalived::Group;
use super::packet::PEERS_PORT;
use crate::tools;

const IGNORE: &str = "\"ignore\"";
/// What a configuration needs to speak of a proxy at all.
const PROXY: &str = r#"
[clusters.main]
discovery = { etcd = { endpoints = ["http://127.0.0.1:2379"] } }

[[listeners]]
bind = "0.0.0.0:5432"
target = "primary"
"#;

/// What is `pointsman-vip`'s own in a configuration.
#[derive(Debug, Clone)]
pub struct Vip {
    /// Signals between the hosts, with this heartbeat in milliseconds.
    pub heartbeat_ms: Option<u32>,
    /// How long a host is well before it takes over from a lower priority.
    pub preempt_delay_ms: u32,
    /// Scheduled before what else runs on the machine, where that is allowed: three hosts are one machine here.
    pub realtime: bool,
    /// `release`, `ignore` or a weight. Anything but `ignore` brings a proxy with it, on port 7000 of the loopback address.
    pub track_proxy: String,
    /// Lines for `[[vips]]`.
    pub more: String,
}

impl Default for Vip {
    fn default() -> Self {
        Self {
            heartbeat_ms: Some(30),
            preempt_delay_ms: 1_000,
            realtime: true,
            track_proxy: IGNORE.to_owned(),
            more: String::new(),
        }
    }
}

impl Vip {
    /// The configuration of host `own` of `hosts`; the same file but for `node`.
    pub fn configuration(
        &self,
        group: &Group,
        hosts: &[IpAddr],
        own: usize,
        priorities: &[u8],
        directory: &Path,
    ) -> Result<String> {
        let directory = directory.display();
        let proxy = if self.track_proxy == IGNORE { "" } else { PROXY };
        let mut text = format!("node = \"lb{}\"\n{proxy}\n[admin]\nbind = \"127.0.0.1:7000\"\n", own + 1);
        writeln!(text, "socket = \"{directory}/admin.sock\"\n\n[vrrp]\nsocket = \"{directory}/vip.sock\"")?;
        writeln!(text, "realtime = {}", self.realtime)?;
        if let Some(heartbeat) = self.heartbeat_ms {
            let peer = |(host, address): (usize, &IpAddr)| {
                format!("lb{} = \"{}\"", host + 1, SocketAddr::from((*address, PEERS_PORT)))
            };
            let peers: Vec<String> = hosts.iter().enumerate().map(peer).collect();
            writeln!(text, "peers = {{ {} }}", peers.join(", "))?;
            writeln!(text, "key_file = \"{directory}/peers.key\"\nheartbeat = \"{heartbeat}ms\"")?;
        }
        let priority = |(host, priority): (usize, &u8)| format!("lb{} = {priority}", host + 1);
        let priorities: Vec<String> = priorities.iter().enumerate().map(priority).collect();
        let addresses: Vec<String> =
            group.addresses.iter().map(|(address, prefix)| format!("\"{address}/{prefix}\"")).collect();
        write!(
            text,
            "\n[[vips]]\ninterface = \"eth0\"\nrouter_id = {}\npriority = {{ {} }}\naddresses = [{}]\nversion = {}\n\
             advert_interval = \"{}ms\"\npreempt_delay = \"{}ms\"\ntrack = {{ proxy = {} }}\n",
            group.router_id,
            priorities.join(", "),
            addresses.join(", "),
            group.version,
            group.interval_ms,
            self.preempt_delay_ms,
            self.track_proxy,
        )?;
        if group.unicast {
            let hosts: Vec<String> = hosts.iter().map(|host| format!("\"{host}\"")).collect();
            writeln!(text, "unicast = [{}]", hosts.join(", "))?;
        }
        if group.password.is_some() {
            writeln!(text, "auth = {{ password_file = \"{directory}/vrrp.password\" }}")?;
        }
        write!(text, "{}\n[log]\nlevel = \"debug\"\n", self.more)?;
        Ok(text)
    }
}

/// Where `pointsman-vip` is: `POINTSMAN_VIP_BIN`, or beside the program that runs.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("POINTSMAN_VIP_BIN") {
        return PathBuf::from(path);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| tools::repository().join("target"), PathBuf::from);
    let own = std::env::current_exe().unwrap_or_default();
    // A test program is in target/debug/deps, a program in target/debug or target/release.
    let profile = own.ancestors().skip(1).find(|directory| !directory.ends_with("deps"));
    let beside = profile.map(|profile| profile.join("pointsman-vip")).filter(|path| path.is_file());
    beside.unwrap_or_else(|| target.join("debug/pointsman-vip"))
}
