//! Traffic of every kind through both ports of a real cluster: protocols, encryption, cancel requests, bulk, load, limits; and
//! what a planned switchover means for sessions that are open.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pointsman_tests::clients::Served;
use pointsman_tests::pointsman::configuration;
use pointsman_tests::sql::Client;
use pointsman_tests::{Clients, Cluster, ClusterOptions, Pointsman, say, sql, stopwatch, wait};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

const SOON: Duration = Duration::from_secs(20);
/// A switchover, on a busy machine.
const FAILOVER: Duration = Duration::from_secs(60);
/// How often a client comes.
const EVERY: Duration = Duration::from_millis(50);
/// How many queries are cancelled at each port.
const CANCELS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_traffic_passes() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::default()).await?;
    let pointsman = Pointsman::start(&cluster, 0).await?;
    pointsman.wait_replicas(2).await?;
    roles_are_kept_apart(&cluster, &pointsman).await?;
    statements_of_all_protocols(&pointsman).await?;
    encryption_passes_through(&cluster, &pointsman).await?;
    queries_are_cancelled(&cluster, &pointsman).await?;
    bulk_arrives_unchanged(&cluster, &pointsman).await?;
    pgbench_runs(&cluster, &pointsman).await?;
    limits_are_explained(&cluster).await?;
    a_switchover_ends_write_sessions_only(&cluster, &pointsman).await
}

/// The write port leads to the primary, the read port to both replicas and to nobody else.
async fn roles_are_kept_apart(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let primary = cluster.leader_address().await?;
    let (mut writes, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        writes.push(Client::connect(pointsman.primary(), SOON).await?);
        reads.push(Client::connect(pointsman.replicas(), SOON).await?);
    }
    for client in &writes {
        let reached = client.reached().await?;
        assert_eq!((reached.server, reached.in_recovery), (primary, false));
    }
    let mut served = BTreeMap::<SocketAddr, usize>::new();
    for client in &reads {
        let reached = client.reached().await?;
        ensure!(reached.in_recovery && reached.server != primary, "the read port led to {reached:?}");
        *served.entry(reached.server).or_default() += 1;
    }
    // Least connections, and all of them are still open.
    ensure!(served.values().eq([&10, &10]), "reads are not spread: {served:?}");
    Ok(())
}

/// Simple, extended with named and unnamed statements, transactions, an error, COPY, and notifications.
async fn statements_of_all_protocols(pointsman: &Pointsman) -> Result<()> {
    let mut client = Client::connect(pointsman.primary(), SOON).await?;
    let session = &mut client.session;
    session.batch_execute("create table kinds (number int primary key, text text)").await?;
    let insert = session.prepare("insert into kinds values ($1, $2)").await?;
    let transaction = session.transaction().await?;
    for number in 0..100_i32 {
        transaction.execute(&insert, &[&number, &"x".repeat(1000)]).await?;
    }
    transaction.commit().await?;
    let double = session.execute(&insert, &[&7_i32, &"again"]).await.err();
    let double = double.context("inserted twice")?;
    assert_eq!(double.code(), Some(&SqlState::UNIQUE_VIOLATION));
    let count: i64 = session.query_one("select sum(length(text)) from kinds", &[]).await?.get(0);
    assert_eq!(count, 100_000);
    Ok(())
}

/// `sslmode=require` through the proxy, which cannot read what passes.
async fn encryption_passes_through(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let required = |conninfo: String| format!("{conninfo} sslmode=require");
    let encrypted = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let refused = sql::psql(&cluster.site.tools, &required(pointsman.primary_conninfo()), encrypted).await;
    let refused = format!("{:#}", refused.err().context("psql was served in the clear")?);
    ensure!(refused.contains("server does not support SSL"), "{refused}");
    turn_encryption_on(cluster).await?;
    for conninfo in [pointsman.primary_conninfo(), pointsman.replicas_conninfo()] {
        assert_eq!(sql::psql(&cluster.site.tools, &required(conninfo), encrypted).await?, "t");
    }
    Ok(())
}

