//! A primary and its standbys under repmgr, with the example file that is written for them: no store, no Patroni, the
//! roles are asked over SQL.
//!
//! One cluster goes through everything that happens to such clusters, one thing after the other; the table that it prints
//! is what clients saw.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::plain::{ASKER, PASSWORD, Plain};
use pointsman_tests::stopwatch::{first_write, signed_ms};
use pointsman_tests::{Addresses, Clients, Pki, Pointsman, Site, clients::Served, say, sql, tools, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);
/// How often a client connects.
const EVERY: Duration = Duration::from_millis(20);
/// The most that our share of a fail-over may be: one look at the servers, and some for a busy machine.
const SHARE_LIMIT_MS: f64 = 500.0;

struct Lab {
    servers: Vec<Plain>,
    pointsman: Pointsman,
    site: Site,
}

/// What a client saw, in a line.
fn report(what: &str, served: &Served) -> Result<()> {
    let failed = served.0.iter().filter(|one| one.outcome.is_err()).count();
    let slowest = served.slowest().as_secs_f64();
    say(&format!(
        "{what:<34} {:>4} connections {failed:>3} failed   slowest {slowest:>6.2} s",
        served.0.len()
    ))
}

/// `config/examples/4b-repmgr.toml` with our addresses in place of its own, and one member more.
fn configuration(site: &Site, tls: &str) -> Result<String> {
    let text = std::fs::read_to_string(tools::repository().join("config/examples/4b-repmgr.toml"))?;
    let member = |index| format!("{}:5432", site.addresses.member(0, index));
    let third = format!("{{ name = \"pg3\", address = \"{}\" }},\n]", member(2));
    let mut text = text
        .replace("10.0.0.21:5432", &member(0))
        .replace("10.0.0.22:5432", &member(1))
        .replace("},\n]", &format!("}},\n    {third}"))
        .replace("0.0.0.0", &site.addresses.balancer(0).to_string())
        .replace("tls = \"require\"", tls);
    text.push_str("socket = \"admin.sock\"\n");
    Ok(text)
}

impl Lab {
    async fn start() -> Result<Self> {
        let site = Site::new(Addresses::reserve()?)?;
        let pki = Pki::new(&site, "pki")?;
        let pg1 = Plain::initdb(&site, &pki, 0, &["log_connections=on"]).await?;
        pg1.sql("create table stopwatch (at timestamptz not null)").await?;
        // pg_monitor is what the documentation recommends: without it a replica's timeline is hidden.
        let role =
            format!("grant pg_monitor to {ASKER}; alter role {ASKER} set log_min_duration_statement = 0");
        pg1.sql(&role).await?;
        pg1.register_primary(&site).await?;
        let pg2 = Plain::clone_of(&site, &pki, 1, &pg1).await?;
        let pg3 = Plain::clone_of(&site, &pki, 2, &pg1).await?;
        let directory = site.directory().join("pointsman1");
        std::fs::create_dir(&directory)?;
        std::fs::write(directory.join("sql.password"), format!("{PASSWORD}\n"))?;
        // As in the example, but the certificates are checked, too.
        let tls = format!("tls = \"verify-full\", ca = \"{}\"", pki.path("ca.pem").display());
        let pointsman = Pointsman::start_with(&site, 0, &configuration(&site, &tls)?).await?;
        let lab = Self { servers: vec![pg1, pg2, pg3], pointsman, site };
        lab.pointsman.wait_replicas(2).await.with_context(|| lab.notes())?;
        Ok(lab)
    }

    /// What Pointsman has said, but for the sessions.
    fn notes(&self) -> String {
        let log = self.pointsman.log().unwrap_or_default();
        let notes: Vec<&str> = log.lines().filter(|line| !line.contains("session ended")).collect();
        notes.join("\n")
    }

    fn pg(&self, number: usize) -> Result<&Plain> {
        self.servers.get(number - 1).context("no such server")
    }

    fn pg_mut(&mut self, number: usize) -> Result<(&mut Plain, &Site)> {
        Ok((self.servers.get_mut(number - 1).context("no such server")?, &self.site))
    }

    async fn wait_alarm(&self, part: &str) -> Result<()> {
        wait::until(format!("the alarm {part:?}"), SOON, async || {
            let alarms = self.pointsman.alarms().await?;
            ensure!(alarms.iter().any(|alarm| alarm.contains(part)), "{alarms:?}");
            Ok(())
        })
        .await
    }

