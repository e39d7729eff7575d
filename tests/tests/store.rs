//! The store fails, in part or as a whole, or only for us: nobody who is connected or connects notices.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::pointsman::configuration;
use pointsman_tests::sql::Client;
use pointsman_tests::watchers::SLOW;
use pointsman_tests::{
    Clients, Cluster, ClusterOptions, FakeNetwork, Pointsman, Watchers, Weather, say, sql, wait,
};
use rustix::process::Signal;
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
        let age = store(pointsman, "age_ms").await?.as_u64().context("no age")?;
        ensure!(Duration::from_millis(age) > TTL + Duration::from_secs(5), "{age} ms");
        Ok(())
    })
    .await?;
    assert_eq!(store(pointsman, "state").await?, "lost");
    let alarms = pointsman.status().await?.pointer("/clusters/0/status/alarms").cloned();
    ensure!(
        alarms.as_ref().and_then(Value::as_array).is_some_and(|all| !all.is_empty()),
        "no alarm: {alarms:?}"
    );
    watchers.are_served().await?;
    for node in 0..3 {
        cluster.etcd.thaw(node)?;
    }
    store_is_back(pointsman).await?;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_behind_a_partition_is_followed() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::default()).await?;
    let address = cluster.site.addresses.balancer(0);
    let etcd = *cluster.etcd.addresses().first().context("there is no etcd")?;
    let network = FakeNetwork::start(SocketAddr::from((cluster.site.addresses.other(0), 2379)), etcd).await?;
    let endpoints = [format!("http://{}", network.address())];
    let pointsman = Pointsman::start_with(&cluster.site, 0, &configuration(address, &endpoints)).await?;
    pointsman.wait_replicas(2).await?;
    for weather in [Weather::Cut, Weather::Frozen] {
        a_switchover_in(weather, &cluster, &network, &pointsman)
            .await
            .with_context(|| format!("{weather:?}"))?;
    }
    patroni_dies_behind(&network, &cluster, &pointsman).await
}

/// Only the proxy is cut off from the store while the leader changes; then the store comes back.
async fn a_switchover_in(
    weather: Weather,
    cluster: &Cluster,
    network: &FakeNetwork,
    pointsman: &Pointsman,
) -> Result<()> {
    let (old, new) = (cluster.leader().await?, cluster.a_replica().await?);
    let held = Client::connect(pointsman.primary(), SOON).await?;
    let (writes, reads) =
        (Clients::start(pointsman.primary(), EVERY), Clients::start(pointsman.replicas(), EVERY));
    writes.wait_served(3, SOON).await?;
    network.set(weather);
    wait::until("the proxy to miss the store", SOON, async || {
        let state = store(pointsman, "state").await?;
        ensure!(state == "lost", "{state}");
        Ok(())
    })
    .await?;
    writes.wait_served(3, SOON).await?;
    let begun = Instant::now();
    cluster.switchover(&new).await?;
    writes.wait_served(3, SOON).await?;
    let address = cluster.member(&new)?.postgres();
    assert_eq!(sql::who(pointsman.primary(), SOON).await?.server, address);
    say(&format!(
        "{weather:?}: the switchover from {old} was followed {:?} after it began",
        begun.elapsed()
    ))?;
    ensure!(held.reached().await.is_err(), "the session on the old primary goes on");
    cluster.wait_ready().await?;

    // Nothing jumps when the store is back.
    let session = Client::connect(pointsman.primary(), SOON).await?;
    let before = standing(pointsman).await?;
    network.set(Weather::Fair);
    store_is_back(pointsman).await?;
    writes.wait_served(5, SOON).await?;
    session.reached().await.context("cut when the store came back")?;
    // The replicas' keys may have news; the primary is what it was, and was not even doubted.
    let after = standing(pointsman).await?;
    ensure!(
        after.0 == before.0 && after.1 > before.1,
        "the primary was {before:?} before the store came back, is {after:?}"
    );
    let (writes, reads) = (writes.finish().await, reads.finish().await);
    // Who was just being served when PostgreSQL shut down may be lost.
    writes.check_lost_at_one_stroke().context("writes")?;
    writes.check_role(false)?;
    reads.check_none_failed(None).context("reads")?;
    ensure!(reads.slowest() < SLOW, "a read took {:?}", reads.slowest());
    pointsman.wait_replicas(2).await
}

/// Patroni of the primary is killed behind the partition, and its PostgreSQL stays writable: only the members can tell.
async fn patroni_dies_behind(network: &FakeNetwork, cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let old = cluster.leader().await?;
    let orphan = cluster.member(&old)?.postgres();
    let session = Client::connect(pointsman.primary(), SOON).await?;
    let writes = Clients::start(pointsman.primary(), EVERY);
    writes.wait_served(3, SOON).await?;
    network.set(Weather::Frozen);
    cluster.member(&old)?.signal_patroni(Signal::KILL)?;
    let new = cluster.wait_other_leader(&old, TTL * 3).await?;
    let led = Instant::now();
    let new = cluster.member(&new)?.postgres();
    wait::until("the old primary's session to be cut", SOON, async || {
        ensure!(session.session.is_closed(), "it lives");
        Ok(())
    })
    .await?;
    let cut = led.elapsed();
    assert_eq!(sql::who(pointsman.primary(), SOON).await?.server, new);
    let followed = led.elapsed();
    say(&format!(
        "Patroni killed behind a partition: cut {cut:?}, followed {followed:?} after the new primary took writes"
    ))?;
    // The members are asked every second.
    ensure!(followed < SLOW, "it took {followed:?}");
    writes.wait_served(5, SOON).await?;
    let writes = writes.finish().await;
    // Who was just being served by the old primary is cut with its other sessions.
    writes.check_lost_at_one_stroke().context("writes")?;
    writes.check_never(orphan, led + SLOW)?;
    network.set(Weather::Fair);
    store_is_back(pointsman).await?;
    assert_eq!(sql::who(pointsman.primary(), SOON).await?.server, new);
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

async fn store(pointsman: &Pointsman, field: &str) -> Result<Value> {
    let status = pointsman.status().await?;
    let value = status.pointer(&format!("/clusters/0/status/store/{field}"));
    value.cloned().with_context(|| format!("the status has no store/{field}"))
}

async fn store_is_back(pointsman: &Pointsman) -> Result<()> {
    wait::until("the proxy to see the store again", SOON, async || {
        let state = store(pointsman, "state").await?;
        ensure!(state == "alive", "{state}");
        Ok(())
    })
    .await
}

/// Who is primary, in which state, and for how many milliseconds.
async fn standing(pointsman: &Pointsman) -> Result<(Value, u64)> {
    let status = pointsman.status().await?;
    let primary = status.pointer("/clusters/0/status/primary").context("no primary")?;
    let since = primary.get("since_ms").and_then(Value::as_u64).context("no since_ms")?;
    Ok((json!([primary.get("member"), primary.get("state")]), since))
}