async fn turn_encryption_on(cluster: &Cluster) -> Result<()> {
    let directory = cluster.site.subdirectory("tls")?;
    let (key, certificate) = (directory.join("server.key"), directory.join("server.crt"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args(["-subj", "/CN=postgres", "-days", "2", "-keyout"]).arg(&key).arg("-out").arg(&certificate);
    run(&mut openssl).await?;
    cluster.site.hand_over(&key)?;
    let parameters = json!({ "ssl": "on", "ssl_key_file": key, "ssl_cert_file": certificate });
    cluster.configure(&json!({ "postgresql": { "parameters": parameters } })).await?;
    wait::until("every server to offer encryption", SOON, async || {
        for member in cluster.members() {
            let ssl = sql::psql(&cluster.site.tools, &member.conninfo(), "show ssl").await?;
            ensure!(ssl == "on", "{} does not", member.name());
        }
        Ok(())
    })
    .await
}

/// A cancel request is a connection of its own, and has to find the server that runs the query.
async fn queries_are_cancelled(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    for address in [pointsman.primary(), pointsman.replicas()] {
        let mut sleepers = JoinSet::new();
        for _ in 0..CANCELS {
            sleepers.spawn(cancelled(address));
        }
        while let Some(cancelled) = sleepers.join_next().await {
            cancelled?.with_context(|| format!("through {address}"))?;
        }
    }
    interrupted_psql(cluster, pointsman.primary_conninfo()).await?;
    interrupted_psql(cluster, pointsman.replicas_conninfo()).await
}

async fn cancelled(address: SocketAddr) -> Result<()> {
    let client = Client::connect(address, SOON).await?;
    let server = client.reached().await?.server;
    let pid: i32 = client.session.query_one("select pg_backend_pid()", &[]).await?.get(0);
    let token = client.session.cancel_token();
    // One request only, once the query runs: it has to find its server at the first try.
    let cancel = async {
        sleeps(&Client::connect(server, SOON).await?, pid).await?;
        anyhow::Ok(token.cancel_query(NoTls).await?)
    };
    let query = async { client.session.batch_execute("select pg_sleep(60)").await };
    let (cancel, query) =
        tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(cancel, query) })
            .await
            .context("the query was not cancelled")?;
    cancel.context("the cancel request")?;
    let error = query.err().context("the query ran to its end")?;
    ensure!(error.code() == Some(&SqlState::QUERY_CANCELED), "{error}");
    // The session is as good as before.
    client.reached().await.map(drop)
}

