//! Nonsense in the store: shown, logged once, and of no effect on anybody who connects.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::clients::Served;
use pointsman_tests::sql::Client;
use pointsman_tests::{Clients, Cluster, ClusterOptions, Pointsman, sql, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_millis(50);
/// Nobody has to wait because of what is written here.
const SLOW: Duration = Duration::from_secs(2);
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_in_the_store_is_shown_and_harms_nobody() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::default()).await?;
    let pointsman = Pointsman::start(&cluster, 0).await?;
    pointsman.wait_replicas(2).await?;

    let watchers = Watchers::start(&pointsman).await?;
    members_that_do_not_exist(&cluster, &pointsman).await?;
    let (leader, replica) = (cluster.leader().await?, cluster.a_replica().await?);
    let (leader, replica) = (format!("members/{leader}"), format!("members/{replica}"));
    for (key, value) in [
        (leader.as_str(), r#"{"conn_url":"postgres://127.0.0.1:54"#),
        (leader.as_str(), r#"{"conn_url":""}"#),
        (leader.as_str(), ""),
        (replica.as_str(), r#"{"conn_url":"garbage"}"#),
        (replica.as_str(), &"x".repeat(1 << 20)),
        ("history", "[[1,\"a\",3],7]"),
        ("sync", "[]"),
        ("failover", "{\"leader\":"),
    ] {
        patronis_own_key(&cluster, &pointsman, key, value)
            .await
            .with_context(|| format!("{key} = {value:.40}"))?;
    }
    switchovers_that_do_not_come(&cluster, &pointsman).await?;
    watchers.finish(&pointsman).await?.check_role(true)?;

    // These put Patroni itself out: its replicas may cease to stream for a moment, and reads fall back to the primary.
    let watchers = Watchers::start(&pointsman).await?;
    for (key, value) in [("status", "\u{0}\u{1}garbage"), ("config", "{\"ttl\":")] {
        patronis_own_key(&cluster, &pointsman, key, value)
            .await
            .with_context(|| format!("{key} = {value:.40}"))?;
    }
    the_leader_key(&cluster, &pointsman).await?;
    watchers.finish(&pointsman).await.map(drop)
}

/// A session on each port that is held through everything, and new ones all the time.
struct Watchers {
    write: Client,
    read: Client,
    writes: Clients,
    reads: Clients,
    /// Past the proxy: the machine's pace.
    direct: Clients,
}

impl Watchers {
    async fn start(pointsman: &Pointsman) -> Result<Self> {
        let write = Client::connect(pointsman.primary(), SOON).await?;
        let primary = write.reached().await?.server;
        Ok(Self {
            write,
            read: Client::connect(pointsman.replicas(), SOON).await?,
            writes: Clients::start(pointsman.primary(), EVERY),
            reads: Clients::start(pointsman.replicas(), EVERY),
            direct: Clients::start(primary, EVERY * 4),
        })
    }

    /// Nobody was lost, refused or had to wait, and writes reached the primary. Answers the reads.
    async fn finish(self, pointsman: &Pointsman) -> Result<Served> {
        self.writes.wait_served(5, SOON).await?;
        self.reads.wait_served(5, SOON).await?;
        self.write.reached().await.context("the session on the write port was lost")?;
        self.read.reached().await.context("the session on the read port was lost")?;
        let (writes, reads) = (self.writes.finish().await, self.reads.finish().await);
        let direct = self.direct.finish().await;
        for (port, served) in [("write", &writes), ("read", &reads)] {
            let none = served.check_none_failed(None);
            none.with_context(|| format!("{port} port\n{}", pointsman.server().tail()))?;
            let none = served.check_none_waited(SLOW, &direct);
            none.with_context(|| format!("{port} port\n{}", pointsman.server().tail()))?;
        }
        writes.check_role(false)?;
        Ok(reads)
    }
}

/// Keys of members of which Patroni knows nothing, and which it leaves alone.
async fn members_that_do_not_exist(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let url = |url: &str| {
        json!({ "conn_url": url, "role": "replica", "state": "running", "timeline": 1, "xlog_location": 1 })
            .to_string()
    };
    let wrong = [
        ("half", r#"{"conn_url":"postgres://127."#.to_owned()),
        ("empty", String::new()),
        ("list", "[1,2,3]".to_owned()),
        ("text", "\"postgres://127.0.0.1:5432/postgres\"".to_owned()),
        ("garbage", url("what is this?")),
        ("bad-port", url("postgres://127.0.0.1:99999/postgres")),
        ("bad-bracket", url("postgres://[::1:5432/postgres")),
        ("deep", "[".repeat(100_000)),
        ("megabyte", url(&format!("postgres://{}:5432/postgres", "x".repeat(1 << 20)))),
    ];
    // Read as libpq would; nobody answers there.
    let dead = cluster.site.addresses.other(7);
    let understood = [
        ("no-port", url(&format!("postgres://{dead}/postgres"))),
        ("hosts", url(&format!("postgres://{dead}:1,{dead}:2/postgres"))),
        ("ipv6", url("postgres://[::1]:1/postgres")),
        ("unreachable", url(&format!("postgres://{dead}:9/postgres"))),
    ];
    for (name, value) in wrong.iter().chain(&understood) {
        cluster
            .put_key(&format!("members/{name}"), value)
            .await
            .with_context(|| format!("writing members/{name}"))?;
    }
    for (name, _) in &wrong {
        shown(pointsman, &format!("members/{name}")).await?;
    }
    wait::until("members that nobody reaches to be taken for down", SOON, async || {
        let status = pointsman.status().await?;
        let members =
            status.pointer("/clusters/0/status/members").and_then(Value::as_array).context("no members")?;
        for (name, _) in &understood {
            let member = members.iter().find(|member| member.get("name").is_some_and(|known| known == name));
            let health = member.with_context(|| format!("{name} is not listed"))?.get("health");
            ensure!(health.is_some_and(|health| health == "down"), "{name} is {health:?}");
        }
        Ok(())
    })
    .await?;
    for (name, _) in wrong.iter().chain(&understood) {
        cluster.etcd.delete(&format!("/service/main/members/{name}")).await?;
    }
    for (name, _) in &wrong {
        let key = format!("members/{name}");
        cleared(pointsman, &key).await?;
        let lines = pointsman.log()?.lines().filter(|line| line.contains(&key)).count();
        ensure!(lines == 1, "{key} is named in {lines} lines of the log");
    }
    Ok(())
}

/// A key that Patroni reads and writes itself: the nonsense lives for as long as it takes us to say so.
async fn patronis_own_key(cluster: &Cluster, pointsman: &Pointsman, key: &str, value: &str) -> Result<()> {
    let full = format!("/service/main/{key}");
    let before = cluster.etcd.get(&full).await?;
    let lines = pointsman.log()?.lines().count();
    let says = format!("the store's key {key} could not be understood");
    let said = |log: &str| log.lines().skip(lines).filter(|line| line.contains(&says)).count();
    cluster.put_key(key, value).await?;
    // Not asked of the status: Patroni may have put it right before we come.
    wait::until(format!("a line about {key} in the log"), SOON, async || {
        ensure!(said(&pointsman.log()?) > 0, "there is none");
        Ok(())
    })
    .await?;
    if cluster.etcd.get(&full).await?.as_deref() == Some(value) {
        match before {
            Some(good) => cluster.etcd.put(&full, &good).await?,
            None => cluster.etcd.delete(&full).await?,
        }
    }
    cleared(pointsman, key).await?;
    let lines = said(&pointsman.log()?);
    ensure!(lines == 1, "{lines} lines about one value");
    Ok(())
}

/// New write sessions wait for a switchover only when one can be under way.
async fn switchovers_that_do_not_come(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let leader = cluster.leader().await?;
    let candidate = cluster.a_replica().await?;
    let lines = pointsman.log()?.lines().count();
    for announcement in [
        json!({ "leader": leader, "member": candidate, "scheduled_at": "2099-01-01T00:00:00+00:00" }),
        json!({ "leader": "somebody", "member": candidate }),
        // Patroni refuses these at its next look, up to a `loop_wait` later. Nobody waits for that.
        json!({ "leader": leader, "member": "nobody" }),
        json!({ "leader": leader, "member": leader }),
    ] {
        cluster.put_key("failover", &announcement.to_string()).await?;
        for _ in 0..20 {
            let reached = sql::who(pointsman.primary(), SOON).await;
            reached.with_context(|| format!("while {announcement} is announced"))?;
        }
        cluster.etcd.delete("/service/main/failover").await?;
    }
    let log = pointsman.log()?;
    let held = log.lines().skip(lines).find(|line| line.contains("new sessions wait for it"));
    ensure!(held.is_none(), "{held:?}");
    Ok(())
}

/// The leader key. Patroni would demote its primary at once; paused, it leaves it alone, and so must we.
async fn the_leader_key(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    cluster.pause().await?;
    for value in ["", "somebody", "\u{0}", &"x".repeat(1 << 20)] {
        cluster.put_key("leader", value).await?;
        shown(pointsman, "leader").await.with_context(|| format!("leader = {value:.40?}"))?;
        let reached = sql::who(pointsman.primary(), SOON).await?;
        ensure!(!reached.in_recovery, "leader = {value:.40?} led to {reached:?}");
    }
    cluster.etcd.delete("/service/main/leader").await?;
    cleared(pointsman, "leader").await?;
    wait::until("the primary to take its key back", SOON, async || cluster.leader().await).await?;
    cluster.resume().await?;
    cluster.wait_ready().await
}

// ---- Small things ----------------------------------------------------------------------------------------------------

async fn shown(pointsman: &Pointsman, key: &str) -> Result<()> {
    wait::until(format!("a complaint about {key}"), SOON, async || {
        pointsman.complaint(key).await?.map(drop).context("there is none")
    })
    .await
}

async fn cleared(pointsman: &Pointsman, key: &str) -> Result<()> {
    wait::until(format!("no complaint about {key} any more"), SOON, async || {
        let complaint = pointsman.complaint(key).await?;
        ensure!(complaint.is_none(), "{complaint:?}");
        Ok(())
    })
    .await
}
