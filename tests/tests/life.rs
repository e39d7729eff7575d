//! The life of the process: its start and what keeps it from starting, signals and drain, the service manager, the log,
//! descriptors.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pointsman_tests::balancer::{Balancer, SOON};
use pointsman_tests::shared::beside_others;
use pointsman_tests::sql::{self, Client};
use pointsman_tests::{Cluster, wait};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn still_works(session: &Client) -> Result<()> {
    session.reached().await.map(drop)
}

async fn wait_cut(session: &Client) -> Result<()> {
    wait::until("the session to be cut", SOON, async || {
        ensure!(session.session.is_closed() || session.reached().await.is_err(), "it still works");
        Ok(())
    })
    .await
}

/// A client that waits for a primary in a cluster that does not exist.
const NOBODY: &str =
    "\n[[listeners]]\nname = \"nobody\"\ncluster = \"nobody\"\nbind = \"HOST:5009\"\ntarget = \"primary\"\n";

fn with_nobody(balancer: &Balancer, cluster: &Cluster) -> String {
    let text = balancer.configuration(cluster);
    let text = text.replace("target = ", "cluster = \"main\"\ntarget = ");
    let endpoints = cluster.etcd.endpoints();
    format!("{text}\n[clusters.nobody]\ndiscovery = {{ etcd = {{ endpoints = {endpoints:?} }} }}\n{NOBODY}")
}

/// The text of the ErrorResponse that a held client gets; it sends a start-up message first.
async fn held(balancer: &Balancer) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(balancer.port(5009)).await?;
    let body = b"user\0postgres\0database\0postgres\0\0";
    let length = u32::try_from(body.len() + 8)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&196_608_u32.to_be_bytes()).await?;
    stream.write_all(body).await?;
    Ok(stream)
}

async fn last_words(mut stream: TcpStream) -> Result<String> {
    let mut text = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut text)).await.context("no end")??;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_drain_lets_sessions_finish_and_takes_no_new_ones() -> Result<()> {
    beside_others(async |cluster| {
        let mut balancer = Balancer::new(&cluster.site).await?;
        balancer.write(&with_nobody(&balancer, cluster))?;
        balancer.start(&cluster.site)?;
        balancer.wait_answer("/ready", 200).await?;
        let session = Client::connect(balancer.primary(), SOON).await?;
        let waiting = held(&balancer).await?;
        balancer.wait_status("/listeners/2/held", &json!(1)).await?;

        let begun = Instant::now();
        balancer.signal(Signal::TERM)?;
        // Who is held would wait for nothing: he is told at once.
        let told = last_words(waiting).await?;
        assert!(told.contains("57P03") || told.contains("57P01"), "{told:?}");
        let unready = balancer.wait_answer("/ready", 503).await?;
        assert!(begun.elapsed() < Duration::from_secs(5), "unready after {:?}", begun.elapsed());
        assert!(unready.body.contains("draining"), "{}", unready.body);
        assert_eq!(balancer.get("/live").await?.status, 200);
        for path in ["/primary", "/replicas"] {
            assert_eq!(balancer.get(path).await?.status, 503, "{path}");
        }
        for port in [balancer.primary(), balancer.replicas()] {
            let refused = TcpStream::connect(port).await.unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        }
        let status = balancer.ask(&["status"]).await?;
        assert!(status.starts_with("lb1: draining"), "{status}");
        still_works(&session).await?;
        balancer.check_running()?;

        drop(session);
        assert_eq!(balancer.ended(SOON).await?, 0);
        assert!(
            begun.elapsed() < Duration::from_secs(25),
            "it ends with the last session, not at the deadline"
        );
        assert!(!balancer.socket().exists());
        let log = balancer.log()?;
        assert!(log.contains("draining") && log.trim_end().ends_with("stopped"), "{log}");
        Ok(())
    })
}

#[test]
fn a_drain_ends_at_its_deadline() -> Result<()> {
    beside_others(async |cluster| {
        let mut balancer = Balancer::ready(cluster).await?;
        balancer.reload(&balancer.configuration(cluster).replace("30s", "2s")).await?;
        let session = Client::connect(balancer.primary(), SOON).await?;
        let begun = Instant::now();
        balancer.signal(Signal::TERM)?;
        wait_cut(&session).await?;
        let lasted = begun.elapsed();
        assert!(
            (Duration::from_millis(1900)..Duration::from_secs(8)).contains(&lasted),
            "cut after {lasted:?}"
        );
        assert_eq!(balancer.ended(SOON).await?, 0);
        let line = balancer.wait_log("session ended").await?;
        assert!(line.contains("reason=\"drain") && line.contains("user=\"postgres\""), "{line}");
        balancer.wait_log("cut at the end of the drain").await?;
        Ok(())
    })
}

