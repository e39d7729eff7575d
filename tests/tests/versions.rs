//! Old and new Patroni: `master` and `primary` are one role, alone and side by side in one cluster; and members that are
//! reached by IPv6, or by the second of two hosts.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::pointsman::configuration;
use pointsman_tests::{
    Clients, Cluster, ClusterOptions, MemberOptions, Pointsman, Ports6, say, sql, stopwatch, tools, wait,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_millis(50);
/// What our part of an outage may be at the median, beside what the machine takes for it at its present pace.
const SHARE_LIMIT_MS: f64 = 150.0;

/// A switchover with clients, who must not notice more than that it takes a while. Answers our part of it in milliseconds.
async fn switch(cluster: &Cluster, write: SocketAddr, read: SocketAddr, candidate: &str) -> Result<f64> {
    cluster.wait_ready().await?;
    let reads = Clients::start(read, EVERY);
    let measured = stopwatch::measure_switchover(cluster, &[("pointsman", write)], candidate).await?;
    reads.wait_served(3, SOON).await?;
    let reads = reads.finish().await;
    let verdict = measured.verdicts.first().context("no verdict")?;
    say(&format!("{} to {}: {verdict}", measured.old, measured.new))?;
    say(&format!(
        "  {} reads, the slowest took {:?}, by {:?}",
        reads.0.len(),
        reads.slowest(),
        reads.by_server()
    ))?;
    ensure!(verdict.failed == 0 && verdict.wrong_role == 0, "{:?}", verdict.errors);
    reads.check_none_failed(None).context("reads")?;
    Ok(verdict.share_ms - measured.pace_ms)
}

/// What the store says of a member.
async fn key_of(cluster: &Cluster, name: &str, field: &str) -> Result<Value> {
    let key = cluster.get_key(&format!("members/{name}")).await?.context("it has no key")?;
    let key: Value = serde_json::from_str(&key)?;
    Ok(key.get(field).cloned().unwrap_or_default())
}

/// One cluster for all of it: each start takes longer than what is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_and_new_patroni_on_ipv6() -> Result<()> {
    let ports = Ports6::reserve()?;
    let at = |first: u16, program| MemberOptions {
        at: Some((ports.at(first), ports.at(first + 1))),
        program,
        ..MemberOptions::default()
    };
    let old = tools::old_patroni()?;
    let options = ClusterOptions {
        loop_wait: Duration::from_secs(1),
        member_options: vec![at(0, Some(old.clone())), at(2, Some(old)), at(4, None)],
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(&options).await?;
    stopwatch::prepare(&cluster).await?;
    let address = cluster.site.addresses.balancer(0);
    let (write, read) = (ports.at(6), ports.at(7));
    let text = configuration(address, &cluster.etcd.endpoints())
        .replace(&format!("\"{address}:5000\""), &format!("[\"{address}:5000\", \"{write}\"]"))
        .replace(&format!("\"{address}:5001\""), &format!("\"{read}\""));
    let pointsman = Pointsman::start_with(&cluster.site, 0, &text).await?;
    pointsman.wait_replicas(2).await?;
    said_and_understood(&cluster, &pointsman).await?;
    let reached = sql::who(read, SOON).await?.server;
    ensure!([ports.at(2), ports.at(4)].contains(&reached), "the read port leads to {reached}");
    sql::wait_led_to(write, ports.at(0), SOON).await?;
    // The same listener, by IPv4.
    sql::wait_led_to(pointsman.primary(), ports.at(0), SOON).await?;

    // Old to old, old to new, new to old.
    let mut shares = Vec::new();
    for candidate in ["pg2", "pg3", "pg1"] {
        shares.push(switch(&cluster, write, read, candidate).await?);
    }
    let median = stopwatch::median(&shares)?;
    ensure!(median < SHARE_LIMIT_MS, "our share is {shares:?} ms");
    // Its key says so only some looks after its promotion.
    wait::until("the old Patroni to say master, and to be shown as primary", SOON, async || {
        let said = key_of(&cluster, "pg1", "role").await?;
        let status = pointsman.status().await?;
        let shown = status.pointer("/clusters/0/status/members/0/role").cloned();
        ensure!(said == json!("master") && shown == Some(json!("primary")), "{said}, {shown:?}");
        Ok(())
    })
    .await?;
    // The old Patroni does not say whether its replicas stream, so they are taken.
    pointsman.wait_replicas(2).await?;
    ensure!(pointsman.log()?.contains("client=[::1]:"), "the log names no client by IPv6");
    a_list_of_hosts(&cluster, &pointsman, read, ports.at(4)).await
}

/// The words and addresses in the store are those that this test is about, and they are understood.
async fn said_and_understood(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let old = key_of(cluster, "pg1", "version").await?;
    let new = key_of(cluster, "pg3", "version").await?;
    let role = key_of(cluster, "pg1", "role").await?;
    let (url, api) = (key_of(cluster, "pg1", "conn_url").await?, key_of(cluster, "pg1", "api_url").await?);
    say(&format!("Patroni {old} at {api} says {role}, beside {new}; PostgreSQL at {url}"))?;
    ensure!(role == json!("master") && old != new, "that is no old one");
    ensure!([&url, &api].iter().all(|url| url.as_str().is_some_and(|url| url.contains("[::1]:"))));
    // Patroni's REST interface was asked, at its IPv6 address.
    let status = pointsman.status().await?;
    let by = status.pointer("/clusters/0/status/members/0/answer/status/role").cloned();
    ensure!(by == Some(json!("primary")), "its own word: {by:?}");
    Ok(())
}

/// A replica, the third member, is said to be at two hosts. Nobody listens at the first one.
async fn a_list_of_hosts(
    cluster: &Cluster,
    pointsman: &Pointsman,
    read: SocketAddr,
    replica: SocketAddr,
) -> Result<()> {
    let listed = format!("127.0.0.2,[::1]:{}", replica.port());
    let settings = json!({ "postgresql": { "connect_address": listed } });
    cluster.member("pg3")?.reconfigure(&settings)?;
    let addresses = wait::until("two addresses of the replica", SOON, async || {
        let status = pointsman.status().await?;
        let addresses = status.pointer("/clusters/0/status/members/2/addresses").cloned().unwrap_or_default();
        ensure!(addresses.as_array().is_some_and(|all| all.len() == 2), "{addresses}");
        Ok(addresses)
    })
    .await?;
    // Patroni puts its brackets around the whole list.
    let url = key_of(cluster, "pg3", "conn_url").await?;
    say(&format!("{listed} is written as {url} and read as {addresses}"))?;
    let reads = Clients::start(read, EVERY);
    reads.wait_served(20, SOON).await?;
    let reads = reads.finish().await;
    reads.check_none_failed(None)?;
    ensure!(reads.by_server().contains_key(&replica), "{:?}", reads.by_server());
    Ok(())
}
