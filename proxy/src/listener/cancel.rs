//! `CancelRequest`: passed on at once to every member that may run the query.
//!
//! The key in the request names a server process, and any member may own it: those that new sessions go to,
//! and those that still serve older ones. A server ignores a request whose key it does not know (one line
//! in its log), so it is sent to all of them, and the client's connection is closed when all have closed:
//! libpq takes the close as "done". Bounds: [`MAX_SERVERS`] at once, each with the listener's
//! `connect_timeout`. Cancel-safe: dropping the future ends the attempts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use pointsman_core::view::{Address, MemberName};

use super::Shared;
use crate::dial;
use crate::engine::timeout_at;
use crate::socket::discard;

/// The most members that one request is sent to.
const MAX_SERVERS: usize = 16;

/// Sends the request to every server that may know its key, and waits until each has closed.
pub(crate) async fn broadcast(shared: &Shared, request: Vec<u8>) {
    shared.stats.cancels.add(1);
    let patience = shared.settings.load().listener.connect_timeout;
    let deadline = Instant::now() + patience;
    let request = &request;
    join_all(servers(shared).into_iter().map(|addresses| async move {
        let Ok((stream, _)) = dial::connect(&addresses, deadline).await else { return };
        stream.send(request);
        // A cancellation is a wish: there is nobody to tell that it failed.
        let _ = timeout_at(deadline, discard(&stream, 1024, patience)).await;
    }))
    .await;
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
