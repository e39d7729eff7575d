//! The proxies that are compared: how each is configured, started and found ready.
//!
//! Every proxy listens twice on an address of its own: in front of our server ([`BENCH_PORT`]) and in front of PostgreSQL
//! ([`POSTGRES_PORT`]). It runs as an ordinary account, without a log line for each connection, and otherwise with its
//! defaults; only limits on the number of connections are raised.

mod envoy;
mod haproxy;
mod nftables;
mod nginx;
mod pgbouncer;
pub(crate) mod pointsman;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use crate::load::socket::begin;
use crate::measure::processes::Pid;
use crate::process::Server;
use crate::site::{BACKEND, Cores, POSTGRES, Site};
use crate::wire::Pattern;

pub use pointsman::Store;

/// In front of our server.
pub const BENCH_PORT: u16 = 5000;
/// In front of PostgreSQL.
pub const POSTGRES_PORT: u16 = 6000;
/// How long a proxy may take until it serves.
const READY_DEADLINE: Duration = Duration::from_secs(15);

/// How Pointsman relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Engine {
    /// `[relay] engine = "epoll"`.
    Epoll,
    /// `[relay] engine = "io_uring"`.
    IoUring,
}

impl Engine {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::IoUring => "io_uring",
        }
    }
}

/// HAProxy's splicing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Splice {
    /// Off: its default.
    Off,
    /// `option splice-auto`.
    Auto,
    /// `option splice-request` and `option splice-response`.
    Always,
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Nobody: the ceiling of load, server and kernel.
    Direct,
    /// This project.
    Pointsman(Engine),
    /// Debian's.
    HaProxy(Splice),
    /// Its `stream` module.
    Nginx,
    /// In session mode; in front of PostgreSQL only, for it speaks the protocol.
    PgBouncer,
    /// Its `tcp_proxy` filter.
    Envoy,
    /// Address translation in the kernel: what no proxy can reach.
    Nftables,
}

impl Peer {
    /// All, in the order of the tables.
    pub const ALL: [Self; 10] = [
        Self::Direct,
        Self::Pointsman(Engine::Epoll),
        Self::Pointsman(Engine::IoUring),
        Self::HaProxy(Splice::Off),
        Self::HaProxy(Splice::Auto),
        Self::HaProxy(Splice::Always),
        Self::Nginx,
        Self::PgBouncer,
        Self::Envoy,
        Self::Nftables,
    ];

    /// The name in tables and for `PEERS`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Pointsman(Engine::Epoll) => "pointsman-epoll",
            Self::Pointsman(Engine::IoUring) => "pointsman-io_uring",
            Self::HaProxy(Splice::Off) => "haproxy",
            Self::HaProxy(Splice::Auto) => "haproxy-splice-auto",
            Self::HaProxy(Splice::Always) => "haproxy-splice",
            Self::Nginx => "nginx",
            Self::PgBouncer => "pgbouncer",
            Self::Envoy => "envoy",
            Self::Nftables => "nftables",
        }
    }

    /// It has a process whose CPU time and memory can be read.
    pub fn is_process(self) -> bool {
        !matches!(self, Self::Direct | Self::Nftables)
    }

    /// A loopback address of its own.
    fn address(self) -> Ipv4Addr {
        let index = Self::ALL.iter().position(|peer| *peer == self).unwrap_or_default();
        Ipv4Addr::new(127, 0, 1, u8::try_from(index).unwrap_or_default())
    }

    fn listeners(self) -> Listeners {
        if self == Self::Direct {
            return Listeners { bench: BACKEND, postgres: POSTGRES };
        }
        let address = self.address();
        Listeners {
            bench: SocketAddr::from((address, BENCH_PORT)),
            postgres: SocketAddr::from((address, POSTGRES_PORT)),
        }
    }

    /// Starts it on `cores` and waits until it serves our server (or PostgreSQL, for pgbouncer). The error says why
    /// it cannot be measured here.
    pub fn start(self, site: &Site, cores: &Cores) -> Result<Running> {
        let listeners = self.listeners();
        let mut server = match self {
            Self::Direct | Self::Nftables => None,
            Self::Pointsman(engine) => Some(pointsman::start(site, cores, self, engine)?),
            Self::HaProxy(splice) => Some(haproxy::start(site, cores, self, splice)?),
            Self::Nginx => Some(nginx::start(site, cores, self)?),
            Self::PgBouncer => Some(pgbouncer::start(site, cores, self)?),
            Self::Envoy => Some(envoy::start(site, cores, self)?),
        };
        let rules = (self == Self::Nftables).then(|| nftables::Rules::find(listeners)).transpose()?;
        if let Some(server) = &mut server {
            if self == Self::PgBouncer {
                server.wait_listening(listeners.postgres, READY_DEADLINE)?;
            } else {
                server.wait_until("to serve", READY_DEADLINE, || {
                    begin(listeners.bench, None, Pattern::Sink).map(drop)
                })?;
            }
        }
        Ok(Running { peer: self, listeners, server, rules })
    }

    /// What it says of its version; `None` when it is not installed.
    pub fn version(self, site: &Site) -> Option<String> {
        match self {
            Self::Direct => None,
            Self::Pointsman(_) => pointsman::version(site),
            Self::HaProxy(_) => haproxy::version(),
            Self::Nginx => nginx::version(),
            Self::PgBouncer => pgbouncer::version(),
            Self::Envoy => envoy::version(site),
            Self::Nftables => nftables::version(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// Where a proxy listens.
#[derive(Debug, Clone, Copy)]
pub struct Listeners {
    /// In front of our server.
    pub bench: SocketAddr,
    /// In front of PostgreSQL.
    pub postgres: SocketAddr,
}

/// A proxy that serves.
#[derive(Debug)]
pub struct Running {
    peer: Peer,
    /// Where.
    pub listeners: Listeners,
    server: Option<Server>,
    rules: Option<nftables::Rules>,
}

impl Running {
    /// Who it is.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The numbers of its processes.
    pub fn pids(&self) -> Vec<Pid> {
        self.server.as_ref().map(Server::family).unwrap_or_default()
    }

    /// Makes it effective until the guard is dropped. Rules in the kernel would cost everybody else's packets time.
    pub fn activate(&self) -> Result<Option<nftables::Active>> {
        self.rules.as_ref().map(nftables::Rules::activate).transpose()
    }
}

/// The first line of what `program arguments` prints, on either output.
fn first_line(program: &std::path::Path, arguments: &[&str]) -> Option<String> {
    let output = std::process::Command::new(program).args(arguments).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
}
