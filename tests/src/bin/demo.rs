//! `pointsman-demo`: a whole installation on loopback, to try Pointsman with. `make demo` runs it.
//!
//! etcd, three Patroni + PostgreSQL members, and three `pointsman` as if they were three load-balancer hosts. Ctrl-C ends
//! all of it and leaves nothing behind.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use pointsman_tests::member::{POSTGRES_PORT, REST_PORT};
use pointsman_tests::{Addresses, Cluster, ClusterOptions, Pointsman, Site, cluster, pointsman, sql};
use tokio::signal::unix::{Signal, SignalKind, signal};

const MEMBERS: u8 = 3;
const BALANCERS: u8 = 3;
/// How often the demo looks who leads.
const LOOK: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    // One thread is plenty: the servers are processes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pointsman-demo: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// The causes in one line, the outermost first. A log's tail, when there is one, comes last and on lines of its own.
fn sentence(error: &anyhow::Error) -> String {
    let (logs, causes): (Vec<_>, Vec<_>) =
        error.chain().map(ToString::to_string).partition(|cause| cause.starts_with("---"));
    let mut parts = vec![causes.join(": ")];
    parts.extend(logs);
    parts.join("\n")
}

async fn run() -> Result<()> {
    let mut stop = Stop::new()?;
    // Whatever is dropped here ends its processes: a signal during the start is as good as one later.
    tokio::select! {
        result = demo() => result,
        () = stop.asked() => {
            println!("\nStopping everything.");
            Ok(())
        }
    }
}

/// What asks the demo to end: Ctrl-C, `kill`, a closed terminal.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

async fn demo() -> Result<()> {
    let started = Instant::now();
    pointsman::program().await?;
    let addresses = Addresses::demo()?;
    check_ports(&addresses)?;
    let site = Site::new(addresses)?;
    println!("Starting on loopback; data in {}", site.directory().display());
    let options = ClusterOptions {
        members: MEMBERS,
        progress: |what| println!("  {what}"),
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start_in(site, &options).await?;
    add_demo_user(&cluster).await?;
    println!("  starting {BALANCERS} pointsman");
    let mut balancers = Vec::new();
    for index in 0..BALANCERS {
        balancers.push(Pointsman::start(&cluster, index).await?);
    }
    // Else the first visitor of 5001 would meet the primary, which stands in for replicas that are not known yet.
    for balancer in &balancers {
        balancer.wait_replicas(2).await?;
    }
    println!("Ready after {:.0} s.\n", started.elapsed().as_secs_f64());
    println!("{}", what_to_try(&cluster, &balancers));
    watch(&mut cluster, &mut balancers).await
}

/// Says which address is taken before anything is started.
fn check_ports(addresses: &Addresses) -> Result<()> {
    let mut wanted = Vec::new();
    for index in 0..BALANCERS {
        wanted.extend([5000, 5001, 7000].map(|port| (addresses.balancer(index), port)));
    }
    for index in 0..MEMBERS {
        wanted.extend([POSTGRES_PORT, REST_PORT].map(|port| (addresses.member(0, index), port)));
    }
    wanted.extend([2379, 2380].map(|port| (addresses.etcd(0, 0), port)));
    for address in wanted.into_iter().map(SocketAddr::from) {
        if let Err(error) = TcpListener::bind(address) {
            let port = address.port();
            bail!(
                "cannot use {address} ({error}): see who does with `ss -ltnp 'sport = :{port}'`, stop it, try again"
            );
        }
    }
    Ok(())
}

async fn add_demo_user(cluster: &Cluster) -> Result<()> {
    let client = sql::Client::connect(cluster.leader_address().await?, Duration::from_secs(10)).await?;
    client.session.batch_execute("create role demo login").await?;
    // Not in the same transaction: `create database` wants one of its own.
    client.session.batch_execute("create database demo owner demo").await?;
    Ok(())
}

fn what_to_try(cluster: &Cluster, balancers: &[Pointsman]) -> String {
    let dashboards: Vec<String> =
        balancers.iter().map(|balancer| format!("http://{}/", balancer.admin())).collect();
    let patronictl = format!(
        "{} -c {}",
        cluster.site.tools.patronictl.display(),
        cluster.patronictl_configuration().display()
    );
    let scope = cluster::SCOPE;
    format!(
        "Connect (three load-balancer hosts: 127.0.0.1, .2 and .3)
  the primary      psql -h 127.0.0.1 -p 5000 -U demo demo
  a replica        psql -h 127.0.0.1 -p 5001 -U demo demo
  with all hosts   psql 'host=127.0.0.1,127.0.0.2,127.0.0.3 port=5000 user=demo dbname=demo'
  who answers      psql -h 127.0.0.1 -p 5000 -U demo -Atc 'select inet_server_addr(), pg_is_in_recovery()' demo

Look
  dashboards       {}
  the cluster      {patronictl} list

Try, while clients run
  clients          while psql -h 127.0.0.1 -p 5000 -U demo -Atc 'select now(), inet_server_addr()' demo; do sleep 0.1; done
  switch over      {patronictl} switchover {scope} --force
  kill the primary kill -9 $(psql -h 127.0.0.1 -p 5000 -U postgres -Atc \"select pg_read_file('postmaster.pid')\" | head -1)
                   (Patroni starts it again; kill its Patroni too, and another member takes over after some 20 s)

Ctrl-C stops everything and removes the data.
",
        dashboards.join("  ")
    )
}

/// Says who leads whenever that changes. Ends only with an error: when one of the programs has ended.
async fn watch(cluster: &mut Cluster, balancers: &mut [Pointsman]) -> Result<()> {
    let mut known = None;
    loop {
        cluster.check_running()?;
        for balancer in &mut *balancers {
            balancer.check_running()?;
        }
        let leader = cluster.leader().await.ok();
        if leader != known {
            match &leader {
                Some(leader) => println!("{leader} leads"),
                None => println!("nobody leads"),
            }
            known = leader;
        }
        tokio::time::sleep(LOOK).await;
    }
}
