//! A new configuration, without giving up an address where the change allows it.

use pointsman_config::{Config, IpNet, Vip, Vrrp};
use pointsman_process::logging::Logging;
use tokio::task::JoinHandle;

use super::{Carried, Worker, settings};
use crate::peers::Peers;
use crate::side::Notice;

impl Worker {
    /// Begins to read the file, on a thread that may wait for a disk: this one may not.
    pub(super) fn read_file(&mut self) {
        let file = self.file.clone();
        let read = move || Config::load(&file).map_err(|diagnostics| diagnostics.to_string());
        self.reading = Some(tokio::task::spawn_blocking(read)); // a second order reads it anew
    }

    /// The file has been read.
    pub(super) async fn reload(&mut self, read: Result<Config, String>, logging: &Logging) {
        self.reading = None;
        match read {
            Err(diagnostics) => {
                tracing::error!("the configuration stays as it was: the new one is wrong\n{diagnostics}");
                self.ends.tell(Notice::BadConfiguration(diagnostics));
            }
            Ok(config) => {
                for change in unchangeable(&self.config, &config) {
                    tracing::warn!("{change}: this takes effect with the next start");
                }
                logging.set_level(config.log.level);
                self.take_configuration(config).await;
                tracing::info!("the configuration was read anew");
            }
        }
        self.guard.ready();
        self.show();
    }

    pub(super) async fn take_configuration(&mut self, mut config: Config) {
        config.node = self.config.node.clone();
        self.exchange_peers(&mut config).await;
        let settings = settings(&config);
        let actions = self.node.abandon(self.now(), &settings);
        self.carry_out(actions);
        self.exchange_routers(&config);
        self.interfaces.set(&config.vips);
        self.config = config;
        self.read_interfaces();
        let (actions, new) = self.node.reconfigure(self.now(), settings);
        if let Err(error) = self.cover() {
            self.complain("guard", &error);
        }
        self.carry_out(actions);
        self.tell_links(Some(&new));
        self.ends.tell(Notice::Configuration(Box::new(self.config.clone())));
    }

    /// Other hosts, another key, another address of ours: all connections are made anew. What cannot be used is not taken.
    pub(super) async fn exchange_peers(&mut self, config: &mut Config) {
        let of = |config: &Config| config.vrrp.as_ref().and_then(|vrrp| vrrp.peers.clone());
        let (old, new) = (of(&self.config), of(config));
        if old == new {
            return;
        }
        if let Some(peers) = self.peers.take() {
            self.beat(); // the guard's patience is longer than this takes
            peers.farewell().await;
        }
        match new.map(|new| Peers::start(&new, &config.node)).transpose() {
            Ok(peers) => self.peers = peers,
            Err(error) => {
                tracing::error!(%error, "the hosts cannot signal each other; VRRP goes on alone");
            }
        }
    }

    pub(super) fn exchange_routers(&mut self, config: &Config) {
        let mut old = std::mem::take(&mut self.routers);
        for vip in &config.vips {
            let mut router = Carried::new(vip);
            if let Some(before) = old.remove(&vip.name) {
                (router.source, router.held) = (before.source, before.held);
                if before.held {
                    self.drop_addresses(&before.vip, vip);
                }
            }
            self.routers.insert(vip.name.clone(), router);
        }
    }

    /// Removes the addresses that a virtual router has no more.
    pub(super) fn drop_addresses(&mut self, before: &Vip, now: &Vip) {
        let Some(index) = self.index(&before.interface) else { return };
        let gone: Vec<_> =
            before.addresses.iter().filter(|net| !now.addresses.contains(net)).copied().collect();
        if gone.is_empty() {
            return;
        }
        let addresses = gone.iter().map(IpNet::addr).collect();
        if let Err(error) = self.netlink.remove_all(gone.into_iter().map(|net| (index, net)).collect()) {
            self.complain("release", &error);
        }
        self.ends.tell(Notice::Left { router: now.name.clone(), addresses });
    }
}

/// What was read, when it has been. Cancel-safe.
pub(super) async fn finished(
    reading: &mut Option<JoinHandle<Result<Config, String>>>,
) -> Result<Config, String> {
    match reading {
        Some(handle) => handle.await.unwrap_or_else(|error| Err(error.to_string())),
        None => std::future::pending().await,
    }
}

/// What differs and cannot be changed in a running process.
fn unchangeable(old: &Config, new: &Config) -> Vec<&'static str> {
    let vrrp = |config: &Config| config.vrrp.clone();
    let (before, after) = (vrrp(old), vrrp(new));
    let differs = |what: fn(&Vrrp) -> String| before.as_ref().map(what) != after.as_ref().map(what);
    [
        (old.node != new.node, "node"),
        (differs(|vrrp| vrrp.socket.display().to_string()), "vrrp.socket"),
        (differs(|vrrp| format!("{:?}", vrrp.bind)), "vrrp.bind"),
        (differs(|vrrp| vrrp.realtime.to_string()), "vrrp.realtime"),
        (differs(|vrrp| vrrp.lock_memory.to_string()), "vrrp.lock_memory"),
        (old.log.format != new.log.format, "log.format"),
    ]
    .into_iter()
    .filter_map(|(differs, what)| differs.then_some(what))
    .collect()
}