#[test]
fn a_second_sigterm_cuts_the_drain_short() -> Result<()> {
    beside_others(async |cluster| {
        let mut balancer = Balancer::ready(cluster).await?;
        let session = Client::connect(balancer.primary(), SOON).await?;
        balancer.signal(Signal::TERM)?;
        balancer.wait_answer("/ready", 503).await?;
        // Not a reason to end: there is nothing to reload any more.
        balancer.signal(Signal::HUP)?;
        still_works(&session).await?;
        let begun = Instant::now();
        balancer.signal(Signal::TERM)?;
        assert_eq!(balancer.ended(SOON).await?, 0);
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        wait_cut(&session).await?;
        balancer.wait_log("a second signal").await?;
        Ok(())
    })
}

#[test]
fn sigint_stops_at_once() -> Result<()> {
    beside_others(async |cluster| {
        let mut balancer = Balancer::ready(cluster).await?;
        let session = Client::connect(balancer.primary(), SOON).await?;
        let begun = Instant::now();
        balancer.signal(Signal::INT)?;
        assert_eq!(balancer.ended(SOON).await?, 0);
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        wait_cut(&session).await
    })
}

#[test]
fn what_keeps_it_from_starting_is_said() -> Result<()> {
    beside_others(async |cluster| {
        let first = Balancer::ready(cluster).await?;
        let text = first.configuration(cluster);
        let host = first.address.to_string();
        let mut second = Balancer::new(&cluster.site).await?;
        let mut refused = async |text: &str| -> Result<(i32, String)> {
            second.write(text)?;
            let _ = std::fs::remove_file(second.directory().join("log"));
            second.start(&cluster.site)?;
            let code = second.ended(SOON).await?;
            Ok((code, second.log()?))
        };

        let taken = text.replace("HOST:5000", &format!("{host}:5000"));
        let (code, said) = refused(&taken).await?;
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(&format!("cannot listen on {host}:5000: address already in use")), "{said}");

        let taken = text.replace("HOST:7000", &format!("{host}:7000"));
        let (code, said) = refused(&taken).await?;
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(&format!("{host}:7000")) && said.contains("in use"), "{said}");

        let taken = text.replace("admin.sock", first.socket().to_str().unwrap());
        let (code, said) = refused(&taken).await?;
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("is pointsman running already?"), "{said}");

        let (code, said) = refused(&text.replace("primary", "primray").replace("30s", "thirty")).await?;
        assert_eq!(code, 78, "{said}");
        assert!(said.contains("primray") && said.contains("thirty"), "both errors at once: {said}");
        assert!(said.contains("pointsman.toml:"), "with their places: {said}");

        let (code, said) =
            refused(&text.replace("endpoints =", "password_file = \"none\", username = \"u\", endpoints ="))
                .await?;
        assert_eq!(code, 78, "{said}");
        assert!(said.contains("none") && said.contains("No such file"), "{said}");

        std::fs::remove_file(second.file())?;
        let said = second.run(&["run", "--config", "pointsman.toml"]).await?;
        assert_eq!(said.code, 78, "{said:?}");
        assert!(said.err.contains("pointsman.toml") && said.err.contains("No such file"), "{said:?}");
        Ok(())
    })
}

/// What `systemd` would hear.
struct ServiceManager(UnixDatagram);

impl ServiceManager {
    /// The next message that has a line which begins with `wanted`.
    async fn told(&self, wanted: &str) -> Result<String> {
        wait::until(wanted, SOON, async || {
            let mut buffer = [0; 4096];
            let count = self.0.recv(&mut buffer)?;
            let text = String::from_utf8_lossy(buffer.get(..count).unwrap()).into_owned();
            ensure!(text.lines().any(|line| line.starts_with(wanted)), "{text}");
            Ok(text)
        })
        .await
    }
}

#[test]
fn the_service_manager_hears_of_it() -> Result<()> {
    beside_others(async |cluster| {
        let mut balancer = Balancer::new(&cluster.site).await?;
        let path = balancer.directory().join("notify");
        let manager = ServiceManager(UnixDatagram::bind(&path)?);
        manager.0.set_nonblocking(true)?;
        balancer.set_environment("NOTIFY_SOCKET", path.to_str().unwrap());
        balancer.set_environment("WATCHDOG_USEC", "200000");
        balancer.write(&balancer.configuration(cluster))?;
        balancer.start(&cluster.site)?;
        manager.told("READY=1").await?;
        manager.told("WATCHDOG=1").await?;
        let leader = cluster.leader().await?;
        let session = Client::connect(balancer.primary(), SOON).await?;
        let status = manager.told(&format!("STATUS=ready; 1 session; main: {leader} confirmed")).await?;
        assert!(!status.contains("READY"), "{status}");

        balancer.signal(Signal::HUP)?;
        let reloading = manager.told("RELOADING=1").await?;
        assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
        manager.told("READY=1").await?;

        balancer.signal(Signal::TERM)?;
        let stopping = manager.told("STOPPING=1").await?;
        assert!(stopping.contains("STATUS=draining"), "{stopping}");
        assert!(stopping.contains("EXTEND_TIMEOUT_USEC="), "{stopping}");
        // The watchdog goes on for as long as the drain does.
        manager.told("WATCHDOG=1").await?;
        manager.told("WATCHDOG=1").await?;
        drop(session);
        assert_eq!(balancer.ended(SOON).await?, 0);
        Ok(())
    })
}

