//! Only one load balancer is cut off from the store, and the cluster goes on without it: what it does, and what another one
//! beside it does.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pointsman_tests::pointsman::configuration;
use pointsman_tests::sql::Client;
use pointsman_tests::stopwatch::{self, Verdict};
use pointsman_tests::{
    Clients, Cluster, ClusterOptions, FakeNetwork, Pointsman, Weather, http, say, sql, wait,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const EVERY: Duration = Duration::from_millis(100);
const TTL: Duration = Duration::from_secs(20);
/// No connection may wait as long as this, where none has to wait at all.
const SLOW: Duration = Duration::from_secs(3);
/// From the new primary's first write to the first session on it without the store, at the median.
const SHARE_LIMIT_MS: f64 = 1000.0;

/// A cluster, and two balancers on it.
struct Partition {
    cluster: Cluster,
    network: FakeNetwork,
    cut_off: Pointsman,
    beside: Pointsman,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_behind_a_partition_is_followed() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::default()).await?;
    stopwatch::prepare(&cluster).await?;
    let address = cluster.site.addresses.balancer(0);
    let etcd = *cluster.etcd.addresses().first().context("there is no etcd")?;
    let network = FakeNetwork::start(SocketAddr::from((cluster.site.addresses.other(0), 2379)), etcd).await?;
    let endpoints = [format!("http://{}", network.address())];
    let cut_off = Pointsman::start_with(&cluster.site, 0, &configuration(address, &endpoints)).await?;
    let beside = Pointsman::start(&cluster, 1).await?;
    let mut partition = Partition { cluster, network, cut_off, beside };
    partition.settled().await?;
    let mut shares = Vec::new();
    for weather in [Weather::Cut, Weather::Frozen] {
        let share = partition.a_switchover_in(weather).await;
        shares.push(share.with_context(|| format!("a switchover, {weather:?}"))?);
    }
    shares.push(partition.the_primary_is_killed().await.context("the primary is killed")?);
    let median = stopwatch::median(&shares)?;
    say(&format!("followed behind a partition, median of {}: {median:.1} ms", shares.len()))?;
    ensure!(median < SHARE_LIMIT_MS, "our share is {median:.1} ms, the limit {SHARE_LIMIT_MS} ms");
    partition.patroni_is_killed().await.context("Patroni is killed")
}

impl Partition {
    async fn settled(&self) -> Result<()> {
        self.cluster.wait_ready().await?;
        self.cut_off.wait_replicas(2).await?;
        self.beside.wait_replicas(2).await
    }