/// Waits until backend `pid` is in `pg_sleep`.
async fn sleeps(beside: &Client, pid: i32) -> Result<()> {
    let started = Instant::now();
    let statement = "select count(*) from pg_stat_activity where pid = $1 and wait_event = 'PgSleep'";
    while beside.session.query_one(statement, &[&pid]).await?.get::<_, i64>(0) == 0 {
        ensure!(started.elapsed() < SOON, "the query of {pid} does not run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// What Ctrl-C does to `psql`.
async fn interrupted_psql(cluster: &Cluster, conninfo: String) -> Result<()> {
    let mut psql = Command::new(&cluster.site.tools.psql)
        .args(["-X", "-d", &conninfo, "-c", "select pg_sleep(60) /* interrupted */"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let running =
        "select count(*) from pg_stat_activity where state = 'active' and query like '%interrupted */'";
    wait::until("psql's query to run", SOON, async || {
        for member in cluster.members() {
            if sql::psql(&cluster.site.tools, &member.conninfo(), running).await? == "1" {
                return Ok(());
            }
        }
        bail!("nobody runs it")
    })
    .await?;
    let pid = psql.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    rustix::process::kill_process(pid.context("psql has ended")?, Signal::INT)?;
    let errors = psql.stderr.take().context("no output")?;
    let (status, errors) = tokio::time::timeout(SOON, async {
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut tokio::io::BufReader::new(errors), &mut text).await?;
        anyhow::Ok((psql.wait().await?, text))
    })
    .await
    .context("psql did not end")??;
    ensure!(!status.success() && errors.contains("canceling statement due to user request"), "{errors}");
    Ok(())
}

/// 100 MB in one COPY out and one COPY in, compared by checksum with what the server itself has.
async fn bulk_arrives_unchanged(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let directory = cluster.site.subdirectory("bulk")?;
    let direct = cluster.member(&cluster.leader().await?)?.conninfo();
    let tools = &cluster.site.tools;
    let fill =
        "create table bulk as select n, repeat(md5(n::text), 32) as text from generate_series(1, 100000) n";
    sql::psql(tools, &direct, &format!("{fill}; create table copied (like bulk)")).await?;
    let out = directory.join("out");
    let copy = |conninfo: String, statement: &'static str| {
        let mut psql = Command::new(&tools.psql);
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &conninfo, "-c", statement]);
        psql
    };
    let to_file = |path: &Path| anyhow::Ok(Stdio::from(std::fs::File::create(path)?));
    run(copy(pointsman.primary_conninfo(), "copy (select * from bulk order by n) to stdout")
        .stdout(to_file(&out)?))
    .await?;
    ensure!(std::fs::metadata(&out)?.len() > 100_000_000, "the file is too small");
    run(copy(pointsman.primary_conninfo(), "copy copied from stdin").stdin(std::fs::File::open(&out)?))
        .await?;
    let sum =
        |table: &str| format!("select count(*), md5(string_agg(md5(n || text), '' order by n)) from {table}");
    let sums = sql::psql(tools, &direct, &format!("{} union all {}", sum("bulk"), sum("copied"))).await?;
    let (bulk, copied) = sums.split_once('\n').context("two rows")?;
    assert_eq!(bulk, copied);
    // The read port, once a replica has all of it: the same bytes.
    cluster.wait_ready().await?;
    let again = directory.join("again");
    run(copy(pointsman.replicas_conninfo(), "copy (select * from bulk order by n) to stdout")
        .stdout(to_file(&again)?))
    .await?;
    run(Command::new("cmp").arg(&out).arg(&again)).await?;
    sql::psql(tools, &direct, "drop table bulk, copied").await.map(drop)
}

/// Eight clients for five seconds on each port at the same time.
async fn pgbench_runs(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let pgbench = |conninfo: String, arguments: &[&str]| {
        let mut command = Command::new(cluster.site.tools.postgres_bin.join("pgbench"));
        command.args(arguments).arg(conninfo).stdout(Stdio::piped());
        command
    };
    run(&mut pgbench(pointsman.primary_conninfo(), &["-i", "-s", "2", "-q"])).await?;
    cluster.wait_ready().await?;
    let mut writes = pgbench(pointsman.primary_conninfo(), &["-c", "8", "-j", "2", "-T", "5"]);
    let mut reads = pgbench(
        pointsman.replicas_conninfo(),
        &["-c", "8", "-j", "2", "-T", "5", "-S", "-n", "-M", "prepared"],
    );
    let (writes, reads) = tokio::try_join!(run(&mut writes), run(&mut reads))?;
    for report in [&writes, &reads] {
        ensure!(report.contains("number of failed transactions: 0 "), "{report}");
    }
    // One connection for each transaction.
    let mut churn = pgbench(pointsman.replicas_conninfo(), &["-c", "4", "-t", "50", "-S", "-n", "-C"]);
    let report = run(&mut churn).await?;
    ensure!(report.contains("number of transactions actually processed: 200/200"), "{report}");
    Ok(())
}

/// `max_connections` and `deny` say so in words that psql shows.
async fn limits_are_explained(cluster: &Cluster) -> Result<()> {
    let address = cluster.site.addresses.balancer(1);
    let listeners = format!(
        r#"
[[listeners]]
name = "narrow"
bind = "{address}:5002"
target = "primary"
max_connections = 2

[[listeners]]
name = "closed"
bind = "{address}:5003"
target = "primary"
deny = ["127.0.0.0/8"]
"#
    );
    let text = configuration(address, &cluster.etcd.endpoints()) + &listeners;
    let pointsman = Pointsman::start_with(&cluster.site, 1, &text).await?;
    let narrow = SocketAddr::from((address, 5002));
    let one = Client::connect(narrow, SOON).await?;
    let two = Client::connect(narrow, SOON).await?;
    let full = sql::psql_error(&cluster.site.tools, narrow).await;
    ensure!(full.contains("FATAL") && full.contains("too many connections"), "a full listener: {full}");
    one.reached().await?;
    drop(two);
    wait::until("room for a client", SOON, async || sql::who(narrow, SOON).await).await?;
    let denied = sql::psql_error(&cluster.site.tools, SocketAddr::from((address, 5003))).await;
    ensure!(denied.contains("FATAL"), "a listener that denies us: {denied}");
    drop(one);
    assert_eq!(pointsman.stop(SOON).await?, 0);
    Ok(())
}

/// The session on the old primary ends; those on replicas live on, also on the one that is promoted.
async fn a_switchover_ends_write_sessions_only(cluster: &Cluster, pointsman: &Pointsman) -> Result<()> {
    let old = cluster.leader().await?;
    let candidate = cluster.a_replica().await?;
    let write = Client::connect(pointsman.primary(), SOON).await?;
    let mut reads = Vec::new();
    for _ in 0..4 {
        reads.push(Client::connect(pointsman.replicas(), SOON).await?);
    }
    let before = backends(&reads).await?;
    let (moved, ended, switched) = tokio::join!(
        cluster.wait_key_moved(&old, FAILOVER),
        write.ended(FAILOVER),
        cluster.switchover(&candidate)
    );
    switched?;
    say(&format!(
        "switchover: the write session ended {:.0} ms after the leader key moved",
        stopwatch::signed_ms(moved?, ended?)
    ))?;
    // A replica that follows a new primary does not restart, so its sessions are the same as before.
    assert_eq!(backends(&reads).await?, before);
    let reached = sql::who(pointsman.primary(), SOON).await?;
    assert_eq!((reached.server, reached.in_recovery), (cluster.member(&candidate)?.postgres(), false));
    Ok(())
}

async fn backends(clients: &[Client]) -> Result<Vec<i32>> {
    let mut backends = Vec::new();
    for client in clients {
        backends.push(client.session.query_one("select pg_backend_pid()", &[]).await?.get(0));
    }
    Ok(backends)
}

/// Ten switchovers in a row under load: descriptors, memory and the log must not grow with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: run it by name and read what it prints"]
async fn ten_switchovers_in_a_row() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::default()).await?;
    let pointsman = Pointsman::start(&cluster, 0).await?;
    pointsman.wait_replicas(2).await?;
    let tools = &cluster.site.tools;
    let pgbench = |conninfo: String, arguments: &[&str]| {
        let mut command = Command::new(tools.postgres_bin.join("pgbench"));
        command.args(arguments).arg(conninfo).stdout(Stdio::piped());
        command
    };
    run(&mut pgbench(pointsman.primary_conninfo(), &["-i", "-q"])).await?;
    for round in 1..=10 {
        cluster.wait_ready().await?;
        let writes = Clients::start(pointsman.primary(), EVERY);
        let reads = Clients::start(pointsman.replicas(), EVERY);
        writes.wait_served(20, SOON).await?;
        // Its sessions on the old primary end with the switchover: it is not expected to end well.
        let mut bench = pgbench(pointsman.primary_conninfo(), &["-c", "8", "-j", "2", "-T", "6"]);
        let mut readers =
            pgbench(pointsman.replicas_conninfo(), &["-c", "8", "-j", "2", "-T", "6", "-S", "-n"]);
        let candidate = cluster.a_replica().await?;
        let begun = Instant::now();
        let (bench, readers, switched) =
            tokio::join!(run(&mut bench), run(&mut readers), cluster.switchover(&candidate));
        switched?;
        writes.wait_served(20, FAILOVER).await?;
        let (writes, reads) = (writes.finish().await, reads.finish().await);
        let check = |name, served: &Served, role: Option<bool>| {
            let none_failed = served.check_none_failed(None).err();
            let role = role.and_then(|role| served.check_role(role).err());
            format!("{name} {} slowest {:?} {none_failed:?} {role:?}", served.0.len(), served.slowest())
        };
        say(&format!(
            "round {round}, {:?}: {}; {}; pgbench {}; readers {}; {}",
            begun.elapsed(),
            check("writes", &writes, Some(false)),
            check("reads", &reads, None),
            bench.as_ref().map_or_else(
                |error| format!("{error:#}").lines().last().unwrap_or_default().to_owned(),
                |_| "well".to_owned()
            ),
            readers.as_ref().map_or_else(|error| format!("{error:#}"), |_| "well".to_owned()),
            usage(&pointsman)?,
        ))?;
    }
    wait::until("all sessions to be over", SOON, async || {
        let status = pointsman.status().await?;
        ensure!(status.pointer("/process/sessions").and_then(Value::as_u64) == Some(0), "there are some");
        Ok(())
    })
    .await?;
    say(&format!("at rest: {}", usage(&pointsman)?))?;
    if let Some(path) = std::env::var_os("KEEP_LOG") {
        std::fs::write(path, pointsman.log()?)?;
    }
    Ok(())
}

/// Descriptors, memory, threads and lines of the log.
fn usage(pointsman: &Pointsman) -> Result<String> {
    let process = format!("/proc/{}", pointsman.server().pid().context("it has ended")?.as_raw_nonzero());
    let descriptors = std::fs::read_dir(format!("{process}/fd"))?.count();
    let status = std::fs::read_to_string(format!("{process}/status"))?;
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    let lines = pointsman.log()?.lines().count();
    Ok(format!(
        "{descriptors} descriptors, {} resident, {} threads, {lines} lines of log",
        field("VmRSS:"),
        field("Threads:")
    ))
}

/// Runs a program to its end; answers what it printed, if its output is a pipe.
async fn run(command: &mut Command) -> Result<String> {
    let spawned = command.stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let output = tokio::time::timeout(Duration::from_secs(120), spawned.wait_with_output())
        .await
        .with_context(|| format!("{command:?} did not end"))??;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {} {errors}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
