//! The examples that need nothing but etcd, as they are, but for addresses: a database host behind a cloud's load balancer, and a
//! laptop. (The PROXY protocol of the former is not built yet, and left out.)

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::balancer::{Balancer, SOON};
use pointsman_tests::{Cluster, ClusterOptions, MemberOptions, say, sql, tools, wait};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_run() -> Result<()> {
    let zone = |zone| MemberOptions { tags: Some(json!({ "zone": zone })), ..MemberOptions::default() };
    let member_options = vec![zone("a"), zone("b")];
    let options = ClusterOptions { members: 2, etcd_nodes: 3, member_options, ..ClusterOptions::default() };
    let cluster = Cluster::start(&options).await?;
    behind_a_cloud_balancer(&cluster).await.context("3-cloud-balancer.toml")?;
    on_a_laptop(&cluster).await.context("5-laptop.toml")
}

/// An example's text, with each of these replaced; every one must be in it.
fn example(file: &str, replacements: &[(&str, &str)]) -> Result<String> {
    let path = tools::repository().join("config/examples").join(file);
    let mut text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for (from, to) in replacements {
        ensure!(text.contains(from), "{file} does not contain {from:?}");
        text = text.replace(from, to);
    }
    Ok(text)
}

/// Applications keep 5432 and get a 5433 for reads; the outer balancer asks 8404.
async fn behind_a_cloud_balancer(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.etcd.endpoints();
    let node = |index: usize| nodes.get(index).map(String::as_str).context("no etcd node");
    let text = example(
        "3-cloud-balancer.toml",
        &[
            ("http://10.0.0.21:2379", node(0)?),
            ("http://10.0.0.22:2379", node(1)?),
            ("http://10.0.0.23:2379", node(2)?),
            ("0.0.0.0", "HOST"),
            ("10.0.1.0/24", "127.0.0.0/8"),
            ("accept_proxy = true\n", ""),
        ],
    )?;
    let mut balancer = Balancer::new(&cluster.site).await?;
    balancer.write(&with_private_files(&text))?;
    balancer.start(&cluster.site)?;
    let (rw, ro, admin) = (balancer.port(5432), balancer.port(5433), balancer.port(8404));
    wait::until("the outer balancer's question to be answered", SOON, async || {
        let answer = pointsman_tests::http::get(admin, "/ready").await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        balancer.check_running()
    })
    .await
    .with_context(|| balancer.tail())?;
    for leader in [cluster.leader().await?, cluster.a_replica().await?] {
        if cluster.leader().await? != leader {
            cluster.switchover(&leader).await?;
            cluster.wait_ready().await?;
        }
        let replica = cluster.a_replica().await?;
        assert_eq!(sql::who(rw, SOON).await?.server, cluster.member(&leader)?.postgres());
        // The read port takes replicas of zone a only; pg2 is in zone b, and then the primary serves.
        let reader = if replica == "pg1" { &replica } else { &leader };
        let wanted = cluster.member(reader)?.postgres();
        wait::until(format!("reads to reach {reader} while {leader} leads"), SOON, async || {
            let server = sql::who(ro, SOON).await?.server;
            ensure!(server == wanted, "they reach {server}");
            Ok(())
        })
        .await
        .with_context(|| balancer.tail())?;
    }
    Ok(())
}

async fn on_a_laptop(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.etcd.endpoints();
    let node = nodes.first().context("no etcd node")?;
    let text = example(
        "5-laptop.toml",
        &[
            ("http://127.0.0.1:2379", node),
            ("[clusters.demo]", "[clusters.demo]\nscope = \"main\""),
            ("bind = \"127.0.0.1:", "bind = \"HOST:"),
        ],
    )?;
    let mut balancer = Balancer::new(&cluster.site).await?;
    balancer.write(&text)?;
    balancer.start(&cluster.site)?;
    balancer.wait_ready().await?;
    let (leader, replica) = (cluster.leader().await?, cluster.a_replica().await?);
    assert_eq!(sql::who(balancer.primary(), SOON).await?.server, cluster.member(&leader)?.postgres());
    let wanted = cluster.member(&replica)?.postgres();
    wait::until("reads to reach the replica", SOON, async || {
        let server = sql::who(balancer.replicas(), SOON).await?.server;
        ensure!(server == wanted, "they reach {server}");
        Ok(())
    })
    .await
    .with_context(|| balancer.tail())?;
    costs_in_peace(&balancer, 2.0).await
}

/// What a load balancer asks for in a minute in which nothing happens, against what HAProxy would: each member is checked every 3 s for each
/// of two listeners, which makes 40 requests to each Patroni.
async fn costs_in_peace(balancer: &Balancer, members: f64) -> Result<()> {
    let before = counters(balancer).await?;
    let began = Instant::now();
    // A rate needs its time.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let after = counters(balancer).await?;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let mut rates = before.iter().zip(after).map(|(before, after)| (after - before) / minutes);
    let mut rate = || rates.next().unwrap_or_default();
    let (store, rest, probes) = (rate(), rate(), rate());
    say(&format!(
        "in peace, a minute: {store:.0} to etcd, {rest:.0} to Patroni's REST, {probes:.0} probes of servers"
    ))?;
    ensure!(store < 70.0, "{store} requests a minute to etcd");
    ensure!(rest < 70.0 && rest < 40.0 * members, "{rest} questions a minute to Patroni");
    ensure!(probes < 33.0 * members, "{probes} probes a minute");
    Ok(())
}

async fn counters(balancer: &Balancer) -> Result<[f64; 3]> {
    let text = balancer.get("/metrics").await?.body;
    let sum = |name: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    Ok([
        sum("pointsman_store_requests_total"),
        sum("pointsman_questions_total"),
        sum("pointsman_probes_total"),
    ])
}

/// Several load balancers share this machine: each has its files in a directory of its own.
fn with_private_files(text: &str) -> String {
    format!("state_dir = \"state\"\n{}", text.replace("[admin]\n", "[admin]\nsocket = \"admin.sock\"\n"))
}
