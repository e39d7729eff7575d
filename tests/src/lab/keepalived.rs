//! The configuration of keepalived, as much of it as tests need.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::tools;

/// What the routers of one virtual router share, whatever runs them.
#[derive(Debug, Clone)]
pub struct Group {
    /// 2 or 3.
    pub version: u8,
    /// The virtual router identifier.
    pub router_id: u8,
    /// Between adverts, in milliseconds; version 2: whole seconds.
    pub interval_ms: u32,
    /// The addresses with their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Adverts go from each to the others instead of by multicast.
    pub unicast: bool,
    /// Version 2: the password.
    pub password: Option<String>,
}

impl Group {
    /// Version 3 by multicast with the virtual address of the lab.
    pub fn v3(interval_ms: u32) -> Self {
        let addresses = vec![(super::VIRTUAL, 24)];
        Self { version: 3, router_id: 51, interval_ms, addresses, unicast: false, password: None }
    }

    /// The same for IPv6.
    pub fn v6(interval_ms: u32) -> Self {
        let addresses = vec![(super::VIRTUAL6_LINK, 64), (super::VIRTUAL6, 64)];
        Self { addresses, ..Self::v3(interval_ms) }
    }

    /// Version 2, a second between adverts, with a password or none.
    pub fn v2(password: Option<&str>) -> Self {
        Self { version: 2, password: password.map(str::to_owned), ..Self::v3(1_000) }
    }

    /// The address that clients use.
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses.last().map(|(address, _)| *address)
    }
}

/// Keepalived's configuration for host `own` of `hosts`, given by their addresses.
pub fn configuration(group: &Group, hosts: &[IpAddr], own: usize, priority: u8) -> Result<String> {
    let mut text =
        format!("global_defs {{\n    router_id lb{}\n    vrrp_version {}\n}}\n", own + 1, group.version);
    let interval = f64::from(group.interval_ms) / 1e3;
    write!(
        text,
        "vrrp_instance test {{\n    state BACKUP\n    interface eth0\n    virtual_router_id {}\n    priority {priority}\n    \
         advert_int {interval}\n",
        group.router_id
    )?;
    if let Some(password) = &group.password {
        write!(
            text,
            "    authentication {{\n        auth_type PASS\n        auth_pass {password}\n    }}\n"
        )?;
    }
    if group.unicast {
        let others = hosts.iter().enumerate().filter(|(host, _)| *host != own);
        let source = hosts.get(own).map(ToString::to_string).unwrap_or_default();
        writeln!(text, "    unicast_src_ip {source}\n    unicast_peer {{")?;
        for (_, other) in others {
            writeln!(text, "        {other}")?;
        }
        writeln!(text, "    }}")?;
    }
    writeln!(text, "    virtual_ipaddress {{")?;
    for (address, prefix) in &group.addresses {
        writeln!(text, "        {address}/{prefix} dev eth0")?;
    }
    writeln!(text, "    }}\n}}")?;
    Ok(text)
}

/// The program.
pub(super) fn program() -> Result<PathBuf> {
    tools::program("keepalived")
}

/// Only VRRP, in the foreground, everything in `directory`.
pub(super) fn arguments(directory: &Path) -> Vec<String> {
    let path = |name: &str| directory.join(name).display().to_string();
    let mut arguments: Vec<String> =
        ["--dont-fork", "--log-console", "--log-detail", "--vrrp"].map(str::to_owned).to_vec();
    for (option, file) in
        [("--use-file", "keepalived.conf"), ("--pid", "parent.pid"), ("--vrrp_pid", "vrrp.pid")]
    {
        arguments.extend([option.to_owned(), path(file)]);
    }
    arguments
}
