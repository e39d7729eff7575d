//! `CancelRequest`: passed on at once to every member that may run the query.
//!
//! The key in the request names a server process, and any member may own it: those that new sessions go to,
//! and those that still serve older ones. A server ignores a request whose key it does not know (one line
//! in its log), so it is sent to all of them, and the client's connection is closed when all have closed:
//! libpq takes the close as "done". Bounds: [`MAX_SERVERS`] at once, each with the listener's
//! `connect_timeout`. Cancel-safe: dropping the future ends the attempts.

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_core::view::{Address, MemberName};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Shared;
use crate::dial;
use crate::socket::{TcpOptions, discard, write_all};

/// The most members that one request is sent to.
const MAX_SERVERS: usize = 16;

/// Sends the request to every server that may know its key, and waits until each has closed.
pub(crate) async fn broadcast(shared: &Shared, request: Vec<u8>) {
    shared.stats.cancels.add(1);
    let settings = shared.settings.load_full();
    let options = TcpOptions::of(&settings.listener);
    let patience = settings.listener.connect_timeout;
    let request: Arc<[u8]> = request.into();
    let mut tasks = JoinSet::new();
    for addresses in servers(shared) {
        let request = Arc::clone(&request);
        tasks.spawn(async move {
            let deadline = Instant::now() + patience;
            let Ok((stream, _)) = dial::connect(&addresses, options, deadline).await else { return };
            let _ = tokio::time::timeout_at(deadline, async {
                if write_all(&stream, &request).await.is_ok() {
                    discard(&stream, 1024, patience).await;
                }
            })
            .await; // a cancellation is a wish: there is nobody to tell that it failed
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// The addresses of the members that new sessions go to, and of those that serve older ones.
fn servers(shared: &Shared) -> Vec<Arc<[Address]>> {
    let mut servers: BTreeMap<MemberName, Arc<[Address]>> = BTreeMap::new();
    for (member, stats) in shared.stats.servers() {
        if let Some(server) = stats.reached().filter(|_| stats.sessions.get() > 0) {
            let address = Address { host: server.ip().to_string(), port: server.port() };
            servers.insert(member, Arc::new([address]));
        }
    }
    let published = shared.routes.load();
    let route = published.route(&shared.name);
    if let Some(Ok(candidates)) = route.map(|route| &route.candidates) {
        let candidates = candidates.iter();
        servers.extend(candidates.map(|one| (one.member.clone(), Arc::clone(&one.addresses))));
    }
    servers.into_values().take(MAX_SERVERS).collect()
}
