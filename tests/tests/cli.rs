//! The command line against a running process on a real cluster.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::balancer::{Balancer, SOON};
use pointsman_tests::shared::{alone, beside_others};
use pointsman_tests::sql::{self, Client};
use pointsman_tests::wait;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// The cells of the line that begins with `first`.
fn line<'a>(table: &'a str, first: &str) -> Result<Vec<&'a str>> {
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut wanted = lines.filter(|cells| cells.first() == Some(&first));
    wanted.next().with_context(|| format!("no line of {first}:\n{table}"))
}

#[test]
fn status_members_and_sessions_tell_what_is() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let (leader, replica) = (cluster.leader().await?, cluster.a_replica().await?);
        let session = Client::connect(balancer.primary(), SOON).await?;
        session.reached().await?;
        wait::until("both members in use", SOON, async || {
            let status = balancer.ask(&["status"]).await?;
            ensure!(status.contains("2 known, 2 in use"), "{status}");
            Ok(())
        })
        .await?;

        let status = balancer.ask(&["status"]).await?;
        assert!(
            status.starts_with("lb1: ready, up ") && status.contains(", 1 session, pointsman "),
            "{status}"
        );
        let address = cluster.leader_address().await?;
        assert!(status.contains(&format!("primary  {leader} at {address}, confirmed for ")), "{status}");
        let row = line(&status, "primary")?;
        assert_eq!(row.get(1).copied(), Some(leader.as_str()), "{status}");
        for (port, target, used) in [(5000, "primary", &leader), (5001, "replicas", &replica)] {
            let port = balancer.port(port).to_string();
            let row = status.lines().find(|line| line.contains(&port)).context("no row")?;
            assert!(
                row.contains(target) && row.contains("open") && row.trim_end().ends_with(used.as_str()),
                "{row}"
            );
        }

        let members = balancer.ask(&["members"]).await?;
        let row = line(&members, &format!("main/{leader}"))?.join(" ");
        assert!(
            row.contains("primary (leader) running") && row.contains("up ready 1 1 primary"),
            "{members}"
        );
        let row = line(&members, &format!("main/{replica}"))?.join(" ");
        assert!(row.contains("replica running") && row.contains("replicas"), "{members}");

        let sessions = balancer.ask(&["sessions"]).await?;
        let row = line(&sessions, "1")?;
        for cell in ["primary", "established", &leader, "postgres", "pointsman-tests"] {
            assert!(row.contains(&cell), "no {cell}:\n{sessions}");
        }

        for question in ["status", "members", "sessions", "events"] {
            let value: Value = serde_json::from_str(&balancer.ask(&[question, "--json"]).await?)?;
            assert!(
                value.is_object() || value.as_array().is_some_and(|list| list.len() == 2),
                "{question}: {value}"
            );
        }
        drop(session);
        wait::until("the session to be gone", SOON, async || {
            let sessions = balancer.ask(&["sessions"]).await?;
            ensure!(sessions == "no sessions\n", "{sessions}");
            Ok(())
        })
        .await
    })
}

/// Waits until a session on `address` is served by a server that `fits`.
async fn served(
    address: std::net::SocketAddr,
    what: &str,
    fits: impl Fn(&sql::Reached) -> bool,
) -> Result<()> {
    wait::until(format!("{address} to be served by {what}"), SOON, async || {
        let reached = sql::who(address, Duration::from_secs(2)).await?;
        ensure!(fits(&reached), "{reached:?}");
        Ok(())
    })
    .await
}

