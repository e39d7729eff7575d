//! HAProxy with the configuration that Patroni recommends, to be measured beside Pointsman.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cluster::Cluster;
use crate::member::REST_PORT;
use crate::process::{RunAs, Server};
use crate::{http, wait};

/// With `inter 3s fall 3` a member that is no primary is found out in 9 s.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// How HAProxy checks the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HaProxyChecks {
    /// As in Patroni's documentation: `inter 3s fall 3 rise 2`.
    Recommended,
    /// As quick as is reasonable, and quicker than is wise: `inter 100ms fall 1 rise 1`.
    Tuned,
}

impl HaProxyChecks {
    fn parameters(self) -> &'static str {
        match self {
            Self::Recommended => "inter 3s fall 3 rise 2",
            Self::Tuned => "inter 100ms fall 1 rise 1",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Recommended => "haproxy-recommended",
            Self::Tuned => "haproxy-tuned",
        }
    }

    fn host(self) -> u8 {
        match self {
            Self::Recommended => 0,
            Self::Tuned => 1,
        }
    }
}

/// A running HAProxy. Dropping it ends it.
#[derive(Debug)]
pub struct HaProxy {
    address: Ipv4Addr,
    server: Server,
}

impl HaProxy {
    /// Starts it on 5000, 5001 and 7000 of an address of its own and waits until its write port has exactly one owner
    /// (at the start it takes every member for one).
    pub async fn start(cluster: &Cluster, checks: HaProxyChecks) -> Result<Self> {
        let site = &cluster.site;
        let address = site.addresses.other(checks.host());
        let directory = site.subdirectory(checks.name())?;
        std::fs::write(directory.join("haproxy.cfg"), configuration(cluster, address, checks))?;
        let server = Server::start(
            site,
            RunAs::Servers,
            &directory,
            &site.tools.haproxy,
            ["-db", "-f", "haproxy.cfg"],
        )?;
        let mut haproxy = Self { address, server };
        let ready = {
            let server = &mut haproxy.server;
            let stats = SocketAddr::from((address, 7000));
            wait::until("HAProxy to find the primary", READY_DEADLINE, async || {
                server.check_running()?;
                let owners = owners_of_write_port(&http::get(stats, "/;csv").await?.body);
                ensure!(owners == 1, "{owners} members are UP on the write port");
                Ok(())
            })
            .await
        };
        ready.with_context(|| haproxy.server.tail())?;
        Ok(haproxy)
    }

    /// The write port.
    pub fn primary(&self) -> SocketAddr {
        SocketAddr::from((self.address, 5000))
    }

    /// The read port.
    pub fn replicas(&self) -> SocketAddr {
        SocketAddr::from((self.address, 5001))
    }

    /// The process and its log.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Waits until its write port has one owner.
    pub async fn wait_settled(&self) -> Result<()> {
        let stats = SocketAddr::from((self.address, 7000));
        let settled = wait::until("HAProxy to settle", READY_DEADLINE, async || {
            let owners = owners_of_write_port(&http::get(stats, "/;csv").await?.body);
            ensure!(owners == 1, "{owners} members are UP on the write port");
            Ok(())
        });
        settled.await.with_context(|| self.server.tail())
    }
}

/// Field 1 is the proxy's name, 2 the server's, 18 its status (`UP`, `UP 1/3` on its way down, `DOWN`).
fn owners_of_write_port(csv: &str) -> usize {
    let is_owner = |line: &&str| {
        let fields: Vec<&str> = line.split(',').collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or_default();
        field(0) == "primary" && !matches!(field(1), "FRONTEND" | "BACKEND") && field(17).starts_with("UP")
    };
    csv.lines().filter(is_owner).count()
}

fn configuration(cluster: &Cluster, address: Ipv4Addr, checks: HaProxyChecks) -> String {
    let mut text = String::from(
        "global
    maxconn 4000
defaults
    log global
    mode tcp
    retries 2
    timeout client 30m
    timeout connect 4s
    timeout server 30m
    timeout check 5s
",
    );
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "listen stats\n    mode http\n    bind {address}:7000\n    stats enable\n    stats uri /\n"
    );
    for (name, port) in [("primary", 5000), ("replica", 5001)] {
        let _ = write!(
            text,
            "listen {name}
    bind {address}:{port}
    option httpchk OPTIONS /{name}
    http-check expect status 200
    default-server {} on-marked-down shutdown-sessions
",
            checks.parameters()
        );
        for member in cluster.members() {
            let _ = writeln!(
                text,
                "    server {} {} maxconn 1000 check port {REST_PORT}",
                member.name(),
                member.postgres()
            );
        }
    }
    text
}
