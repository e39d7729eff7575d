//! Where connections go, on a real cluster: every kind of traffic, every kind of failure of the primary, and the rules for
//! reads.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::clients::Served;
use pointsman_tests::pointsman::configuration;
use pointsman_tests::sql::Client;
use pointsman_tests::{Clients, Cluster, ClusterOptions, MemberOptions, Pointsman, sql, wait};
use rustix::process::Signal;
use serde_json::json;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

const SOON: Duration = Duration::from_secs(20);
/// Patroni's ttl, the election, and room for a busy machine.
const FAILOVER: Duration = Duration::from_secs(60);
/// How often a client comes.
const EVERY: Duration = Duration::from_millis(50);
/// What may pass between a change in the store and the moment at which we look: the machine is busy.
const NOTICE: Duration = Duration::from_millis(200);
/// The longest that a read may take while there is no primary.
const READ_PATIENCE: Duration = Duration::from_secs(50);
/// How many times a query is cancelled.
const CANCELS: usize = 20;

// ---- Traffic of every kind -----------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_traffic_passes() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::default()).await?;
    let pointsman = Pointsman::start(&cluster, 0).await?;
    both_replicas_serve(&pointsman).await?;
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
    let mut served = std::collections::BTreeMap::<SocketAddr, usize>::new();
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
    let double = session.execute(&insert, &[&7_i32, &"again"]).await.unwrap_err();
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
    let refused = format!("{:#}", refused.unwrap_err());
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
        anyhow::bail!("nobody runs it")
    })
    .await?;
    let pid = psql.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
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
    let full = psql_error(cluster, narrow).await;
    ensure!(full.contains("FATAL") && full.contains("too many connections"), "a full listener: {full}");
    one.reached().await?;
    drop(two);
    wait::until("room for a client", SOON, async || sql::who(narrow, SOON).await).await?;
    let denied = psql_error(cluster, SocketAddr::from((address, 5003))).await;
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
    let (moved, ended, switched) =
        tokio::join!(leader_moved(cluster, &old), ended(&write, FAILOVER), cluster.switchover(&candidate));
    switched?;
    say(&format!(
        "switchover: the write session ended {} after the leader key moved",
        signed_ms(moved?, ended?)
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

// ---- Failures of the primary -----------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_of_the_primary_cost_time_and_nothing_else() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::default()).await?;
    let pointsman = Pointsman::start(&cluster, 0).await?;
    both_replicas_serve(&pointsman).await?;
    a_crash_in_place(&cluster, &pointsman).await?;
    the_primary_dies(&mut cluster, &pointsman).await?;
    the_primary_hangs_and_comes_back(&cluster, &pointsman).await?;
    patroni_dies_alone(&mut cluster, &pointsman).await
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
    wait::until("Patroni to start the server again", FAILOVER, async || {
        ensure!(cluster.member(&name)?.postmaster()? != before, "still the old postmaster.pid");
        Ok(())
    })
    .await?;
    writes.wait_served(20, FAILOVER).await?;
    judge("crash in place", writes.finish().await, reads.finish().await, broken)?;
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
        let held = held(pointsman).await?;
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
    judge("primary killed", writes, reads.finish().await, broken)?;
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
    let (moved, ended) = tokio::join!(leader_moved(cluster, &old), ended(&session, FAILOVER));
    let share = signed_ms(moved?, ended?);
    say(&format!("primary frozen: its write session ended {share} after the leader key moved"))?;
    cluster.wait_other_leader(&old, FAILOVER).await?;
    cluster.thaw_member(&old)?;
    writes.wait_served(20, SOON).await?;
    cluster.wait_ready().await?;
    let writes = writes.finish().await;
    writes.check_never(hung, frozen)?;
    judge("primary frozen", writes, reads.finish().await, broken)
}

/// kill -9 of Patroni alone: PostgreSQL stays, writable, while another member is promoted.
async fn patroni_dies_alone(cluster: &mut Cluster, pointsman: &Pointsman) -> Result<()> {
    let old = cluster.leader().await?;
    let orphan = cluster.member(&old)?.postgres();
    let session = Client::connect(pointsman.primary(), SOON).await?;
    let writes = Clients::start(pointsman.primary(), EVERY);
    let reads = Clients::start(pointsman.replicas(), EVERY);
    writes.wait_served(5, SOON).await?;
    let broken = Instant::now();
    cluster.member(&old)?.signal_patroni(Signal::KILL)?;
    let (moved, ended) = tokio::join!(leader_moved(cluster, &old), ended(&session, FAILOVER));
    let (moved, ended) = (moved?, ended?);
    say(&format!(
        "Patroni killed alone: the write session was cut {} after the leader key moved",
        signed_ms(moved, ended)
    ))?;
    ensure!(ended < moved + NOTICE, "the write session outlived the change of leader by {:?}", ended - moved);
    cluster.wait_other_leader(&old, FAILOVER).await?;
    writes.wait_served(20, SOON).await?;
    // The trap is a real one: who asks the old primary directly may still write.
    let direct = sql::who(orphan, SOON).await?;
    ensure!(!direct.in_recovery, "the orphan is no primary any more");
    let writes = writes.finish().await;
    writes.check_never(orphan, moved + NOTICE)?;
    judge("Patroni killed alone", writes, reads.finish().await, broken)?;
    cluster.kill_member(&old).await
}

/// Nobody who came after the failure was refused, or reached the other role; reads did not even wait.
fn judge(what: &str, writes: Served, reads: Served, broken: Instant) -> Result<()> {
    say(&format!(
        "{what}: {} writes, the slowest took {:?}; {} reads, the slowest took {:?}, by server {:?}",
        writes.0.len(),
        writes.slowest(),
        reads.0.len(),
        reads.slowest(),
        reads.by_server()
    ))?;
    writes.check_none_failed(Some(broken)).with_context(|| format!("{what}: writes"))?;
    writes.check_role(false).with_context(|| format!("{what}: writes"))?;
    reads.check_none_failed(Some(broken)).with_context(|| format!("{what}: reads"))?;
    ensure!(reads.slowest() < READ_PATIENCE, "{what}: a read took {:?}", reads.slowest());
    Ok(())
}

// ---- The rules for reads ---------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_to_fit_replicas_or_fall_back() -> Result<()> {
    let plain = MemberOptions::default();
    let tagged = MemberOptions { tags: Some(json!({ "noloadbalance": true, "nofailover": true })) };
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
    led_to(pointsman.replicas(), replica).await?;
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
    led_to(pointsman.replicas(), primary).await?;
    let none = psql_error(&cluster, SocketAddr::from((address, 5004))).await;
    ensure!(none.contains("FATAL") && none.contains("replica"), "no replica, no fallback: {none}");
    cluster.restart_member("pg2").await?;
    led_to(pointsman.replicas(), replica).await?;
    reads.wait_served(20, SOON).await?;
    reads.finish().await.check_none_failed(Some(broken)).context("reads while there was no replica")?;

    nobody_is_left(&mut cluster, SocketAddr::from((address, 5003))).await
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
    led_to(close_behind, replica).await?;
    let session = Client::connect(close_behind, SOON).await?;
    // A reader in the way of the replay. (A paused replay would be resumed by Patroni.)
    let reader = Client::connect(replica, SOON).await?;
    reader.session.batch_execute("begin isolation level repeatable read; select from gate").await?;
    sql::psql(tools, &leader.conninfo(), "drop table gate").await?;
    let fill = "insert into written select repeat('x', 1000) from generate_series(1, 20000)";
    sql::psql(tools, &leader.conninfo(), fill).await?;
    let trickle = Client::connect(primary, SOON).await?;
    wait::until("the limited port to lead to the primary", Duration::from_secs(40), async || {
        trickle.session.batch_execute("insert into written values ('x')").await?;
        let reached = sql::who(close_behind, SOON).await?;
        ensure!(reached.server == primary, "it leads to {}", reached.server);
        Ok(())
    })
    .await?;
    // Drained, not cut; and who set no limit is not concerned.
    assert_eq!(session.reached().await?.server, replica);
    assert_eq!(sql::who(pointsman.replicas(), SOON).await?.server, replica);
    drop(reader);
    led_to(close_behind, replica).await
}