#[test]
fn members_are_drained_taken_out_and_taken_back() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let (leader, replica) = (cluster.leader().await?, cluster.a_replica().await?);
        let at = cluster.member(&replica)?.postgres();
        served(balancer.replicas(), "the replica", |reached| reached.server == at).await?;
        let session = Client::connect(balancer.replicas(), SOON).await?;
        let path = format!("main/{replica}");

        for (mode, remark) in [("drain", "drain"), ("maint", "maint")] {
            let said = balancer.ask(&[mode, &path]).await?;
            assert_eq!(said, format!("main/{replica} is set to {mode}\n"));
            served(balancer.replicas(), "the primary as fallback", |reached| !reached.in_recovery).await?;
            let members = balancer.ask(&["members"]).await?;
            assert!(line(&members, &path)?.contains(&remark), "{members}");
            let row = line(&members, &format!("main/{leader}"))?.join(" ");
            assert!(row.contains("replicas (fallback)"), "{members}");
            session.reached().await.context("drained, not cut")?;
            balancer.ask(&["ready", &path]).await?;
            served(balancer.replicas(), "the replica", |reached| reached.server == at).await?;
        }

        // The primary has no substitute: who comes now waits.
        balancer.ask(&["maint", &format!("main/{leader}")]).await?;
        wait::until("the write port to hold", SOON, async || {
            let status = balancer.ask(&["status"]).await?;
            ensure!(status.contains("held"), "{status}");
            Ok(())
        })
        .await?;
        let waiting = sql::who(balancer.primary(), SOON);
        let back = async {
            balancer.wait_status("/listeners/0/held", &json!(1)).await?;
            balancer.ask(&["ready", &format!("main/{leader}")]).await
        };
        let (reached, _) = tokio::try_join!(waiting, back)?;
        assert!(!reached.in_recovery);
        let events = balancer.ask(&["events"]).await?;
        assert!(
            events.contains(&replica) && events.contains("drain") && events.contains("maint"),
            "{events}"
        );
        Ok(())
    })
}

#[test]
fn sessions_are_killed() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let leader = cluster.leader().await?;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            sessions.push(Client::connect(balancer.primary(), SOON).await?);
        }
        let second = balancer.ask(&["sessions", "--json"]).await?;
        let second: Value = serde_json::from_str(&second)?;
        let id = second.pointer("/sessions/1/id").context("no session")?.to_string();
        balancer.ask(&["kill", &id]).await?;
        let gone = async |session: &Client| {
            wait::until("the session to be cut", SOON, async || {
                ensure!(session.reached().await.is_err(), "it still works");
                Ok(())
            })
            .await
        };
        gone(sessions.get(1).context("the second")?).await?;
        sessions.first().context("the first")?.reached().await?;
        let line = balancer.wait_log("session ended").await?;
        assert!(line.contains("killed") && line.contains(&format!("id={id} ")), "{line}");

        let said = balancer.run(&["kill", &id, "--socket", "admin.sock"]).await?;
        assert_eq!(
            (said.code, said.err.as_str()),
            (1, &*format!("pointsman: there is no session {id} (any more)\n"))
        );
        let said = balancer.ask(&["kill", "--member", &format!("main/{leader}")]).await?;
        assert_eq!(said, format!("2 sessions end now on main/{leader}\n"));
        for session in &sessions {
            gone(session).await?;
        }
        // Others come in as before.
        sql::who(balancer.primary(), SOON).await.map(drop)
    })
}

#[test]
fn events_are_followed_through_a_switchover() -> Result<()> {
    alone(async |cluster| {
        let mut balancer = Balancer::ready(cluster).await?;
        let new = cluster.a_replica().await?;
        let mut follower = balancer.command(&["events", "--follow", "--json", "--config", "pointsman.toml"]);
        let mut follower = follower.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(follower.stdout.take().context("no output")?).lines();
        cluster.switchover(&new).await?;
        let mut kinds = Vec::new();
        let confirmed = async {
            while let Some(line) = lines.next_line().await? {
                let event: Value = serde_json::from_str(&line)?;
                let text =
                    |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
                kinds.push(format!("{} {}", text("kind"), text("member")));
                if kinds.last() == Some(&format!("primary-confirmed {new}")) {
                    break;
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        tokio::time::timeout(SOON, confirmed).await.with_context(|| balancer.tail())??;
        assert_eq!(kinds.last(), Some(&format!("primary-confirmed {new}")), "{kinds:?}");

        let events = balancer.ask(&["events"]).await?;
        assert!(events.contains(&format!("{new} is confirmed as primary")), "{events}");
        let numbers: Vec<u64> =
            events.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
        assert_eq!(numbers, (1..=u64::try_from(numbers.len())?).collect::<Vec<_>>());
        let later = balancer.ask(&["events", "--since", &numbers.len().to_string()]).await?;
        assert_eq!(later, "nothing has happened since the start\n");

        // The process ends: the follower says so.
        balancer.signal(rustix::process::Signal::INT)?;
        assert_eq!(balancer.ended(SOON).await?, 0);
        let output = tokio::time::timeout(SOON, follower.wait_with_output()).await??;
        assert_eq!(output.status.code(), Some(69));
        let error = String::from_utf8(output.stderr)?;
        assert!(error.contains("pointsman has stopped"), "{error}");
        Ok(())
    })
}

#[test]
fn the_socket_is_for_the_group_only() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::ready(cluster).await?;
        let metadata = std::fs::metadata(balancer.socket())?;
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
        Ok(())
    })
}

