//! A Patroni cluster whose servers are also asked over SQL: the server's own word beside its Patroni's, by a role that may
//! do nothing but connect.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::plain::{ASKER, PASSWORD};
use pointsman_tests::{Clients, Cluster, ClusterOptions, Pointsman, pointsman, say, sql, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

async fn primary(pointsman: &Pointsman, field: &str) -> Result<Value> {
    let status = pointsman.status().await?;
    let value = status.pointer("/clusters/0/status/primary").and_then(|primary| primary.get(field));
    value.cloned().with_context(|| format!("no {field}"))
}

async fn start(cluster: &Cluster, index: u8, password: &str) -> Result<Pointsman> {
    let directory = cluster.site.directory().join(format!("pointsman{}", index + 1));
    std::fs::create_dir(&directory)?;
    std::fs::write(directory.join("sql.password"), password)?;
    let text = pointsman::configuration(cluster.site.addresses.balancer(index), &cluster.etcd.endpoints());
    let sql = format!("sql = {{ user = \"{ASKER}\", password_file = \"sql.password\" }}\n\n[[listeners]]");
    let pointsman =
        Pointsman::start_with(&cluster.site, index, &text.replacen("\n[[listeners]]", &sql, 1)).await?;
    pointsman.wait_replicas(1).await?;
    Ok(pointsman)
}

/// Waits until nothing is wrong: a replica that was asked before it had the role is not asked again.
async fn no_alarms(pointsman: &Pointsman) -> Result<()> {
    wait::until("no alarms", SOON, async || {
        let alarms = pointsman.alarms().await?;
        ensure!(alarms.is_empty(), "{alarms:?}");
        Ok(())
    })
    .await
}

/// Waits until the leader's last word is its server's own.
async fn wait_sql_word(pointsman: &Pointsman, member: &str) -> Result<()> {
    wait::until(format!("{member} to answer over SQL"), SOON, async || {
        let status = pointsman.status().await?;
        let members = status.pointer("/clusters/0/status/members").and_then(Value::as_array);
        let mut members = members.context("no members")?.iter();
        let answer =
            members.find(|found| found.get("name") == Some(&json!(member))).and_then(|m| m.get("answer"));
        let by_sql = answer.and_then(|answer| answer.get("by")) == Some(&json!("sql"));
        let role = answer.and_then(|answer| answer.pointer("/status/role"));
        ensure!(by_sql && role == Some(&json!("primary")), "{answer:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_patroni_cluster_that_is_asked_over_sql_too() -> Result<()> {
    let options = ClusterOptions {
        members: 2,
        patroni: json!({ "postgresql": { "pg_hba": [
            "local all all trust",
            format!("host all {ASKER} 127.0.0.0/8 scram-sha-256"),
            "host all all 127.0.0.0/8 trust",
            "host replication replicator 127.0.0.0/8 trust",
        ] } }),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(&options).await?;
    let leader = cluster.leader().await?;
    let client = sql::Client::connect(cluster.leader_address().await?, SOON).await?;
    client.session.batch_execute(&format!("create role {ASKER} login password '{PASSWORD}'")).await?;

    let pointsman = start(&cluster, 0, PASSWORD).await?;
    let by = primary(&pointsman, "confirmed_by").await?;
    ensure!(by == json!("sql") || by == json!("rest") || by == json!("member-key"), "{by}");
    wait_sql_word(&pointsman, &leader).await?;
    no_alarms(&pointsman).await?;

    // A planned switchover with both witnesses.
    cluster.wait_ready().await?;
    let clients = Clients::start(pointsman.primary(), Duration::from_millis(20));
    clients.wait_served(20, SOON).await?;
    let candidate = cluster.a_replica().await?;
    cluster.switchover(&candidate).await?;
    sql::wait_led_to(pointsman.primary(), cluster.member(&candidate)?.postgres(), SOON).await?;
    let served = clients.finish().await;
    served.check_role(false)?;
    served.check_lost_at_one_stroke()?;
    say(&format!(
        "switchover with both witnesses: confirmed by {}",
        primary(&pointsman, "confirmed_by").await?
    ))?;
    wait_sql_word(&pointsman, &candidate).await?;
    cluster.wait_ready().await?;
    drop(pointsman);

    a_wrong_password(&cluster, &candidate).await
}

/// It is said once of each member that is asked, Patroni's word alone goes on, and the right one is taken up by itself.
async fn a_wrong_password(cluster: &Cluster, leader: &str) -> Result<()> {
    let pointsman = start(cluster, 1, "wrong").await?;
    ensure!(primary(&pointsman, "confirmed_by").await? != json!("sql"));
    wait::until("the alarm", SOON, async || {
        let alarms = pointsman.alarms().await?;
        ensure!(alarms.iter().any(|alarm| alarm.contains("does not let us in over SQL")), "{alarms:?}");
        Ok(())
    })
    .await?;
    ensure!(sql::who(pointsman.primary(), SOON).await?.server == cluster.member(leader)?.postgres());
    let log = pointsman.log()?;
    let said: Vec<&str> = log.lines().filter(|line| line.contains("does not let us in")).collect();
    ensure!(!said.is_empty(), "{log}");
    for member in cluster.members() {
        let name = format!("member={} ", member.name());
        ensure!(said.iter().filter(|line| line.contains(&name)).count() <= 1, "{said:#?}");
    }
    ensure!(said.iter().all(|line| line.contains("password authentication failed")), "{said:?}");
    ensure!(!log.contains("wrong"), "the password is in the log");

    let file = cluster.site.directory().join("pointsman2/sql.password");
    std::fs::write(file, PASSWORD)?;
    wait_sql_word(&pointsman, leader).await?;
    no_alarms(&pointsman).await
}
