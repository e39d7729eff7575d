//! Two hosts on loopback.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::thread;

use pointsman_config::{Host, SecretSource};
use pointsman_vrrp::report::Sight;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// A key without a file.
#[derive(Debug)]
struct Environment(&'static str);

impl Host for Environment {
    fn read_file(&self, _: &std::path::Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn variable(&self, _: &str) -> Option<String> {
        Some(self.0.to_owned())
    }

    fn host_name(&self) -> Option<String> {
        None
    }
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

/// Addresses with ports that are free now.
fn addresses(names: &[&str]) -> BTreeMap<NodeName, SocketAddr> {
    let free = |name: &&str| {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        (node(name), tcp.local_addr().unwrap(), tcp)
    };
    let reserved: Vec<_> = names.iter().map(free).collect();
    reserved.into_iter().map(|(name, address, _)| (name, address)).collect()
}

fn config(nodes: &BTreeMap<NodeName, SocketAddr>, key: &'static str) -> pointsman_config::Peers {
    let key = SecretSource::Variable("KEY".to_owned()).read(&Environment(key)).unwrap();
    pointsman_config::Peers { nodes: nodes.clone(), key, heartbeat: Duration::from_millis(30) }
}

const KEY: &str = "sixteen bytes and more";

fn start(nodes: &BTreeMap<NodeName, SocketAddr>, name: &str) -> Peers {
    Peers::start(&config(nodes, KEY), &node(name)).unwrap()
}

async fn soon<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// The next event of the connection to `peer`.
async fn wire(peers: &mut Peers, peer: &str) -> Wire {
    let next = async {
        loop {
            if let Event::Wire { node: from, wire } = peers.next().await
                && from == node(peer)
            {
                return wire;
            }
        }
    };
    soon("news of a connection", next).await
}

fn report(sees: &str) -> Report {
    Report { sees: BTreeMap::from([(node(sees), Sight::Alive)]), ..Report::default() }
}

/// Runs a host on a thread of its own, with a runtime that is dropped when it is told to end: as if it was killed.
fn run_elsewhere(
    nodes: &BTreeMap<NodeName, SocketAddr>,
    name: &'static str,
) -> (thread::JoinHandle<()>, oneshot::Sender<()>) {
    let (kill, killed) = oneshot::channel();
    let nodes = nodes.clone();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let peers = runtime.block_on(async move {
            let mut peers = start(&nodes, name);
            let talking = async {
                loop {
                    peers.next().await;
                    peers.send(&report("lb9"));
                }
            };
            tokio::select! { () = talking => {}, _ = killed => {} }
            peers
        });
        drop(runtime); // the tasks first: nobody says good-bye
        drop(peers);
    });
    (thread, kill)
}

#[tokio::test]
async fn hosts_meet_and_hear_each_other() {
    let nodes = addresses(&["lb1", "lb2"]);
    let (mut first, mut second) = (start(&nodes, "lb1"), start(&nodes, "lb2"));
    assert_eq!(wire(&mut first, "lb2").await, Wire::Connected);
    assert_eq!(wire(&mut second, "lb1").await, Wire::Connected);
    first.send(&report("lb2"));
    let heard = soon("a report", second.next()).await;
    assert_eq!(heard, Event::Report { node: node("lb1"), report: report("lb2") });
}

#[tokio::test]
async fn a_killed_host_has_ended_and_comes_back_as_another() {
    let nodes = addresses(&["lb1", "lb2"]);
    let mut first = start(&nodes, "lb1");
    let (thread, kill) = run_elsewhere(&nodes, "lb2");
    assert_eq!(wire(&mut first, "lb2").await, Wire::Connected);
    kill.send(()).unwrap();
    assert_eq!(wire(&mut first, "lb2").await, Wire::Ended);
    thread.join().unwrap();
    let (thread, kill) = run_elsewhere(&nodes, "lb2");
    assert_eq!(wire(&mut first, "lb2").await, Wire::Connected);
    kill.send(()).unwrap();
    thread.join().unwrap();
}

#[tokio::test]
async fn a_farewell_is_told_from_an_end() {
    let nodes = addresses(&["lb1", "lb2"]);
    let (mut first, mut second) = (start(&nodes, "lb1"), start(&nodes, "lb2"));
    wire(&mut first, "lb2").await;
    wire(&mut second, "lb1").await;
    soon("the farewell", second.farewell()).await;
    assert_eq!(wire(&mut first, "lb2").await, Wire::Farewell);
}

#[tokio::test]
async fn recorded_and_foreign_datagrams_count_for_nothing() {
    let nodes = addresses(&["lb1", "lb2"]);
    let (mut first, mut second) = (start(&nodes, "lb1"), start(&nodes, "lb2"));
    wire(&mut first, "lb2").await;
    wire(&mut second, "lb1").await;
    let incarnation = first.identity.incarnation;
    let sealed = |key: &str, incarnation, sequence| {
        let sender = Sender { node: node("lb1"), incarnation, sequence };
        seal(&Key::derive(key.as_bytes()), &sender, &report("lb2"))
    };
    let other = Incarnation(incarnation.0.wrapping_add(1));
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = nodes[&node("lb2")];
    let recorded = sealed(KEY, incarnation, 1);
    for datagram in
        [&sealed("another key of sixteen", incarnation, 9), &sealed(KEY, other, 9), &recorded, &recorded]
    {
        stranger.send_to(datagram, to).await.unwrap();
    }
    stranger.send_to(&sealed(KEY, incarnation, 2), to).await.unwrap();
    let expected = Event::Report { node: node("lb1"), report: report("lb2") };
    assert_eq!(soon("the first of the recorded", second.next()).await, expected);
    assert_eq!(soon("the last", second.next()).await, expected);
    assert_eq!(second.refused().datagrams, BTreeMap::from([("seal", 1), ("stale", 2)]));
}

#[tokio::test]
async fn who_does_not_know_the_key_meets_nobody() {
    let nodes = addresses(&["lb1", "lb2"]);
    let mut first = Peers::start(&config(&nodes, "another key of sixteen"), &node("lb1")).unwrap();
    let mut second = start(&nodes, "lb2");
    let meeting = async {
        tokio::select! { event = first.next() => event, event = second.next() => event }
    };
    // Long enough for several calls.
    assert!(timeout(Duration::from_millis(700), meeting).await.is_err());
}

#[test]
fn a_host_that_is_not_named_cannot_take_part() {
    let nodes = addresses(&["lb1", "lb2"]);
    let error = Peers::start(&config(&nodes, KEY), &node("lb3")).unwrap_err();
    assert_eq!(error.to_string(), "vrrp.peers: there is no address for this host, lb3");
}