#[test]
fn nobody_there_is_said_plainly() -> Result<()> {
    beside_others(async |cluster| {
        let mut balancer = Balancer::new(&cluster.site).await?;
        balancer.write(&balancer.configuration(cluster))?;
        let nobody = async |balancer: &Balancer| -> Result<()> {
            for question in [
                &["status"][..],
                &["members"],
                &["events", "--follow"],
                &["drain", "main/pg1"],
                &["kill", "1"],
            ] {
                let said = balancer.run(&[question, &["--config", "pointsman.toml"]].concat()).await?;
                assert_eq!(said.code, 69, "{said:?}");
                assert!(said.err.contains("admin.sock: is it running?"), "{said:?}");
            }
            Ok(())
        };
        nobody(&balancer).await?;
        // A process that was killed leaves its socket: nobody listens on it, and the next one replaces it.
        balancer.start(&cluster.site)?;
        balancer.wait_ready().await?;
        balancer.signal(rustix::process::Signal::KILL)?;
        balancer.ended(SOON).await?;
        assert!(balancer.socket().exists());
        nobody(&balancer).await?;
        balancer.start(&cluster.site)?;
        balancer.wait_ready().await?;
        let said = balancer.run(&["drain", "main/pg9", "--socket", "admin.sock"]).await?;
        assert_eq!(
            (said.code, said.err.as_str()),
            (1, "pointsman: the cluster main has no member \"pg9\"\n")
        );
        let said = balancer.run(&["drain", "pg1"]).await?;
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.err.contains("main/pg1"), "{said:?}");
        Ok(())
    })
}

#[test]
fn files_are_checked_and_documents_made() -> Result<()> {
    beside_others(async |cluster| {
        let balancer = Balancer::new(&cluster.site).await?;
        let text = balancer.configuration(cluster);
        balancer.write(&text)?;
        let said = balancer.run(&["check", "--config", "pointsman.toml"]).await?;
        assert_eq!(said.code, 0, "{said:?}");
        assert!(said.out.contains("the configuration is fine: 2 listeners, 1 cluster, node lb1"), "{said:?}");

        balancer.write(&text.replace("endpoints", "endpoint").replace("30s", "30"))?;
        let said = balancer.run(&["check", "--config", "pointsman.toml"]).await?;
        assert_eq!((said.code, said.out.as_str()), (78, ""), "{said:?}");
        assert!(
            said.err.contains("did you mean `endpoints`?") && said.err.contains("3 errors"),
            "{}",
            said.err
        );

        for shell in ["bash", "zsh", "fish"] {
            let said = balancer.run(&["completions", shell]).await?;
            assert!(said.code == 0 && said.out.contains("drain") && said.err.is_empty(), "{said:?}");
        }
        let script = balancer.run(&["completions", "bash"]).await?.out;
        std::fs::write(balancer.directory().join("completions"), script)?;
        let bash = tokio::process::Command::new("bash")
            .arg("-n")
            .arg(balancer.directory().join("completions"))
            .output();
        assert!(bash.await?.status.success());

        let said = balancer.run(&["man"]).await?;
        assert!(said.code == 0 && said.out.contains(".TH pointsman 1"), "{said:?}");
        let said = balancer.run(&["man", "--out", "."]).await?;
        assert_eq!(said.code, 0, "{said:?}");
        for page in ["pointsman.1", "pointsman-run.1", "pointsman-drain.1"] {
            assert!(balancer.directory().join(page).is_file(), "{page}");
        }
        Ok(())
    })
}
