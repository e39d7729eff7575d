//! The admin port: pages, metrics, health answers in every state, and clients that mean no good.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::balancer::{Balancer, SOON};
use pointsman_tests::shared::{alone, beside_others};
use pointsman_tests::sql::{self, Client};
use pointsman_tests::{Cluster, wait};
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Sends `bytes` and reads until the other side closes.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    // It may close before it has read everything: what it said still counts.
    let _ = stream.write_all(bytes).await;
    let mut text = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut text)).await;
    drop(read.with_context(|| format!("still open after {}", String::from_utf8_lossy(&text)))?);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> Result<String> {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    exchange(address, request.as_bytes()).await
}

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[test]
fn pages_say_what_they_are_and_ask_nobody_else() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        for (path, kind) in [
            ("/", "text/html"),
            ("/stats", "text/html"),
            ("/dashboard.css", "text/css"),
            ("/dashboard.js", "text/javascript"),
            ("/favicon.ico", "image/svg+xml"),
            ("/metrics", "text/plain; version=0.0.4"),
            ("/api/v1/status", "application/json"),
            ("/api/v1/members", "application/json"),
            ("/api/v1/listeners", "application/json"),
            ("/api/v1/sessions", "application/json"),
            ("/api/v1/timeline", "application/json"),
        ] {
            let get = ask(balancer.admin(), "GET", path).await?;
            assert_eq!(status(&get), Some(200), "{path}: {get}");
            let head = get.split("\r\n\r\n").next().unwrap().to_lowercase();
            for wanted in
                [&format!("content-type: {kind}"), "nosniff", "cache-control: no-store", "default-src 'none'"]
            {
                assert!(head.contains(wanted), "{path}: no {wanted} in {head}");
            }
            assert!(!body(&get).contains("http://") || path != "/", "the page names another host: {get}");
            let only_head = ask(balancer.admin(), "HEAD", path).await?;
            assert_eq!((status(&only_head), body(&only_head)), (Some(200), ""), "HEAD {path}");
            let options = ask(balancer.admin(), "OPTIONS", path).await?;
            assert_eq!(status(&options), Some(204), "OPTIONS {path}: {options}");
        }
        let missing = ask(balancer.admin(), "GET", "/nothing").await?;
        assert!(status(&missing) == Some(404) && missing.contains("/metrics"), "{missing}");
        Ok(())
    })
}

#[test]
fn nothing_changes_through_the_port() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let leader = cluster.leader().await?;
        let session = Client::connect(balancer.primary(), SOON).await?;
        for path in [format!("/api/v1/members/main/{leader}/maint"), "/api/v1/sessions/1/kill".to_owned()] {
            for method in ["POST", "PUT", "DELETE", "PATCH", "GET", "TRACE", "CONNECT"] {
                let answer = ask(balancer.admin(), method, &path).await?;
                let wanted: &[u16] = if method == "POST" { &[403] } else { &[405, 400] };
                assert!(
                    status(&answer).is_some_and(|status| wanted.contains(&status)),
                    "{method} {path}: {answer}"
                );
            }
        }
        for path in ["/", "/metrics", "/ready", "/api/v1/status", "/api/v1/events"] {
            for method in ["POST", "PUT", "DELETE", "PATCH"] {
                let answer = ask(balancer.admin(), method, path).await?;
                assert_eq!(status(&answer), Some(405), "{method} {path}: {answer}");
            }
        }
        session.reached().await?;
        assert_eq!(balancer.status("/clusters/0/status/members/0/admin").await?, json!("ready"));
        Ok(())
    })
}

/// Samples by series; every line is checked.
fn parse_metrics(text: &str) -> Result<BTreeMap<String, f64>> {
    let (mut types, mut samples) = (BTreeMap::new(), BTreeMap::new());
    let mut helped = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            ensure!(helped.insert(rest.split(' ').next().unwrap_or_default()), "twice: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("no type")?;
            ensure!(helped.contains(name) && types.insert(name, kind).is_none(), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            let name = series.split('{').next().unwrap_or_default();
            let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let histogram = plain.is_some_and(|name| types.get(name) == Some(&"histogram"));
            ensure!(histogram || types.contains_key(name), "no type: {line}");
            ensure!(samples.insert(series.to_owned(), value.parse()?).is_none(), "twice: {line}");
        }
    }
    Ok(samples)
}

