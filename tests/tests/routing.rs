//! Where connections go on a real cluster: every kind of failure of the primary, and the rules for reads.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use pointsman_tests::clients::Served;
use pointsman_tests::pointsman::configuration;
use pointsman_tests::sql::Client;
use pointsman_tests::{
    Clients, Cluster, ClusterOptions, MemberOptions, Pointsman, http, say, sql, stopwatch, wait,
};
use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(20);
/// Patroni's ttl, the election, and room for a busy machine.
const FAILOVER: Duration = Duration::from_secs(60);
/// How long reads may take to go elsewhere: some of Patroni's looks.
const READS: Duration = Duration::from_secs(40);
/// How often a client comes.
const EVERY: Duration = Duration::from_millis(50);
/// The longest that a read may take while there is no primary.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// What may pass between a change in the store and the moment at which we look: the machine is busy.
const NOTICE: Duration = Duration::from_millis(200);

// ---- Failures of the primary -----------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_of_the_primary_cost_time_and_nothing_else() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::default()).await?;
    let pointsman = Pointsman::start(&cluster, 0).await?;
    pointsman.wait_replicas(2).await?;
    a_restart_in_place(&cluster, &pointsman).await?;
    a_crash_in_place(&cluster, &pointsman).await?;
    the_primary_dies(&mut cluster, &pointsman).await?;
    the_primary_hangs_and_comes_back(&cluster, &pointsman).await?;
    patroni_dies_alone(&mut cluster, &pointsman).await
}

/// `patronictl restart` of the primary: it stays the leader.
async fn a_restart_in_place(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let name = cluster.leader().await?;
    let writes = Clients::start(pointsman.primary(), EVERY);
    let reads = Clients::start(pointsman.replicas(), EVERY);
    writes.wait_served(5, SOON).await?;
    let answer = http::send_slow(cluster.member(&name)?.rest(), Method::POST, "/restart", &json!({})).await?;
    assert_eq!(answer.status, 200, "restart: {}", answer.body);
    writes.wait_served(20, FAILOVER).await?;
    let (writes, reads) = (writes.finish().await, reads.finish().await);
    // Who is just being served when PostgreSQL shuts down may be lost.
    writes.check_lost_at_one_stroke().context("writes")?;
    writes.check_role(false)?;
    say(&format!(
        "restart in place: the slowest write took {:?}, the slowest read {:?}",
        writes.slowest(),
        reads.slowest()
    ))?;
    // The replicas are not streaming for a moment, and serve all the same.
    reads.check_none_failed(None).and_then(|()| reads.check_role(true)).context("reads")?;
    cluster.wait_ready().await
}

/// kill -9 of the postmaster; Patroni starts it again, in place.
async fn a_crash_in_place(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let name = cluster.leader().await?;
    let before = cluster.member(&name)?.postmaster()?;
    let writes = Clients::start(pointsman.primary(), EVERY);
    let reads = Clients::start(pointsman.replicas(), EVERY);
    writes.wait_served(5, SOON).await?;
    let broken = Instant::now();
    cluster.crash_postgres(&name)?;
    let broken = broken..=Instant::now();
    wait::until("Patroni to start the server again", FAILOVER, async || {
        ensure!(cluster.member(&name)?.postmaster()? != before, "still the old postmaster.pid");
        Ok(())
    })
    .await?;
    writes.wait_served(20, FAILOVER).await?;
    let (writes, reads) = (writes.finish().await, reads.finish().await);
    reads.check_role(true).context("reads during a crash in place")?;
    judge("crash in place", &writes, &reads, Some(&broken))?;
    cluster.wait_ready().await
}