/// How the end of `hold` looks in psql.
async fn nobody_is_left(cluster: &mut Cluster, impatient: SocketAddr) -> Result<()> {
    sql::who(impatient, SOON).await?;
    for name in ["pg1", "pg2", "pg3"] {
        cluster.kill_member(name).await?;
    }
    let begun = Instant::now();
    let expired = psql_error(cluster, impatient).await;
    let took = begun.elapsed();
    say(&format!("hold expired after {took:?}: {expired}"))?;
    ensure!(took > Duration::from_secs(1) && took < Duration::from_secs(6), "it took {took:?}");
    ensure!(expired.contains("FATAL") && expired.contains("primary"), "{expired}");
    Ok(())
}

// ---- For a long look by hand -------------------------------------------------------------------------------------------

/// Ten switchovers in a row under load: descriptors, memory and the log must not grow with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: run it by name and read what it prints"]
async fn ten_switchovers_in_a_row() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::default()).await?;
    let pointsman = Pointsman::start(&cluster, 0).await?;
    both_replicas_serve(&pointsman).await?;
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
        ensure!(
            status.pointer("/process/sessions").and_then(|count| count.as_u64()) == Some(0),
            "there are some"
        );
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

// ---- Small things ----------------------------------------------------------------------------------------------------

/// Waits until new connections to `address` reach `server`.
async fn led_to(address: SocketAddr, server: SocketAddr) -> Result<()> {
    wait::until(format!("{address} to lead to {server}"), Duration::from_secs(40), async || {
        let reached = sql::who(address, SOON).await?;
        ensure!(reached.server == server, "it leads to {}", reached.server);
        Ok(())
    })
    .await
}

