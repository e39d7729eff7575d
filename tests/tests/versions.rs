//! Old and new Patroni: `master` and `primary` are one role, alone and side by side in one cluster; and members that are
//! reached by IPv6, or by the second of two hosts.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::pointsman::configuration;
use pointsman_tests::sql::Client;
use pointsman_tests::{
    Clients, Cluster, ClusterOptions, MemberOptions, Pointsman, Ports6, say, sql, stopwatch, tools, wait,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const CHANGE: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_millis(50);
/// What our part of an outage may be, on a busy machine.
const SHARE_LIMIT_MS: f64 = 300.0;

/// A switchover with clients, who must not notice more than that it takes a while.
async fn switch(cluster: &Cluster, write: SocketAddr, read: SocketAddr, candidate: &str) -> Result<()> {
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
    ensure!(verdict.share_ms < SHARE_LIMIT_MS, "our share is {:.1} ms", verdict.share_ms);
    reads.check_none_failed(None).context("reads")
}

/// What the store says of a member.
async fn key_of(cluster: &Cluster, name: &str, field: &str) -> Result<Value> {
    let key = cluster.get_key(&format!("members/{name}")).await?.context("it has no key")?;
    let key: Value = serde_json::from_str(&key)?;
    Ok(key.get(field).cloned().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_patroni_alone_and_beside_a_new_one() -> Result<()> {
    let old = MemberOptions { program: Some(tools::old_patroni()?), ..MemberOptions::default() };
    let options = ClusterOptions {
        loop_wait: Duration::from_secs(1),
        member_options: vec![old.clone(), old, MemberOptions::default()],
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(&options).await?;
    stopwatch::prepare(&cluster).await?;
    let pointsman = Pointsman::start(&cluster, 0).await?;
    pointsman.wait_replicas(2).await?;
    let old_version = key_of(&cluster, "pg1", "version").await?;
    let new_version = key_of(&cluster, "pg3", "version").await?;
    let old_role = key_of(&cluster, "pg1", "role").await?;
    say(&format!("Patroni {old_version} says {old_role}, beside {new_version}"))?;
    ensure!(old_role == json!("master") && old_version != new_version, "that is no old one");

    for candidate in ["pg2", "pg3", "pg1"] {
        switch(&cluster, pointsman.primary(), pointsman.replicas(), candidate).await?;
    }
    // Its key says so only some looks after its promotion.
    wait::until("the old Patroni to say master, and to be shown as primary", SOON, async || {
        let said = key_of(&cluster, "pg1", "role").await?;
        let status = pointsman.status().await?;
        let shown = status.pointer("/clusters/0/status/members/0/role").cloned();
        ensure!(said == json!("master") && shown == Some(json!("primary")), "{said}, {shown:?}");
        Ok(())
    })
    .await?;
    // It does not say whether its replicas stream, so they are taken.
    pointsman.wait_replicas(2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_on_ipv6_and_lists_of_hosts() -> Result<()> {
    let ports = Ports6::reserve()?;
    let at = |first: u16| MemberOptions {
        at: Some((ports.at(first), ports.at(first + 1))),
        ..MemberOptions::default()
    };
    let options = ClusterOptions {
        members: 2,
        loop_wait: Duration::from_secs(1),
        member_options: vec![at(0), at(2)],
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(&options).await?;
    stopwatch::prepare(&cluster).await?;
    let address = cluster.site.addresses.balancer(0);
    let text = configuration(address, &cluster.etcd.endpoints())
        .replace(&format!("\"{address}:5000\""), &format!("[\"{address}:5000\", \"{}\"]", ports.at(4)))
        .replace(&format!("\"{address}:5001\""), &format!("\"{}\"", ports.at(5)));
    let pointsman = Pointsman::start_with(&cluster.site, 0, &text).await?;
    let (write, read) = (ports.at(4), ports.at(5));
    let (url, api) = (key_of(&cluster, "pg1", "conn_url").await?, key_of(&cluster, "pg1", "api_url").await?);
    say(&format!("a member at {url}, its Patroni at {api}"))?;
    ensure!(
        [&url, &api].iter().all(|url| url.as_str().is_some_and(|url| url.contains("[::1]:"))),
        "{url} {api}"
    );

    sql::wait_led_to(read, ports.at(2), CHANGE).await?;
    sql::wait_led_to(write, ports.at(0), SOON).await?;
    let confirmed_by = async || -> Result<Value> {
        let status = pointsman.status().await?;
        Ok(status.pointer("/clusters/0/status/primary/confirmed_by").cloned().unwrap_or_default())
    };
    // Patroni's REST interface was asked, at its IPv6 address.
    ensure!(confirmed_by().await? == json!("rest"), "confirmed by {}", confirmed_by().await?);
    // The same listener, by IPv4.
    sql::wait_led_to(pointsman.primary(), ports.at(0), SOON).await?;
    let session = Client::connect(read, SOON).await?;
    switch(&cluster, write, read, "pg2").await?;
    sql::wait_led_to(read, ports.at(0), CHANGE).await?;
    session.reached().await.context("a read session on a promoted replica was lost")?;
    wait::until("the log to name an IPv6 client", SOON, async || {
        let log = pointsman.log()?;
        ensure!(log.contains("client=[::1]:"), "it does not");
        Ok(())
    })
    .await?;
    switch(&cluster, write, read, "pg1").await?;
    sql::wait_led_to(read, ports.at(2), CHANGE).await?;
    a_list_of_hosts(&cluster, &pointsman, &ports, read).await
}

/// The replica is said to be at two hosts. Nobody listens at the first one.
async fn a_list_of_hosts(
    cluster: &Cluster,
    pointsman: &Pointsman,
    ports: &Ports6,
    read: SocketAddr,
) -> Result<()> {
    let listed = format!("127.0.0.2,[::1]:{}", ports.at(2).port());
    cluster.member("pg2")?.reconfigure(&json!({ "postgresql": { "connect_address": listed } }))?;
    let addresses = wait::until("two addresses of the replica", SOON, async || {
        let status = pointsman.status().await?;
        let addresses = status.pointer("/clusters/0/status/members/1/addresses").cloned().unwrap_or_default();
        ensure!(addresses.as_array().is_some_and(|all| all.len() == 2), "{addresses}");
        Ok(addresses)
    })
    .await?;
    // Patroni puts its brackets around the whole list.
    let url = key_of(cluster, "pg2", "conn_url").await?;
    say(&format!("{listed} is written as {url} and read as {addresses}"))?;
    let reads = Clients::start(read, EVERY);
    reads.wait_served(20, SOON).await?;
    let reads = reads.finish().await;
    reads.check_none_failed(None)?;
    ensure!(reads.by_server().keys().all(|server| *server == ports.at(2)), "{:?}", reads.by_server());
    Ok(())
}