/// kill -9 of Patroni and PostgreSQL: nobody says anything until the leader key has expired. 200 clients come meanwhile.
async fn the_primary_dies(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    let old = cluster.leader().await?;
    let dead = cluster.member(&old)?.postgres();
    let writes = Clients::start(pointsman.primary(), EVERY);
    let reads = Clients::start(pointsman.replicas(), EVERY);
    writes.wait_served(5, SOON).await?;
    let broken = Instant::now();
    cluster.kill_member(&old).await?;
    let killed = Instant::now();
    let mut crowd = JoinSet::new();
    for _ in 0..200 {
        crowd.spawn(sql::who(pointsman.primary(), FAILOVER));
    }
    wait::until("200 clients to be held", SOON, async || {
        let held = pointsman.held().await?;
        ensure!(held >= 200, "{held} are held");
        Ok(())
    })
    .await?;
    let new = cluster.wait_other_leader(&old, FAILOVER).await?;
    let new = cluster.member(&new)?.postgres();
    while let Some(served) = crowd.join_next().await {
        let reached = served?.context("one of 200 that came during the fail-over")?;
        assert_eq!((reached.server, reached.in_recovery), (new, false));
    }
    writes.wait_served(20, SOON).await?;
    let writes = writes.finish().await;
    writes.check_never(dead, killed)?;
    judge("primary killed", &writes, &reads.finish().await, Some(&(broken..=killed)))?;
    cluster.restart_member(&old).await?;
    cluster.wait_ready().await
}

/// SIGSTOP of both: the kernel still takes connections for them. SIGCONT when another one leads: the old one believes for a
/// moment that it is primary.
async fn the_primary_hangs_and_comes_back(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let old = cluster.leader().await?;
    let hung = cluster.member(&old)?.postgres();
    let session = Client::connect(pointsman.primary(), SOON).await?;
    let writes = Clients::start(pointsman.primary(), EVERY);
    let reads = Clients::start(pointsman.replicas(), EVERY);
    writes.wait_served(5, SOON).await?;
    let broken = Instant::now();
    cluster.freeze_member(&old)?;
    let frozen = Instant::now();
    let (moved, ended) = tokio::join!(cluster.wait_key_moved(&old, FAILOVER), session.ended(FAILOVER));
    let share = stopwatch::signed_ms(moved?, ended?);
    say(&format!("primary frozen: its write session ended {share:.0} ms after the leader key moved"))?;
    cluster.wait_other_leader(&old, FAILOVER).await?;
    cluster.thaw_member(&old)?;
    writes.wait_served(20, SOON).await?;
    cluster.wait_ready().await?;
    let writes = writes.finish().await;
    writes.check_never(hung, frozen)?;
    judge("primary frozen", &writes, &reads.finish().await, Some(&(broken..=frozen)))
}

/// kill -9 of Patroni alone: PostgreSQL stays, writable, while another member is promoted.
async fn patroni_dies_alone(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    let old = cluster.leader().await?;
    let orphan = cluster.member(&old)?.postgres();
    let session = Client::connect(pointsman.primary(), SOON).await?;
    let writes = Clients::start(pointsman.primary(), EVERY);
    let reads = Clients::start(pointsman.replicas(), EVERY);
    writes.wait_served(5, SOON).await?;
    cluster.member(&old)?.signal_patroni(Signal::KILL)?;
    let (moved, ended) = tokio::join!(cluster.wait_key_moved(&old, FAILOVER), session.ended(FAILOVER));
    let (moved, ended) = (moved?, ended?);
    say(&format!(
        "Patroni killed alone: the write session was cut {:.0} ms after the leader key moved",
        stopwatch::signed_ms(moved, ended)
    ))?;
    ensure!(ended < moved + NOTICE, "the write session outlived the change of leader by {:?}", ended - moved);
    cluster.wait_other_leader(&old, FAILOVER).await?;
    writes.wait_served(20, SOON).await?;
    // The trap is a real one: who asks the old primary directly may still write.
    let direct = sql::who(orphan, SOON).await?;
    ensure!(!direct.in_recovery, "the orphan is no primary any more");
    let writes = writes.finish().await;
    writes.check_never(orphan, moved + NOTICE)?;
    judge("Patroni killed alone", &writes, &reads.finish().await, None)?;
    cluster.kill_member(&old).await
}

