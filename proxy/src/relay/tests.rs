//! What cannot be seen from outside with certainty: the fence is asked before the first byte.
//! Everything else is tested through a listener.

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_config::{ClusterName, ListenerName, Target};
use pointsman_core::route::{Candidate, GrantRole, Revocation, Route, RouteTable, Term};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::routes::Routes;
use crate::sessions::Sessions;

async fn connection() -> (TcpStream, TcpStream) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (ours, theirs) = tokio::join!(TcpStream::connect(socket.local_addr().unwrap()), socket.accept());
    (ours.unwrap(), theirs.unwrap().0)
}

/// The fence of a term, and the means to raise it.
fn fence() -> (Arc<Fence>, impl FnOnce()) {
    let candidate = Candidate {
        member: "n1".into(),
        addresses: Arc::new([]),
        role: GrantRole::Primary,
        term: Term(1),
        weight: 1,
    };
    let route = Route { target: Target::Primary, candidates: Ok(Arc::new([candidate])) };
    let table = RouteTable { generation: 1, routes: BTreeMap::from([(listener(), route)]) };
    let routes = Routes::default();
    routes.publish(Arc::new(table));
    let fence = Arc::clone(routes.load().fence(Term(1)).unwrap());
    let reason = RevokeReason::Demoted;
    (fence, move || routes.revoke(&Revocation { term: Term(1), member: "n1".into(), reason }))
}

fn listener() -> ListenerName {
    ListenerName::new("primary").unwrap()
}

#[tokio::test]
async fn behind_a_raised_fence_not_one_byte_is_moved_however_ready_it_is() {
    let ((mut client, near_client), (near_server, mut server)) = (connection().await, connection().await);
    client.write_all(b"a write").await.unwrap();
    server.write_all(b"an answer").await.unwrap();
    near_client.readable().await.unwrap();
    near_server.readable().await.unwrap();
    let (fence, raise) = fence();
    raise();
    let address = client.local_addr().unwrap();
    let place = Arc::new(Sessions::default()).place(ClusterName::new("main").unwrap(), listener());
    let session = place.enter(address, address);
    let (listener, member) = <(ListenerStats, ServerStats)>::default();
    let watch =
        Watch { session: &session, fence: &fence, listener: &listener, member: &member, idle_timeout: None };
    let pair = Pair {
        client: near_client,
        server: near_server,
        to_server: b"kept for the server".to_vec(),
        to_client: b"kept for the client".to_vec(),
    };
    let end = relay(pair, &watch).await;
    assert!(matches!(end, End::Revoked(RevokeReason::Demoted)), "{end:?}");
    let mut got = Vec::new();
    assert!(server.read_to_end(&mut got).await.is_err(), "the server gets an RST");
    let _ = client.read_to_end(&mut got).await; // unread input makes an RST of our FIN: either is right
    assert_eq!(got, b"");
    assert_eq!((listener.bytes_in.get(), listener.bytes_out.get()), (0, 0));
}
