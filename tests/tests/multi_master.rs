//! Two servers under pglogical that both take writes, with the example file that is written for them: round robin on 5000,
//! least connections on 5001, source affinity on 5002.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::browser::Browser;
use pointsman_tests::plain::Plain;
use pointsman_tests::{Addresses, Clients, Pki, Pointsman, Site, clients::Served, say, sql, tools, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// How often a client connects.
const EVERY: Duration = Duration::from_millis(20);

struct Lab {
    servers: [Plain; 2],
    pointsman: Pointsman,
    site: Site,
}

/// `config/examples/4-multi-master.toml` with our addresses in place of its own, with two members of its three. Signing
/// in to the pages and HAProxy's log format are left out: other tests are theirs.
fn configuration(site: &Site) -> Result<String> {
    let text = std::fs::read_to_string(tools::repository().join("config/examples/4-multi-master.toml"))?;
    let text = text
        .replace("10.0.0.21", &site.addresses.member(0, 0).to_string())
        .replace("10.0.0.22", &site.addresses.member(0, 1).to_string())
        .replace("0.0.0.0", &site.addresses.balancer(0).to_string());
    let (text, _) = text.split_once("[log]").context("the example has no [log]")?;
    let left_out = ["10.0.0.23", "users = "];
    let lines = text.lines().filter(|line| !left_out.iter().any(|part| line.contains(part)));
    let lines: Vec<&str> = lines.collect();
    Ok(lines.join("\n") + "\nsocket = \"admin.sock\"\n")
}

impl Lab {
    async fn start() -> Result<Self> {
        let site = Site::new(Addresses::reserve()?)?;
        let pki = Pki::new(&site, "pki")?;
        let settings =
            ["shared_preload_libraries=pglogical", "pglogical.conflict_resolution=last_update_wins"];
        let servers = [
            Plain::initdb(&site, &pki, 0, &settings).await?,
            Plain::initdb(&site, &pki, 1, &settings).await?,
        ];
        for server in &servers {
            let dsn = sql::conninfo(server.postgres());
            let name = server.name();
            let node = format!(
                "create extension pglogical; create table written (port int, at timestamptz default now(), \
                 id uuid primary key default gen_random_uuid()); \
                 select pglogical.create_node('{name}', '{dsn}'); \
                 select pglogical.replication_set_add_table('default', 'written')"
            );
            server.sql(&node).await?;
        }
        let [one, other] = &servers;
        for (from, to) in [(one, other), (other, one)] {
            let (dsn, name) = (sql::conninfo(from.postgres()), format!("from_{}", from.name()));
            let subscribe = format!(
                "select pglogical.create_subscription('{name}', '{dsn}', synchronize_data := false, \
                 forward_origins := '{{}}')"
            );
            to.sql(&subscribe).await?;
        }
        let pointsman = Pointsman::start_with(&site, 0, &configuration(&site)?).await?;
        let lab = Self { servers, pointsman, site };
        for server in &lab.servers {
            wait::until(format!("{} to replicate", server.name()), SOON, async || {
                let states =
                    server.value("select min(status) from pglogical.show_subscription_status()").await?;
                ensure!(states == "replicating", "{states}");
                Ok(())
            })
            .await?;
        }
        lab.wait_candidates(2).await?;
        Ok(lab)
    }

    fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pointsman.admin().ip(), port)
    }

    /// Waits until every listener has so many servers to choose from.
    async fn wait_candidates(&self, count: usize) -> Result<()> {
        wait::until(format!("{count} candidates everywhere"), SOON, async || {
            let status = self.pointsman.status().await?;
            let routes = status.pointer("/clusters/0/status/routes").and_then(Value::as_array);
            let routes = routes.context("no routes")?;
            let candidates =
                |route: &Value| route.get("candidates").and_then(Value::as_array).map_or(0, Vec::len);
            ensure!(routes.len() == 3 && routes.iter().all(|route| candidates(route) == count), "{routes:?}");
            Ok(())
        })
        .await
    }

    /// Makes so many connections, one after the other; answers how many each server got.
    async fn spread(&self, port: u16, count: usize) -> Result<[usize; 2]> {
        let mut spread = [0, 0];
        for _ in 0..count {
            let reached = sql::who(self.port(port), SOON).await?;
            for (count, server) in spread.iter_mut().zip(&self.servers) {
                *count += usize::from(server.postgres() == reached.server);
            }
        }
        Ok(spread)
    }
}