/// Nobody who came after the failure was refused, or reached the other role; reads did not even wait.
///
/// `broken`: while the server was being broken; `None`: it was not, and the proxy cut its sessions.
fn judge(
    what: &str,
    writes: &Served,
    reads: &Served,
    broken: Option<&RangeInclusive<Instant>>,
) -> Result<()> {
    say(&format!(
        "{what}: {} writes, the slowest took {:?}; {} reads, the slowest took {:?}, by server {:?}",
        writes.0.len(),
        writes.slowest(),
        reads.0.len(),
        reads.slowest(),
        reads.by_server()
    ))?;
    let lost = match broken {
        Some(_) => writes.check_none_failed(broken),
        None => writes.check_lost_at_one_stroke(),
    };
    lost.with_context(|| format!("{what}: writes"))?;
    writes.check_role(false).with_context(|| format!("{what}: writes"))?;
    reads.check_none_failed(broken).with_context(|| format!("{what}: reads"))?;
    ensure!(reads.slowest() < READ_PATIENCE, "{what}: a read took {:?}", reads.slowest());
    Ok(())
}

// ---- The rules for reads ---------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_to_fit_replicas_or_fall_back() -> Result<()> {
    let plain = MemberOptions::default();
    let tagged = MemberOptions {
        tags: Some(json!({ "noloadbalance": true, "nofailover": true })),
        ..MemberOptions::default()
    };
    let options =
        ClusterOptions { member_options: vec![plain.clone(), plain, tagged], ..ClusterOptions::default() };
    let mut cluster = Cluster::start(&options).await?;
    let address = cluster.site.addresses.balancer(0);
    let listeners = format!(
        r#"
[[listeners]]
name = "close-behind"
bind = "{address}:5002"
target = "replicas"
max_lag = "1MiB"

[[listeners]]
name = "impatient"
bind = "{address}:5003"
target = "primary"
hold = "1s"

[[listeners]]
name = "crowded"
bind = "{address}:5005"
target = "primary"
max_held = 1

[[listeners]]
name = "replicas-only"
bind = "{address}:5004"
target = "replicas"
fallback = "none"
hold = "1s"
"#
    );
    let text = configuration(address, &cluster.etcd.endpoints()) + &listeners;
    let pointsman = Pointsman::start_with(&cluster.site, 0, &text).await?;
    let close_behind = SocketAddr::from((address, 5002));
    let (primary, replica) = (cluster.member("pg1")?.postgres(), cluster.member("pg2")?.postgres());

    // pg3 is tagged noloadbalance. A member's key says that it streams only after Patroni's next look.
    sql::wait_led_to(pointsman.replicas(), replica, READS).await?;
    let reads = Clients::start(pointsman.replicas(), EVERY);
    reads.wait_served(20, SOON).await?;
    let reads = reads.finish().await;
    reads.check_none_failed(None)?;
    assert_eq!(reads.by_server().keys().collect::<Vec<_>>(), [&replica]);

    a_lagging_replica_is_left_alone(&cluster, &pointsman, close_behind, primary, replica).await?;

    // No replica is left: the primary serves, until one is back.
    let reads = Clients::start(pointsman.replicas(), EVERY);
    reads.wait_served(5, SOON).await?;
    let broken = Instant::now();
    cluster.kill_member("pg2").await?;
    let broken = broken..=Instant::now();
    sql::wait_led_to(pointsman.replicas(), primary, READS).await?;
    let none = sql::psql_error(&cluster.site.tools, SocketAddr::from((address, 5004))).await;
    ensure!(none.contains("FATAL") && none.contains("replica"), "no replica, no fallback: {none}");
    cluster.restart_member("pg2").await?;
    sql::wait_led_to(pointsman.replicas(), replica, READS).await?;
    reads.wait_served(20, SOON).await?;
    reads.finish().await.check_none_failed(Some(&broken)).context("reads while there was no replica")?;

    nobody_is_left(&mut cluster, SocketAddr::from((address, 5003))).await?;
    one_is_held_and_no_more(&cluster, &pointsman, SocketAddr::from((address, 5005))).await
}

