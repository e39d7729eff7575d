//! HAProxy: one configuration for each way of splicing.

use anyhow::{Context as _, Result};

use super::{Listeners, Peer, Splice, first_line};
use crate::process::Server;
use crate::sandbox;
use crate::site::{BACKEND, Cores, POSTGRES, Site, program};

pub(super) fn start(site: &Site, cores: &Cores, peer: Peer, splice: Splice) -> Result<Server> {
    let program = program("haproxy").context("haproxy is not installed")?;
    let directory = site.fresh_directory(peer.name())?;
    let text = configuration(peer.listeners(), splice, sandbox::sessions());
    std::fs::write(directory.join("haproxy.cfg"), text)?;
    Server::start(&directory, Some(site.account), cores, &program, ["-db", "-f", "haproxy.cfg"])
}

/// `nbthread` is left to HAProxy: it takes the cores that it may run on. It does not start unless its limit of
/// descriptors covers `maxconn` and `maxpipes`; no row has more than 16 bulk streams at once.
fn configuration(listeners: Listeners, splice: Splice, sessions: u64) -> String {
    let options = match splice {
        Splice::Off => "",
        Splice::Auto => "    option splice-auto\n",
        Splice::Always => "    option splice-request\n    option splice-response\n",
    };
    let Listeners { bench, postgres } = listeners;
    // Beside the idle ones, a few that are not.
    let sessions = sessions + 100;
    format!(
        "global
    maxconn {sessions}
    maxpipes 256
defaults
    mode tcp
    maxconn {sessions}
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
