//! No store can be reached from the load balancer: it knows the cluster by Patroni's REST interface alone, over TLS with
//! client certificates and a password. One cluster, and everything that can happen to it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::clients::Served;
use pointsman_tests::sql::Client;
use pointsman_tests::{
    Addresses, Clients, Cluster, ClusterOptions, Pki, Pointsman, Site, say, sql, stopwatch, wait,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
/// Patroni's ttl, the election, and room for a busy machine.
const FAILOVER: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_millis(50);
/// No connection may wait as long as this, where none has to wait at all.
const SLOW: Duration = Duration::from_secs(2);
/// How long what is broken stays so, where nothing else says when it has been long enough.
const BROKEN: Duration = Duration::from_secs(5);
/// The most that our share of a switchover may be, beside what the machine takes for it at its present pace.
const SHARE_LIMIT_MS: f64 = 250.0;
/// How long requests are counted in peace.
const PEACE: Duration = Duration::from_secs(30);
/// How often, until there has been peace.
const ROUNDS: u32 = 3;
/// HAProxy: three checks of each of three members each 3 s, for each of two listeners.
const HAPROXY_REQUESTS_PER_MINUTE: f64 = 120.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patroni_alone_is_enough() -> Result<()> {
    let site = Site::new(Addresses::reserve()?)?;
    let (options, configuration) = over_tls(&site)?;
    let mut cluster = Cluster::start_in(site, &options).await?;
    stopwatch::prepare(&cluster).await?;
    let pointsman = with_patronis_defaults(&cluster, &configuration).await?;
    requests_in_peace(&cluster, &pointsman).await?;

    cluster.configure(&json!({ "ttl": 20, "loop_wait": 3, "retry_timeout": 5 })).await?;
    a_switchover(&cluster, &pointsman, "switchover").await?;
    a_member_hangs(&cluster, &pointsman).await?;
    one_patroni_fails(&mut cluster, &pointsman).await?;
    every_patroni_hangs(&cluster, &pointsman).await?;
    every_patroni_restarts(&mut cluster, &pointsman).await?;
    the_store_behind_hangs(&mut cluster, &pointsman).await?;
    the_primary_dies(&mut cluster, &pointsman).await?;
    the_patroni_of_the_primary_dies(&mut cluster, &pointsman).await
}

/// A cluster that wants certificates and a password, and how to ask it.
fn over_tls(site: &Site) -> Result<(ClusterOptions, String)> {
    let pki = Pki::new(site, "pki")?;
    let members: Vec<_> = (0..3).map(|index| site.addresses.member(0, index)).collect();
    let addresses: Vec<_> = members.iter().map(|address| (*address).into()).collect();
    pki.leaf(site, "patroni", &addresses, &[])?;
    pki.leaf(site, "balancer", &[], &["balancer"])?;
    let (ca, cert, key) = (pki.path("ca.pem"), pki.path("patroni.pem"), pki.path("patroni.key"));
    let patroni = json!({
        "restapi": {
            "certfile": cert, "keyfile": key, "cafile": ca, "verify_client": "required",
            "authentication": { "username": "admin", "password": "for Patroni" },
        },
        "ctl": { "cacert": ca, "certfile": cert, "keyfile": key },
        // It says there what it is asked.
        "log": { "loggers": { "patroni.api": "DEBUG" } },
    });
    std::fs::write(pki.path("password"), "for Patroni\n")?;
    let members: Vec<String> = members.iter().map(|address| format!("{address}:8008")).collect();
    let address = site.addresses.balancer(0);
    let configuration = format!(
        r#"[clusters.main]
rest = {{ tls = {{ ca = "{ca}", cert = "{cert}", key = "{key}" }}, user = "admin", password_file = "{password}" }}
discovery = {{ patroni = {{ members = {members:?} }} }}

[[listeners]]
bind = "{address}:5000"
target = "primary"

[[listeners]]
bind = "{address}:5001"
target = "replicas"

[admin]
bind = "{address}:7000"
socket = "admin.sock"
"#,
        ca = ca.display(),
        cert = pki.path("balancer.pem").display(),
        key = pki.path("balancer.key").display(),
        password = pki.path("password").display(),
    );
    Ok((ClusterOptions { failsafe_mode: true, patroni, ..ClusterOptions::default() }, configuration))
}

/// Clients connect every 10 ms to the write port meanwhile.
async fn a_switchover(cluster: &Cluster, pointsman: &Pointsman, what: &str) -> Result<()> {
    cluster.wait_ready().await?;
    let candidate = cluster.a_replica().await?;
    switchover_to(&candidate, cluster, pointsman, what).await
}

async fn switchover_to(candidate: &str, cluster: &Cluster, pointsman: &Pointsman, what: &str) -> Result<()> {
    let ports = [(what, pointsman.primary())];
    let measured = stopwatch::measure_switchover(cluster, &ports, candidate).await?;
    let verdict = measured.verdicts.first().context("no verdict")?;
    say(&format!("{verdict} {:?}", verdict.errors))?;
    // Only a switchover with a time is announced by `/cluster`: who is just being served when PostgreSQL shuts down is
    // ended by it.
    ensure!(verdict.lost_at_one_stroke, "{:?}\n{}", verdict.errors, pointsman.server().tail());
    ensure!(verdict.wrong_role == 0, "{verdict}");
    ensure!(verdict.share_ms - measured.pace_ms < SHARE_LIMIT_MS, "{verdict} at {:.1} ms", measured.pace_ms);
    Ok(())
}

/// A replica with its Patroni hangs, and the others change the leader meanwhile: it delays nobody.
async fn a_member_hangs(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    cluster.wait_ready().await?;
    pointsman.wait_replicas(2).await?;
    let leader = cluster.leader().await?;
    let names: Vec<_> = cluster.members().iter().map(|member| member.name().to_owned()).collect();
    let mut others = names.iter().filter(|name| **name != leader);
    let (hung, candidate) = others.next().zip(others.next()).context("there are no replicas")?;
    let watchers = Watchers::start(pointsman).await?;
    watchers.are_served().await?;
    cluster.freeze_member(hung)?;
    let frozen = Instant::now();
    wait::until("reads to leave the hung member", SOON, async || {
        let left = candidates(pointsman).await?;
        ensure!(!left.contains(hung), "{left:?}");
        Ok(())
    })
    .await?;
    say(&format!("a replica hangs: reads leave it after {:?}", frozen.elapsed()))?;
    ensure!(store(pointsman, "state").await? == "alive", "one hung member and all is lost");
    let reads = watchers.reads.finish().await;
    reads.check_none_failed(None).context("reads")?;
    say(&format!("a replica hangs: the slowest read took {:?}", reads.slowest()))?;
    switchover_to(candidate, cluster, pointsman, "switchover, one hangs").await?;
    cluster.thaw_member(hung)?;
    cluster.wait_ready().await?;
    pointsman.wait_replicas(2).await
}

/// The Patroni of a member hangs, or dies and is started again; its PostgreSQL goes on.
async fn one_patroni_fails(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    let leader = cluster.leader().await?;
    let watchers = Watchers::start(pointsman).await?;
    watchers.are_served().await?;
    cluster.member(&leader)?.signal_patroni(Signal::STOP)?;
    watchers.are_served_for(BROKEN).await?;
    ensure!(store(pointsman, "state").await? == "alive", "the leader's Patroni hangs and all is lost");
    cluster.member(&leader)?.signal_patroni(Signal::CONT)?;
    cluster.wait_ready().await?;
    watchers.undisturbed("the leader's Patroni hangs").await?;

    let replica = cluster.a_replica().await?;
    let watchers = Watchers::start(pointsman).await?;
    cluster.member(&replica)?.signal_patroni(Signal::KILL)?;
    watchers.are_served_for(BROKEN).await?;
    ensure!(store(pointsman, "state").await? == "alive", "a replica's Patroni dies and all is lost");
    watchers.undisturbed("a replica's Patroni is killed").await?;
    cluster.restart_member(&replica).await?;
    cluster.wait_ready().await?;
    pointsman.wait_replicas(2).await
}

/// Nobody answers at all. Routes stay, and so do sessions; nothing jumps when they are back.
async fn every_patroni_hangs(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let watchers = Watchers::start(pointsman).await?;
    watchers.are_served().await?;
    for member in cluster.members() {
        member.signal_patroni(Signal::STOP)?;
    }
    condition(pointsman, "lost").await?;
    let error = store(pointsman, "error").await?;
    say(&format!("every Patroni hangs: {error}"))?;
    watchers.are_served_for(BROKEN).await?;
    for member in cluster.members() {
        member.signal_patroni(Signal::CONT)?;
    }
    condition(pointsman, "alive").await?;
    cluster.wait_ready().await?;
    watchers.undisturbed("every Patroni hangs").await
}

/// Every Patroni is killed at once, and started again with its PostgreSQL: the cluster restarts under our eyes.
async fn every_patroni_restarts(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    let writes = Clients::start(pointsman.primary(), EVERY);
    let session = Client::connect(pointsman.primary(), SOON).await?;
    for member in cluster.members() {
        member.signal_patroni(Signal::KILL)?;
    }
    condition(pointsman, "lost").await?;
    writes.wait_served(5, SOON).await?;
    session.reached().await.context("the session was cut because Patroni is silent")?;
    let broken = Instant::now();
    let names: Vec<_> = cluster.members().iter().map(|member| member.name().to_owned()).collect();
    for name in &names {
        cluster.restart_member(name).await?;
    }
    cluster.wait_ready().await?;
    condition(pointsman, "alive").await?;
    writes.wait_served(5, SOON).await?;
    let writes = writes.finish().await;
    writes.check_role(false)?;
    writes.check_lost_at_one_stroke()?;
    say(&format!("every Patroni and server restarts: the slowest write took {:?}", writes.slowest()))?;
    say(&format!("every Patroni and server restarts: all well after {:?}", broken.elapsed()))?;
    pointsman.wait_replicas(2).await
}

/// etcd hangs, so Patroni does not answer `/cluster`, and in the end goes on in failsafe mode.
async fn the_store_behind_hangs(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    let watchers = Watchers::start(pointsman).await?;
    watchers.are_served().await?;
    cluster.etcd.freeze(0)?;
    condition(pointsman, "lost").await?;
    let error = store(pointsman, "error").await?;
    say(&format!("the store behind Patroni hangs: {error}"))?;
    watchers.are_served_for(BROKEN).await?;
    cluster.etcd.thaw(0)?;
    cluster.etcd.wait_all_ready().await?;
    condition(pointsman, "alive").await?;
    cluster.wait_ready().await?;
    watchers.undisturbed("the store behind Patroni hangs").await?;
    pointsman.wait_replicas(2).await
}

/// kill -9 of PostgreSQL and its Patroni.
async fn the_primary_dies(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    let old = cluster.leader().await?;
    let dead = cluster.member(&old)?.postgres();
    let writes = Clients::start(pointsman.primary(), EVERY);
    let reads = Clients::start(pointsman.replicas(), EVERY);
    writes.wait_served(5, SOON).await?;
    let broken = Instant::now();
    cluster.kill_member(&old).await?;
    let killed = Instant::now();
    let new = cluster.wait_other_leader(&old, FAILOVER).await?;
    let written = stopwatch::first_write(cluster.member(&new)?.postgres(), FAILOVER).await?;
    writes.wait_served(20, SOON).await?;
    let (writes, reads) = (writes.finish().await, reads.finish().await);
    let broken = broken..=killed;
    writes.check_none_failed(Some(&broken)).context("writes")?;
    writes.check_role(false)?;
    writes.check_never(dead, killed)?;
    reads.check_none_failed(Some(&broken)).context("reads")?;
    let first = first_served(&writes, cluster.member(&new)?.postgres()).context("nobody was served")?;
    say(&format!(
        "primary killed: the slowest write took {:?}, the slowest read {:?}; first served {:.0} ms after our own first write",
        writes.slowest(),
        reads.slowest(),
        stopwatch::signed_ms(written, first)
    ))?;
    cluster.restart_member(&old).await?;
    cluster.wait_ready().await?;
    pointsman.wait_replicas(2).await
}

/// kill -9 of the primary's Patroni alone: another member is promoted, and two servers are writable.
async fn the_patroni_of_the_primary_dies(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    let old = cluster.leader().await?;
    let orphan = cluster.member(&old)?.postgres();
    let session = Client::connect(pointsman.primary(), SOON).await?;
    let writes = Clients::start(pointsman.primary(), EVERY);
    writes.wait_served(5, SOON).await?;
    cluster.member(&old)?.signal_patroni(Signal::KILL)?;
    let (moved, ended) = tokio::join!(cluster.wait_key_moved(&old, FAILOVER), session.ended(FAILOVER));
    let (moved, ended) = (moved?, ended?);
    say(&format!(
        "the primary's Patroni is killed: its session ended {:.0} ms after the leader key moved",
        stopwatch::signed_ms(moved, ended)
    ))?;
    ensure!(ended.saturating_duration_since(moved) < SLOW, "it took {:?}", ended - moved);
    cluster.wait_other_leader(&old, FAILOVER).await?;
    writes.wait_served(10, SOON).await?;
    let writes = writes.finish().await;
    writes.check_lost_at_one_stroke().context("writes")?;
    writes.check_role(false)?;
    writes.check_never(orphan, ended)?;
    say(&format!("the primary's Patroni is killed: the slowest write took {:?}", writes.slowest()))?;
    cluster.restart_member(&old).await?;
    cluster.wait_ready().await?;
    pointsman.wait_replicas(2).await
}

/// A load balancer that has read that Patroni looks as seldom as it does by default.
async fn with_patronis_defaults(cluster: &Cluster, configuration: &str) -> Result<Pointsman> {
    cluster.configure(&json!({ "ttl": 30, "loop_wait": 10, "retry_timeout": 10 })).await?;
    let pointsman = Pointsman::start_with(&cluster.site, 0, configuration).await?;
    pointsman.wait_replicas(2).await?;
    wait::until("the proxy to know the settings", SOON, async || {
        let status = pointsman.status().await?;
        let settings = status.pointer("/clusters/0/status/settings").cloned().context("no settings")?;
        let known = (settings.get("ttl"), settings.get("loop_wait")) == (Some(&json!(30)), Some(&json!(10)));
        ensure!(known, "{settings}");
        Ok(())
    })
    .await?;
    Ok(pointsman)
}

async fn requests_in_peace(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    // What was stirred up settles in five seconds; the rate is what it is from then on.
    let mut last = asked(cluster)?;
    let mut counted = 0;
    wait::until("requests to be as few as in peace", SOON, async || {
        tokio::time::sleep(Duration::from_secs(3)).await;
        counted = asked(cluster)?.saturating_sub(last);
        last += counted;
        ensure!(counted < 10, "{counted} in three seconds");
        Ok(())
    })
    .await?;
    ensure!(store(pointsman, "state").await? == "alive", "this is no peace");
    // A late answer, on a machine that has other things to do, ends the peace for five seconds: then it is counted again.
    for round in 1.. {
        let (before, begun) = (asked(cluster)?, Instant::now());
        tokio::time::sleep(PEACE).await;
        let requests = asked(cluster)?.saturating_sub(before);
        let per_minute = f64::from(u32::try_from(requests)?) / begun.elapsed().as_secs_f64() * 60.0;
        say(&format!(
            "in peace: {per_minute:.0} requests a minute to three members (HAProxy: {HAPROXY_REQUESTS_PER_MINUTE})"
        ))?;
        ensure!(per_minute > 30.0, "only {per_minute} requests a minute were found: were they counted?");
        if per_minute < HAPROXY_REQUESTS_PER_MINUTE {
            break;
        }
        ensure!(round < ROUNDS, "{per_minute} requests a minute\n{}", pointsman.server().tail());
    }
    Ok(())
}

// ---- Small things ----------------------------------------------------------------------------------------------------

/// One session on each port that is held through everything, and new ones all the time.
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

    /// New connections are served, now.
    async fn are_served(&self) -> Result<()> {
        self.writes.wait_served(3, SOON).await?;
        self.reads.wait_served(3, SOON).await
    }

    /// They are, again and again.
    async fn are_served_for(&self, time: Duration) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.are_served().await?;
        }
        Ok(())
    }

    /// Nobody was lost, refused, led astray, or had to wait.
    async fn undisturbed(self, what: &str) -> Result<()> {
        self.write.reached().await.with_context(|| format!("{what}: the write session was lost"))?;
        self.read.reached().await.with_context(|| format!("{what}: the read session was lost"))?;
        let (writes, reads) = (self.writes.finish().await, self.reads.finish().await);
        let direct = self.direct.finish().await;
        say(&format!(
            "{what}: the slowest write took {:?}, the slowest read {:?}, directly {:?}",
            writes.slowest(),
            reads.slowest(),
            direct.slowest()
        ))?;
        for (served, in_recovery) in [(&writes, false), (&reads, true)] {
            served.check_none_failed(None).with_context(|| what.to_owned())?;
            served.check_role(in_recovery).with_context(|| what.to_owned())?;
            served.check_none_waited(SLOW, &direct).with_context(|| what.to_owned())?;
        }
        Ok(())
    }
}

