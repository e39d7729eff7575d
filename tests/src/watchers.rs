//! Clients of both ports who must not notice what happens meanwhile.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::clients::{Clients, Served};
use crate::pointsman::Pointsman;
use crate::say;
use crate::sql::Client;

const SOON: Duration = Duration::from_secs(30);
const EVERY: Duration = Duration::from_millis(100);
/// No connection may wait as long as this, where none has to wait at all.
pub const SLOW: Duration = Duration::from_secs(3);

/// One session on each port that is held through everything, and new ones all the time.
#[derive(Debug)]
pub struct Watchers {
    write: Client,
    read: Client,
    writes: Clients,
    reads: Clients,
    /// Past the proxy: the machine's pace.
    direct: Clients,
}

impl Watchers {
    /// Begins at once.
    pub async fn start(pointsman: &Pointsman) -> Result<Self> {
        let write = Client::connect(pointsman.primary(), SOON).await?;
        let primary = write.reached().await?.server;
        Ok(Self {
            write,
            read: Client::connect(pointsman.replicas(), SOON).await?,
            writes: Clients::start(pointsman.primary(), EVERY),
            reads: Clients::start(pointsman.replicas(), EVERY),
            direct: Clients::start(primary, EVERY * 4),
        })
    }

    /// New connections are served, now.
    pub async fn are_served(&self) -> Result<()> {
        self.writes.wait_served(3, SOON).await?;
        self.reads.wait_served(3, SOON).await
    }

    /// Writes, reads, and what went past the proxy.
    async fn finish(self) -> Result<[Served; 3]> {
        self.write.reached().await.context("the session on the write port was lost")?;
        self.read.reached().await.context("the session on the read port was lost")?;
        Ok([self.writes.finish().await, self.reads.finish().await, self.direct.finish().await])
    }

    /// Nobody was lost, refused, led astray, or had to wait.
    pub async fn undisturbed(self, what: &str) -> Result<()> {
        self.nobody_waits(what).await?.check_role(true).with_context(|| format!("{what}: reads"))
    }

    /// Nobody was lost, refused or had to wait, and writes reached the primary. Answers the reads.
    pub async fn nobody_waits(self, what: &str) -> Result<Served> {
        let [writes, reads, direct] = self.finish().await?;
        say(&format!(
            "{what}: the slowest write took {:?}, the slowest read {:?}",
            writes.slowest(),
            reads.slowest()
        ))?;
        for (port, served) in [("write", &writes), ("read", &reads)] {
            served.check_none_failed(None).with_context(|| format!("{what}: {port} port"))?;
            served.check_none_waited(SLOW, &direct).with_context(|| format!("{what}: {port} port"))?;
        }
        writes.check_role(false).with_context(|| format!("{what}: writes"))?;
        Ok(reads)
    }
}
