//! SIGHUP: what can change while the process runs does, what cannot is said, and a file with errors changes nothing.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pointsman_tests::balancer::{Balancer, SOON};
use pointsman_tests::shared::{alone, beside_others};
use pointsman_tests::sql::{self, Client};
use pointsman_tests::{stopwatch, wait};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// The reload went well and left nothing over.
fn is_complete(reload: &Value) -> Result<()> {
    let complete = reload.get("ok") == Some(&json!(true)) && reload.get("text") == Some(&json!(""));
    ensure!(complete, "{reload}");
    Ok(())
}

async fn refuses(address: SocketAddr) -> Result<()> {
    wait::until(format!("{address} to be closed"), SOON, async || match TcpStream::connect(address).await {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => anyhow::bail!("{other:?}"),
    })
    .await
}

async fn still_works(session: &Client) -> Result<()> {
    session.reached().await.map(drop)
}

/// SIGTERM: the process waits for `session`, and for nothing else.
async fn drains_with(mut balancer: Balancer, session: Client) -> Result<()> {
    balancer.signal(Signal::TERM)?;
    balancer.wait_answer("/ready", 503).await?;
    // Long enough to end for a process that does not wait.
    let ended = balancer.ended(Duration::from_millis(700)).await;
    ensure!(ended.is_err(), "it did not wait for the session\n{}", balancer.tail());
    still_works(&session).await?;
    drop(session);
    let begun = Instant::now();
    ensure!(balancer.ended(SOON).await? == 0, "exit code");
    ensure!(begun.elapsed() < Duration::from_secs(10), "ended {:?} after the last session", begun.elapsed());
    let log = balancer.log()?;
    let lines = log.lines().filter(|line| line.contains("session ended") && line.contains(" id=1 ")).count();
    ensure!(lines == 1, "the session has no line:\n{log}");
    Ok(())
}

#[test]
fn limits_networks_and_the_level_of_the_log_change() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster);
        let session = Client::connect(balancer.primary(), SOON).await?;
        let listener =
            |lines: &str| text.replace("target = \"primary\"", &format!("target = \"primary\"\n{lines}"));

        is_complete(&balancer.reload(&listener("deny = [\"127.0.0.0/8\"]")).await?)?;
        let refused = sql::who(balancer.primary(), SOON).await.unwrap_err();
        let refused = format!("{refused:#}");
        assert!(refused.contains("this address may not connect"), "{refused}");
        sql::who(balancer.replicas(), SOON).await?;

        is_complete(&balancer.reload(&listener("allow = [\"127.0.0.0/8\"]\nmax_connections = 1")).await?)?;
        let refused = format!("{:#}", sql::who(balancer.primary(), SOON).await.unwrap_err());
        assert!(refused.contains("too many"), "{refused}");
        assert_eq!(balancer.status("/listeners/0/max_connections").await?, json!(1));

        is_complete(&balancer.reload(&listener("hold = \"7s\"\nmax_held = 3")).await?)?;
        sql::who(balancer.primary(), SOON).await?;
        assert_eq!(balancer.status("/listeners/0/hold_ms").await?, json!(7000));
        assert_eq!(balancer.status("/listeners/0/max_held").await?, json!(3));

        let weighed = text.replace("[clusters.main]", "[clusters.main]\nweights = { pg1 = 7 }");
        is_complete(&balancer.reload(&weighed).await?)?;
        balancer.wait_status("/clusters/0/status/members/0/weight", &json!(7)).await?;

        assert!(!balancer.log()?.contains("DEBUG"));
        let denied = listener("deny = [\"127.0.0.0/8\"]").replace("\"info\"", "\"debug\"");
        is_complete(&balancer.reload(&denied).await?)?;
        sql::who(balancer.primary(), SOON).await.unwrap_err();
        let line = balancer.wait_log("DEBUG connection refused").await?;
        assert!(line.contains("listener=\"primary\""), "{line}");
        still_works(&session).await
    })
}

