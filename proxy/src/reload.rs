//! SIGHUP: the configuration is read again. What can change while the process runs changes; what cannot is
//! said; a file with errors changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use pointsman_config::Config;
use pointsman_process::logging::Logging;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::life;
use crate::listener::{Listener, Sockets};
use crate::run::{Process, say_listening};
use crate::unbuilt::unbuilt;

impl Process {
    /// Reads the file again and takes over what can change. The result is logged and shown.
    pub(crate) async fn reload(&mut self, logging: &Logging) {
        let result = match self.read() {
            Ok(config) => {
                let (level, warnings) = (config.log.level, config.warnings.clone());
                let result = self.take_over(config).await;
                if result.is_ok() {
                    logging.set_level(level);
                    for warning in &warnings {
                        tracing::warn!("{warning}");
                    }
                }
                result
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

    /// Returns what could not be taken over, in sentences; or why nothing was.
    async fn take_over(&mut self, new: Config) -> Result<String, String> {
        // The one thing that may fail comes first: then all or nothing is taken over.
        let mut sockets = self.bind_addresses(&new)?;
        let descriptors = life::raise_descriptors(&self.config);
        let mut left = self.needs_restart(&new);
        self.config.log.level = new.log.level;
        self.config.log.sessions = new.log.sessions;
        self.config.shutdown = new.shutdown;
        self.config.listeners.clone_from(&new.listeners);
        self.take_over_clusters(&new).await;
        self.retire_listeners(&new).await;
        for listener in &new.listeners {
            if let Err(error) = self.take_over_listener(listener, &mut sockets).await {
                left.push(format!("listener {}: {error:#}", listener.name));
            }
        }
        self.listeners.sort_by(&new.listeners.iter().map(|listener| &listener.name).collect::<Vec<_>>());
        self.config.clusters = new.clusters;
        (self.config.vrrp, self.config.vips) = (new.vrrp, new.vips);
        self.show();
        let needed = life::raise_descriptors(&self.config);
        if needed != descriptors {
            needed.warning().inspect(|warning| tracing::warn!("{warning}"));
        }
        Ok(left.join("; "))
    }

    /// The sockets of every address of `new`: our own, and new ones. Says all that cannot be had.
    fn bind_addresses(&self, new: &Config) -> Result<Sockets, String> {
        let mut sockets = Sockets::default();
        let shared = self.listeners.iter().map(|listener| listener.share_sockets(&mut sockets));
        let mut errors: Vec<_> = shared.filter_map(Result::err).map(|error| error.to_string()).collect();
        for listener in &new.listeners {
            let bound = listener.bind.iter().map(|address| sockets.bind(*address));
            let failed = bound.filter_map(Result::err);
            errors.extend(failed.map(|error| format!("listener {}: {error}", listener.name)));
        }
        sockets.retain(|address| new.listeners.iter().any(|listener| listener.bind.contains(address)));
        if errors.is_empty() { Ok(sockets) } else { Err(errors.join("\n")) }
    }

    /// Starts new clusters and reconfigures the ones that stay. Listeners that are about to be retired, or have been and
    /// still have sessions, keep their policy: without it their sessions would be cut now, instead of finishing.
    async fn take_over_clusters(&mut self, new: &Config) {
        let retired = self.retired.iter().rev().filter(|listener| listener.tasks() > 0);
        let leaving = self.listeners.iter().chain(retired.map(Arc::as_ref));
        let leaving = leaving.map(|listener| listener.settings().listener.clone());
        let listeners = with_leaving(&new.listeners, leaving);
        for cluster in &new.clusters {
            match self.clusters.get_mut(&cluster.name) {
                Some(running) => {
                    // What identifies the cluster stays as it was: it needs a restart.
                    let mut config = running.config().clone();
                    config.discovery = cluster.discovery.clone();
                    config.stale_primary = cluster.stale_primary;
                    config.connect_to = cluster.connect_to;
                    config.balancers = cluster.balancers;
                    config.weights.clone_from(&cluster.weights);
                    running.reconfigure(config, &listeners).await;
                }
                None => self.start_cluster(cluster.clone()),
            }
        }
    }

    /// Listeners and clusters that are no longer wanted: closed now, their sessions have the time of a drain to
    /// finish. Until then their cluster is watched, so that a change of leader still cuts them.
    async fn retire_listeners(&mut self, new: &Config) {
        self.retired.retain(|listener| listener.tasks() > 0);
        while self.drains.try_join_next().is_some() {}
        let mut gone = BTreeMap::new();
        for name in self.clusters.keys().cloned().collect::<Vec<_>>() {
            if !new.clusters.iter().any(|cluster| cluster.name == name)
                && let Some(cluster) = self.clusters.remove(&name)
            {
                gone.insert(name, Arc::new(cluster));
            }
        }
        let stays = |old: &pointsman_config::Listener| {
            new.listeners.iter().any(|listener| listener.name == old.name && listener.cluster == old.cluster)
        };
        let settings: Vec<_> = self.listeners.iter().map(Listener::settings).collect();
        for old in settings.iter().map(|settings| &settings.listener).filter(|old| !stays(old)) {
            if let Some(listener) = self.listeners.remove(&old.name) {
                self.retire(listener, gone.get(&old.cluster).cloned()).await;
            }
        }
    }

    async fn retire(&mut self, listener: Listener, cluster: Option<Arc<Cluster>>) {
        let deadline = Instant::now() + self.config.shutdown.drain;
        tracing::info!(listener = %listener.name(), "the listener is taken away; its sessions may finish");
        listener.close().await;
        let listener = Arc::new(listener);
        self.retired.push(Arc::clone(&listener));
        self.drains.spawn(async move {
            let cut = listener.drain(deadline).await;
            tracing::info!(listener = %listener.name(), cut, "the listener is gone");
            drop(cluster);
        });
    }

    async fn take_over_listener(
        &mut self,
        new: &pointsman_config::Listener,
        sockets: &mut Sockets,
    ) -> anyhow::Result<()> {
        let cluster = self.clusters.get(&new.cluster).context("a listener without a cluster")?;
        let settings = self.settings(new, cluster);
        let Some(running) = self.listeners.get_mut(&new.name) else {
            let listener = self.bind(new, sockets)?;
            self.start_listener(listener);
            return Ok(());
        };
        if running.settings().listener.bind == new.bind {
            running.reconfigure(settings);
        } else {
            running.relocate(settings, sockets).await?;
            say_listening(running);
        }
        Ok(())
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

/// The listeners that clusters have to decide for: the `new` ones, and those on their way out. A listener that moves to
/// another cluster is a new one there, and leaves the old one.
fn with_leaving(
    new: &[pointsman_config::Listener],
    leaving: impl Iterator<Item = pointsman_config::Listener>,
) -> Vec<pointsman_config::Listener> {
    let mut all = new.to_vec();
    for old in leaving {
        if !all.iter().any(|known| known.name == old.name && known.cluster == old.cluster) {
            all.push(old);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners(text: &str) -> Vec<pointsman_config::Listener> {
        let clusters = "[clusters]\na = { discovery = { etcd = { endpoints = [\"http://127.0.0.1:2379\"] } } }\n\
             b = { discovery = { etcd = { endpoints = [\"http://127.0.0.1:2379\"] } } }\n";
        let text = text.split(' ').enumerate().fold(clusters.to_owned(), |text, (at, one)| {
            let (name, cluster) = one.split_once('@').unwrap();
            let port = 5000 + at;
            format!(
                "{text}[[listeners]]\nname = \"{name}\"\ncluster = \"{cluster}\"\ntarget = \"primary\"\nbind = \"127.0.0.1:{port}\"\n"
            )
        });
        Config::parse(&text, "test.toml", std::path::Path::new("/")).unwrap().listeners
    }

    #[test]
    fn a_listener_that_leaves_its_cluster_is_decided_for_until_its_sessions_are_gone() {
        let before = listeners("rw@a ro@a gone@a").into_iter().chain(listeners("gone@b rw@a"));
        let moved = with_leaving(&listeners("rw@b ro@a"), before);
        let names: Vec<_> =
            moved.iter().map(|listener| format!("{}@{}", listener.name, listener.cluster)).collect();
        assert_eq!(names, ["rw@b", "ro@a", "rw@a", "gone@a", "gone@b"]);
    }
}
