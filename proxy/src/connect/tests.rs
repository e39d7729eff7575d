//! One name, several addresses.

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// An address whose host is gone: nothing answers there. (A full queue of connections lets the kernel drop what comes.)
struct FakeDeadHost {
    address: SocketAddr,
    _socket: Socket,
    _waiting: Vec<Socket>,
}

impl FakeDeadHost {
    fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap();
        let waiting = (0..4).map(|_| {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            client.set_nonblocking(true).unwrap();
            let _ = client.connect(&address); // in progress, for ever
            client
        });
        let waiting = waiting.collect();
        Self { address: address.as_socket().unwrap(), _socket: socket, _waiting: waiting }
    }
}

async fn live() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn refused() -> SocketAddr {
    live().await.1
}

async fn connected_to(addresses: Vec<SocketAddr>) -> io::Result<SocketAddr> {
    timeout(SOON, any_of(addresses)).await.expect("an end").and_then(|stream| stream.peer_addr())
}

#[tokio::test]
async fn a_dead_address_does_not_keep_from_the_next() {
    let (dead, (_listener, live)) = (FakeDeadHost::new(), live().await);
    let alone = timeout(STAGGER * 2, TcpStream::connect(dead.address)).await;
    assert!(alone.is_err(), "it is not dead: {alone:?}");
    let began = Instant::now();
    assert_eq!(connected_to(vec![dead.address, live]).await.unwrap(), live);
    let took = began.elapsed();
    assert!(took >= STAGGER && took < STAGGER * 4, "{took:?}");
}

#[tokio::test]
async fn a_refusal_is_followed_by_the_next_at_once() {
    let (refused, (_listener, live)) = (refused().await, live().await);
    let began = Instant::now();
    assert_eq!(connected_to(vec![refused, refused, live]).await.unwrap(), live);
    assert!(began.elapsed() < STAGGER, "{:?}", began.elapsed());
}

#[tokio::test]
async fn when_all_refuse_it_says_so() {
    let refused = refused().await;
    let error = connected_to(vec![refused, refused]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(connected_to(Vec::new()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
}

/// `localhost` may have one address or two: every turn finds the listener.
#[tokio::test]
async fn a_name_is_looked_up_and_each_turn_connects() {
    let (_listener, live) = live().await;
    for turn in [0, 1, 2, usize::MAX] {
        let stream = timeout(SOON, tcp_turn("localhost", live.port(), turn)).await.unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live);
    }
}
