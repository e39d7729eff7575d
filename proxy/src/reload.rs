//! SIGHUP: the configuration is read again. What can change while the process runs changes; what cannot is
//! said; a file with errors changes nothing.

use std::sync::Arc;

use pointsman_config::{Config, ListenerName};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::listener::Listener;
use crate::logging::Logging;
use crate::run::Process;
use crate::unbuilt::unbuilt;

impl Process {
    /// Reads the file again and takes over what can change. The result is logged and shown.
    pub(crate) async fn reload(&mut self, logging: &Logging) {
        let result = match self.read() {
            Ok(config) => {
                logging.set_level(config.log.level);
                Ok(self.take_over(config).await)
            }
            Err(errors) => Err(errors),
        };
        match &result {
            Ok(left) if left.is_empty() => tracing::info!("the configuration was read again"),
            Ok(left) => tracing::warn!("the configuration was read again, but: {left}"),
            Err(errors) => tracing::error!("the old configuration stays in force:\n{errors}"),
        }
        self.app.set_reload(result);
    }

    fn read(&self) -> Result<Config, String> {
        let config = Config::load(&self.file).map_err(|diagnostics| diagnostics.to_string())?;
        let missing = unbuilt(&config);
        if missing.is_empty() { Ok(config) } else { Err(missing.join("\n")) }
    }

    /// Returns what could not be taken over, in sentences.
    async fn take_over(&mut self, new: Config) -> String {
        let mut left = self.needs_restart(&new);
        self.config.log.level = new.log.level;
        self.config.log.sessions = new.log.sessions;
        self.config.shutdown = new.shutdown;
        let old_listeners = std::mem::replace(&mut self.config.listeners, new.listeners.clone());
        self.take_over_clusters(&new).await;
        for listener in &old_listeners {
            let stays = new.listeners.iter().find(|other| other.name == listener.name);
            if stays.is_none_or(|other| other.cluster != listener.cluster) {
                self.retire(&listener.name);
            }
        }
        for listener in &new.listeners {
            if let Err(error) = self.take_over_listener(listener).await {
                left.push(format!("listener {}: {error:#}", listener.name));
            }
        }
        self.config.clusters = new.clusters;
        let clusters = self.config.clusters.iter().map(|cluster| cluster.name.clone());
        let kept: Vec<_> = clusters.collect();
        self.clusters.retain(|name, _| kept.contains(name));
        self.show();
        left.join("; ")
    }

    /// Starts new clusters and reconfigures the ones that stay. Listeners that are about to be retired keep
    /// their policy: their sessions must still be cut when the leader changes.
    async fn take_over_clusters(&mut self, new: &Config) {
        for cluster in &new.clusters {
            let retiring = self
                .listeners
                .iter()
                .map(|listener| listener.settings().listener.clone())
                .filter(|old| !new.listeners.iter().any(|listener| listener.name == old.name));
            let listeners: Vec<_> = new.listeners.iter().cloned().chain(retiring).collect();
            match self.clusters.get_mut(&cluster.name) {
                Some(running) => {
                    // What identifies the cluster stays as it was: it needs a restart.
                    let mut config = running.config().clone();
                    config.discovery = cluster.discovery.clone();
                    config.stale_primary = cluster.stale_primary;
                    config.balancers = cluster.balancers;
                    running.reconfigure(config, &listeners).await;
                }
                None => self.start_cluster(cluster.clone()),
            }
        }
    }

    /// A listener that is no longer wanted: closed now, its sessions have the time of a drain to finish.
    fn retire(&mut self, name: &ListenerName) {
        let Some(listener) = self.listeners.remove(name) else { return };
        let deadline = Instant::now() + self.config.shutdown.drain;
        tracing::info!(listener = %name, "the listener is taken away; its sessions may finish");
        self.retired.spawn(async move {
            let cut = listener.drain(deadline).await;
            tracing::info!(listener = %listener.name(), cut, "the listener is gone");
        });
    }

    async fn take_over_listener(&mut self, new: &pointsman_config::Listener) -> anyhow::Result<()> {
        let running = self.listeners.iter().find(|listener| *listener.name() == new.name);
        let Some(running) = running else {
            let listener = self.bind(new, Arc::default())?;
            return self.start_listener(listener);
        };
        if running.settings().listener.bind == new.bind {
            if let Some(cluster) = self.clusters.get(&new.cluster) {
                running.reconfigure(self.settings(new, cluster));
            }
            return Ok(());
        }
        self.rebind(new).await
    }

    /// The listener moves to other addresses. Sessions of the old ones go on under the same name.
    async fn rebind(&mut self, new: &pointsman_config::Listener) -> anyhow::Result<()> {
        let Some(old) = self.listeners.remove(&new.name) else { return Ok(()) };
        let stats = Arc::clone(old.stats());
        let before = old.settings().listener.clone();
        let shared = before.bind.iter().any(|address| new.bind.contains(address));
        if shared {
            old.close().await;
        }
        match self.bind(new, Arc::clone(&stats)) {
            Ok(listener) => {
                drop(old);
                self.start_listener(listener)
            }
            Err(error) if shared => {
                let again: Listener = self.bind(&before, stats)?;
                self.start_listener(again)?;
                Err(error.context("it stays at its old addresses"))
            }
            Err(error) => {
                self.listeners.add(old);
                Err(error.context("it stays at its old addresses"))
            }
        }
    }

    /// What a reload cannot change, in sentences.
    fn needs_restart(&self, new: &Config) -> Vec<String> {
        let old = &self.config;
        let mut changed: Vec<String> = [
            ("node", old.node != new.node),
            ("state_dir", old.state_dir != new.state_dir),
            ("[admin]", old.admin != new.admin),
            ("[relay]", old.relay != new.relay),
            ("log.format", old.log.format != new.log.format),
        ]
        .into_iter()
        .filter(|(_, changed)| *changed)
        .map(|(what, _)| what.to_owned())
        .collect();
        for cluster in &new.clusters {
            let Some(running) = self.clusters.get(&cluster.name).map(Cluster::config) else {
                continue;
            };
            let same = running.scope == cluster.scope
                && running.namespace == cluster.namespace
                && running.rest == cluster.rest
                && running.sql == cluster.sql;
            if !same {
                changed.push(format!("[clusters.{}] scope, namespace, rest or sql", cluster.name));
            }
        }
        if changed.is_empty() { changed } else { vec![format!("{} need a restart", changed.join(", "))] }
    }
}
