//! A load balancer starts while its store is silent: what it remembers says whom to ask, and their own word whom to route to.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::balancer::{Balancer, SOON, configuration};
use pointsman_tests::sql::{self, Client};
use pointsman_tests::{Cluster, ClusterOptions, FakeNetwork, Weather, say, wait};
use rustix::process::Signal;
use serde_json::json;

/// Patroni tells of a later look at its store every `loop_wait` (3 s here); one that has lost it takes longer.
const PATIENT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_the_store() -> Result<()> {
    let options = ClusterOptions { members: 2, failsafe_mode: true, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(&options).await?;
    let etcd = *cluster.etcd.addresses().first().context("there is no etcd")?;
    let mut balancer = Balancer::new(&cluster.site).await?;
    let network = FakeNetwork::start(SocketAddr::from((balancer.address, 2379)), etcd).await?;
    balancer.write(&configuration(&[format!("http://{}", network.address())]))?;
    balancer.start(&cluster.site)?;
    balancer.wait_ready().await?;
    members_are_kept(&balancer).await?;
    only_this_host_is_cut_off(&cluster, &network, &mut balancer).await?;
    the_whole_store_hangs(&mut cluster, &mut balancer).await
}

async fn members_are_kept(balancer: &Balancer) -> Result<()> {
    let file = balancer.directory().join("state/main.view.json");
    wait::until("both members to be kept on disk", SOON, async || {
        let text = std::fs::read_to_string(&file)?;
        ensure!(text.contains("\"pg1\"") && text.contains("\"pg2\""), "{text}");
        Ok(())
    })
    .await
    .with_context(|| balancer.tail())
}

/// Kills it and starts it again; answers when.
async fn start_again(cluster: &Cluster, balancer: &mut Balancer) -> Result<Instant> {
    balancer.signal(Signal::KILL)?;
    balancer.ended(SOON).await?;
    let started = Instant::now();
    balancer.start(&cluster.site)?;
    balancer.wait_answer("/live", 200).await?;
    Ok(started)
}

/// The primary's Patroni sees the store, so its word counts; a switchover that only the members know of is followed.
async fn only_this_host_is_cut_off(
    cluster: &Cluster,
    network: &FakeNetwork,
    balancer: &mut Balancer,
) -> Result<()> {
    network.set(Weather::Frozen);
    let started = start_again(cluster, balancer).await?;
    let reached = sql::who(balancer.primary(), PATIENT).await.with_context(|| balancer.tail())?;
    say(&format!("cut off from the store: served {:?} after the start", started.elapsed()))?;
    let (old, new) = (cluster.leader().await?, cluster.a_replica().await?);
    assert_eq!(reached.server, cluster.member(&old)?.postgres());
    assert_eq!(balancer.status("/clusters/0/status/store/state").await?, json!("lost"));

    cluster.switchover(&new).await?;
    let followed = Instant::now();
    assert_eq!(sql::who(balancer.primary(), PATIENT).await?.server, cluster.member(&new)?.postgres());
    say(&format!("a switchover behind the partition: served {:?} after it was done", followed.elapsed()))?;

    let session = Client::connect(balancer.primary(), SOON).await?;
    network.set(Weather::Fair);
    balancer.wait_status("/clusters/0/status/store/state", &json!("alive")).await?;
    balancer.wait_status("/clusters/0/status/primary/member", &json!(new)).await?;
    balancer.wait_status("/clusters/0/status/primary/state", &json!("confirmed")).await?;
    session.reached().await.context("a session was cut when the store came back")?;
    cluster.wait_ready().await
}

/// Nobody sees the store. A primary in failsafe mode may lead without it, and says so.
async fn the_whole_store_hangs(cluster: &mut Cluster, balancer: &mut Balancer) -> Result<()> {
    let leader = cluster.leader().await?;
    cluster.etcd.freeze(0)?;
    let started = start_again(cluster, balancer).await?;
    let reached = sql::who(balancer.primary(), PATIENT).await.with_context(|| balancer.tail())?;
    say(&format!("the whole store hangs: served {:?} after the start", started.elapsed()))?;
    assert_eq!(reached.server, cluster.member(&leader)?.postgres());
    let session = Client::connect(balancer.primary(), SOON).await?;
    cluster.etcd.thaw(0)?;
    balancer.wait_status("/clusters/0/status/store/state", &json!("alive")).await?;
    session.reached().await.context("a session was cut when the store came back")?;
    cluster.wait_ready().await
}
