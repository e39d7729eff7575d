//! nginx with its `stream` module.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{Listeners, Peer, first_line};
use crate::process::Server;
use crate::sandbox;
use crate::site::{BACKEND, Cores, POSTGRES, Site, program};

const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub(super) fn start(site: &Site, cores: &Cores, peer: Peer) -> Result<Server> {
    let program = program("nginx").context("nginx is not installed")?;
    ensure!(Path::new(MODULE).is_file(), "nginx's stream module is not installed");
    let directory = site.fresh_directory(peer.name())?;
    std::fs::write(
        directory.join("nginx.conf"),
        configuration(peer.listeners(), cores.count(), sandbox::descriptors()),
    )?;
    let directory_text = directory.to_string_lossy().into_owned();
    let arguments = ["-p", &directory_text, "-c", "nginx.conf", "-e", "stderr"];
    Server::start(&directory, Some(site.account), cores, &program, arguments)
}

/// `worker_processes auto` would count the cores of the machine, not those that it may run on.
fn configuration(listeners: Listeners, workers: usize, descriptors: u64) -> String {
    let Listeners { bench, postgres } = listeners;
    // Both sides of a session count.
    let connections = descriptors.min(150_000);
    format!(
        "load_module {MODULE};
daemon off;
pid nginx.pid;
error_log stderr error;
worker_processes {workers};
events {{ worker_connections {connections}; }}
stream {{
    proxy_timeout 1h;
    server {{ listen {bench} backlog=16384; proxy_pass {BACKEND}; }}
    server {{ listen {postgres} backlog=16384; proxy_pass {POSTGRES}; }}
}}
"
    )
}

pub(super) fn version() -> Option<String> {
    first_line(&program("nginx")?, &["-v"])
}