#[test]
fn prometheus_understands_the_metrics() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let leader = cluster.leader().await?;
        let _session = Client::connect(balancer.primary(), SOON).await?;
        sql::who(balancer.primary(), SOON).await?;
        balancer.wait_status("/process/sessions", &json!(1)).await?;
        let text = balancer.get("/metrics").await?.body;
        let samples = parse_metrics(&text)?;
        let value =
            |series: &str| samples.get(series).copied().with_context(|| format!("no {series} in\n{text}"));
        assert!((value("pointsman_sessions")? - 1.0).abs() < 0.1);
        let accepted = value("pointsman_listener_accepted_total{cluster=\"main\",listener=\"primary\"}")?;
        assert!((accepted - 2.0).abs() < 0.1, "{accepted}");
        assert!(text.contains(&format!("member=\"{leader}\"")), "{text}");
        assert!(!text.contains("client="), "no address of a client is a label");

        let mut tool = Command::new("promtool");
        tool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut tool = tool.spawn().context("promtool: run scripts/install-test-servers")?;
        tool.stdin.take().context("no input")?.write_all(text.as_bytes())?;
        let output = tool.wait_with_output()?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}\n{text}");
        assert_eq!(said, "", "promtool");
        Ok(())
    })
}

async fn health(balancer: &Balancer) -> Result<BTreeMap<&'static str, u16>> {
    let mut all = BTreeMap::new();
    for path in ["/live", "/ready", "/primary", "/replicas"] {
        let get = ask(balancer.admin(), "GET", path).await?;
        for method in ["HEAD", "OPTIONS"] {
            let other = ask(balancer.admin(), method, path).await?;
            // Between two questions the state may have changed; asked again, they agree.
            ensure!(status(&other) == status(&get), "{method} {path}: {other}, GET: {get}");
            ensure!(body(&other).is_empty(), "{method} {path}: {other}");
        }
        all.insert(path, status(&get).context("no status")?);
    }
    Ok(all)
}

async fn wait_health(balancer: &Balancer, live: u16, ready: u16, primary: u16, replicas: u16) -> Result<()> {
    let wanted =
        BTreeMap::from([("/live", live), ("/ready", ready), ("/primary", primary), ("/replicas", replicas)]);
    wait::until(format!("{wanted:?}"), SOON, async || {
        let seen = health(balancer).await?;
        ensure!(seen == wanted, "{seen:?}");
        Ok(())
    })
    .await
    .with_context(|| balancer.tail())
}

#[test]
fn health_in_every_state() -> Result<()> {
    alone(async |cluster| {
        let mut balancer = Balancer::ready(cluster).await?;
        let mut refusing = Balancer::new(&cluster.site).await?;
        let text = refusing
            .configuration(cluster)
            .replace("target = \"primary\"", "target = \"primary\"\nhold = \"0s\"");
        refusing.write(&text)?;
        refusing.start(&cluster.site)?;
        refusing.wait_ready().await?;
        for balancer in [&balancer, &refusing] {
            wait_health(balancer, 200, 200, 200, 200).await?;
        }
        let leader = cluster.leader().await?;
        leader_goes(cluster, &balancer, &refusing).await?;

        // The leader is back: everything is well again.
        cluster.wait_leader(&leader, SOON).await?;
        for balancer in [&balancer, &refusing] {
            wait_health(balancer, 200, 200, 200, 200).await?;
        }
        let wrong = ask(balancer.admin(), "GET", "/primary?cluster=other").await?;
        assert!(status(&wrong) == Some(404) && wrong.contains("there is main"), "{wrong}");

        let session = Client::connect(balancer.primary(), SOON).await?;
        balancer.signal(Signal::TERM)?;
        wait_health(&balancer, 200, 503, 503, 503).await?;
        drop(session);
        assert_eq!(balancer.ended(SOON).await?, 0);
        Ok(())
    })
}

/// Nobody leads for a while: PostgreSQL and Patroni of all members are frozen, and the key is gone.
async fn leader_goes(cluster: &Cluster, balancer: &Balancer, refusing: &Balancer) -> Result<()> {
    for member in cluster.members() {
        member.freeze()?;
    }
    let seen = async {
        cluster.etcd.delete("/service/main/leader").await?;
        // Held within bounds, so a balancer in front goes on sending clients; refused, so it does not.
        wait_health(balancer, 200, 200, 200, 200).await?;
        let primary = ask(balancer.admin(), "GET", "/primary").await?;
        ensure!(primary.contains("holds new sessions"), "{primary}");
        wait::until("a refusing listener to be shown", SOON, async || {
            let primary = ask(refusing.admin(), "GET", "/primary").await?;
            ensure!(status(&primary) == Some(503) && primary.contains("refuses"), "{primary}");
            Ok(())
        })
        .await?;
        ensure!(
            status(&ask(refusing.admin(), "GET", "/ready").await?) == Some(200),
            "a host without a primary is ready"
        );
        Ok(())
    };
    let seen = seen.await;
    for member in cluster.members() {
        member.thaw()?;
    }
    seen
}

