//! Two clusters behind one process: the second first follows the first one (a standby cluster), then goes its own way.
//! What happens to one is not noticed by the clients of the other.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::sql::Client;
use pointsman_tests::{Clients, Cluster, ClusterOptions, Pointsman, http, say, sql, stopwatch, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
/// Some of Patroni's looks, and a restart of PostgreSQL.
const CHANGE: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_millis(50);
/// Nobody may wait as long as this for the other cluster's sake.
const SLOW: Duration = Duration::from_secs(1);
/// What may pass between a change in the store and the moment at which we look: the machine is busy.
const NOTICE: Duration = Duration::from_millis(200);
const SECOND: &str = "second";

/// Both clusters, and one process in front of them.
struct Place {
    first: Cluster,
    second: Cluster,
    pointsman: Pointsman,
    address: Ipv4Addr,
}

impl Place {
    async fn start() -> Result<Self> {
        let options =
            ClusterOptions { members: 2, loop_wait: Duration::from_secs(1), ..ClusterOptions::default() };
        let first = Cluster::start(&options).await?;
        stopwatch::prepare(&first).await?;
        let followed = followed(&first).await?;
        let options = ClusterOptions {
            scope: SECOND.to_owned(),
            place: 1,
            dynamic: json!({ "standby_cluster": followed }),
            ..options
        };
        let second = first.start_beside(&options).await?;
        let address = first.site.addresses.balancer(0);
        let text = both(address, &first, &second);
        let pointsman = Pointsman::start_with(&first.site, 0, &text).await?;
        Ok(Self { first, second, pointsman, address })
    }

    fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address, port))
    }

    /// The write port of the second cluster.
    fn second_primary(&self) -> SocketAddr {
        self.port(5010)
    }

    fn second_replicas(&self) -> SocketAddr {
        self.port(5011)
    }

    /// A part of the second cluster's status.
    async fn second_status(&self, pointer: &str) -> Result<Value> {
        let status = self.pointsman.status().await?;
        let clusters = status.pointer("/clusters").and_then(Value::as_array).context("no clusters")?;
        let named = |cluster: &&Value| cluster.pointer("/status/cluster") == Some(&json!(SECOND));
        let second = clusters.iter().find(named).context("the second cluster is not shown")?;
        Ok(second.pointer(&format!("/status{pointer}")).cloned().unwrap_or_default())
    }

    async fn wait_second(&self, pointer: &str, wanted: Value) -> Result<()> {
        wait::until(format!("{pointer} of the second cluster to be {wanted}"), CHANGE, async || {
            let found = self.second_status(pointer).await?;
            ensure!(found == wanted, "it is {found}");
            Ok(())
        })
        .await
        .with_context(|| self.pointsman.server().tail())
    }

    /// Another configuration, by SIGHUP.
    async fn reload(&self, text: &str) -> Result<()> {
        std::fs::write(self.pointsman.server().directory().join("pointsman.toml"), text)?;
        let outcome = async || Ok(self.pointsman.status().await?.pointer("/process/reload").cloned());
        let before: Result<_> = outcome().await;
        let before = before?;
        self.pointsman.signal(Signal::HUP)?;
        wait::until("the reload", SOON, async || {
            let now: Result<_> = outcome().await;
            let now = now?;
            ensure!(now != before, "no news of it");
            let ok = now.as_ref().and_then(|now| now.get("ok")).cloned();
            ensure!(ok == Some(json!(true)), "{now:?}");
            Ok(())
        })
        .await
    }
}

/// `standby_cluster`: where the second cluster finds the first one's primary.
async fn followed(first: &Cluster) -> Result<Value> {
    let primary = first.leader_address().await?;
    Ok(json!({
        "host": primary.ip().to_string(),
        "port": primary.port(),
        "create_replica_methods": ["basebackup"],
    }))
}

fn one(address: Ipv4Addr, first: &Cluster) -> String {
    let endpoints = first.etcd.endpoints();
    format!(
        r#"[clusters.main]
discovery = {{ etcd = {{ endpoints = {endpoints:?} }} }}

[[listeners]]
bind = "{address}:5000"
cluster = "main"
target = "primary"

[[listeners]]
bind = "{address}:5001"
cluster = "main"
target = "replicas"

[admin]
bind = "{address}:7000"
socket = "admin.sock"
"#
    )
}

fn both(address: Ipv4Addr, first: &Cluster, second: &Cluster) -> String {
    let endpoints = second.etcd.endpoints();
    let more = format!(
        r#"
[clusters.{SECOND}]
discovery = {{ etcd = {{ endpoints = {endpoints:?} }} }}

[[listeners]]
name = "second-primary"
bind = "{address}:5010"
cluster = "{SECOND}"
target = "primary"

[[listeners]]
name = "second-replicas"
bind = "{address}:5011"
cluster = "{SECOND}"
target = "replicas"
"#
    );
    one(address, first) + &more
}

/// Clients of one cluster that must not notice what happens to the other.
struct Bystanders {
    session: Client,
    writes: Clients,
    reads: Clients,
}