#[test]
fn json_lines_are_json_and_sessions_have_their_facts() -> Result<()> {
    beside_others(async |cluster| {
        let mut balancer = Balancer::new(&cluster.site).await?;
        let text = balancer
            .configuration(cluster)
            .replace("level = \"info\"", "level = \"debug\"\nformat = \"json\"");
        balancer.write(&text)?;
        balancer.start(&cluster.site)?;
        balancer.wait_ready().await?;
        let leader = cluster.leader().await?;
        sql::who(balancer.primary(), SOON).await?;
        let line = balancer.wait_log("session ended").await?;
        balancer.signal(Signal::TERM)?;
        balancer.ended(SOON).await?;
        for line in balancer.log()?.lines() {
            let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            for field in ["timestamp", "level", "message"] {
                assert!(value.get(field).is_some(), "no {field}: {line}");
            }
        }
        let session: Value = serde_json::from_str(&line)?;
        let server = cluster.member(&leader)?.postgres().to_string();
        for (field, wanted) in [
            ("listener", "primary"),
            ("cluster", "main"),
            ("member", leader.as_str()),
            ("server", server.as_str()),
            ("role", "primary"),
            ("user", "postgres"),
            ("database", "postgres"),
            ("level", "INFO"),
        ] {
            assert_eq!(session.get(field), Some(&json!(wanted)), "{field}: {line}");
        }
        for field in ["id", "bytes_in", "bytes_out", "duration_ms", "held_ms", "dial_ms", "tries"] {
            assert!(session.get(field).is_some_and(Value::is_number), "{field}: {line}");
        }
        assert!(session.get("bytes_out").and_then(Value::as_u64) > Some(100), "{line}");
        assert!(session.get("client").is_some() && session.get("reason").is_some(), "{line}");
        Ok(())
    })
}

#[test]
fn secrets_are_told_to_nobody() -> Result<()> {
    beside_others(async |cluster| {
        let mut balancer = Balancer::new(&cluster.site).await?;
        std::fs::write(balancer.directory().join("password"), "hush-hush-42\n")?;
        let rest = "[clusters.main]\nrest = { user = \"reader\", password_file = \"password\" }\n";
        let text = balancer
            .configuration(cluster)
            .replace("[clusters.main]\n", rest)
            .replace("\"info\"", "\"trace\"");
        balancer.write(&text)?;
        balancer.start(&cluster.site)?;
        balancer.wait_ready().await?;
        sql::who(balancer.primary(), SOON).await?;
        let mut said = balancer.ask(&["status"]).await?;
        for question in ["status", "members", "events", "sessions"] {
            said += &balancer.ask(&[question, "--json"]).await?;
        }
        let check = balancer.run(&["check", "--config", "pointsman.toml"]).await?;
        said += &check.out;
        said += &check.err;
        said += &balancer.get("/metrics").await?.body;
        balancer.write(&text.replace("reader", "reader\", nonsense = \""))?;
        let check = balancer.run(&["check", "--config", "pointsman.toml"]).await?;
        assert_eq!(check.code, 78, "{check:?}");
        said += &check.err;
        balancer.signal(Signal::TERM)?;
        balancer.ended(SOON).await?;
        said += &balancer.log()?;
        // The second one: Authorization: Basic, in base64.
        for secret in ["hush-hush-42", "cmVhZGVyOmh1c2gtaHVzaC00Mg"] {
            let line = said.lines().find(|line| line.contains(secret));
            assert_eq!(line, None);
        }
        assert!(said.contains("TRACE"), "nothing was asked of it");
        Ok(())
    })
}

/// The soft limit of this program is often 1,024.
fn allow_many_descriptors() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