#[test]
fn hostile_clients_cost_themselves_only() -> Result<()> {
    beside_others(async |cluster| {
        let mut balancer = Balancer::ready(cluster).await?;
        let admin = balancer.admin();
        let descriptors = balancer.descriptors()?;

        let huge = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(1 << 20));
        let answer = exchange(admin, huge.as_bytes()).await?;
        assert!(matches!(status(&answer), None | Some(400 | 431)), "{answer}");
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(1 << 20));
        let answer = exchange(admin, long.as_bytes()).await?;
        assert!(matches!(status(&answer), None | Some(400 | 414 | 431)), "{answer}");
        for garbage in [
            &b"\0\0\0\x08\x04\xd2\x16\x2f"[..],
            b"\x16\x03\x01\x02\0\x01\0\x01",
            b"\r\n\r\n\r\n",
            b"GET\r\n\r\n",
            &[0xff; 4096],
        ] {
            let answer = exchange(admin, garbage).await?;
            assert!(matches!(status(&answer), None | Some(400)), "{garbage:?}: {answer}");
        }
        for path in [
            "/../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "//etc/passwd",
            "/dashboard.css/../x",
            "/%00",
            "/api/v1/sessions?limit=-1",
        ] {
            let answer = ask(admin, "GET", path).await?;
            assert!(
                matches!(status(&answer), Some(400 | 404)) && !answer.contains("root:"),
                "{path}: {answer}"
            );
        }
        // Three questions at once, in order.
        let three = "GET /live HTTP/1.1\r\nHost: x\r\n\r\n".replace("/live", "/api/v1/listeners").repeat(2)
            + "GET /live HTTP/1.1\r\nHost: x\r\n\r\n";
        let answers = exchange(admin, three.as_bytes()).await?;
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 3, "{answers}");

        // A head that comes byte by byte has a deadline.
        let begun = Instant::now();
        let mut slow = TcpStream::connect(admin).await?;
        let mut cut = false;
        while begun.elapsed() < SOON && !cut {
            cut = slow.write_all(b"G").await.is_err();
            let mut scrap = [0; 256];
            let read = tokio::time::timeout(Duration::from_millis(100), slow.read(&mut scrap)).await;
            cut |= matches!(read, Ok(Ok(0) | Err(_)));
        }
        assert!(cut, "a slow head is never cut off");

        // More connections than there is room for: some are turned away, sessions and operators are not touched.
        let mut crowd = Vec::new();
        for _ in 0..300 {
            crowd.push(TcpStream::connect(admin).await?);
        }
        let mut turned_away = Vec::new();
        crowd.last_mut().context("a crowd")?.read_to_end(&mut turned_away).await?;
        let turned_away = String::from_utf8(turned_away)?;
        let length = format!("content-length: {}\r\n", body(&turned_away).len());
        assert!(status(&turned_away) == Some(503) && turned_away.contains(&length), "{turned_away}");
        sql::who(balancer.primary(), SOON).await?;
        assert!(balancer.ask(&["status"]).await?.starts_with("lb1: ready"));
        drop(crowd);
        balancer.wait_ready().await?;
        wait::until("the descriptors to be as before", SOON, async || {
            let now = balancer.descriptors()?;
            ensure!(now <= descriptors + 3, "{now} descriptors, {descriptors} before");
            Ok(())
        })
        .await?;
        balancer.check_running()
    })
}

#[test]
fn the_stream_of_events_tells_a_switchover() -> Result<()> {
    alone(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let (old, new) = (cluster.leader().await?, cluster.a_replica().await?);
        let mut stream = TcpStream::connect(balancer.admin()).await?;
        stream
            .write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
            .await?;
        let mut lines = BufReader::new(stream).lines();
        let mut head = Vec::new();
        while let Some(line) = lines.next_line().await? {
            if line.starts_with("retry:") {
                break;
            }
            head.push(line);
        }
        assert!(head.iter().any(|line| line == "content-type: text/event-stream"), "{head:?}");

        let switched = cluster.switchover(&new);
        let mut told = Vec::new();
        let listen = async {
            while let Some(line) = lines.next_line().await? {
                let Some(data) = line.strip_prefix("data: ") else { continue };
                let event: serde_json::Value = serde_json::from_str(data)?;
                let field = |name: &str| event.get(name).and_then(|value| value.as_str()).unwrap_or_default();
                told.push(format!("{} {}", field("kind"), field("member")));
                if told.last() == Some(&format!("primary-confirmed {new}")) {
                    return Ok(());
                }
            }
            anyhow::bail!("the stream has ended")
        };
        let listen = tokio::time::timeout(Duration::from_secs(40), listen);
        let (told_all, switched) = tokio::join!(listen, switched);
        switched?;
        told_all.with_context(|| balancer.tail())??;
        let place = |event: &str| {
            told.iter().position(|told| *told == event).with_context(|| format!("no {event}: {told:?}"))
        };
        assert!(
            place(&format!("leader-named {new}"))? < place(&format!("primary-confirmed {new}"))?,
            "{told:?}"
        );
        assert!(told.iter().any(|event| event.ends_with(&format!(" {old}"))), "{told:?}");
        Ok(())
    })
}
