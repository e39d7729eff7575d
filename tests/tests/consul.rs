//! Patroni on Consul as it is run in earnest (certificates on both sides, tokens for everything), behind the proxy with
//! the configuration of `config/examples/2-patroni-consul.toml`.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::stopwatch;
use pointsman_tests::{Cluster, ClusterOptions, Pointsman, Watchers, http, say, sql, tools, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
enum Blow {
    Kill,
    Freeze,
    Restart,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patroni_on_consul() -> Result<()> {
    let options =
        ClusterOptions { members: 2, consul_servers: 3, failsafe_mode: true, ..ClusterOptions::default() };
    let begun = Instant::now();
    let mut cluster = Cluster::start(&options).await?;
    let text = configuration(&cluster, cluster.site.addresses.balancer(0))?;
    let pointsman = Pointsman::start_with(&cluster.site, 0, &text).await?;
    reads_reach_the_replica(&pointsman).await?;
    say(&format!("Consul, Patroni and the proxy were ready after {:?}", begun.elapsed()))?;
    seen_from_outside(&cluster, &pointsman).await?;
    switchovers(&cluster, &pointsman).await?;
    for blow in [Blow::Kill, Blow::Freeze, Blow::Restart] {
        one_server_fails(&mut cluster, &pointsman, blow)
            .await
            .with_context(|| format!("{blow:?} of one server\n{}", pointsman.server().tail()))?;
    }
    all_servers_restart(&mut cluster, &pointsman).await.context("all servers restarted")?;
    all_servers_hang(&mut cluster, &pointsman)
        .await
        .with_context(|| format!("all servers frozen\n{}", story(&pointsman)))
}

/// The example, with addresses and files of this run.
fn configuration(cluster: &Cluster, address: Ipv4Addr) -> Result<String> {
    let example = tools::repository().join("config/examples/2-patroni-consul.toml");
    let mut text = std::fs::read_to_string(example)?;
    let consul = cluster.consul()?;
    let file = |name: &str| format!("{:?}", consul.pki.path(name));
    for (old, new) in [
        ("[\"https://127.0.0.1:8501\"]", format!("{:?}", consul.endpoints())),
        ("\"consul.token\"", format!("{:?}", consul.token_file())),
        ("\"ca.pem\"", file("ca.pem")),
        ("\"client.pem\"", file("pointsman.pem")),
        ("\"client.key\"", file("pointsman.key")),
        ("\"patroni-ca.pem\"", file("ca.pem")),
        ("\"10.0.0.0/8\"", "\"127.0.0.0/8\"".to_owned()),
        ("0.0.0.0:7000\"", "0.0.0.0:7000\"\nsocket = \"admin.sock\"".to_owned()),
        ("\"0.0.0.0:", format!("\"{address}:")),
    ] {
        ensure!(text.contains(old), "the example has no {old}");
        text = text.replace(old, &new);
    }
    Ok(text)
}

/// The dashboard's status and the metrics name the store's address; the third listener serves.
async fn seen_from_outside(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    assert_eq!(store(pointsman, "state").await?, "alive");
    let metrics = http::get(pointsman.admin(), "/metrics").await?.body;
    let cluster_lines: Vec<_> = metrics.lines().filter(|line| line.contains("store")).collect();
    ensure!(!cluster_lines.is_empty(), "no metrics of the store");
    let sync = (pointsman.primary().ip(), 5002).into();
    assert_eq!(sql::who(sync, SOON).await?.server, cluster.leader_address().await?, "the fallback of sync");
    let token = std::fs::read_to_string(cluster.consul()?.token_file())?;
    ensure!(!metrics.contains(&token) && !pointsman.log()?.contains(&token), "the token is shown");
    Ok(())
}

/// There and back, with clients every 10 ms: nobody fails, nobody is led astray.
async fn switchovers(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    stopwatch::prepare(cluster).await?;
    for _ in 0..2 {
        cluster.wait_ready().await?;
        reads_reach_the_replica(pointsman).await?;
        let candidate = cluster.a_replica().await?;
        let ports = [("pointsman, Consul", pointsman.primary())];
        let measured = stopwatch::measure_switchover(cluster, &ports, &candidate).await?;
        for verdict in &measured.verdicts {
            say(&verdict.to_string())?;
            ensure!(verdict.failed == 0 && verdict.wrong_role == 0, "{verdict}: {:?}", verdict.errors);
        }
    }
    cluster.wait_ready().await?;
    reads_reach_the_replica(pointsman).await
}

/// The server that the proxy is connected to fails: it goes on with another one.
async fn one_server_fails(cluster: &mut Cluster, pointsman: &Pointsman, blow: Blow) -> Result<()> {
    let server = connected_server(cluster, pointsman).await?;
    let watchers = Watchers::start(pointsman).await?;
    watchers.are_served().await?;
    let struck = Instant::now();
    match blow {
        Blow::Kill => cluster.consul_mut()?.kill(server).await?,
        Blow::Freeze => cluster.consul_mut()?.freeze(server)?,
        Blow::Restart => cluster.restart_consul(server).await?,
    }
    // With a server less Consul itself may need a moment.
    wait::until("Consul to take a write", SOON, async || cluster.put_key("members/test", "{").await).await?;
    let written = struck.elapsed();
    wait::until("the proxy to have taken up a change", SOON, async || {
        ensure!(pointsman.complaint("members/test").await?.is_some(), "it does not know of it");
        Ok(())
    })
    .await?;
    say(&format!(
        "{blow:?} of one server: Consul took a write after {written:?}, the proxy knew of it after {:?}",
        struck.elapsed()
    ))?;
    watchers.are_served().await?;
    cluster.consul()?.delete("service/main/members/test").await?;
    match blow {
        Blow::Kill => cluster.restart_consul(server).await?,
        Blow::Freeze => cluster.consul_mut()?.thaw(server)?,
        Blow::Restart => {}
    }
    cluster.consul_mut()?.wait_all_ready().await?;
    cluster.wait_ready().await?;
    reads_reach_the_replica(pointsman).await?;
    watchers.undisturbed(&format!("{blow:?} of one server")).await
}

/// All servers are killed and started again on their data: a few seconds without a store, and nothing else.
async fn all_servers_restart(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    let watchers = Watchers::start(pointsman).await?;
    watchers.are_served().await?;
    let struck = Instant::now();
    for server in 0..3 {
        cluster.consul_mut()?.kill(server).await?;
    }
    store_is(pointsman, "lost").await?;
    say(&format!("all servers killed: the store was lost after {:?}", struck.elapsed()))?;
    watchers.are_served().await?;
    let before = standing(pointsman).await?;
    for server in 0..3 {
        cluster.restart_consul(server).await?;
    }
    let started = Instant::now();
    store_is(pointsman, "alive").await?;
    say(&format!("all servers restarted: the store was back after {:?}", started.elapsed()))?;
    cluster.consul_mut()?.wait_all_ready().await?;
    cluster.wait_ready().await?;
    nothing_jumped(pointsman, &before).await?;
    watchers.undisturbed("all servers killed and restarted").await
}

/// All servers hang for longer than Patroni's ttl, and go on. With `failsafe_mode` the primary stays one.
async fn all_servers_hang(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    let watchers = Watchers::start(pointsman).await?;
    watchers.are_served().await?;
    let struck = Instant::now();
    for server in 0..3 {
        cluster.consul_mut()?.freeze(server)?;
    }
    store_is(pointsman, "lost").await?;
    say(&format!("all servers frozen: the store was lost after {:?}", struck.elapsed()))?;
    wait::until("Consul to be silent for longer than the ttl", TTL * 2, async || {
        let age = store(pointsman, "age_ms").await?.as_u64().context("no age")?;
        ensure!(Duration::from_millis(age) > TTL + Duration::from_secs(5), "{age} ms");
        Ok(())
    })
    .await?;
    watchers.are_served().await?;
    let before = standing(pointsman).await?;
    for server in 0..3 {
        cluster.consul_mut()?.thaw(server)?;
    }
    let thawed = Instant::now();
    store_is(pointsman, "alive").await?;
    say(&format!("all servers thawed: the store was back after {:?}", thawed.elapsed()))?;
    cluster.consul_mut()?.wait_all_ready().await?;
    cluster.wait_ready().await?;
    watchers.are_served().await?;
    // Consul has ended the sessions and their keys. The primary is known by its own word, and asked for it.
    let after = standing(pointsman).await?;
    ensure!(after.0 == before.0, "the primary was {before:?}, is {after:?}");
    watchers.undisturbed("all servers frozen for longer than the ttl").await
}

// ---- Small things ----------------------------------------------------------------------------------------------------

/// Until its key says that it streams, reads fall back to the primary.
async fn reads_reach_the_replica(pointsman: &Pointsman) -> Result<()> {
    wait::until("reads to reach the replica", SOON, async || {
        let reached = sql::who(pointsman.replicas(), SOON).await?;
        ensure!(reached.in_recovery, "they reach the primary");
        Ok(())
    })
    .await
}

/// The index of the Consul server that the proxy is connected to, by its descriptors.
async fn connected_server(cluster: &Cluster, pointsman: &Pointsman) -> Result<usize> {
    let addresses = cluster.consul()?.addresses();
    wait::until("the proxy to be connected to a Consul server", SOON, async || {
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

async fn store_is(pointsman: &Pointsman, wanted: &str) -> Result<()> {
    wait::until(format!("the store to be {wanted}"), SOON, async || {
        let state = store(pointsman, "state").await?;
        ensure!(state == wanted, "{state}");
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

/// What the proxy said, but for its sessions.
fn story(pointsman: &Pointsman) -> String {
    let log = pointsman.log().unwrap_or_else(|error| error.to_string());
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains("session ended")).collect();
    let from = lines.len().saturating_sub(25);
    lines.get(from..).unwrap_or_default().join("\n")
}

/// The primary is what it was, and was not even doubted.
async fn nothing_jumped(pointsman: &Pointsman, before: &(Value, u64)) -> Result<()> {
    let after = standing(pointsman).await?;
    ensure!(after.0 == before.0 && after.1 > before.1, "the primary was {before:?}, is {after:?}");
    Ok(())
}