#[test]
fn more_clients_than_descriptors_do_no_lasting_harm() -> Result<()> {
    allow_many_descriptors()?;
    beside_others(async |cluster| {
        let mut balancer = Balancer::new(&cluster.site).await?;
        balancer.limit_descriptors(100);
        balancer.write(&balancer.configuration(cluster))?;
        balancer.start(&cluster.site)?;
        balancer.wait_ready().await?;
        let warning = balancer.wait_log("100 descriptors are allowed").await?;
        assert!(warning.contains("WARN") && warning.contains("LimitNOFILE="), "{warning}");

        let session = Client::connect(balancer.primary(), SOON).await?;
        let mut crowd = Vec::new();
        for _ in 0..200 {
            crowd.push(TcpStream::connect(balancer.primary()).await?);
        }
        let full = Instant::now();
        balancer.wait_status("/listeners/0/accepted", &json!(201)).await?;
        // What is left is for the cluster and for operators: the primary is asked as before, nobody is taken for dead.
        wait::until("the primary to be confirmed again", SOON, async || {
            let age = balancer.status("/clusters/0/status/primary/confirmed_ms").await?;
            let age = Duration::from_millis(age.as_u64().context("never confirmed")?);
            ensure!(full.elapsed() > age + Duration::from_secs(2), "confirmed {age:?} ago");
            Ok(())
        })
        .await?;
        for member in [0, 1] {
            let health = balancer.status(&format!("/clusters/0/status/members/{member}/health")).await?;
            assert_eq!(health, json!("up"), "{}", balancer.tail());
        }
        assert_eq!(balancer.get("/ready").await?.status, 200);
        assert!(balancer.ask(&["status"]).await?.starts_with("lb1: ready"));
        still_works(&session).await?;
        let log = balancer.log()?;
        assert!(!log.contains("does not answer") && !log.contains("oo many open files"), "{log}");
        assert_eq!(log.matches("allows no more sessions").count(), 1, "{log}");

        drop(crowd);
        wait::until("a session to be served again", SOON, async || sql::who(balancer.primary(), SOON).await)
            .await?;
        Ok(())
    })
}

#[test]
fn a_thousand_idle_connections_leave_nothing_behind() -> Result<()> {
    allow_many_descriptors()?;
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        // Warm: what is opened once and kept is open now.
        sql::who(balancer.primary(), SOON).await?;
        sql::who(balancer.replicas(), SOON).await?;
        balancer.wait_status("/process/sessions", &json!(0)).await?;
        let threads =
            || -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{}/task", balancer.pid()?))?.count()) };
        let (descriptors, threads_before) = (balancer.descriptors()?, threads()?);
        for _ in 0..2 {
            let mut silent = Vec::new();
            for _ in 0..900 {
                silent.push(TcpStream::connect(balancer.primary()).await?);
            }
            let mut served = Vec::new();
            for _ in 0..100 {
                served.push(Client::connect(balancer.replicas(), SOON).await?);
            }
            balancer.wait_status("/process/sessions", &json!(1000)).await?;
            drop((silent, served));
            balancer.wait_status("/process/sessions", &json!(0)).await?;
        }
        wait::until("the descriptors to be as before", SOON, async || {
            let now = balancer.descriptors()?;
            ensure!(now <= descriptors + 3, "{now} descriptors, {descriptors} before");
            Ok(())
        })
        .await?;
        assert!(threads()? <= threads_before + 2, "{} threads, {threads_before} before", threads()?);
        assert_eq!(balancer.status("/listeners/0/accepted").await?, json!(1801));
        Ok(())
    })
}

/// Passes on to etcd what comes to `address`.
async fn forward(address: std::net::SocketAddr, etcd: std::net::SocketAddr) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await?;
        connections.spawn(async move {
            let mut server = TcpStream::connect(etcd).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}

#[test]
fn it_starts_without_the_store_and_serves_as_soon_as_that_comes() -> Result<()> {
    beside_others(async |cluster| {
        let mut balancer = Balancer::new(&cluster.site).await?;
        let address = balancer.port(2379);
        let text = pointsman_tests::balancer::configuration(&[format!("http://{address}")]);
        balancer.write(&text)?;
        balancer.start(&cluster.site)?;
        let unready = balancer.wait_answer("/ready", 503).await?;
        assert!(unready.body.contains("neither the source nor any member"), "{}", unready.body);
        assert_eq!(balancer.get("/live").await?.status, 200);
        let status = balancer.ask(&["status"]).await?;
        assert!(status.contains("refused"), "{status}");

        let waiting = sql::who(balancer.primary(), SOON);
        let serve = async {
            balancer.wait_status("/listeners/0/held", &json!(1)).await?;
            let etcd = *cluster.etcd.addresses().first().context("etcd")?;
            forward(address, etcd).await?;
            bail!("it never ends")
        };
        let begun = Instant::now();
        let reached = tokio::select! {
            reached = waiting => reached?,
            ended = serve => ended?,
        };
        assert!(!reached.in_recovery);
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        Ok(())
    })
}
