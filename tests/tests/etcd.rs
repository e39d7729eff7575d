//! Patroni on an etcd that trusts nobody, with the configuration of the first example; and hosts whose clocks and name
//! servers are wrong.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use pointsman_tests::sql::{self, Client};
use pointsman_tests::stopwatch;
use pointsman_tests::{
    Addresses, Clients, Cluster, ClusterOptions, EtcdGuard, EtcdUser, MemberOptions, Pki, Pointsman, Site,
    http, say, wait,
};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio_postgres::SimpleQueryMessage;

const EXAMPLE: &str = include_str!("../../config/examples/1-patroni-etcd-vip.toml");
const SOON: Duration = Duration::from_secs(30);
const EVERY: Duration = Duration::from_millis(100);
const PASSWORD: &str = "not a secret";

// ---- The example -----------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_with_tls_and_passwords() -> Result<()> {
    let site = Site::new(Addresses::reserve()?)?;
    let pki = certificates(&site)?;
    let options = secured(&site, &pki);
    let mut cluster = Cluster::start_in(site, &options).await?;
    let pointsman = start_example(&cluster, &pki).await?;
    pointsman.wait_replicas(2).await?;
    people_are_served(&cluster, &pointsman).await?;
    nobody_else_is_let_in(&cluster, &pki).await?;
    a_switchover(&cluster, &pointsman).await?;
    every_node_starts_anew(&mut cluster, &pointsman).await?;
    a_switchover(&cluster, &pointsman).await
}

/// One authority for etcd and its clients, one for Patroni.
struct Authorities {
    etcd: Pki,
    patroni: Pki,
}

fn certificates(site: &Site) -> Result<Authorities> {
    let pki = Authorities { etcd: Pki::new(site, "pki")?, patroni: Pki::new(site, "patroni-pki")? };
    let addresses = |of: fn(&Addresses, u8, u8) -> std::net::Ipv4Addr| -> Vec<IpAddr> {
        (0..3).map(|index| of(&site.addresses, 0, index).into()).collect()
    };
    pki.etcd.leaf(site, "etcd", &addresses(Addresses::etcd), &["localhost"])?;
    pki.etcd.leaf(site, "client", &[], &[])?;
    // Patroni speaks to etcd's JSON gateway, which refuses a client certificate with a common name.
    pki.etcd.nameless_leaf(site, "patroni", &[], &["patroni.test"])?;
    pki.patroni.leaf(site, "patroni", &addresses(Addresses::member), &[])?;
    // Patroni's REST API is asked by Patroni itself and by us.
    let both = [pki.etcd.path("ca.pem"), pki.patroni.path("ca.pem")].map(fs::read_to_string);
    let both: String = both.into_iter().collect::<Result<_, _>>()?;
    fs::write(site.directory().join("rest-clients.pem"), both)?;
    Ok(pki)
}

fn secured(site: &Site, pki: &Authorities) -> ClusterOptions {
    let prefix = "/service/main/";
    let guard = EtcdGuard {
        ca: pki.etcd.path("ca.pem"),
        cert: pki.etcd.path("etcd.pem"),
        key: pki.etcd.path("etcd.key"),
        users: vec![
            EtcdUser { name: "patroni", password: PASSWORD, may: "READWRITE", prefix },
            EtcdUser { name: "reader", password: PASSWORD, may: "READ", prefix },
        ],
    };
    let trusted = site.directory().join("rest-clients.pem");
    let patroni = json!({
        "etcd3": {
            "protocol": "https",
            "cacert": pki.etcd.path("ca.pem"), "cert": pki.etcd.path("patroni.pem"), "key": pki.etcd.path("patroni.key"),
            "username": "patroni", "password": PASSWORD,
        },
        "restapi": {
            "certfile": pki.patroni.path("patroni.pem"), "keyfile": pki.patroni.path("patroni.key"),
            "cafile": trusted, "verify_client": "required",
        },
        "ctl": {
            "cacert": pki.patroni.path("ca.pem"),
            "certfile": pki.patroni.path("patroni.pem"), "keyfile": pki.patroni.path("patroni.key"),
        },
    });
    // The nodes are restarted in turn: Patroni is not to give up its primary when that takes a slow machine too long.
    ClusterOptions {
        etcd_nodes: 3,
        etcd_guard: Some(guard),
        failsafe_mode: true,
        patroni,
        ..ClusterOptions::default()
    }
}

