//! Whatever may take longer than the router thread can wait.

use std::net::IpAddr;
use std::sync::Arc;

use pointsman_config::{Config, VipName};
use pointsman_vrrp::event::Proxy;
use pointsman_vrrp::note::Note;
use pointsman_vrrp::status::Status;
use tokio::sync::{mpsc, oneshot, watch};

/// What an operator wants of the router thread.
#[derive(Debug)]
pub enum Command {
    /// Hand the addresses over.
    Yield {
        /// One virtual router, or all.
        router: Option<VipName>,
        /// Told when the wish is known.
        answer: oneshot::Sender<()>,
    },
    /// The end of it.
    Resume {
        /// One virtual router, or all.
        router: Option<VipName>,
        /// Told when the wish is known.
        answer: oneshot::Sender<()>,
    },
}

/// What the router thread tells.
#[derive(Debug)]
pub enum Notice {
    /// People are told.
    Note(Note),
    /// The addresses have left this host.
    Left {
        /// The virtual router.
        router: VipName,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// They are here.
    Took {
        /// The virtual router.
        router: VipName,
    },
    /// A new configuration.
    Configuration(Box<Config>),
    /// A new configuration that is wrong.
    BadConfiguration(String),
}

/// The router thread's ends of its channels.
#[derive(Debug)]
pub struct Ends {
    /// From operators.
    pub commands: mpsc::Receiver<Command>,
    /// From the proxy.
    pub proxy: mpsc::Receiver<Proxy>,
    /// What is shown.
    pub status: watch::Sender<Arc<Status>>,
    /// What is told.
    pub notices: mpsc::Sender<Notice>,
}

impl Ends {
    /// Tells something, or drops it when nobody takes it.
    pub fn tell(&self, notice: Notice) {
        let _ = self.notices.try_send(notice);
    }

    /// Publishes what is shown.
    pub fn show(&self, status: Arc<Status>) {
        self.status.send_replace(status);
    }
}

/// The side thread.
#[derive(Debug)]
pub struct Side {
    _commands: mpsc::Sender<Command>,
    _proxy: mpsc::Sender<Proxy>,
    _notices: mpsc::Receiver<Notice>,
}

impl Side {
    /// Ends it.
    pub fn end(self) {}
}

/// Starts the side thread.
pub fn start(config: &Config) -> std::io::Result<(Ends, Side)> {
    let (commands, commands_end) = mpsc::channel(16);
    let (proxy, proxy_end) = mpsc::channel(16);
    let (status, _) = watch::channel(Arc::new(Status::new(config.node.clone())));
    let (notices, notices_end) = mpsc::channel(256);
    let ends = Ends { commands: commands_end, proxy: proxy_end, status, notices };
    Ok((ends, Side { _commands: commands, _proxy: proxy, _notices: notices_end }))
}