/// When somebody was first served by the new primary.
fn first_served(clients: &Served, primary: SocketAddr) -> Option<Instant> {
    let by = |reached: &sql::Reached| reached.server == primary && !reached.in_recovery;
    clients.0.iter().filter(|one| one.outcome.as_ref().is_ok_and(by)).map(|one| one.ended).min()
}

/// How many requests every member's Patroni has logged so far.
fn asked(cluster: &Cluster) -> Result<usize> {
    let mut all = 0;
    for member in cluster.members() {
        let log = std::fs::read_to_string(member.server().directory().join("log"))?;
        all += log.lines().filter(|line| line.contains("\"GET /")).count();
    }
    Ok(all)
}

async fn store(pointsman: &Pointsman, field: &str) -> Result<Value> {
    let status = pointsman.status().await?;
    let value = status.pointer(&format!("/clusters/0/status/store/{field}"));
    value.cloned().with_context(|| format!("the status has no store/{field}"))
}

async fn condition(pointsman: &Pointsman, wanted: &str) -> Result<()> {
    wait::until(format!("discovery to be {wanted}"), SOON, async || {
        let state = store(pointsman, "state").await?;
        ensure!(state == wanted, "{state}");
        Ok(())
    })
    .await
}

async fn candidates(pointsman: &Pointsman) -> Result<Vec<String>> {
    let status = pointsman.status().await?;
    let all = status.pointer("/listeners/1/candidates").and_then(Value::as_array).context("no candidates")?;
    let name = |candidate: &Value| {
        candidate.get("member").or(Some(candidate)).and_then(Value::as_str).map(str::to_owned)
    };
    Ok(all.iter().filter_map(name).collect())
}