/// The example's own text on this site's addresses, with its files beside it.
async fn start_example(cluster: &Cluster, pki: &Authorities) -> Result<Pointsman> {
    let directory = cluster.site.directory().join("pointsman1");
    fs::create_dir(&directory)?;
    for file in ["ca.pem", "client.pem", "client.key"] {
        fs::copy(pki.etcd.path(file), directory.join(file))?;
    }
    fs::copy(pki.patroni.path("ca.pem"), directory.join("patroni-ca.pem"))?;
    fs::write(directory.join("etcd.password"), PASSWORD)?;
    Pointsman::start_with(&cluster.site, 0, &example(cluster)?).await
}

fn example(cluster: &Cluster) -> Result<String> {
    let address = cluster.site.addresses.balancer(0);
    let mut text = without(EXAMPLE, &["[clusters.main.sql]", "[vrrp]", "[[vips]]"])?;
    for (host, ours) in ["10.0.0.31", "10.0.0.32", "10.0.0.33"].iter().zip(cluster.etcd.addresses()) {
        text = text.replace(host, &ours.ip().to_string());
    }
    for (theirs, ours) in [
        ("[\"0.0.0.0:5000\", \"[::]:5000\"]", format!("\"{address}:5000\"")),
        ("[\"0.0.0.0:5001\", \"[::]:5001\"]", format!("\"{address}:5001\"")),
        ("bind = \"0.0.0.0:7000\"", format!("bind = \"{address}:7000\"\nsocket = \"admin.sock\"")),
    ] {
        ensure!(text.contains(theirs), "the example has no {theirs}");
        text = text.replace(theirs, &ours);
    }
    Ok(text)
}

/// A text without some of its tables.
fn without(text: &str, tables: &[&str]) -> Result<String> {
    let mut keep = true;
    let mut left: Vec<&str> = tables.to_vec();
    let lines = text.lines().filter(|line| {
        if line.starts_with('[') {
            keep = !tables.contains(line);
            left.retain(|table| table != line);
        }
        keep
    });
    let text = lines.fold(String::new(), |text, line| text + line + "\n");
    ensure!(left.is_empty(), "the example has no {left:?}");
    Ok(text)
}

async fn people_are_served(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let ask = async |conninfo: String| {
        sql::psql(&cluster.site.tools, &conninfo, "select pg_is_in_recovery()").await
    };
    assert_eq!(ask(pointsman.primary_conninfo()).await?.trim(), "f");
    assert_eq!(ask(pointsman.replicas_conninfo()).await?.trim(), "t");
    Ok(())
}

/// Patroni's REST API and etcd do ask for certificates here: else the rest would prove nothing.
async fn nobody_else_is_let_in(cluster: &Cluster, pki: &Authorities) -> Result<()> {
    let member = cluster.members().first().context("a member")?;
    assert!(http::get(member.rest(), "/patroni").await.is_err(), "Patroni answers in the clear");
    let etcd = *cluster.etcd.addresses().first().context("etcd")?;
    assert!(http::get(etcd, "/version").await.is_err(), "etcd answers in the clear");
    let path = |file| pki.etcd.path(file);
    let tls = http::tls(&path("ca.pem"), &path("patroni.pem"), &path("patroni.key"))?;
    let place = http::Place::from(etcd).over(Some(tls));
    let all = json!({ "key": "AA==", "range_end": "AA==" });
    let refused = http::send(place, Method::POST, "/v3/kv/range", &all).await?;
    ensure!(refused.status != 200, "etcd shows its keys without a password: {}", refused.body);
    Ok(())
}

async fn a_switchover(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    cluster.wait_ready().await?;
    pointsman.wait_replicas(2).await?;
    stopwatch::prepare(cluster).await?;
    let reads = Clients::start(pointsman.replicas(), EVERY);
    reads.wait_served(3, SOON).await?;
    let candidate = cluster.a_replica().await?;
    let ports = [("pointsman", pointsman.primary())];
    let measured = stopwatch::measure_switchover(cluster, &ports, &candidate).await?;
    let verdict = measured.verdicts.first().context("a verdict")?;
    say(&format!("switchover, {} to {}: {verdict}", measured.old, measured.new))?;
    ensure!(
        verdict.failed == 0 && verdict.wrong_role == 0,
        "{verdict}: {:?}\n{}",
        verdict.errors,
        pointsman.server().tail()
    );
    reads.finish().await.check_none_failed(None).context("reads")
}

