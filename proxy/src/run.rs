//! The life of the process, from a checked configuration to its end.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use pointsman_config::Config;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::life::{self, Signal, Signals};
use crate::logging::Logging;
use crate::state::{App, ClusterHandle, Life, ListenerHandle, Parts};

/// Events that may wait for a control task.
const EVENTS: usize = 1024;

/// Runs until a signal ends it. `file` is read anew on SIGHUP.
pub async fn run(config: Config, file: &Path, logging: &Logging) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("signals")?;
    if let Some(warning) = life::raise_descriptors(&config).warning() {
        tracing::warn!("{warning}");
    }
    let app = Arc::new(App::new(config.node.clone()));
    app.parts.store(Arc::new(parts(&config)));
    let admin = Admin::bind(&config.admin)?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    tasks.spawn(admin.serve(Arc::clone(&app), stop.clone()));
    let (watched, stopped) = (Arc::clone(&app), stop.clone());
    tasks.spawn(async move {
        stopped.run_until_cancelled(life::watchdog(|| watched.control_tasks_alive())).await;
    });
    app.set_life(Life::Ready);
    life::notify_ready("serving");
    while signals.next().await == Signal::Reload {
        reload(&app, file, logging);
    }
    app.set_life(Life::Stopping);
    life::notify_stopping("stopping", config.shutdown.drain);
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

fn parts(config: &Config) -> Parts {
    let cluster = |cluster: &pointsman_config::Cluster| {
        let (events, _) = mpsc::channel(EVENTS);
        Arc::new(ClusterHandle::new(cluster.name.clone(), cluster.discovery.as_str(), events))
    };
    let listener = |listener| Arc::new(ListenerHandle::new(listener, Arc::default()));
    Parts {
        clusters: config.clusters.iter().map(cluster).collect(),
        listeners: config.listeners.iter().map(listener).collect(),
    }
}

fn reload(app: &App, file: &Path, logging: &Logging) {
    life::notify_reloading();
    match Config::load(file) {
        Ok(config) => {
            logging.set_level(config.log.level);
            app.set_reload(Ok("only the level of the log was taken over".to_owned()));
        }
        Err(diagnostics) => {
            tracing::error!("the configuration stays as it was: {diagnostics}");
            app.set_reload(Err(diagnostics.to_string()));
        }
    }
    life::notify_ready("serving");
}
