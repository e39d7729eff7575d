//! One cluster for all tests of a file: starting it takes longer than most of them.
//!
//! It is never dropped; its [`crate::Site`] sees the end of the test program and cleans up.

use std::sync::LazyLock;

use anyhow::{Result, anyhow};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OnceCell, RwLock};

use crate::cluster::{Cluster, ClusterOptions};

/// The cluster's connections and children belong to a runtime that outlives each test.
static RUNTIME: LazyLock<std::io::Result<Runtime>> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(2).enable_all().build());

/// A start that failed is not tried again: the next test would wait as long for nothing.
static CLUSTER: OnceCell<Result<RwLock<Cluster>, String>> = OnceCell::const_new();

/// The options of the shared cluster: two members suffice.
fn options() -> ClusterOptions {
    ClusterOptions { members: 2, ..ClusterOptions::default() }
}

async fn cluster() -> Result<&'static RwLock<Cluster>> {
    let start =
        async || Cluster::start(&options()).await.map(RwLock::new).map_err(|error| format!("{error:#}"));
    CLUSTER.get_or_init(start).await.as_ref().map_err(|error| anyhow!("{error}"))
}

fn runtime() -> Result<&'static Runtime> {
    RUNTIME.as_ref().map_err(|error| anyhow!("no runtime: {error}"))
}

/// Runs a test that only looks at the cluster: beside others of its kind.
pub fn beside_others(test: impl AsyncFnOnce(&Cluster) -> Result<()>) -> Result<()> {
    runtime()?.block_on(async { test(&*cluster().await?.read().await).await })
}

/// Runs a test that changes the cluster: alone. The cluster is ready when it begins; it must be left well.
pub fn alone(test: impl AsyncFnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    runtime()?.block_on(async {
        let mut cluster = cluster().await?.write().await;
        cluster.wait_ready().await?;
        test(&mut cluster).await
    })
}
