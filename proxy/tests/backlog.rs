//! A real accept queue that overflows, as the kernel shows it. Alone in its program: the counters are the host's.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use pointsman::backlog::{Queues, Watch};
use socket2::{Domain, Socket, Type};

#[test]
fn a_full_accept_queue_is_seen_and_its_overflow_is_told() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(1).unwrap();
    let listener: TcpListener = socket.into();
    let address = listener.local_addr().unwrap();
    let mut watch = Watch::start();

    // Nobody accepts. The queue of one takes two; the SYNs of all others are dropped.
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            client.set_nonblocking(true).unwrap();
            let _ = client.connect(&address.into()); // in progress, for ever perhaps
            client
        })
        .collect();

    let deadline = Instant::now() + Duration::from_secs(20);
    let mut overflows = 0;
    while Queues::read().of(address).unwrap().waiting < 2 || overflows == 0 {
        assert!(Instant::now() < deadline, "waiting {:?}, overflows {overflows}", Queues::read().of(address));
        overflows += watch.grown().map_or(0, |grown| grown.overflows);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(Queues::read().of(address).unwrap().waiting, 2);

    listener.accept().unwrap();
    assert!(Queues::read().of(address).unwrap().waiting <= 2);
    drop(clients);
    drop(listener);
    assert_eq!(Queues::read().of(address), None);
}
