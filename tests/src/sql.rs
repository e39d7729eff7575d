//! SQL: `psql` for what people do, tokio-postgres for what must be quick.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use crate::tools::Tools;
use crate::wait;

/// The superuser of the test clusters; loopback needs no password.
pub const USER: &str = "postgres";
/// The database that tests use.
pub const DATABASE: &str = "postgres";

/// A libpq connection string for `address`.
pub fn conninfo(address: SocketAddr) -> String {
    format!("host={} port={} user={USER} dbname={DATABASE} connect_timeout=65", address.ip(), address.port())
}

/// Runs one statement through `psql`, as a person would; answers the rows, unaligned.
pub async fn psql(tools: &Tools, conninfo: &str, statement: &str) -> Result<String> {
    let mut command = Command::new(&tools.psql);
    command
        .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", conninfo, "-c", statement])
        .env("PGAPPNAME", "pointsman-tests")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(90), command.output())
        .await
        .with_context(|| format!("psql did not end: {statement}"))??;
    if !output.status.success() {
        bail!("psql: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// What `psql` says when it cannot connect to `address`.
pub async fn psql_error(tools: &Tools, address: SocketAddr) -> String {
    match psql(tools, &conninfo(address), "select 1").await {
        Ok(_) => "psql was served".to_owned(),
        Err(error) => format!("{error:#}"),
    }
}

/// Waits until new connections to `address` reach `server`.
pub async fn wait_led_to(address: SocketAddr, server: SocketAddr, deadline: Duration) -> Result<()> {
    wait::until(format!("{address} to lead to {server}"), deadline, async || {
        let reached = who(address, deadline).await?;
        ensure!(reached.server == server, "it leads to {}", reached.server);
        Ok(())
    })
    .await
}

/// Which server a session has reached, and in which role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// `pg_is_in_recovery()`: it is a replica.
    pub in_recovery: bool,
    /// The server's own address and port.
    pub server: SocketAddr,
}

/// One open session. Its connection task ends with it.
#[derive(Debug)]
pub struct Client {
    /// The tokio-postgres client.
    pub session: tokio_postgres::Client,
    _connection: JoinSet<()>,
}

impl Client {
    /// Connects within `deadline`.
    pub async fn connect(address: SocketAddr, deadline: Duration) -> Result<Self> {
        Self::connect_to(address, DATABASE, deadline).await
    }

    /// Connects to another database within `deadline`.
    pub async fn connect_to(address: SocketAddr, database: &str, deadline: Duration) -> Result<Self> {
        let mut config = Config::new();
        config.host(address.ip().to_string()).port(address.port()).user(USER).dbname(database);
        config.application_name("pointsman-tests");
        let (session, connection) = tokio::time::timeout(deadline, config.connect(NoTls))
            .await
            .context("no connection in time")??;
        let mut tasks = JoinSet::new();
        // An error of the connection is seen by whoever waits for an answer.
        tasks.spawn(async move { drop(connection.await) });
        Ok(Self { session, _connection: tasks })
    }

    /// Waits until the other side has ended the session; answers when.
    pub async fn ended(&self, deadline: Duration) -> Result<Instant> {
        let started = Instant::now();
        while !self.session.is_closed() {
            ensure!(started.elapsed() < deadline, "the session still lives after {deadline:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(Instant::now())
    }

    /// The first field of the first row, as text.
    pub async fn value(&self, statement: &str) -> Result<String> {
        let messages = self.session.simple_query(statement).await?;
        let row = messages
            .iter()
            .find_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None });
        let value = row.and_then(|row| row.try_get(0).ok().flatten());
        value.map(str::to_owned).with_context(|| format!("nothing came: {statement}"))
    }

    /// Asks the server who it is, in one round trip.
    pub async fn reached(&self) -> Result<Reached> {
        const WHO: &str = "select pg_is_in_recovery(), host(inet_server_addr()), inet_server_port()";
        let messages = self.session.simple_query(WHO).await?;
        let row = messages
            .iter()
            .find_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None });
        let row = row.context("no row")?;
        let field = |index| row.try_get(index).ok().flatten().context("a field is missing");
        Ok(Reached {
            in_recovery: field(0)? == "t",
            server: SocketAddr::new(field(1)?.parse()?, field(2)?.parse()?),
        })
    }
}

/// Connects to `address`, asks who is there, disconnects; within `deadline`.
pub async fn who(address: SocketAddr, deadline: Duration) -> Result<Reached> {
    let ask = async { Client::connect(address, deadline).await?.reached().await };
    tokio::time::timeout(deadline, ask).await.context("no answer in time")?
}
