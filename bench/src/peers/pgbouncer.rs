//! pgbouncer in session mode.

use anyhow::{Context as _, Result};

use super::{Peer, first_line};
use crate::process::Server;
use crate::site::{Cores, POSTGRES, Site, program};

pub(super) fn start(site: &Site, cores: &Cores, peer: Peer) -> Result<Server> {
    let program = program("pgbouncer").context("pgbouncer is not installed")?;
    let directory = site.fresh_directory(peer.name())?;
    let listeners = peer.listeners();
    let configuration = format!(
        "[databases]
* = host={} port={} user=postgres
[pgbouncer]
listen_addr = {}
listen_port = {}
unix_socket_dir =
auth_type = any
pool_mode = session
default_pool_size = 300
max_client_conn = 2000
log_connections = 0
log_disconnections = 0
",
        POSTGRES.ip(),
        POSTGRES.port(),
        listeners.postgres.ip(),
        listeners.postgres.port()
    );
    std::fs::write(directory.join("pgbouncer.ini"), configuration)?;
    Server::start(&directory, Some(site.account), cores, &program, ["pgbouncer.ini"])
}

pub(super) fn version() -> Option<String> {
    first_line(&program("pgbouncer")?, &["--version"])
}