#[test]
fn listeners_come_and_go() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster);
        let extra = "\n[[listeners]]\nname = \"extra\"\nbind = \"HOST:5002\"\ntarget = \"any\"\n";
        is_complete(&balancer.reload(&format!("{text}{extra}")).await?)?;
        let session = Client::connect(balancer.port(5002), SOON).await?;
        assert_eq!(balancer.status("/listeners/2/name").await?, json!("extra"));

        is_complete(&balancer.reload(&text).await?)?;
        refuses(balancer.port(5002)).await?;
        still_works(&session).await?;
        assert_eq!(balancer.status("/listeners/2").await?, Value::Null);
        let sessions = balancer.ask(&["sessions"]).await?;
        assert!(sessions.contains("extra"), "its session is still shown: {sessions}");

        // Back again, while the old one drains: its address and its name are free.
        is_complete(&balancer.reload(&format!("{text}{extra}")).await?)?;
        sql::who(balancer.port(5002), SOON).await?;
        let names = balancer.status("/listeners/2/name").await?;
        assert_eq!(names, json!("extra"));
        still_works(&session).await?;
        is_complete(&balancer.reload(&text).await?)?;
        drains_with(balancer, session).await
    })
}

#[test]
fn a_listener_that_went_drains_until_its_own_deadline() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster).replace("30s", "1s");
        let extra = "\n[[listeners]]\nname = \"extra\"\nbind = \"HOST:5002\"\ntarget = \"any\"\n";
        is_complete(&balancer.reload(&format!("{text}{extra}")).await?)?;
        let session = Client::connect(balancer.port(5002), SOON).await?;
        is_complete(&balancer.reload(&text).await?)?;
        // Of another listener, though it has the name of the one that is gone.
        is_complete(&balancer.reload(&format!("{text}{extra}")).await?)?;
        let kept = Client::connect(balancer.port(5002), SOON).await?;
        wait::until("the session of the listener that is gone to end", SOON, async || {
            ensure!(session.reached().await.is_err(), "it still works");
            Ok(())
        })
        .await?;
        let line = balancer.wait_log("the listener is gone").await?;
        assert!(line.contains("cut=1"), "{line}");
        still_works(&kept).await
    })
}

#[test]
fn a_listener_moves_and_its_sessions_stay() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster);
        let session = Client::connect(balancer.primary(), SOON).await?;
        let accepted = balancer.status("/listeners/0/accepted").await?;
        is_complete(&balancer.reload(&text.replace("HOST:5000", "HOST:5010")).await?)?;
        refuses(balancer.primary()).await?;
        sql::who(balancer.port(5010), SOON).await?;
        still_works(&session).await?;
        assert_eq!(balancer.status("/listeners/0/bind/0").await?, json!(balancer.port(5010).to_string()));
        let counted = balancer.status("/listeners/0/accepted").await?;
        assert!(counted.as_u64() > accepted.as_u64(), "the counters go on: {accepted}, {counted}");

        // Into an address that is taken: all of it stays where it is.
        let taken = std::net::TcpListener::bind(balancer.port(5011))?;
        let reload = balancer.reload(&text.replace("5000", "5011").replace("5001", "5012")).await?;
        assert_eq!(reload.get("ok"), Some(&json!(false)), "{reload}");
        let status = balancer.ask(&["status"]).await?;
        assert_eq!(status.matches("already in use").count(), 1, "{status}");
        assert!(status.contains("listener primary: cannot listen on"), "{status}");
        sql::who(balancer.port(5010), SOON).await?;
        sql::who(balancer.replicas(), SOON).await?;
        refuses(balancer.port(5012)).await?;
        // And when the way is free, the same file is enough.
        drop(taken);
        is_complete(&balancer.reload(&text.replace("5000", "5011").replace("5001", "5012")).await?)?;
        sql::who(balancer.port(5011), SOON).await?;
        sql::who(balancer.port(5012), SOON).await?;
        refuses(balancer.port(5010)).await?;
        drains_with(balancer, session).await
    })
}

#[test]
fn who_is_held_stays_held_when_the_listener_moves() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster);
        let leader = cluster.leader().await?;
        balancer.ask(&["maint", &format!("main/{leader}")]).await?;
        balancer.wait_status("/listeners/0/state", &json!("held")).await?;
        let waiting = sql::who(balancer.primary(), SOON);
        let moving = async {
            balancer.wait_status("/listeners/0/held", &json!(1)).await?;
            is_complete(&balancer.reload(&text.replace("HOST:5000", "HOST:5010")).await?)?;
            ensure!(balancer.status("/listeners/0/held").await? == 1, "nobody is held any more");
            balancer.ask(&["ready", &format!("main/{leader}")]).await
        };
        let (reached, _) = tokio::try_join!(waiting, moving)?;
        assert!(!reached.in_recovery);
        Ok(())
    })
}