/// A restarted node of etcd has forgotten every token.
async fn every_node_starts_anew(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    let session = Client::connect(pointsman.primary(), SOON).await?;
    let (writes, reads) =
        (Clients::start(pointsman.primary(), EVERY), Clients::start(pointsman.replicas(), EVERY));
    for node in 0..3 {
        cluster.restart_etcd(node).await?;
        cluster.etcd.wait_all_ready().await?;
    }
    wait::until("the proxy to have taken up a change", SOON, async || {
        cluster.put_key("members/test", "{").await?;
        let complaint = pointsman.complaint("members/test").await?;
        ensure!(complaint.is_some(), "it does not know of it");
        Ok(())
    })
    .await?;
    cluster.etcd.delete("/service/main/members/test").await?;
    cluster.wait_ready().await?;
    writes.wait_served(3, SOON).await?;
    let lost = session.reached().await.context("the session was lost");
    lost.with_context(|| pointsman.server().tail())?;
    let (writes, reads) = (writes.finish().await, reads.finish().await);
    say(&format!(
        "every node restarted in turn: the slowest write took {:?}, the slowest read {:?}",
        writes.slowest(),
        reads.slowest()
    ))?;
    writes.check_none_failed(None).context("writes")?;
    writes.check_role(false)?;
    reads.check_none_failed(None).context("reads")
}

// ---- Clocks and names ------------------------------------------------------------------------------------------------

/// A host of its own: its wall clock, its names.
struct FakeHost {
    hosts: PathBuf,
    wrapper: Vec<String>,
}

impl FakeHost {
    /// `offset`: as faketime has it, `+1d`. `resolver`: the only name server.
    fn new(site: &Site, name: &str, offset: &str, resolver: IpAddr) -> Result<Self> {
        let directory = site.directory().join(name);
        fs::create_dir(&directory)?;
        let (hosts, resolv) = (directory.join("hosts"), directory.join("resolv.conf"));
        fs::write(&hosts, "")?;
        fs::write(&resolv, format!("nameserver {resolver}\noptions timeout:30 attempts:1\n"))?;
        let mount = "mount --bind \"$1\" /etc/hosts && mount --bind \"$2\" /etc/resolv.conf && shift 2 && exec \"$@\"";
        let unshare: &[&str] = if rustix::process::geteuid().is_root() {
            &["/usr/bin/unshare", "--mount"]
        } else {
            &["/usr/bin/unshare", "--map-root-user", "--mount"]
        };
        let mut wrapper: Vec<String> = unshare.iter().map(|word| (*word).to_owned()).collect();
        wrapper.extend(["/bin/sh", "-c", mount, "sh"].map(str::to_owned));
        wrapper.extend([hosts.display().to_string(), resolv.display().to_string()]);
        wrapper.extend(another_time(site, offset));
        Ok(Self { hosts, wrapper })
    }

    /// Its names from now on. Not by renaming: the file is mounted.
    fn names(&self, names: &[(IpAddr, &str)]) -> Result<()> {
        let lines: Vec<_> = names.iter().map(|(address, name)| format!("{address} {name}\n")).collect();
        Ok(fs::write(&self.hosts, lines.concat())?)
    }
}

/// Runs a program with another wall clock; the clocks that measure time stay right.
fn another_time(site: &Site, offset: &str) -> Vec<String> {
    let preload = format!("LD_PRELOAD={}", site.tools.faketime.display());
    let offset = format!("FAKETIME={offset}");
    ["/usr/bin/env", &preload, &offset, "DONT_FAKE_MONOTONIC=1", "FAKETIME_DISABLE_SHM=1"]
        .map(str::to_owned)
        .into()
}

