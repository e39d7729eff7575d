//! Who may come in: networks, and how many at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pointsman_config::{IpNet, Listener};
use pointsman_core::close::CloseReason;

use crate::stats::{GaugeGuard, ListenerSessions, ListenerStats};

/// Open connections for each client address. At most one entry for each open session of the listener.
#[derive(Debug, Default)]
pub(crate) struct Sources(Mutex<HashMap<IpAddr, u32>>);

impl Sources {
    fn enter(self: &Arc<Self>, client: IpAddr, limit: NonZeroU32) -> Option<SourceGuard> {
        let mut counts = self.lock();
        let count = counts.entry(client).or_default();
        if *count >= limit.get() {
            return None;
        }
        *count += 1;
        Some(SourceGuard { sources: Arc::clone(self), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one connection of an address for as long as it lives.
#[derive(Debug)]
struct SourceGuard {
    sources: Arc<Sources>,
    client: IpAddr,
}

impl Drop for SourceGuard {
    fn drop(&mut self) {
        let mut counts = self.sources.lock();
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

/// A place in the listener, given back when dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    _listener: GaugeGuard<ListenerSessions>,
    _source: Option<SourceGuard>,
}

/// Lets a client in, or says why not.
pub(crate) fn admit(
    settings: &Listener,
    stats: &Arc<ListenerStats>,
    sources: &Arc<Sources>,
    client: IpAddr,
) -> Result<Admitted, CloseReason> {
    let client = client.to_canonical();
    let listed = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&client));
    if listed(&settings.deny) || (!settings.allow.is_empty() && !listed(&settings.allow)) {
        return Err(CloseReason::Denied);
    }
    let names = ListenerSessions(Arc::clone(stats));
    let listener = crate::stats::Gauge::enter_below(names, settings.max_connections.into())
        .ok_or(CloseReason::ListenerFull)?;
    let source = match settings.max_connections_per_source {
        Some(limit) => Some(sources.enter(client, limit).ok_or(CloseReason::SourceLimit)?),
        None => None,
    };
    Ok(Admitted { _listener: listener, _source: source })
}