#[test]
fn a_change_of_leader_cuts_sessions_of_a_cluster_that_went() -> Result<()> {
    alone(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster);
        let endpoints = cluster.etcd.endpoints();
        let two = text.replace("target = ", "cluster = \"main\"\ntarget = ")
            + &format!(
                "[clusters.twin]\nscope = \"main\"\ndiscovery = {{ etcd = {{ endpoints = {endpoints:?} }} }}\n\
                 [[listeners]]\nname = \"twin\"\ncluster = \"twin\"\nbind = \"HOST:5002\"\ntarget = \"primary\"\n"
            );
        is_complete(&balancer.reload(&two).await?)?;
        let session = Client::connect(balancer.port(5002), SOON).await?;
        is_complete(&balancer.reload(&text).await?)?;
        still_works(&session).await?;
        // Nobody says goodbye: what ends the session is that another member is named.
        let (old, new) = (cluster.leader().await?, cluster.a_replica().await?);
        cluster.freeze_member(&old)?;
        let cut = async {
            cluster.put_key("leader", &new).await?;
            let line = balancer.wait_log("session ended").await?;
            ensure!(line.contains("listener=twin") && line.contains("side=\"us\""), "{line}");
            Ok(())
        };
        let cut = cut.await;
        cluster.thaw_member(&old)?;
        cut
    })
}

#[test]
fn a_listener_takes_an_address_beside_its_own() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster);
        let session = Client::connect(balancer.primary(), SOON).await?;
        let both = text.replace("bind = \"HOST:5000\"", "bind = [\"HOST:5000\", \"HOST:5010\"]");
        is_complete(&balancer.reload(&both).await?)?;
        sql::who(balancer.primary(), SOON).await?;
        sql::who(balancer.port(5010), SOON).await?;
        is_complete(&balancer.reload(&text).await?)?;
        sql::who(balancer.primary(), SOON).await?;
        refuses(balancer.port(5010)).await?;
        drains_with(balancer, session).await
    })
}

#[test]
fn a_listener_is_renamed_at_its_address() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster);
        let session = Client::connect(balancer.primary(), SOON).await?;
        // Nobody is refused while the address changes hands.
        let clients = stopwatch::Traffic::start(balancer.primary());
        let renamed = text.replace("bind = \"HOST:5000\"", "name = \"write\"\nbind = \"HOST:5000\"");
        is_complete(&balancer.reload(&renamed).await?)?;
        sql::who(balancer.primary(), SOON).await?;
        still_works(&session).await?;
        assert_eq!(balancer.status("/listeners/0/name").await?, json!("write"));
        is_complete(&balancer.reload(&text).await?)?;
        is_complete(&balancer.reload(&renamed).await?)?;
        sql::who(balancer.primary(), SOON).await?;
        let attempts = clients.finish().await;
        let failed: Vec<_> = attempts.iter().filter_map(|attempt| attempt.outcome.as_ref().err()).collect();
        assert!(failed.is_empty() && attempts.len() > 3, "{} attempts, failed: {failed:?}", attempts.len());
        drains_with(balancer, session).await
    })
}

#[test]
fn two_listeners_change_places() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster);
        let session = Client::connect(balancer.primary(), SOON).await?;
        let swapped = text.replace("5000", "x").replace("5001", "5000").replace('x', "5001");
        is_complete(&balancer.reload(&swapped).await?)?;
        assert!(!sql::who(balancer.port(5001), SOON).await?.in_recovery);
        // Just after its start the proxy may have no replica yet, and the primary stands in.
        wait::until("5000 to be served by a replica", SOON, async || {
            ensure!(sql::who(balancer.port(5000), SOON).await?.in_recovery, "the primary serves");
            Ok(())
        })
        .await?;
        still_works(&session).await
    })
}

