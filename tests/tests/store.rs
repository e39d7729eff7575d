//! The store fails, in part or as a whole: nobody who is connected or connects notices. (Only for us: see `partition`.)

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::sql::Client;
use pointsman_tests::watchers::SLOW;
use pointsman_tests::{Clients, Cluster, ClusterOptions, Pointsman, Watchers, say, sql, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const EVERY: Duration = Duration::from_millis(100);
const TTL: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
enum Blow {
    Kill,
    Freeze,
    Restart,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_fails_and_sessions_do_not() -> Result<()> {
    let options = ClusterOptions { etcd_nodes: 3, failsafe_mode: true, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(&options).await?;
    let pointsman = Pointsman::start(&cluster, 0).await?;
    pointsman.wait_replicas(2).await?;
    for blow in [Blow::Kill, Blow::Freeze, Blow::Restart] {
        one_node_fails(&mut cluster, &pointsman, blow)
            .await
            .with_context(|| format!("{blow:?} of one node"))?;
    }
    all_nodes_fail_and_patroni_goes_on(&mut cluster, &pointsman).await?;
    all_nodes_fail_and_patroni_demotes(&mut cluster, &pointsman).await
}

/// The node that the proxy is connected to fails: it goes on with another one.
async fn one_node_fails(cluster: &mut Cluster, pointsman: &Pointsman, blow: Blow) -> Result<()> {
    let node = connected_node(cluster, pointsman).await?;
    let watchers = Watchers::start(pointsman).await?;
    watchers.are_served().await?;
    match blow {
        Blow::Kill => cluster.etcd.kill(node).await?,
        Blow::Freeze => cluster.etcd.freeze(node)?,
        Blow::Restart => cluster.restart_etcd(node).await?,
    }
    // With a node less the store itself may need a moment.
    wait::until("the store to take a write", SOON, async || cluster.put_key("members/test", "{").await)
        .await?;
    let written = Instant::now();
    wait::until("the proxy to have taken up a change", SOON, async || {
        let complaint = pointsman.complaint("members/test").await?;
        ensure!(complaint.is_some(), "it does not know of it");
        Ok(())
    })
    .await?;
    say(&format!("{blow:?} of one node: a change was seen {:?} after it was made", written.elapsed()))?;
    watchers.are_served().await?;
    cluster.etcd.delete(&key("members/test")).await?;
    match blow {
        Blow::Kill => cluster.restart_etcd(node).await?,
        Blow::Freeze => cluster.etcd.thaw(node)?,
        Blow::Restart => {}
    }
    cluster.etcd.wait_all_ready().await?;
    cluster.wait_ready().await?;
    watchers.undisturbed(&format!("{blow:?} of one node")).await
}

/// The whole store hangs for longer than Patroni's ttl. With `failsafe_mode` the primary stays one, and so do its routes.
async fn all_nodes_fail_and_patroni_goes_on(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    let watchers = Watchers::start(pointsman).await?;
    watchers.are_served().await?;
    for node in 0..3 {
        cluster.etcd.freeze(node)?;
    }
    wait::until("the store to be silent for longer than the ttl", TTL * 2, async || {
        let age = pointsman.store("age_ms").await?.as_u64().context("no age")?;
        ensure!(Duration::from_millis(age) > TTL + Duration::from_secs(5), "{age} ms");
        Ok(())
    })
    .await?;
    assert_eq!(pointsman.store("state").await?, "lost");
    let alarms = pointsman.status().await?.pointer("/clusters/0/status/alarms").cloned();
    ensure!(
        alarms.as_ref().and_then(Value::as_array).is_some_and(|all| !all.is_empty()),
        "no alarm: {alarms:?}"
    );
    watchers.are_served().await?;
    for node in 0..3 {
        cluster.etcd.thaw(node)?;
    }
    pointsman.wait_store("alive").await?;
    cluster.wait_ready().await?;
    watchers.are_served().await?;
    // The keys have expired with their leases; until they are back the members are known by their own word.
    watchers.undisturbed("the store hangs, failsafe mode").await
}

/// The whole store dies and Patroni demotes its primary: writes wait for it, reads go on, and nobody is led astray.
async fn all_nodes_fail_and_patroni_demotes(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    cluster.configure(&json!({ "failsafe_mode": false })).await?;
    cluster.wait_ready().await?;
    pointsman.wait_replicas(2).await?;
    let primary = cluster.leader().await?;
    let read = Client::connect(pointsman.replicas(), SOON).await?;
    let (writes, reads) =
        (Clients::start(pointsman.primary(), EVERY), Clients::start(pointsman.replicas(), EVERY));
    writes.wait_served(3, SOON).await?;
    for node in 0..3 {
        cluster.etcd.kill(node).await?;
    }
    wait::until("Patroni to demote its primary", TTL * 3, async || {
        let reached = sql::who(cluster.member(&primary)?.postgres(), SOON).await?;
        ensure!(reached.in_recovery, "it is primary");
        Ok(())
    })
    .await?;
    wait::until("new write sessions to be held", SOON, async || {
        let held = pointsman.status().await?.pointer("/listeners/0/held").and_then(Value::as_u64);
        ensure!(held > Some(0), "{held:?} are");
        Ok(())
    })
    .await?;
    reads.wait_served(5, SOON).await?;
    for node in 0..3 {
        cluster.restart_etcd(node).await?;
    }
    cluster.etcd.wait_all_ready().await?;
    cluster.wait_ready().await?;
    writes.wait_served(5, SOON).await?;
    read.reached().await.context("the session on the read port was lost")?;
    let (writes, reads) = (writes.finish().await, reads.finish().await);
    say(&format!(
        "the store dies: the slowest write took {:?}, the slowest read {:?}",
        writes.slowest(),
        reads.slowest()
    ))?;
    // Who is just being served when PostgreSQL shuts down may be lost.
    writes.check_lost_at_one_stroke().context("writes")?;
    writes.check_role(false)?;
    reads.check_none_failed(None)?;
    ensure!(reads.slowest() < SLOW, "a read took {:?}", reads.slowest());
    Ok(())
}

// ---- Small things ----------------------------------------------------------------------------------------------------

fn key(name: &str) -> String {
    format!("/service/main/{name}")
}

/// The index of the etcd node that the proxy is connected to, by its descriptors.
async fn connected_node(cluster: &Cluster, pointsman: &Pointsman) -> Result<usize> {
    let addresses = cluster.etcd.addresses();
    wait::until("the proxy to be connected to an etcd node", SOON, async || {
        let peers = pointsman.server().peers()?;
        addresses
            .iter()
            .position(|address| peers.contains(address))
            .with_context(|| format!("to {peers:?} only"))
    })
    .await
}
