//! Farewells: the proxy is told that an address has left this host, so that it closes the sessions that came to it. Their packets
//! would go to another host now, and what they hold on the servers would stay locked until somebody gives up.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::VipName;
use pointsman_process::PROXY;
use pointsman_process::client::{Client, escape};
use serde_json::Value;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};

use super::{Counters, Shared};

/// For one answer of the proxy.
const DEADLINE: Duration = Duration::from_secs(1);

/// How long a proxy that does not answer is told again, and how often.
const INSISTENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(250);

/// An answer has one sentence.
const LARGEST: usize = 64 << 10;

/// Addresses that the proxy is being told of.
const AT_ONCE: usize = 64;

/// What the proxy is being told.
#[derive(Debug)]
pub(super) struct Farewells {
    shared: Shared,
    running: JoinSet<()>,
    /// To be given up when the addresses come back.
    of: Vec<(VipName, AbortHandle)>,
}

impl Farewells {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared, running: JoinSet::new(), of: Vec::new() }
    }

    /// Begins to tell. A host without listeners has no proxy, and nobody to tell.
    pub(super) fn begin(&mut self, router: &VipName, addresses: Vec<IpAddr>) {
        let config = Arc::clone(&self.shared.config.borrow());
        if config.listeners.is_empty() {
            return;
        }
        for address in addresses {
            if self.running.len() >= AT_ONCE {
                tracing::warn!(%address, "the proxy is not told that it has left: too many are leaving at once");
                self.shared.counters.farewell(false);
                continue;
            }
            let told = tell(Arc::clone(&self.shared.counters), config.admin.socket.clone(), address);
            self.of.push((router.clone(), self.running.spawn(told)));
        }
    }

    /// The addresses are here again: their sessions are good ones.
    pub(super) fn take_back(&mut self, router: &VipName) {
        let ours = self.of.iter().filter(|(of, _)| of == router);
        ours.for_each(|(_, farewell)| farewell.abort());
    }

    /// Takes note of those that are over. Waits for ever while there is none. Cancel-safe.
    pub(super) async fn progress(&mut self) {
        match self.running.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(%error, "the task of a farewell has failed");
            }
            Some(_) => {}
            None => return std::future::pending().await,
        }
        self.of.retain(|(_, farewell)| !farewell.is_finished());
    }

    /// Waits for all of them.
    pub(super) async fn finish(&mut self) {
        while !self.running.is_empty() {
            self.progress().await;
        }
    }
}

/// Tells the proxy of one address, and again while it does not answer.
async fn tell(counters: Arc<Counters>, socket: PathBuf, address: IpAddr) {
    let proxy = Client::new(PROXY, socket).within(DEADLINE, LARGEST);
    let path = format!("/api/v1/addresses/left?address={}", escape(&address.to_string()));
    let until = Instant::now() + INSISTENCE;
    loop {
        let error = match proxy.post(&path).await {
            Ok(answer) => {
                let sessions = answer.get("sessions").and_then(Value::as_u64).unwrap_or(0);
                tracing::info!(%address, sessions, "the proxy closes the sessions of an address that has left");
                counters.farewell(true);
                return;
            }
            Err(error) => error,
        };
        if error.is_refusal() || Instant::now() >= until {
            tracing::warn!(%address, "the proxy could not be told that it has left: {error}");
            counters.farewell(false);
            return;
        }
        sleep(PAUSE).await;
    }
}
