//! A planned switchover, seen by clients that connect every 10 ms: through Pointsman, and beside it through HAProxy with
//! the checks that Patroni recommends, and with quick ones.
//!
//! `RUNS` in the environment: how many switchovers (default 5).

use std::io::Write as _;

use anyhow::{Result, ensure};
use pointsman_tests::stopwatch::{self, Verdict};
use pointsman_tests::{Cluster, ClusterOptions, HaProxy, HaProxyChecks, Pointsman};

/// The most that our share may be, at the median, beside what the machine takes for it at its present pace.
const SHARE_LIMIT_MS: f64 = 50.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_the_write_port_lose_nothing_in_a_planned_switchover() -> Result<()> {
    let runs: usize = std::env::var("RUNS").map_or(Ok(5), |runs| runs.parse())?;
    let cluster = Cluster::start(&ClusterOptions::default()).await?;
    stopwatch::prepare(&cluster).await?;
    let pointsman = Pointsman::start(&cluster, 0).await?;
    let recommended = HaProxy::start(&cluster, HaProxyChecks::Recommended).await?;
    let tuned = HaProxy::start(&cluster, HaProxyChecks::Tuned).await?;
    let ports = [
        ("pointsman", pointsman.primary()),
        ("HAProxy, recommended", recommended.primary()),
        ("HAProxy, 100 ms checks", tuned.primary()),
    ];

    // Not `println!`: the lines are wanted also when the test passes.
    let mut output = std::io::stdout();
    let mut ours: Vec<Verdict> = Vec::new();
    let mut paces = Vec::new();
    for run in 1..=runs {
        cluster.wait_ready().await?;
        recommended.wait_settled().await?;
        tuned.wait_settled().await?;
        let candidate = cluster.a_replica().await?;
        let measured = stopwatch::measure_switchover(&cluster, &ports, &candidate).await?;
        writeln!(output, "switchover {run} of {runs}, {} to {}:", measured.old, measured.new)?;
        for verdict in &measured.verdicts {
            writeln!(output, "  {verdict}")?;
        }
        writeln!(output, "  two answers of Patroni and a connection take {:.1} ms", measured.pace_ms)?;
        ours.extend(measured.verdicts.into_iter().next());
        paces.push(measured.pace_ms);
    }

    for verdict in &ours {
        ensure!(
            verdict.failed == 0,
            "connections failed: {:?}\n{}",
            verdict.errors,
            pointsman.server().tail()
        );
        ensure!(verdict.wrong_role == 0, "connections reached a server in recovery: {verdict}");
    }
    let shares: Vec<f64> = ours.iter().map(|verdict| verdict.share_ms).collect();
    let (median, pace) = (stopwatch::median(&shares)?, stopwatch::median(&paces)?);
    writeln!(
        output,
        "our share, median of {runs}: {median:.1} ms; {pace:.1} ms of it at the machine's pace"
    )?;
    ensure!(
        median - pace < SHARE_LIMIT_MS,
        "our share is {median:.1} ms, the limit {SHARE_LIMIT_MS} ms beside {pace:.1} ms"
    );
    Ok(())
}
