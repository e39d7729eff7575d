//! The states of Patroni on a real cluster: synchronous and quorum mode, tags, pause; what each port does meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use pointsman_tests::clients::Served;
use pointsman_tests::pointsman::configuration;
use pointsman_tests::process::{RunAs, Server};
use pointsman_tests::sql::Client;
use pointsman_tests::{
    Balancer, Clients, Cluster, ClusterOptions, MemberOptions, Pointsman, http, say, sql, tools, wait,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
/// Some of Patroni's looks, and an election.
const CHANGE: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_millis(50);
/// No connection may wait as long as this, where none has to wait at all.
const SLOW: Duration = Duration::from_secs(2);

/// Three members in synchronous mode, and a balancer with a port for each wish.
struct Place {
    cluster: Cluster,
    pointsman: Pointsman,
    sync: SocketAddr,
    asynchronous: SocketAddr,
    zone_a: SocketAddr,
}

impl Place {
    async fn start() -> Result<Self> {
        let zone =
            |zone: &str| MemberOptions { tags: Some(json!({ "zone": zone })), ..MemberOptions::default() };
        let options = ClusterOptions {
            synchronous_mode: json!(true),
            loop_wait: Duration::from_secs(1),
            member_options: vec![zone("a"), zone("b"), zone("a")],
            ..ClusterOptions::default()
        };
        let cluster = Cluster::start(&options).await?;
        let address = cluster.site.addresses.balancer(0);
        let listeners = format!(
            r#"
[[listeners]]
bind = "{address}:5002"
target = "sync"

[[listeners]]
bind = "{address}:5003"
target = "async"

[[listeners]]
name = "zone-a"
bind = "{address}:5004"
target = "replicas"
tags = {{ zone = "a" }}
fallback = "none"
hold = "500ms"
"#
        );
        let text = configuration(address, &cluster.etcd.endpoints()) + &listeners;
        let pointsman = Pointsman::start_with(&cluster.site, 0, &text).await?;
        let port = |port| SocketAddr::from((address, port));
        let place =
            Self { cluster, pointsman, sync: port(5002), asynchronous: port(5003), zone_a: port(5004) };
        place.pointsman.wait_replicas(2).await?;
        Ok(place)
    }

    fn postgres(&self, name: &str) -> Result<SocketAddr> {
        Ok(self.cluster.member(name)?.postgres())
    }

    /// The addresses of all but the leader and `other`.
    async fn replicas_but(&self, other: &[&str]) -> Result<BTreeSet<SocketAddr>> {
        let leader = self.cluster.leader().await?;
        let rest = self.cluster.members().iter();
        let rest = rest.filter(|member| member.name() != leader && !other.contains(&member.name()));
        Ok(rest.map(pointsman_tests::member::Member::postgres).collect())
    }

    /// Waits until twenty connections in a row to `port` reach all of `servers` and nobody else.
    async fn leads_to(&self, port: SocketAddr, servers: &BTreeSet<SocketAddr>) -> Result<()> {
        wait::until(format!("{port} to lead to {servers:?}"), CHANGE, async || {
            let mut reached = BTreeSet::new();
            for _ in 0..20 {
                reached.insert(sql::who(port, CHANGE).await?.server);
            }
            ensure!(reached == *servers, "it leads to {reached:?}");
            Ok(())
        })
        .await
        .with_context(|| self.pointsman.server().tail())
    }

    /// The synchronous standbys by the store, once there are `count`.
    async fn sync_standbys(&self, count: usize) -> Result<BTreeSet<String>> {
        wait::until(format!("{count} synchronous standbys in the store"), CHANGE, async || {
            let key = self.cluster.get_key("sync").await?.context("there is no such key")?;
            let key: Value = serde_json::from_str(&key)?;
            let names = key.get("sync_standby").and_then(Value::as_str).unwrap_or_default();
            let names: BTreeSet<String> =
                names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            ensure!(names.len() == count, "{key}");
            Ok(names)
        })
        .await
    }

    /// A member as the proxy shows it.
    async fn shown(&self, name: &str) -> Result<Value> {
        let status = self.pointsman.status().await?;
        let members = status.pointer("/clusters/0/status/members").and_then(Value::as_array);
        let mut members = members.context("no members")?.iter();
        let member = members.find(|member| member.get("name").is_some_and(|known| known == name));
        member.cloned().with_context(|| format!("{name} is not shown"))
    }
}

fn one(server: SocketAddr) -> BTreeSet<SocketAddr> {
    BTreeSet::from([server])
}

fn nobody_waited(what: &str, served: &Served) -> Result<()> {
    say(&format!("{what}: {} connections, the slowest took {:?}", served.0.len(), served.slowest()))?;
    served.check_none_failed(None).with_context(|| what.to_owned())?;
    ensure!(served.slowest() < SLOW, "{what}: a connection took {:?}", served.slowest());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_states_of_a_cluster() -> Result<()> {
    let place = Place::start().await?;
    synchronous_mode(&place).await.context("synchronous mode")?;
    a_switchover_in_synchronous_mode(&place).await.context("a switchover in synchronous mode")?;
    quorum_mode(&place).await.context("quorum mode")?;
    asynchronous_mode(&place).await.context("asynchronous mode")?;
    tags_change(&place).await.context("tags")?;
    poolers_beside_the_members(&place).await.context("poolers")?;
    paused_without_a_leader_key(&place).await.context("paused, without a leader key")?;
    paused_without_a_primary(&place).await.context("paused, PostgreSQL stopped")
}

// ---- Synchronous replication -----------------------------------------------------------------------------------------

async fn synchronous_mode(place: &Place) -> Result<()> {
    let standby = place.sync_standbys(1).await?.pop_first().context("nobody")?;
    let address = place.postgres(&standby)?;
    place.leads_to(place.sync, &one(address)).await?;
    place.leads_to(place.asynchronous, &place.replicas_but(&[&standby]).await?).await?;
    ensure!(place.shown(&standby).await?.get("sync") == Some(&json!(true)), "{standby} is not shown as sync");

    // After every change Patroni names nobody for some seconds.
    let clients = Clients::start(place.sync, EVERY);
    clients.wait_served(5, SOON).await?;
    let leader = place.cluster.leader().await?;
    let nobody = json!({ "leader": leader, "quorum": 0, "sync_standby": null }).to_string();
    let views = views(place).await?;
    place.cluster.put_key("sync", &nobody).await?;
    wait::until("the proxy to have read that", SOON, async || {
        let now = self::views(place).await?;
        ensure!(now > views, "no view since {views}");
        Ok(())
    })
    .await?;
    clients.wait_served(10, SOON).await?;
    let served = clients.finish().await;
    nobody_waited("no synchronous standby is named", &served)?;
    ensure!(served.by_server().keys().all(|server| *server == address), "{:?}", served.by_server());
    place.sync_standbys(1).await.map(drop)
}

async fn views(place: &Place) -> Result<u64> {
    let status = place.pointsman.status().await?;
    status.pointer("/clusters/0/status/store/views").and_then(Value::as_u64).context("no views")
}

/// The synchronous standby is promoted: its port follows to the next one.
async fn a_switchover_in_synchronous_mode(place: &Place) -> Result<()> {
    let standby = place.sync_standbys(1).await?.pop_first().context("nobody")?;
    let ports = [("write", place.pointsman.primary()), ("sync", place.sync), ("async", place.asynchronous)];
    let clients = ports.map(|(name, port)| (name, Clients::start(port, EVERY)));
    for (_, clients) in &clients {
        clients.wait_served(5, SOON).await?;
    }
    place.cluster.switchover(&standby).await?;
    let led = Instant::now();
    let next = wait::until("another synchronous standby", CHANGE, async || {
        let next = place.sync_standbys(1).await?.pop_first().context("nobody")?;
        ensure!(next != standby, "still {next}");
        Ok(next)
    })
    .await?;
    place.leads_to(place.sync, &one(place.postgres(&next)?)).await?;
    say(&format!("switchover to the synchronous standby: {next} was sync again after {:?}", led.elapsed()))?;
    place.cluster.wait_ready().await?;
    for (name, clients) in clients {
        clients.wait_served(5, SOON).await?;
        let served = clients.finish().await;
        say(&format!(
            "  {name} port: {} connections, the slowest took {:?}, by server {:?}",
            served.0.len(),
            served.slowest(),
            served.by_server()
        ))?;
        match name {
            // Who is just being served when PostgreSQL shuts down may be lost.
            "write" => served.check_lost_at_one_stroke().and_then(|()| served.check_role(false)),
            // The primary may stand in, and those on it are lost with it.
            "sync" => served.check_lost_at_one_stroke(),
            _ => served.check_none_failed(None),
        }
        .with_context(|| format!("{name} port"))?;
    }
    Ok(())
}

/// Any of several standbys may be the one that has confirmed a commit: all of them are synchronous.
async fn quorum_mode(place: &Place) -> Result<()> {
    place.cluster.configure(&json!({ "synchronous_mode": "quorum" })).await?;
    place.sync_standbys(2).await?;
    let replicas = place.replicas_but(&[]).await?;
    place.leads_to(place.sync, &replicas).await?;
    // Nobody is asynchronous: the primary stands in.
    place.leads_to(place.asynchronous, &one(place.cluster.leader_address().await?)).await
}

async fn asynchronous_mode(place: &Place) -> Result<()> {
    let begun = Instant::now();
    place.cluster.configure(&json!({ "synchronous_mode": false })).await?;
    place.leads_to(place.sync, &one(place.cluster.leader_address().await?)).await?;
    say(&format!("synchronous mode off: the sync port leads to the primary after {:?}", begun.elapsed()))?;
    place.leads_to(place.asynchronous, &place.replicas_but(&[]).await?).await
}

// ---- Tags ------------------------------------------------------------------------------------------------------------

/// Tags are changed in the members' files while clients come; Patroni is told to read them again.
async fn tags_change(place: &Place) -> Result<()> {
    let leader = place.cluster.leader().await?;
    let replicas: Vec<_> = place.cluster.members().iter().filter(|member| member.name() != leader).collect();
    let [first, second] = replicas[..] else { anyhow::bail!("there are not two replicas") };
    let (reads, writes) =
        (Clients::start(place.pointsman.replicas(), EVERY), Clients::start(place.pointsman.primary(), EVERY));
    first.reconfigure(&json!({ "tags": { "zone": "a" } }))?;
    second.reconfigure(&json!({ "tags": { "zone": "b" } }))?;
    place.leads_to(place.zone_a, &one(first.postgres())).await?;

    let session = Client::connect(place.zone_a, SOON).await?;
    let changed = Instant::now();
    first.reconfigure(&json!({ "tags": { "zone": "b" } }))?;
    second.reconfigure(&json!({ "tags": { "zone": "a" } }))?;
    place.leads_to(place.zone_a, &one(second.postgres())).await?;
    say(&format!("zones changed: followed {:?} after Patroni was told", changed.elapsed()))?;
    ensure!(session.reached().await?.server == first.postgres(), "the session has moved");

    second.reconfigure(&json!({ "tags": { "zone": null } }))?;
    wait::until("nobody to be in zone a", CHANGE, async || {
        let error = sql::psql_error(&place.cluster.site.tools, place.zone_a).await;
        ensure!(error.contains("FATAL") && error.contains("no replica is fit to serve"), "{error}");
        Ok(())
    })
    .await?;
    let why = place.shown(first.name()).await?;
    ensure!(why.get("excluded").is_none_or(Value::is_null), "other listeners take it: {why}");

    // Left alone by reads, and back again.
    first.reconfigure(&json!({ "tags": { "noloadbalance": true } }))?;
    place.leads_to(place.pointsman.replicas(), &one(second.postgres())).await?;
    let why = place.shown(first.name()).await?;
    ensure!(why.get("excluded") == Some(&json!("it is tagged noloadbalance")), "{why}");
    session.reached().await.context("a tag has cut a session")?;
    first.reconfigure(&json!({ "tags": { "noloadbalance": null, "nofailover": true } }))?;
    place.leads_to(place.pointsman.replicas(), &place.replicas_but(&[]).await?).await?;
    a_switchover_that_patroni_refuses(place, first.name()).await?;
    first.reconfigure(&json!({ "tags": { "nofailover": null } }))?;
    wait::until("the tag to be gone", CHANGE, async || {
        let shown = place.shown(first.name()).await?;
        ensure!(shown.pointer("/tags/nofailover") == Some(&json!(false)), "{shown}");
        Ok(())
    })
    .await?;
    nobody_waited("reads while tags change", &reads.finish().await)?;
    let writes = writes.finish().await;
    writes.check_role(false)?;
    nobody_waited("writes while tags change", &writes)
}

/// To a member that is tagged `nofailover`: it still serves reads, and nobody waits for what will not come.
async fn a_switchover_that_patroni_refuses(place: &Place, candidate: &str) -> Result<()> {
    let shown = place.shown(candidate).await?;
    ensure!(shown.pointer("/tags/nofailover") == Some(&json!(true)), "{shown}");
    let leader = place.cluster.leader().await?;
    let body = json!({ "leader": leader, "candidate": candidate });
    let rest = place.cluster.member(&leader)?.rest();
    let answer = http::send_slow(rest, Method::POST, "/switchover", &body).await?;
    ensure!(answer.status != 200, "Patroni has done it: {}", answer.body);
    say(&format!("a switchover to a member that is tagged nofailover: {} {}", answer.status, answer.body))
}

// ---- Poolers ---------------------------------------------------------------------------------------------------------

const POOLER_PORT: u16 = 6432;

/// pgbouncer beside each member, which Patroni tells of by `proxy_url`: used by who asks for it, and by nobody else.
async fn poolers_beside_the_members(place: &Place) -> Result<()> {
    let mut poolers = Vec::new();
    for member in place.cluster.members() {
        let pooler = SocketAddr::new(member.postgres().ip(), POOLER_PORT);
        poolers.push(start_pooler(place, member.name(), member.postgres(), pooler)?);
        let patch = json!({ "postgresql": { "proxy_address": pooler.to_string() } });
        member.reconfigure(&patch)?;
    }
    let site = &place.cluster.site;
    let mut balancer = Balancer::new(site).await?;
    let text = balancer.configuration(&place.cluster);
    balancer.write(&text.replace("[clusters.main]", "[clusters.main]\nconnect_to = \"proxy_url\""))?;
    balancer.start(site)?;
    balancer.wait_ready().await?;
    let leader = place.cluster.leader().await?;
    let shown = async |member: &str| -> Result<Value> {
        let status = balancer.status("/clusters/0/status/members").await?;
        let members = status.as_array().context("no members")?.iter();
        let mut of = members.filter(|shown| shown.get("name").is_some_and(|name| name == member));
        of.next().and_then(|shown| shown.pointer("/addresses/0")).cloned().context("no address")
    };
    wait::until("all members to be reached through their poolers", CHANGE, async || {
        for member in place.cluster.members() {
            let address = shown(member.name()).await?;
            ensure!(address == json!(format!("{}:{POOLER_PORT}", member.postgres().ip())), "{address}");
        }
        Ok(())
    })
    .await?;
    let session =
        wait::until("a session", SOON, async || Client::connect(balancer.primary(), SOON).await).await?;
    let reached = session.reached().await?;
    ensure!(!reached.in_recovery, "{reached:?}");
    let name = "select count(*) from pg_stat_activity where application_name like '%pointsman-tests - %'";
    let pooled = sql::psql(&site.tools, &place.cluster.member(&leader)?.conninfo(), name).await?;
    ensure!(pooled == "1", "{pooled} sessions of the leader came through its pooler");

    // A change of leader, through poolers.
    let (writes, direct) =
        (Clients::start(balancer.primary(), EVERY), Clients::start(place.pointsman.primary(), EVERY));
    writes.wait_served(5, SOON).await?;
    let candidate = place.cluster.a_replica().await?;
    place.cluster.switchover(&candidate).await?;
    for (what, clients) in [("through poolers", writes), ("directly", direct)] {
        clients.wait_served(10, CHANGE).await?;
        let served = clients.finish().await;
        say(&format!(
            "switchover, {what}: {} writes, the slowest took {:?}",
            served.0.len(),
            served.slowest()
        ))?;
        served.check_role(false).with_context(|| what.to_owned())?;
        served.check_lost_at_one_stroke().with_context(|| what.to_owned())?;
    }
    ensure!(session.session.is_closed(), "the session on the old primary lives on");
    for member in place.cluster.members() {
        member.reconfigure(&json!({ "postgresql": { "proxy_address": null } }))?;
    }
    wait::until("the members to be reached directly again", CHANGE, async || {
        let address = shown(&leader).await?;
        ensure!(address == json!(place.postgres(&leader)?.to_string()), "{address}");
        Ok(())
    })
    .await?;
    place.cluster.wait_ready().await
}

fn start_pooler(place: &Place, name: &str, server: SocketAddr, at: SocketAddr) -> Result<Server> {
    let site = &place.cluster.site;
    let directory = site.subdirectory(&format!("pooler-{name}"))?;
    let settings = format!(
        "[databases]\n{} = user={} host={} port={}\n\
         [pgbouncer]\nlisten_addr = {}\nlisten_port = {}\nauth_type = any\nunix_socket_dir =\n\
         application_name_add_host = 1\nserver_login_retry = 1\n",
        sql::DATABASE,
        sql::USER,
        server.ip(),
        server.port(),
        at.ip(),
        at.port()
    );
    std::fs::write(directory.join("pgbouncer.ini"), settings)?;
    Server::start(site, RunAs::Servers, &directory, &tools::pgbouncer()?, ["pgbouncer.ini"])
}

// ---- Pause -----------------------------------------------------------------------------------------------------------

/// The leader key is gone while the cluster is paused, and the primary says that it goes on: so do writes.
async fn paused_without_a_leader_key(place: &Place) -> Result<()> {
    place.cluster.wait_ready().await?;
    place.cluster.pause().await?;
    wait::until("the proxy to know of the pause", SOON, async || {
        let status = place.pointsman.status().await?;
        let paused = status.pointer("/clusters/0/status/settings/paused").cloned();
        ensure!(paused == Some(json!(true)), "{paused:?}");
        Ok(())
    })
    .await?;
    let session = Client::connect(place.pointsman.primary(), SOON).await?;
    let (writes, reads) =
        (Clients::start(place.pointsman.primary(), EVERY), Clients::start(place.pointsman.replicas(), EVERY));
    writes.wait_served(5, SOON).await?;
    let lines = place.pointsman.log()?.lines().count();
    place.cluster.delete_key("leader").await?;
    wait::until("the primary to take its key back", SOON, async || place.cluster.leader().await).await?;
    writes.wait_served(5, SOON).await?;
    session.reached().await.context("the session was cut")?;
    let log = place.pointsman.log()?;
    ensure!(
        log.lines().skip(lines).any(|line| line.contains("kind=\"leader-key-gone\"")),
        "the proxy has not noticed:\n{}",
        place.pointsman.server().tail()
    );
    let (writes, reads) = (writes.finish().await, reads.finish().await);
    writes.check_role(false)?;
    nobody_waited("writes while paused, without a leader key", &writes)?;
    nobody_waited("reads while paused, without a leader key", &reads)
}

/// PostgreSQL of the leader is stopped while the cluster is paused: nobody takes over until somebody resumes.
async fn paused_without_a_primary(place: &Place) -> Result<()> {
    let leader = place.cluster.leader().await?;
    let (writes, reads) =
        (Clients::start(place.pointsman.primary(), EVERY), Clients::start(place.pointsman.replicas(), EVERY));
    writes.wait_served(5, SOON).await?;
    place.cluster.stop_postgres(&leader)?;
    let gone = wait::until("the leader key to be gone", CHANGE, async || {
        let key = place.cluster.get_key("leader").await?;
        ensure!(key.is_none(), "{key:?}");
        Ok(Instant::now())
    });
    gone.await?;
    wait::until("writes to be held", SOON, async || {
        let held = place.pointsman.held().await?;
        ensure!(held >= 20, "{held} are held");
        Ok(())
    })
    .await?;
    reads.wait_served(20, SOON).await?;
    let status = place.pointsman.status().await?;
    let why = status.pointer("/clusters/0/status/primary/why_not").cloned();
    say(&format!("PostgreSQL stopped while paused: {why:?}"))?;
    place.cluster.resume().await?;
    let resumed = Instant::now();
    writes.wait_served(20, CHANGE).await?;
    say(&format!("resumed: writes are served again after {:?}", resumed.elapsed()))?;
    place.cluster.wait_ready().await?;
    let (writes, reads) = (writes.finish().await, reads.finish().await);
    writes.check_lost_at_one_stroke().context("writes")?;
    writes.check_role(false)?;
    nobody_waited("reads while there is no primary in a paused cluster", &reads)?;
    let roles: BTreeMap<_, _> = reads.by_server();
    say(&format!("  the slowest write took {:?}; reads by server {roles:?}", writes.slowest()))
}