#[test]
fn a_broken_file_changes_nothing_and_is_shown() -> Result<()> {
    beside_others(async |cluster| {
        let mut balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster);
        let session = Client::connect(balancer.primary(), SOON).await?;
        let broken = text.replace("HOST:5000", "HOST:5010").replace("\"replicas\"", "\"replicsa\"");
        let reload = balancer.reload(&broken).await?;
        assert_eq!(reload.get("ok"), Some(&json!(false)), "{reload}");
        assert!(reload.to_string().contains("replicsa"), "{reload}");
        let status = balancer.ask(&["status"]).await?;
        assert!(status.contains("the last reload failed") && status.contains("replicsa"), "{status}");
        let log = balancer.wait_log("the old configuration stays in force").await?;
        assert!(log.contains("ERROR"), "{log}");
        let metrics = balancer.get("/metrics").await?.body;
        assert!(metrics.contains("pointsman_reloads_total{result=\"failed\"} 1"), "{metrics}");
        sql::who(balancer.primary(), SOON).await?;
        refuses(balancer.port(5010)).await?;
        still_works(&session).await?;
        balancer.wait_ready().await?;

        std::fs::remove_file(balancer.file())?;
        balancer.signal(Signal::HUP)?;
        balancer.wait_log("No such file").await?;
        sql::who(balancer.primary(), SOON).await?;

        is_complete(&balancer.reload(&text).await?)?;
        let status = balancer.ask(&["status"]).await?;
        assert!(!status.contains("reload failed"), "{status}");
        Ok(())
    })
}

#[test]
fn the_store_moves() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster);
        let session = Client::connect(balancer.primary(), SOON).await?;
        let nowhere = format!("http://{}", balancer.port(2379));
        let moved = text.replace(&cluster.etcd.endpoints().join("\", \""), &nowhere);
        assert_ne!(moved, text);
        is_complete(&balancer.reload(&moved).await?)?;
        wait::until("the store to be given up", SOON, async || {
            let state = balancer.status("/clusters/0/status/store/state").await?;
            ensure!(state != "alive", "{state}");
            Ok(())
        })
        .await?;
        // Without the store: by Patroni's own word, as before.
        still_works(&session).await?;
        assert!(!sql::who(balancer.primary(), SOON).await?.in_recovery);
        assert_eq!(balancer.get("/ready").await?.status, 200);

        is_complete(&balancer.reload(&text).await?)?;
        balancer.wait_status("/clusters/0/status/store/state", &json!("alive")).await?;
        still_works(&session).await?;
        let reached = sql::who(balancer.primary(), SOON).await?;
        assert_eq!(reached.server, cluster.leader_address().await?);
        Ok(())
    })
}

#[test]
fn clusters_come_and_go() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster);
        let endpoints = cluster.etcd.endpoints();
        let two = text.replace("target = ", "cluster = \"main\"\ntarget = ")
            + &format!(
                "[clusters.twin]\nscope = \"main\"\ndiscovery = {{ etcd = {{ endpoints = {endpoints:?} }} }}\n\
                 [[listeners]]\nname = \"twin\"\ncluster = \"twin\"\nbind = \"HOST:5002\"\ntarget = \"primary\"\n"
            );
        is_complete(&balancer.reload(&two).await?)?;
        let session = Client::connect(balancer.port(5002), SOON).await?;
        is_complete(&balancer.reload(&text).await?)?;
        refuses(balancer.port(5002)).await?;
        still_works(&session).await?;
        assert_eq!(balancer.status("/clusters/1").await?, Value::Null);
        sql::who(balancer.primary(), SOON).await?;
        drains_with(balancer, session).await
    })
}

#[test]
fn what_cannot_change_is_said() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let text = balancer.configuration(cluster);
        let changed = text
            .replace("\"lb1\"", "\"lb2\"")
            .replace("HOST:7000", "HOST:7001")
            .replace("level", "format = \"json\"\nlevel")
            .replace("[clusters.main]", "[clusters.main]\nscope = \"other\"")
            .replace("HOST:5001", "HOST:5011");
        let reload = balancer.reload(&changed).await?;
        let said = reload.get("text").and_then(Value::as_str).unwrap_or_default().to_owned();
        assert_eq!(reload.get("ok"), Some(&json!(true)), "{reload}");
        for word in ["node", "[admin]", "log.format", "[clusters.main] scope", "restart"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        let status = balancer.ask(&["status"]).await?;
        assert!(status.contains("restart"), "{status}");
        // What can change has changed, and the rest is as it was.
        sql::who(balancer.port(5011), SOON).await?;
        assert_eq!(balancer.get("/ready").await?.status, 200);
        assert!(status.starts_with("lb1: ready"), "{status}");
        Ok(())
    })
}