async fn a_lagging_replica_is_left_alone(
    cluster: &Cluster,
    pointsman: &Pointsman,
    close_behind: SocketAddr,
    primary: SocketAddr,
    replica: SocketAddr,
) -> Result<()> {
    let (tools, leader) = (&cluster.site.tools, cluster.member("pg1")?);
    let patience = json!({ "max_standby_streaming_delay": -1 });
    cluster.configure(&json!({ "postgresql": { "parameters": patience } })).await?;
    sql::psql(tools, &leader.conninfo(), "create table gate (); create table written (text text)").await?;
    wait::until("the replica to know of the tables, and to be patient", SOON, async || {
        let statement = "select current_setting('max_standby_streaming_delay') || to_regclass('written')";
        let seen = sql::psql(tools, &cluster.member("pg2")?.conninfo(), statement).await?;
        ensure!(seen == "-1written", "{seen}");
        Ok(())
    })
    .await?;
    sql::wait_led_to(close_behind, replica, READS).await?;
    let session = Client::connect(close_behind, SOON).await?;
    // A reader in the way of the replay. (A paused replay would be resumed by Patroni.)
    let reader = Client::connect(replica, SOON).await?;
    reader.session.batch_execute("begin isolation level repeatable read; select from gate").await?;
    sql::psql(tools, &leader.conninfo(), "drop table gate").await?;
    let fill = "insert into written select repeat('x', 1000) from generate_series(1, 20000)";
    sql::psql(tools, &leader.conninfo(), fill).await?;
    // Nobody writes any more: its key stands still.
    wait::until("the limited port to lead to the primary", Duration::from_secs(40), async || {
        let reached = sql::who(close_behind, SOON).await?;
        ensure!(reached.server == primary, "it leads to {}", reached.server);
        Ok(())
    })
    .await?;
    // Drained, not cut; and who set no limit is not concerned.
    assert_eq!(session.reached().await?.server, replica);
    assert_eq!(sql::who(pointsman.replicas(), SOON).await?.server, replica);
    drop(reader);
    sql::wait_led_to(close_behind, replica, READS).await
}

/// How the end of `hold` looks in psql.
async fn nobody_is_left(cluster: &mut Cluster, impatient: SocketAddr) -> Result<()> {
    sql::who(impatient, SOON).await?;
    for name in ["pg1", "pg2", "pg3"] {
        cluster.kill_member(name).await?;
    }
    let begun = Instant::now();
    let expired = sql::psql_error(&cluster.site.tools, impatient).await;
    let took = begun.elapsed();
    say(&format!("hold expired after {took:?}: {expired}"))?;
    ensure!(took > Duration::from_secs(1) && took < Duration::from_secs(6), "it took {took:?}");
    ensure!(expired.contains("FATAL") && expired.contains("primary"), "{expired}");
    Ok(())
}

/// What the second of two sees where one may be held.
async fn one_is_held_and_no_more(
    cluster: &Cluster,
    pointsman: &Pointsman,
    crowded: SocketAddr,
) -> Result<()> {
    let mut first = JoinSet::new();
    first.spawn(sql::who(crowded, FAILOVER));
    wait::until("the first to be held", SOON, async || {
        let held = pointsman.held().await?;
        ensure!(held == 1, "{held} are held");
        Ok(())
    })
    .await?;
    let refused = sql::psql_error(&cluster.site.tools, crowded).await;
    ensure!(refused.contains("FATAL") && refused.contains("too many"), "{refused}");
    // One who goes away makes room.
    first.shutdown().await;
    wait::until("the first to be forgotten", SOON, async || {
        let held = pointsman.held().await?;
        ensure!(held == 0, "{held} are held");
        Ok(())
    })
    .await
}