/// The same for Patroni: the library of Debian 12 now and then refuses the call that Python's `sleep` makes (EINVAL of
/// `clock_nanosleep` until a time), so it waits in another way.
fn another_time_for_python(site: &Site, offset: &str) -> Result<Vec<String>> {
    let directory = site.directory().join("python");
    fs::create_dir(&directory)?;
    let sleep =
        "import select, time\ntime.sleep = lambda seconds: select.select((), (), (), max(0, seconds))\n";
    fs::write(directory.join("sitecustomize.py"), sleep)?;
    let mut wrapper = another_time(site, offset);
    wrapper.push(format!("PYTHONPATH={}", directory.display()));
    Ok(wrapper)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_clocks_and_wrong_names() -> Result<()> {
    let mut site = Site::new(Addresses::reserve()?)?;
    site.tools.etcd = site.tools.etcd_3_5.clone();
    let behind =
        MemberOptions { wrapper: another_time_for_python(&site, "-1d")?, ..MemberOptions::default() };
    let member_options = vec![MemberOptions::default(), behind];
    let options = ClusterOptions { etcd_nodes: 3, members: 2, member_options, ..ClusterOptions::default() };
    let mut cluster = Cluster::start_in(site, &options).await?;
    let silent: IpAddr = cluster.site.addresses.other(53).into();
    let (hosts, pointsmen) = two_hosts(&cluster, silent).await?;
    the_clocks_are_wrong(&cluster, &pointsmen).await?;
    for _ in 0..2 {
        a_switchover_seen_by_both(&cluster, &pointsmen).await?;
    }
    a_scheduled_switchover(&cluster, &pointsmen).await?;
    names_stop_resolving(&mut cluster, &hosts, pointsmen, silent).await
}

const NAMES: [&str; 3] = ["etcd1.test", "etcd2.test", "etcd3.test"];

/// One Pointsman a day ahead, one a day behind; both know etcd by its names. The first name has another
/// address before its own, where nothing listens.
async fn two_hosts(cluster: &Cluster, resolver: IpAddr) -> Result<(Vec<FakeHost>, Vec<Pointsman>)> {
    let (mut hosts, mut pointsmen) = (Vec::new(), Vec::new());
    for (index, offset) in [(0, "+1d"), (1, "-1d")] {
        let host = FakeHost::new(&cluster.site, &format!("host{index}"), offset, resolver)?;
        host.names(&all_names(cluster))?;
        let address = cluster.site.addresses.balancer(index);
        let endpoints = NAMES.map(|name| format!("http://{name}:2379"));
        let text = pointsman_tests::pointsman::configuration(address, &endpoints);
        let balancer = Pointsman::start_under(&cluster.site, index, &text, &host.wrapper).await?;
        balancer.wait_replicas(1).await?;
        hosts.push(host);
        pointsmen.push(balancer);
    }
    Ok((hosts, pointsmen))
}

fn all_names(cluster: &Cluster) -> Vec<(IpAddr, &'static str)> {
    let gone = (cluster.site.addresses.other(9).into(), NAMES[0]);
    let real = cluster.etcd.addresses().into_iter().map(|address| address.ip()).zip(NAMES);
    [gone].into_iter().chain(real).collect()
}

/// Else nothing here proves anything.
async fn the_clocks_are_wrong(cluster: &Cluster, pointsmen: &[Pointsman]) -> Result<()> {
    let now = pointsmen.first().context("a balancer")?.status().await?.pointer("/process/now").cloned();
    let other = pointsmen.last().context("a balancer")?.status().await?.pointer("/process/now").cloned();
    say(&format!("the balancers' clocks say {now:?} and {other:?}"))?;
    ensure!(now.is_some() && day(now.as_ref()) != day(other.as_ref()), "the clocks agree");
    let days = async |member| answer_to(cluster.member(member)?.postgres(), "select current_date").await;
    ensure!(days("pg1").await? != days("pg2").await?, "the members' clocks agree");
    Ok(())
}

fn day(time: Option<&Value>) -> Option<&str> {
    time?.as_str()?.get(..10)
}

async fn a_switchover_seen_by_both(cluster: &Cluster, pointsmen: &[Pointsman]) -> Result<()> {
    cluster.wait_ready().await?;
    for pointsman in pointsmen {
        pointsman.wait_replicas(1).await?;
    }
    stopwatch::prepare(cluster).await?;
    let ports: Vec<_> =
        ["a day ahead", "a day behind"].into_iter().zip(pointsmen.iter().map(Pointsman::primary)).collect();
    let candidate = cluster.a_replica().await?;
    let announced = |pointsman: &Pointsman| Ok(pointsman.log()?.matches("new sessions wait for it").count());
    let before = pointsmen.iter().map(announced).collect::<Result<Vec<_>>>()?;
    let measured = stopwatch::measure_switchover(cluster, &ports, &candidate).await?;
    for verdict in &measured.verdicts {
        say(&format!("switchover, {} to {}: {verdict}", measured.old, measured.new))?;
        // Who came before the announcement has half a second until PostgreSQL shuts down: enough, but on a machine with
        // other things to do.
        ensure!(verdict.lost_at_one_stroke && verdict.wrong_role == 0, "{verdict}: {:?}", verdict.errors);
    }
    let after = pointsmen.iter().map(announced).collect::<Result<Vec<_>>>()?;
    ensure!(
        before.iter().zip(&after).all(|(before, after)| after > before),
        "not held beforehand: {after:?}"
    );
    Ok(())
}

/// It is held for early by a clock that is ahead, for 5 s at the most, and not at all by one that is behind.
async fn a_scheduled_switchover(cluster: &Cluster, pointsmen: &[Pointsman]) -> Result<()> {
    cluster.wait_ready().await?;
    // pg1's clock is right: it decides when it is time.
    if cluster.leader().await? != "pg1" {
        cluster.switchover("pg1").await?;
        cluster.wait_ready().await?;
    }
    for pointsman in pointsmen {
        pointsman.wait_replicas(1).await?;
    }
    let clients: Vec<_> = pointsmen.iter().map(|one| Clients::start(one.primary(), EVERY)).collect();
    let leader = cluster.member("pg1")?;
    let at =
        answer_to(leader.postgres(), "select to_char(now() + '12 s', 'YYYY-MM-DD\"T\"HH24:MI:SSOF')").await?;
    let body = json!({ "leader": "pg1", "candidate": "pg2", "scheduled_at": at });
    let answer = http::send_slow(leader.rest_place(), Method::POST, "/switchover", &body).await?;
    ensure!(answer.status == 202, "{} {}", answer.status, answer.body);
    let announced = Instant::now();
    cluster.wait_leader("pg2", SOON * 2).await?;
    say(&format!(
        "the switchover that was scheduled for 12 s later was done after {:?}",
        announced.elapsed()
    ))?;
    for (clients, what) in clients.into_iter().zip(["ahead", "behind"]) {
        clients.wait_served(5, SOON).await?;
        let served = clients.finish().await;
        say(&format!(
            "scheduled, a day {what}: the slowest of {} took {:?}",
            served.0.len(),
            served.slowest()
        ))?;
        // Who is just being served when PostgreSQL shuts down may be lost where the schedule was not known.
        served.check_lost_at_one_stroke().context(what)?;
        served.check_role(false)?;
        ensure!(served.slowest() < Duration::from_secs(10), "{what}: {:?}", served.slowest());
    }
    Ok(())
}

/// The only field of the only row.
async fn answer_to(server: SocketAddr, query: &str) -> Result<String> {
    let client = Client::connect(server, SOON).await?;
    let rows = client.session.simple_query(query).await?;
    let row =
        rows.iter().find_map(|row| if let SimpleQueryMessage::Row(row) = row { row.get(0) } else { None });
    Ok(row.context("no row")?.to_owned())
}

/// The names are gone, and the name server is silent: what is connected stays so; what is not asks until it is told.
async fn names_stop_resolving(
    cluster: &mut Cluster,
    hosts: &[FakeHost],
    pointsmen: Vec<Pointsman>,
    resolver: IpAddr,
) -> Result<()> {
    // Holds its questions and never answers. Only root may; else a refusal does as well.
    let _silent = UdpSocket::bind((resolver, 53)).await;
    let clients: Vec<_> = pointsmen.iter().map(|one| Clients::start(one.primary(), EVERY)).collect();
    for host in hosts {
        host.names(&[])?;
    }
    for node in 0..3 {
        cluster.restart_etcd(node).await?;
        cluster.etcd.wait_all_ready().await?;
    }
    for pointsman in &pointsmen {
        pointsman.wait_store("lost").await?;
        say(&format!("without names: {}", pointsman.store("error").await?))?;
    }
    let [goes_on, ends] = <[Pointsman; 2]>::try_from(pointsmen).ok().context("two balancers")?;
    // One name is enough: the one with an address where nothing listens.
    let names = all_names(cluster).into_iter().filter(|(_, name)| *name == NAMES[0]);
    hosts.first().context("a host")?.names(&names.collect::<Vec<_>>())?;
    goes_on.wait_store("alive").await?;
    for clients in clients {
        clients.wait_served(3, SOON).await?;
        let served = clients.finish().await;
        served.check_none_failed(None)?;
        served.check_role(false)?;
    }
    // Nobody waits for a name server in order to end.
    let asked = Instant::now();
    assert_eq!(ends.stop(Duration::from_secs(10)).await?, 0);
    say(&format!("it ended {:?} after it was asked to", asked.elapsed()))
}