fn report(what: &str, served: &Served) -> Result<()> {
    let failed = served.0.iter().filter(|one| one.outcome.is_err()).count();
    let slowest = served.slowest().as_secs_f64();
    say(&format!(
        "{what:<34} {:>4} connections {failed:>3} failed   slowest {slowest:>6.2} s",
        served.0.len()
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writable_servers_under_pglogical() -> Result<()> {
    let mut lab = Lab::start().await?;
    balancing(&lab).await?;
    writes_arrive_everywhere(&lab).await?;
    a_server_is_killed(&mut lab).await?;
    a_server_freezes(&lab).await?;
    all_are_killed(&mut lab).await?;
    what_people_see(&lab).await
}

/// pg1 has twice the weight of pg2.
async fn balancing(lab: &Lab) -> Result<()> {
    ensure!(lab.spread(5000, 12).await? == [8, 4], "round robin");
    let mut open = Vec::new();
    let mut spread = [0, 0];
    for _ in 0..6 {
        let client = sql::Client::connect(lab.port(5001), SOON).await?;
        let reached = client.reached().await?.server;
        for (count, server) in spread.iter_mut().zip(&lab.servers) {
            *count += usize::from(server.postgres() == reached);
        }
        open.push(client);
    }
    ensure!(spread == [4, 2], "least connections: {spread:?}");
    let affinity = lab.spread(5002, 8).await?;
    ensure!(affinity.contains(&8), "source affinity: {affinity:?}");
    Ok(())
}

async fn writes_arrive_everywhere(lab: &Lab) -> Result<()> {
    for port in [5000, 5001, 5002] {
        let client = sql::Client::connect(lab.port(port), SOON).await?;
        client.session.batch_execute(&format!("insert into written (port) values ({port})")).await?;
    }
    for server in &lab.servers {
        wait::until(format!("the writes on {}", server.name()), SOON, async || {
            let written =
                server.value("select string_agg(port::text, ' ' order by port) from written").await?;
            ensure!(written == "5000 5001 5002", "{written}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn a_server_is_killed(lab: &mut Lab) -> Result<()> {
    let clients = [5000, 5001, 5002].map(|port| Clients::start(lab.port(port), EVERY));
    for clients in &clients {
        clients.wait_served(10, SOON).await?;
    }
    let begun = Instant::now();
    let [one, other] = &mut lab.servers;
    one.kill().await?;
    let killed = begun..=Instant::now();
    let (old, left) = (one.postgres(), other.postgres());
    lab.wait_candidates(1).await?;
    ensure!(sql::who(lab.port(5000), SOON).await?.server == left);
    let restarted = Instant::now();
    let [one, _] = &mut lab.servers;
    one.start(&lab.site).await?;
    lab.wait_candidates(2).await?;
    say(&format!("a killed server serves again {:.1} s after its start", restarted.elapsed().as_secs_f64()))?;
    for (port, clients) in [5000, 5001, 5002].into_iter().zip(clients) {
        let served = clients.finish().await;
        report(&format!("one of two killed, port {port}"), &served)?;
        served.check_none_failed(Some(&killed))?;
    }
    let spread = lab.spread(5000, 3).await?;
    ensure!(spread == [2, 1], "{old} did not come back: {spread:?}");
    Ok(())
}

async fn a_server_freezes(lab: &Lab) -> Result<()> {
    let clients = [5000, 5001, 5002].map(|port| Clients::start(lab.port(port), EVERY));
    for clients in &clients {
        clients.wait_served(10, SOON).await?;
    }
    let [one, other] = &lab.servers;
    one.freeze()?;
    lab.wait_candidates(1).await?;
    ensure!(sql::who(lab.port(5000), SOON).await?.server == other.postgres());
    one.thaw()?;
    lab.wait_candidates(2).await?;
    for (port, clients) in [5000, 5001, 5002].into_iter().zip(clients) {
        let served = clients.finish().await;
        report(&format!("one of two frozen, port {port}"), &served)?;
        served.check_none_failed(None)?;
    }
    Ok(())
}

/// Nobody to go to: new sessions wait, and are served when one is back.
async fn all_are_killed(lab: &mut Lab) -> Result<()> {
    let clients = Clients::start(lab.port(5000), Duration::from_millis(100));
    clients.wait_served(5, SOON).await?;
    let begun = Instant::now();
    for server in &mut lab.servers {
        server.kill().await?;
    }
    let killed = begun..=Instant::now();
    lab.wait_candidates(0).await?;
    for server in &mut lab.servers {
        server.start(&lab.site).await?;
    }
    lab.wait_candidates(2).await?;
    clients.wait_served(5, SOON).await?;
    let served = clients.finish().await;
    report("all killed, restarted, port 5000", &served)?;
    served.check_none_failed(Some(&killed))
}

/// No word of a store, a leader or a revision, where there is none.
async fn what_people_see(lab: &Lab) -> Result<()> {
    let status = lab.pointsman.status().await?;
    let alarms = status.pointer("/clusters/0/status/alarms").and_then(Value::as_array);
    ensure!(alarms.is_some_and(Vec::is_empty), "{alarms:?}");
    let program = pointsman_tests::pointsman::program().await?;
    let socket = lab.pointsman.server().directory().join("admin.sock");
    let output = tokio::process::Command::new(program).arg("status").arg("--socket").arg(socket).output();
    let output = tokio::time::timeout(SOON, output).await??;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for line in text.lines() {
        say(line)?;
    }
    let nonsense = ["store", "revision", "leader", "no primary"];
    let found: Vec<_> = nonsense.into_iter().filter(|word| text.contains(word)).collect();
    ensure!(found.is_empty(), "{found:?} in\n{text}");
    let browser = Browser::start(&lab.site).await?;
    browser.open(&format!("http://{}/", lab.pointsman.admin())).await?;
    let page = browser.wait_text("#clusters", &["every member takes writes"]).await?.to_lowercase();
    let found: Vec<_> = nonsense.into_iter().filter(|word| page.contains(word)).collect();
    ensure!(found.is_empty(), "{found:?} in\n{page}");
    let title = browser.evaluate("return document.title").await?;
    ensure!(title.as_str().is_some_and(|title| title.starts_with("bdr · ")), "{title}");
    Ok(())
}
