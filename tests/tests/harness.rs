//! The harness against the real servers: what the other tests rely on.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::etcd::Etcd;
use pointsman_tests::{Addresses, Cluster, ClusterOptions, HaProxy, HaProxyChecks, MemberOptions, Site};
use pointsman_tests::{site, sql, stopwatch, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

/// The System V segments of the postmasters below `directory`.
fn shared_memory(cluster: &Cluster) -> Vec<String> {
    let file = |name: &str| cluster.site.directory().join(name).join("data/postmaster.pid");
    let last = |text: String| text.lines().nth(6)?.split_whitespace().last().map(str::to_owned);
    let members = cluster.members().iter();
    members.filter_map(|member| last(std::fs::read_to_string(file(member.name())).ok()?)).collect()
}

fn assert_nothing_left(directory: &Path, segments: &[String]) -> Result<()> {
    assert_eq!(site::processes_in(directory), [], "processes in {}", directory.display());
    assert!(!directory.exists(), "{} is still there", directory.display());
    let existing = std::fs::read_to_string("/proc/sysvipc/shm")?;
    let identifiers: Vec<_> = existing.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    for segment in segments {
        assert!(!identifiers.contains(&segment.as_str()), "shared memory segment {segment} is still there");
    }
    Ok(())
}

#[tokio::test]
async fn a_cluster_starts_switches_over_and_leaves_nothing() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::default()).await?;
    let old = cluster.leader().await?;
    assert_eq!(old, "pg1");
    for member in cluster.members() {
        let reached = sql::who(member.postgres(), SOON).await?;
        assert_eq!((reached.server, reached.in_recovery), (member.postgres(), member.name() != old));
    }
    let conninfo = cluster.member("pg2")?.conninfo();
    assert_eq!(sql::psql(&cluster.site.tools, &conninfo, "select pg_is_in_recovery()").await?, "t");

    stopwatch::prepare(&cluster).await?;
    cluster.switchover("pg3").await?;
    cluster.wait_leader("pg3", SOON).await?;
    stopwatch::first_write(cluster.member("pg3")?.postgres(), SOON).await?;
    cluster.wait_ready().await?;

    cluster.pause().await?;
    cluster.resume().await?;

    let (directory, segments) = (cluster.site.directory().to_owned(), shared_memory(&cluster));
    assert_eq!(segments.len(), 3);
    assert!(site::processes_in(&directory).len() > 10);
    drop(cluster);
    assert_nothing_left(&directory, &segments)
}

