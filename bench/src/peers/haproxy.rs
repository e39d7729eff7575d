//! HAProxy: one configuration for each way of splicing.

use anyhow::{Context as _, Result};

use super::{Listeners, Peer, Splice, first_line};
use crate::process::Server;
use crate::site::{BACKEND, Cores, POSTGRES, Site, program};

pub(super) fn start(site: &Site, cores: &Cores, peer: Peer, splice: Splice) -> Result<Server> {
    let program = program("haproxy").context("haproxy is not installed")?;
    let directory = site.fresh_directory(peer.name())?;
    std::fs::write(directory.join("haproxy.cfg"), configuration(peer.listeners(), splice))?;
    Server::start(&directory, Some(site.account), cores, &program, ["-db", "-f", "haproxy.cfg"])
}

/// `nbthread` is left to HAProxy: it takes the cores that it may run on.
fn configuration(listeners: Listeners, splice: Splice) -> String {
    let options = match splice {
        Splice::Off => "",
        Splice::Auto => "    option splice-auto\n",
        Splice::Always => "    option splice-request\n    option splice-response\n",
    };
    let Listeners { bench, postgres } = listeners;
    format!(
        "global
    maxconn 200000
defaults
    mode tcp
    maxconn 200000
{options}    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen bench
    bind {bench}
    server backend {BACKEND}
listen postgres
    bind {postgres}
    server postgres {POSTGRES}
"
    )
}

pub(super) fn version() -> Option<String> {
    first_line(&program("haproxy")?, &["-v"])
}