    /// Promotes a server while clients connect; answers our share of it in milliseconds.
    async fn promote(&self, number: usize) -> Result<f64> {
        let (new, port) = (self.pg(number)?, self.pointsman.primary());
        let clients = Clients::start(port, EVERY);
        let written = first_write(new.postgres(), SOON);
        let (written, ()) = tokio::try_join!(written, new.promote(&self.site))?;
        sql::wait_led_to(port, new.postgres(), SOON).await?;
        let served = clients.finish().await;
        let ends =
            served.0.iter().filter(|one| one.outcome.as_ref().is_ok_and(|r| r.server == new.postgres()));
        let first = ends.map(|one| one.ended).min().context("nobody reached the new primary")?;
        served.check_role(false)?;
        Ok(signed_ms(written, first))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_under_repmgr() -> Result<()> {
    let mut lab = Lab::start().await?;
    let outcome = story(&mut lab).await;
    outcome.with_context(|| lab.notes())
}

async fn story(lab: &mut Lab) -> Result<()> {
    in_peace(lab).await?;
    restart_in_place(lab).await?;
    a_frozen_primary_comes_back(lab).await?;
    a_killed_primary_comes_back(lab).await?;
    a_standby_fails(lab).await?;
    everything_fails(lab).await
}

/// Over TLS, with a SCRAM password that is bound to it; and cheap.
async fn in_peace(lab: &Lab) -> Result<()> {
    let status = lab.pointsman.status().await?;
    let primary = status.pointer("/clusters/0/status/primary").context("no primary")?;
    ensure!(primary.get("confirmed_by") == Some(&json!("sql")), "{primary}");
    ensure!(lab.pointsman.alarms().await?.is_empty(), "{status}");
    let tls =
        "select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'pointsman'";
    ensure!(lab.pg(1)?.value(tls).await? == "t", "it is asked without TLS");
    ensure!(sql::who(lab.pointsman.primary(), SOON).await?.server == lab.pg(1)?.postgres());
    let reads = Clients::start(lab.pointsman.replicas(), EVERY);
    reads.wait_served(50, SOON).await?;
    let reads = reads.finish().await;
    reads.check_none_failed(None)?;
    reads.check_role(true)?;
    ensure!(reads.by_server().len() == 2, "{:?}", reads.by_server());

    // The rate of questions, from the servers' own logs.
    let asked = |number: usize| -> Result<usize> {
        Ok(lab.pg(number)?.log()?.matches("pg_is_in_recovery() r").count())
    };
    wait::until("the source to rest", SOON, async || {
        let before = asked(2)?;
        tokio::time::sleep(Duration::from_secs(3)).await; // a rate takes time
        ensure!(asked(2)? - before <= 2, "it does not");
        Ok(())
    })
    .await?;
    let (primary, replica, from) = (asked(1)?, asked(2)?, Instant::now());
    tokio::time::sleep(Duration::from_secs(8)).await; // the same
    let per_minute = |before: usize, after: usize| {
        let all = u32::try_from(after - before).map_or(f64::NAN, f64::from);
        all * 60.0 / from.elapsed().as_secs_f64()
    };
    let (primary, replica) = (per_minute(primary, asked(1)?), per_minute(replica, asked(2)?));
    say(&format!(
        "questions per minute in peace: {primary:.0} to the primary, {replica:.0} to each replica"
    ))?;
    ensure!(primary < 120.0 && replica < 45.0, "too many");
    Ok(())
}

/// The primary is stopped and started again: clients wait, and are served by the same one.
async fn restart_in_place(lab: &mut Lab) -> Result<()> {
    let port = lab.pointsman.primary();
    let clients = Clients::start(port, EVERY);
    clients.wait_served(20, SOON).await?;
    let begun = Instant::now();
    let (pg1, site) = lab.pg_mut(1)?;
    pg1.kill().await?;
    let killed = begun..=Instant::now();
    pg1.start(site).await?;
    clients.wait_served(20, SOON).await?;
    let served = clients.finish().await;
    served.check_none_failed(Some(&killed))?;
    served.check_role(false)?;
    report("primary killed, restarted", &served)?;
    lab.pointsman.wait_replicas(2).await
}

/// The primary freezes, another one is promoted, and then the old one goes on as if nothing had happened.
async fn a_frozen_primary_comes_back(lab: &mut Lab) -> Result<()> {
    let (port, old) = (lab.pointsman.primary(), lab.pg(1)?.postgres());
    let session = sql::Client::connect(port, SOON).await?;
    ensure!(session.reached().await?.server == old);
    lab.pg(1)?.freeze()?;
    wait::until("new sessions to wait", SOON, async || {
        let status = lab.pointsman.status().await?;
        let state = status.pointer("/clusters/0/status/primary/state");
        ensure!(state == Some(&json!("pending")), "{state:?}");
        Ok(())
    })
    .await?;
    ensure!(!session.session.is_closed(), "a session was cut although nobody else leads");
    let share = lab.promote(2).await?;
    say(&format!("primary frozen, pg2 promoted       our share {share:.0} ms"))?;
    ensure!(share < SHARE_LIMIT_MS, "our share is {share:.0} ms");
    session.ended(Duration::from_secs(2)).await.context("the session on the frozen primary was not cut")?;

    // As repmgrd would do it: before the old primary can lead pg3 astray.
    lab.pg(3)?.follow(&lab.site).await?;

    let clients = Clients::start(port, EVERY);
    let reads = Clients::start(lab.pointsman.replicas(), EVERY);
    let thawed = Instant::now();
    lab.pg(1)?.thaw()?;
    lab.wait_alarm("pg1 says that it is a primary on timeline 1, while pg2 is on timeline 2").await?;
    clients.wait_served(100, SOON).await?;
    reads.wait_served(100, SOON).await?;
    let served = clients.finish().await;
    served.check_never(old, thawed)?;
    served.check_none_failed(None)?;
    report("the frozen primary goes on", &served)?;
    reads.finish().await.check_never(old, thawed)?;

    rejoin(lab, 1, 2).await
}

/// Makes a server a standby of another one again.
async fn rejoin(lab: &mut Lab, number: usize, primary: usize) -> Result<()> {
    let mut server = lab.servers.remove(number - 1);
    let primary = if primary > number { primary - 2 } else { primary - 1 };
    let cloned = server.clone_anew(&lab.site, lab.servers.get(primary).context("no such server")?).await;
    lab.servers.insert(number - 1, server);
    cloned?;
    lab.pointsman.wait_replicas(2).await?;
    ensure!(lab.pointsman.alarms().await?.is_empty(), "{:?}", lab.pointsman.alarms().await?);
    Ok(())
}

/// The same with a server that is killed, and started again on its old data.
async fn a_killed_primary_comes_back(lab: &mut Lab) -> Result<()> {
    let (port, old) = (lab.pointsman.primary(), lab.pg(2)?.postgres());
    let clients = Clients::start(port, EVERY);
    clients.wait_served(20, SOON).await?;
    let begun = Instant::now();
    lab.pg_mut(2)?.0.kill().await?;
    let killed: RangeInclusive<Instant> = begun..=Instant::now();
    let share = lab.promote(1).await?;
    clients.wait_served(20, SOON).await?;
    let served = clients.finish().await;
    served.check_none_failed(Some(&killed))?;
    report("primary killed, pg1 promoted", &served)?;
    say(&format!("                                   our share {share:.0} ms"))?;
    ensure!(share < SHARE_LIMIT_MS, "our share is {share:.0} ms");

    lab.pg(3)?.follow(&lab.site).await?;
    let clients = Clients::start(port, EVERY);
    let started = Instant::now();
    let (pg2, site) = lab.pg_mut(2)?;
    pg2.start(site).await?;
    lab.wait_alarm("pg2 says that it is a primary on timeline 2, while pg1 is on timeline 3").await?;
    clients.wait_served(50, SOON).await?;
    let served = clients.finish().await;
    served.check_never(old, started)?;
    served.check_none_failed(None)?;
    report("the killed primary is back", &served)?;
    rejoin(lab, 2, 1).await
}

/// Reads go to those that are left, and come back by themselves.
async fn a_standby_fails(lab: &mut Lab) -> Result<()> {
    let reads = Clients::start(lab.pointsman.replicas(), EVERY);
    reads.wait_served(20, SOON).await?;
    let begun = Instant::now();
    lab.pg_mut(3)?.0.kill().await?;
    let killed = begun..=Instant::now();
    lab.pointsman.wait_replicas(1).await?;
    let (pg3, site) = lab.pg_mut(3)?;
    pg3.start(site).await?;
    lab.pointsman.wait_replicas(2).await?;
    let served = reads.finish().await;
    served.check_none_failed(Some(&killed))?;
    served.check_role(true)?;
    report("standby killed, restarted (reads)", &served)?;

    let reads = Clients::start(lab.pointsman.replicas(), EVERY);
    reads.wait_served(20, SOON).await?;
    lab.pg(3)?.freeze()?;
    lab.pointsman.wait_replicas(1).await?;
    lab.pg(3)?.thaw()?;
    lab.pointsman.wait_replicas(2).await?;
    let served = reads.finish().await;
    served.check_none_failed(None)?;
    report("standby frozen, goes on (reads)", &served)
}

/// All of them are killed and started again: who waits is served in the end. Frozen, the same.
async fn everything_fails(lab: &mut Lab) -> Result<()> {
    let port = lab.pointsman.primary();
    let clients = Clients::start(port, Duration::from_millis(100));
    clients.wait_served(5, SOON).await?;
    let begun = Instant::now();
    for number in [1, 2, 3] {
        lab.pg_mut(number)?.0.kill().await?;
    }
    let killed = begun..=Instant::now();
    lab.wait_alarm("no member answers").await?;
    for number in [3, 2, 1] {
        let (server, site) = lab.pg_mut(number)?;
        server.start(site).await?;
    }
    lab.pointsman.wait_replicas(2).await?;
    clients.wait_served(5, SOON).await?;
    let served = clients.finish().await;
    served.check_none_failed(Some(&killed))?;
    served.check_role(false)?;
    report("all killed, restarted", &served)?;

    let clients = Clients::start(port, Duration::from_millis(100));
    clients.wait_served(5, SOON).await?;
    lab.servers.iter().try_for_each(Plain::freeze)?;
    lab.wait_alarm("no member answers").await?;
    lab.servers.iter().try_for_each(Plain::thaw)?;
    lab.pointsman.wait_replicas(2).await?;
    clients.wait_served(5, SOON).await?;
    let served = clients.finish().await;
    served.check_none_failed(None)?;
    served.check_role(false)?;
    report("all frozen, go on", &served)?;
    ensure!(lab.pointsman.alarms().await?.is_empty(), "{:?}", lab.pointsman.alarms().await?);
    Ok(())
}
