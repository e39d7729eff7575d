//! Farewells: the proxy is told that an address has left this host, so that it closes the sessions that came to it. Their packets
//! would go to another host now, and what they hold on the servers would stay locked until somebody gives up.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pointsman_process::PROXY;
use pointsman_process::client::{Client, ClientError, escape};
use pointsman_vrrp::event::State;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Shared;

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
}

impl Farewells {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared, running: JoinSet::new() }
    }

    /// Begins to tell. A host without listeners has no proxy, and nobody to tell.
    pub(super) fn begin(&mut self, addresses: Vec<IpAddr>) {
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
            self.running.spawn(tell(self.shared.clone(), config.admin.socket.clone(), address));
        }
    }

    /// Takes note of those that are over. Waits for ever while there is none. Cancel-safe.
    pub(super) async fn progress(&mut self) {
        match self.running.join_next().await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::error!(%error, "the task of a farewell has failed"),
            None => std::future::pending().await,
        }
    }

    /// Waits for all of them.
    pub(super) async fn finish(&mut self) {
        while !self.running.is_empty() {
            self.progress().await;
        }
    }
}

/// Tells the proxy of one address, and again while it does not answer and the address is not back.
async fn tell(shared: Shared, socket: PathBuf, address: IpAddr) {
    let proxy = Client::new(PROXY, socket).within(DEADLINE, LARGEST);
    let path = format!("/api/v1/addresses/left?address={}", escape(&address.to_string()));
    let until = Instant::now() + INSISTENCE;
    loop {
        let error = match proxy.post(&path).await {
            Ok(answer) => {
                let sessions = answer.get("sessions").and_then(Value::as_u64).unwrap_or(0);
                tracing::info!(%address, sessions, "the proxy closes the sessions of an address that has left");
                shared.counters.farewell(true);
                return;
            }
            Err(error) => error,
        };
        if matches!(error, ClientError::Refused(_)) || Instant::now() >= until {
            tracing::warn!(%address, "the proxy could not be told that it has left: {error}");
            shared.counters.farewell(false);
            return;
        }
        sleep(PAUSE).await;
        if is_here(&shared, address) {
            return;
        }
    }
}

/// Whether the address is on this host (again).
fn is_here(shared: &Shared, address: IpAddr) -> bool {
    let shown = shared.shown.borrow();
    let config = shared.config.borrow();
    let active = shown.status.routers.iter().filter(|router| router.state == State::Active);
    let vips = active.filter_map(|router| config.vips.iter().find(|vip| vip.name == router.name));
    vips.into_iter().any(|vip| vip.addresses.iter().any(|net| net.addr() == address))
}