impl Bystanders {
    async fn start(pointsman: &Pointsman) -> Result<Self> {
        let bystanders = Self {
            session: Client::connect(pointsman.primary(), SOON).await?,
            writes: Clients::start(pointsman.primary(), EVERY),
            reads: Clients::start(pointsman.replicas(), EVERY),
        };
        bystanders.writes.wait_served(5, SOON).await?;
        Ok(bystanders)
    }

    async fn noticed_nothing(self, of: &str) -> Result<()> {
        self.session.reached().await.with_context(|| format!("{of}: the session was lost"))?;
        for (port, clients, in_recovery) in [("write", self.writes, false), ("read", self.reads, true)] {
            clients.wait_served(3, SOON).await?;
            let served = clients.finish().await;
            say(&format!(
                "{of}: {} others at the {port} port, the slowest took {:?}",
                served.0.len(),
                served.slowest()
            ))?;
            served.check_none_failed(None).with_context(|| format!("{of}: {port} port"))?;
            served.check_role(in_recovery).with_context(|| format!("{of}: {port} port"))?;
            ensure!(served.slowest() < SLOW, "{of}: {port} port: {:?}", served.slowest());
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_behind_one_process() -> Result<()> {
    let place = Place::start().await?;
    place.pointsman.wait_replicas(1).await?;
    let bystanders = Bystanders::start(&place.pointsman).await?;
    a_standby_cluster_serves_reads(&place).await.context("a standby cluster")?;
    it_is_promoted(&place).await.context("its promotion")?;
    each_is_shown_as_itself(&place).await?;
    it_goes_and_comes_back(&place).await.context("reload")?;
    it_becomes_a_standby_cluster(&place).await.context("its demotion")?;
    bystanders.noticed_nothing("the other cluster is promoted, taken away, brought back, demoted").await?;
    let mut place = place;
    the_store_of_the_other_hangs(&mut place).await.context("the second cluster's store hangs")
}

// ---- A standby cluster -----------------------------------------------------------------------------------------------

/// It has no primary, and says so at once; its leader is one of its replicas.
async fn a_standby_cluster_serves_reads(place: &Place) -> Result<()> {
    place.wait_second("/primary/why_not/reason", json!("standby-cluster")).await?;
    refused_at_once(place).await?;
    serves_reads(place).await?;
    let leader = place.second.leader().await?;
    let roles = place.second_status("/members").await?;
    let roles = roles.as_array().context("no members")?.iter();
    let role = roles.filter(|member| member.get("name") == Some(&json!(leader))).find_map(|m| m.get("role"));
    ensure!(role == Some(&json!("standby-leader")), "{leader} is shown as {role:?}");
    Ok(())
}

/// All its members do, its leader too.
async fn serves_reads(place: &Place) -> Result<()> {
    wait::until("both members to serve reads", CHANGE, async || {
        let clients = Clients::start(place.second_replicas(), EVERY / 5);
        clients.wait_served(20, SOON).await?;
        let served = clients.finish().await;
        served.check_none_failed(None)?;
        served.check_role(true)?;
        ensure!(served.by_server().len() == 2, "{:?}", served.by_server());
        Ok(())
    })
    .await
    .with_context(|| place.pointsman.server().tail())
}

async fn refused_at_once(place: &Place) -> Result<()> {
    let begun = Instant::now();
    let error = sql::psql_error(&place.first.site.tools, place.second_primary()).await;
    let took = begun.elapsed();
    say(&format!("the write port of a standby cluster, after {took:?}: {error}"))?;
    ensure!(error.contains("FATAL") && error.contains("this is a standby cluster"), "{error}");
    ensure!(error.contains("HINT") && error.contains("connect to the cluster that it follows"), "{error}");
    ensure!(took < SLOW, "it took {took:?}");
    let refused = Client::connect(place.second_primary(), SOON).await;
    let refused = refused.err().context("it was served")?;
    let refused = refused.downcast::<tokio_postgres::Error>()?;
    ensure!(refused.code().is_some_and(|code| code.code() == "57P03"), "{refused:?}");
    Ok(())
}

/// `standby_cluster` is taken out of its configuration. Who comes before its leader takes writes is held.
async fn it_is_promoted(place: &Place) -> Result<()> {
    let leader = place.second.leader_address().await?;
    let written = stopwatch::first_write(leader, CHANGE);
    let served = async {
        place.second.configure(&json!({ "standby_cluster": null })).await?;
        place.wait_second("/settings/standby_cluster", json!(false)).await?;
        let reached = sql::who(place.second_primary(), CHANGE).await?;
        Ok((reached, Instant::now()))
    };
    let (written, (reached, served)) = tokio::try_join!(written, served)?;
    ensure!(!reached.in_recovery && reached.server == leader, "{reached:?}");
    let share = stopwatch::signed_ms(written, served);
    say(&format!("promoted: the first client was served {share:.1} ms after the first write that it took"))?;
    ensure!(share < NOTICE.as_secs_f64() * 1000.0, "our share is {share:.1} ms");
    place.second.wait_ready().await
}

/// `standby_cluster` is set again: its sessions are cut before it knows itself, and nobody waits for what will not come.
async fn it_becomes_a_standby_cluster(place: &Place) -> Result<()> {
    let session = Client::connect(place.second_primary(), CHANGE).await?;
    let followed = followed(&place.first).await?;
    let begun = Instant::now();
    place.second.configure(&json!({ "standby_cluster": followed })).await?;
    let ended = session.ended(SOON).await?;
    say(&format!("demoted: the write session was cut {:?} after it was ordered", ended - begun))?;
    refused_at_once(place).await?;
    place.wait_second("/settings/standby_cluster", json!(true)).await?;
    let log = place.pointsman.log()?;
    let cut = |line: &&str| line.contains("listener=second-primary") && line.contains("reason=\"demoted\"");
    ensure!(log.lines().any(|line| cut(&line)), "no session was cut by us");
    // It goes back to the timeline of the cluster that it follows, below the one that it had begun itself.
    place.second.wait_ready().await?;
    serves_reads(place).await?;
    say(&format!("demoted: both members serve reads again {:?} after it was ordered", begun.elapsed()))
}

// ---- Two clusters ----------------------------------------------------------------------------------------------------

/// Metrics, notes and members carry the name of their cluster.
async fn each_is_shown_as_itself(place: &Place) -> Result<()> {
    let metrics = http::get(place.pointsman.admin(), "/metrics").await?.body;
    for cluster in ["main", SECOND] {
        for line in [
            "pointsman_store_connected",
            "pointsman_store_revision",
            "pointsman_members",
            "pointsman_primary_state",
        ] {
            let wanted =
                |have: &&str| have.starts_with(line) && have.contains(&format!("cluster=\"{cluster}\""));
            ensure!(metrics.lines().any(|have| wanted(&have)), "no {line} of {cluster}");
        }
    }
    let log = place.pointsman.log()?;
    for cluster in ["main", SECOND] {
        let told = |line: &str| {
            line.contains("kind=\"primary-confirmed\"") && line.contains(&format!("cluster={cluster} "))
        };
        ensure!(log.lines().any(told), "the primary of {cluster} was never told of");
    }
    Ok(())
}

/// The second cluster's store hangs while the first one changes its leader.
async fn the_store_of_the_other_hangs(place: &mut Place) -> Result<()> {
    place.second.etcd.freeze(0)?;
    let result = a_switchover_beside_a_sick_store(place).await;
    place.second.etcd.thaw(0)?;
    result?;
    place.wait_second("/store/state", json!("alive")).await?;
    serves_reads(place).await?;
    let log = place.pointsman.log()?;
    let lost: Vec<_> = log.lines().filter(|line| line.contains("kind=\"store-lost\"")).collect();
    ensure!(!lost.is_empty() && lost.iter().all(|line| line.contains("cluster=second ")), "{lost:?}");
    Ok(())
}

async fn a_switchover_beside_a_sick_store(place: &Place) -> Result<()> {
    place.wait_second("/store/state", json!("lost")).await?;
    // What was known of it is still true.
    refused_at_once(place).await?;
    sql::who(place.second_replicas(), SLOW).await?;
    let ready = http::get(place.pointsman.admin(), "/ready").await?;
    ensure!(ready.status == 200, "/ready: {} {}", ready.status, ready.body);
    place.first.wait_ready().await?;
    let candidate = place.first.a_replica().await?;
    let ports = [("pointsman", place.pointsman.primary())];
    let measured = stopwatch::measure_switchover(&place.first, &ports, &candidate).await?;
    for verdict in &measured.verdicts {
        say(&format!("{verdict}"))?;
        ensure!(verdict.failed == 0 && verdict.wrong_role == 0, "{:?}", verdict.errors);
        ensure!(verdict.share_ms < NOTICE.as_secs_f64() * 1000.0, "our share is {:.1} ms", verdict.share_ms);
    }
    let state = place.pointsman.status().await?.pointer("/clusters/0/status/store/state").cloned();
    ensure!(state == Some(json!("alive")), "the first cluster's store is {state:?}");
    place.first.wait_ready().await?;
    place.pointsman.wait_replicas(1).await
}

/// The file without the second cluster, and with it again.
async fn it_goes_and_comes_back(place: &Place) -> Result<()> {
    let session = Client::connect(place.second_primary(), CHANGE).await?;
    place.reload(&one(place.address, &place.first)).await?;
    ensure!(sql::who(place.second_primary(), SOON).await.is_err(), "its port is still served");
    session.reached().await.context("its session was cut")?;
    ensure!(place.second_status("").await.is_err(), "it is still shown");
    let metrics = http::get(place.pointsman.admin(), "/metrics").await?.body;
    let left: Vec<_> = metrics
        .lines()
        .filter(|line| line.starts_with("pointsman_store") && line.contains("cluster=\"second\""))
        .collect();
    ensure!(left.is_empty(), "it is still in the metrics: {left:?}");

    place.reload(&both(place.address, &place.first, &place.second)).await?;
    let leader = place.second.leader_address().await?;
    sql::wait_led_to(place.second_primary(), leader, SOON).await?;
    session.reached().await.context("its session was cut").map(drop)
}