/// Waits until the read port has two candidates: a member's key says that it streams only after Patroni's next look.
async fn both_replicas_serve(pointsman: &Pointsman) -> Result<()> {
    wait::until("two replicas to serve", SOON, async || {
        let status = pointsman.status().await?;
        let candidates = status.pointer("/listeners/1/candidates").and_then(|all| all.as_array());
        ensure!(candidates.is_some_and(|all| all.len() == 2), "{candidates:?}");
        Ok(())
    })
    .await
}

/// What psql says when it cannot connect.
async fn psql_error(cluster: &Cluster, address: SocketAddr) -> String {
    match sql::psql(&cluster.site.tools, &sql::conninfo(address), "select 1").await {
        Ok(_) => "psql was served".to_owned(),
        Err(error) => format!("{error:#}"),
    }
}

/// When the leader key named somebody else than `old`.
async fn leader_moved(cluster: &Cluster, old: &str) -> Result<Instant> {
    wait::until(format!("another leader than {old}"), FAILOVER, async || {
        let leader = cluster.leader().await?;
        ensure!(leader != old, "{old} still leads");
        Ok(Instant::now())
    })
    .await
}

/// When the session ended.
async fn ended(client: &Client, deadline: Duration) -> Result<Instant> {
    let started = Instant::now();
    while !client.session.is_closed() {
        ensure!(started.elapsed() < deadline, "the session still lives after {deadline:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(Instant::now())
}

/// How many sessions are held at all listeners.
async fn held(pointsman: &Pointsman) -> Result<u64> {
    let status = pointsman.status().await?;
    let listeners = status.get("listeners").and_then(|all| all.as_array()).context("no listeners")?;
    Ok(listeners.iter().filter_map(|listener| listener.get("held")?.as_u64()).sum())
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

fn signed_ms(from: Instant, to: Instant) -> String {
    let after =
        to.saturating_duration_since(from).as_secs_f64() - from.saturating_duration_since(to).as_secs_f64();
    format!("{:.0} ms", after * 1000.0)
}

/// Measurements are wanted also when the test passes.
fn say(line: &str) -> Result<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout(), "  {line}")?)
}