#[tokio::test]
async fn a_killed_member_is_replaced_and_comes_back() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions { members: 2, ..ClusterOptions::default() }).await?;
    // Etcd first: without it Patroni has nobody to tell.
    cluster.etcd.kill(0).await?;
    cluster.etcd.get("any").await.unwrap_err();
    cluster.restart_etcd(0).await?;
    cluster.etcd.wait_all_ready().await?;
    cluster.etcd.freeze(0)?;
    cluster.etcd.get("any").await.unwrap_err();
    cluster.etcd.thaw(0)?;
    cluster.put_key("test", "value").await?;
    assert_eq!(cluster.etcd.get("/service/main/test").await?.as_deref(), Some("value"));
    cluster.wait_ready().await?;

    let old = cluster.leader().await?;
    cluster.kill_member(&old).await?;
    sql::who(cluster.member(&old)?.postgres(), SOON).await.unwrap_err();
    let new = cluster.wait_other_leader(&old, Duration::from_secs(60)).await?;
    cluster.restart_member(&old).await?;
    cluster.wait_ready().await?;

    cluster.freeze_member(&old)?;
    sql::who(cluster.member(&old)?.postgres(), Duration::from_secs(1)).await.unwrap_err();
    cluster.thaw_member(&old)?;
    cluster.wait_ready().await?;
    let before = cluster.member(&new)?.postmaster()?;
    cluster.crash_postgres(&new)?;
    wait::until("the crashed server to be started again", Duration::from_secs(60), async || {
        let now = cluster.member(&new)?.postmaster()?;
        ensure!(now != before, "still the old postmaster.pid");
        sql::who(cluster.member(&new)?.postgres(), SOON).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn options_reach_patroni() -> Result<()> {
    let plain = MemberOptions::default();
    let tagged = MemberOptions { tags: Some(json!({ "noloadbalance": true })), ..MemberOptions::default() };
    let cluster = Cluster::start(&ClusterOptions {
        members: 2,
        synchronous_mode: json!(true),
        failsafe_mode: true,
        member_options: vec![plain, tagged],
        ..ClusterOptions::default()
    })
    .await?;
    let key = async |name: &str| -> Result<serde_json::Value> {
        let text = cluster.etcd.get(&format!("/service/main/{name}")).await?;
        Ok(serde_json::from_str(&text.with_context(|| format!("there is no key {name}"))?)?)
    };
    assert_eq!(key("members/pg2").await?.pointer("/tags/noloadbalance"), Some(&json!(true)));
    let config = key("config").await?;
    assert_eq!((config.get("ttl"), config.get("failsafe_mode")), (Some(&json!(20)), Some(&json!(true))));
    wait::until("pg2 to become the synchronous standby", SOON, async || {
        let sync = key("sync").await?;
        ensure!(sync.get("sync_standby") == Some(&json!("pg2")), "{sync}");
        Ok(())
    })
    .await?;
    // A cluster is not ready while one of its members could not lead next.
    cluster.put_key("failsafe", "{\"pg1\":\"https://127.0.0.1:1\"}").await?;
    cluster.wait_ready().await?;
    assert!(key("failsafe").await?.get("pg2").is_some());
    Ok(())
}

#[tokio::test]
async fn three_etcd_nodes_outlive_one() -> Result<()> {
    let site = Site::new(Addresses::reserve()?)?;
    let mut etcd = Etcd::start(&site, 0, 3, None).await?;
    etcd.put("key", "one").await?;
    etcd.kill(0).await?;
    wait::until("a write without the killed node", SOON, async || etcd.put("key", "two").await).await?;
    etcd.restart(&site, 0).await?;
    etcd.wait_all_ready().await?;
    etcd.freeze(1)?;
    wait::until("a read without the frozen node", SOON, async || {
        assert_eq!(etcd.get("key").await?.as_deref(), Some("two"));
        Ok(())
    })
    .await?;
    etcd.thaw(1)?;
    etcd.wait_all_ready().await?;
    etcd.delete("key").await?;
    assert_eq!(etcd.get("key").await?, None);
    Ok(())
}

#[tokio::test]
async fn haproxy_serves_the_primary() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions { members: 2, ..ClusterOptions::default() }).await?;
    let haproxy = HaProxy::start(&cluster, HaProxyChecks::Tuned).await?;
    let reached = sql::who(haproxy.primary(), SOON).await?;
    assert_eq!((reached.server, reached.in_recovery), (cluster.leader_address().await?, false));
    Ok(())
}

/// The part of a test program that dies without a chance to clean up.
#[tokio::test]
#[ignore = "started by `nothing_is_left_when_the_test_program_is_killed`"]
async fn victim() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions { members: 1, ..ClusterOptions::default() }).await?;
    let mut output = std::io::stdout();
    writeln!(
        output,
        "\nvictim {} {}",
        cluster.site.directory().display(),
        shared_memory(&cluster).join(" ")
    )?;
    output.flush()?;
    std::future::pending().await
}

#[tokio::test]
async fn nothing_is_left_when_the_test_program_is_killed() -> Result<()> {
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(victim.stdout.take().context("no output")?);
    let line =
        output.lines().map_while(Result::ok).find_map(|line| line.strip_prefix("victim ").map(str::to_owned));
    let started = line.context("the victim said nothing")?;
    let mut words = started.split(' ');
    let directory = PathBuf::from(words.next().context("no directory")?);
    let segments: Vec<_> = words.map(str::to_owned).collect();
    assert!(site::processes_in(&directory).len() > 3);
    victim.kill()?;
    victim.wait()?;
    wait::until("the cleaner to be done", SOON, async || {
        ensure!(!directory.exists(), "{} is still there", directory.display());
        Ok(())
    })
    .await?;
    assert_nothing_left(&directory, &segments)
}

#[tokio::test]
async fn nothing_is_left_after_a_panic() -> Result<()> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let panicked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cluster =
                Cluster::start(&ClusterOptions { members: 1, ..ClusterOptions::default() }).await.unwrap();
            sender.send((cluster.site.directory().to_owned(), shared_memory(&cluster))).unwrap();
            panic!("as a failed assertion does");
        });
    });
    let joined = tokio::task::spawn_blocking(move || panicked.join()).await?;
    joined.unwrap_err();
    let (directory, segments) = receiver.recv()?;
    assert_eq!(segments.len(), 1);
    assert_nothing_left(&directory, &segments)
}