    fn ports(&self) -> [(&'static str, SocketAddr); 2] {
        [("cut off from the store", self.cut_off.primary()), ("beside it", self.beside.primary())]
    }

    /// A planned switchover: the one that is cut off is not told of it beforehand. Answers its share in milliseconds.
    async fn a_switchover_in(&self, weather: Weather) -> Result<f64> {
        let new = self.cluster.a_replica().await?;
        let session = Client::connect(self.cut_off.primary(), SOON).await?;
        let reads = Clients::start(self.cut_off.replicas(), EVERY);
        self.network.set(weather);
        self.cut_off.wait_store("lost").await?;
        self.the_age_is_shown().await?;
        session.reached().await.context("cut because the store is silent")?;
        let measured = stopwatch::measure_switchover(&self.cluster, &self.ports(), &new).await?;
        for verdict in &measured.verdicts {
            judge(&format!("{weather:?}, a switchover"), verdict)?;
        }
        ensure!(measured.verdicts.last().is_some_and(|told| told.failed == 0), "beside it some failed");
        ensure!(session.reached().await.is_err(), "the session on the old primary goes on");
        self.cluster.wait_ready().await?;
        self.nothing_jumps_when_it_ends().await?;
        let reads = reads.finish().await;
        reads.check_none_failed(None).context("reads")?;
        ensure!(reads.slowest() < SLOW, "a read took {:?}", reads.slowest());
        self.settled().await?;
        Ok(measured.verdicts.first().context("a verdict")?.share_ms)
    }

    /// Patroni and PostgreSQL of the primary are killed; the leader key runs out unseen. Answers as above.
    async fn the_primary_is_killed(&mut self) -> Result<f64> {
        let old = self.cluster.leader().await?;
        let address = self.cluster.member(&old)?.postgres();
        let clients = self.ports().map(|(name, port)| (name, Clients::start(port, EVERY)));
        for (_, clients) in &clients {
            clients.wait_served(3, SOON).await?;
        }
        self.network.set(Weather::Frozen);
        self.cut_off.wait_store("lost").await?;
        self.cluster.kill_member(&old).await?;
        let killed = Instant::now();
        let others: Vec<_> = self.cluster.members().iter().filter(|member| member.name() != old).collect();
        let [one, two] = others.as_slice() else { bail!("not three members") };
        let (new, written) = tokio::select! {
            written = stopwatch::first_write(one.postgres(), TTL * 3) => (one.postgres(), written?),
            written = stopwatch::first_write(two.postgres(), TTL * 3) => (two.postgres(), written?),
        };
        let mut shares = Vec::new();
        for (name, clients) in clients {
            clients.wait_served(5, SOON).await?;
            let served = clients.finish().await;
            // Whoever was just being served went down with it.
            served.check_none_failed(Some(&(killed - SLOW..=killed + EVERY)))?;
            let verdict = stopwatch::judge(name, &served.0, address, new, written)?;
            judge("the primary killed", &verdict)?;
            shares.push(verdict.share_ms);
        }
        self.cluster.restart_member(&old).await?;
        self.cluster.wait_ready().await?;
        self.nothing_jumps_when_it_ends().await?;
        self.settled().await?;
        shares.first().copied().context("a verdict")
    }

    /// Its PostgreSQL stays writable: only the members can tell that it leads no more.
    async fn patroni_is_killed(&self) -> Result<()> {
        let old = self.cluster.leader().await?;
        let orphan = self.cluster.member(&old)?.postgres();
        let session = Client::connect(self.cut_off.primary(), SOON).await?;
        let writes = Clients::start(self.cut_off.primary(), EVERY);
        writes.wait_served(3, SOON).await?;
        self.network.set(Weather::Frozen);
        self.cluster.member(&old)?.signal_patroni(Signal::KILL)?;
        let new = self.cluster.wait_other_leader(&old, TTL * 3).await?;
        let led = Instant::now();
        let new = self.cluster.member(&new)?.postgres();
        wait::until("the old primary's session to be cut", SOON, async || {
            ensure!(session.session.is_closed(), "it lives");
            Ok(())
        })
        .await?;
        let cut = led.elapsed();
        for (_, port) in self.ports() {
            assert_eq!(sql::who(port, SOON).await?.server, new);
        }
        let followed = led.elapsed();
        say(&format!(
            "Patroni killed: cut {cut:?}, followed {followed:?} after the new primary took writes"
        ))?;
        // The members are asked every second.
        ensure!(followed < SLOW, "it took {followed:?}");
        writes.wait_served(5, SOON).await?;
        let writes = writes.finish().await;
        // Who was just being served by the old primary is cut with its other sessions.
        writes.check_lost_at_one_stroke().context("writes")?;
        writes.check_never(orphan, led + SLOW)?;
        self.network.set(Weather::Fair);
        self.cut_off.wait_store("alive").await?;
        assert_eq!(sql::who(self.cut_off.primary(), SOON).await?.server, new);
        Ok(())
    }

    /// How old the routes are is said everywhere, and grows. (On the dashboard: see its own test; it shows the same number.)
    async fn the_age_is_shown(&self) -> Result<()> {
        let age = async || self.cut_off.store("age_ms").await?.as_u64().context("no age");
        let before = age().await?;
        wait::until("the age to grow", SOON, async || {
            let now = age().await?;
            ensure!(now >= before + 500, "{before} ms, {now} ms");
            Ok(())
        })
        .await?;
        let metrics = http::get(self.cut_off.admin(), "/metrics").await?.body;
        let line = metrics.lines().find(|line| line.starts_with("pointsman_store_age_seconds{"));
        let seconds: f64 =
            line.and_then(|line| line.rsplit(' ').next()).context("no such metric")?.parse()?;
        ensure!(seconds * 1000.0 > before as f64, "{seconds} s in the metrics, {before} ms in the status");
        let lost = metrics.lines().find(|line| {
            line.starts_with("pointsman_store_state{")
                && line.contains("state=\"lost\"")
                && line.ends_with(" 1")
        });
        ensure!(lost.is_some(), "the metrics do not say that the store is lost");
        let said = self.cut_off.ask("status").await?;
        let line =
            said.lines().find(|line| line.starts_with("cluster main (etcd: lost, ")).context(said.clone())?;
        ensure!(
            line.ends_with(" ago)") && said.contains("none of the") || said.contains("etcd does not work"),
            "{said}"
        );
        say(line)
    }

    /// The store is back: no session is cut and the primary is what it was, and was not even doubted.
    async fn nothing_jumps_when_it_ends(&self) -> Result<()> {
        let writes = Clients::start(self.cut_off.primary(), EVERY);
        let session = Client::connect(self.cut_off.primary(), SOON).await?;
        let read = Client::connect(self.cut_off.replicas(), SOON).await?;
        let before = standing(&self.cut_off).await?;
        self.network.set(Weather::Fair);
        self.cut_off.wait_store("alive").await?;
        writes.wait_served(5, SOON).await?;
        session.reached().await.context("cut when the store came back")?;
        read.reached().await.context("a reader was cut when the store came back")?;
        let after = standing(&self.cut_off).await?;
        ensure!(
            after.0 == before.0 && after.1 > before.1,
            "the primary was {before:?} before the store came back, is {after:?}"
        );
        let writes = writes.finish().await;
        writes.check_none_failed(None)?;
        writes.check_role(false)?;
        ensure!(writes.slowest() < SLOW, "a write took {:?}", writes.slowest());
        Ok(())
    }
}

fn judge(what: &str, verdict: &Verdict) -> Result<()> {
    say(&format!("{what}: {verdict} {:?}", verdict.errors))?;
    ensure!(verdict.wrong_role == 0, "connections reached a server in recovery: {verdict}");
    ensure!(verdict.share_ms < SLOW.as_secs_f64() * 1000.0, "followed too late: {verdict}");
    Ok(())
}

/// Who is primary, in which state, and for how many milliseconds.
async fn standing(pointsman: &Pointsman) -> Result<(Value, u64)> {
    let status = pointsman.status().await?;
    let primary = status.pointer("/clusters/0/status/primary").context("no primary")?;
    let since = primary.get("since_ms").and_then(Value::as_u64).context("no since_ms")?;
    Ok((json!([primary.get("member"), primary.get("state")]), since))
}
