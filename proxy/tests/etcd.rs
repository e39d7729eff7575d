//! The etcd source against real etcd servers: killed, frozen, restarted, compacted.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;
#[path = "support/versions.rs"]
mod versions;

use std::time::{Duration, Instant};

use etcd_client::{Txn, TxnOp};
use support::etcd::{EtcdCluster, Setup, Version};
use support::fake::forwarder;
use support::source::Source;
use tokio::sync::watch;

const MEMBER: &str =
    r#"{"conn_url":"postgres://127.0.0.1:5432/postgres","state":"running","role":"primary"}"#;

versions::on_both_versions!(
    it_reads_and_then_watches,
    killed_and_restarted,
    frozen,
    all_killed_and_restarted,
    all_frozen_and_thawed,
    quorum_lost_and_found,
    compacted_while_away
);

fn three(version: Version) -> (EtcdCluster, Source) {
    let etcd = EtcdCluster::start_with(Setup { version, ..Setup::default() });
    etcd.put(0, "leader", "n1");
    etcd.put(0, "members/n1", MEMBER);
    let source = Source::start(&format!("endpoints = [{}]", etcd.endpoints()));
    (etcd, source)
}

async fn it_reads_and_then_watches(version: Version) {
    let (etcd, mut source) = three(version);
    let view = source.leader("n1").await;
    assert_eq!((view.members.len(), view.complaints.len()), (1, 0));
    assert_eq!(source.stats.connected(), Some(etcd.endpoint(0).as_str()));
    etcd.put(1, "leader", "n2");
    let view = source.leader("n2").await;
    assert_eq!(view.leader.unwrap().revision, view.revision);
    etcd.put(2, "leader", "");
    let view = source.view(|view| view.complaints.iter().any(|c| c.problem.contains("empty"))).await;
    assert_eq!(view.leader.unwrap().member.as_str(), "n2", "nonsense takes nothing away");
    etcd.ctl(1, &["del", "/service/demo/leader"]);
    source.view(|view| view.leader.is_none()).await;
    etcd.ctl(1, &["put", "/service/demo2/leader", "n9"]);
    etcd.ctl(1, &["put", "/service/demo0", "n9"]);
    assert!(source.stays_for(Duration::from_secs(3)).await >= 2, "it shows life every second");
    assert_eq!((source.stats.reconnects(), source.stats.watch_restarts()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_keys_than_a_page() {
    let etcd = EtcdCluster::start(1);
    let mut client = etcd_client::Client::connect([etcd.endpoint(0)], None).await.unwrap();
    for batch in 0..13 {
        let key = |number| format!("/service/demo/members/m{batch}-{number}");
        let puts: Vec<_> = (0..100).map(|number| TxnOp::put(key(number), MEMBER, None)).collect();
        client.txn(Txn::new().and_then(puts)).await.unwrap();
    }
    let mut source = Source::start(&format!("endpoints = [{}]", etcd.endpoints()));
    let view = source.view(|_| true).await;
    assert_eq!((view.members.len(), view.complaints.len()), (1300, 0));
}

/// The connected server dies: the next one is used, without the store being lost.
async fn killed_and_restarted(version: Version) {
    let (mut etcd, mut source) = three(version);
    source.leader("n1").await;
    etcd.kill(0);
    etcd.put(1, "leader", "n2");
    source.leader("n2").await;
    // The second server, or the third: if the first one led them, neither can be read while they elect.
    let connected = source.stats.connected().map(str::to_owned);
    assert!((1..3).any(|node| connected == Some(etcd.endpoint(node))), "{connected:?}");
    let restarts = source.stats.watch_restarts();
    etcd.restart(0);
    etcd.await_health();
    etcd.put(0, "leader", "n3");
    source.leader("n3").await;
    assert_eq!(source.stats.connected().map(str::to_owned), connected, "what works is kept");
    assert_eq!(source.stats.watch_restarts(), restarts);
}

/// The connected server hangs: its connection stays open and says nothing.
async fn frozen(version: Version) {
    let (etcd, mut source) = three(version);
    source.leader("n1").await;
    etcd.freeze(0);
    let frozen = Instant::now();
    etcd.await_health_of(1);
    etcd.put(1, "leader", "n2");
    source.leader("n2").await;
    let took = frozen.elapsed();
    println!("a frozen server was left after {took:?}");
    assert!(took < Duration::from_secs(6), "{took:?}");
    etcd.thaw(0);
    source.stays_for(Duration::from_secs(1)).await;
}

/// All servers die and come back: the store is lost once, then alive.
async fn all_killed_and_restarted(version: Version) {
    let (mut etcd, mut source) = three(version);
    source.leader("n1").await;
    (0..3).for_each(|node| etcd.kill(node));
    let error = source.lost().await;
    assert!(error.starts_with("none of the 3 etcd endpoints works: http://127."), "{error}");
    assert!(error.contains("connection"), "{error}");
    (0..3).for_each(|node| etcd.restart(node));
    let view = source.view(|_| true).await;
    assert_eq!(view.leader.unwrap().member.as_str(), "n1");
    etcd.await_health();
    etcd.put(0, "leader", "n2");
    source.leader("n2").await;
}

async fn all_frozen_and_thawed(version: Version) {
    let (etcd, mut source) = three(version);
    source.leader("n1").await;
    (0..3).for_each(|node| etcd.freeze(node));
    let error = source.lost().await;
    assert!(
        error.contains("no answer") || error.contains("said nothing") || error.contains("no connection"),
        "{error}"
    );
    (0..3).for_each(|node| etcd.thaw(node));
    source.view(|_| true).await;
    etcd.await_health();
    etcd.put(0, "leader", "n2");
    source.leader("n2").await;
}

/// A single endpoint that hangs is lost at the watch's deadline, and found again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_endpoint_frozen() {
    let etcd = EtcdCluster::start(1);
    etcd.put(0, "leader", "n1");
    let mut source = Source::start(&format!("endpoints = [{}]", etcd.endpoints()));
    source.leader("n1").await;
    source.alive().await;
    etcd.freeze(0);
    let error = source.lost().await;
    assert!(error.contains("the watch said nothing for 3 s"), "{error}");
    etcd.thaw(0);
    source.leader("n1").await;
}

/// Without a quorum the connected server still lives, but says that it has no leader.
async fn quorum_lost_and_found(version: Version) {
    let (mut etcd, mut source) = three(version);
    source.leader("n1").await;
    etcd.kill(1);
    etcd.kill(2);
    let error = source.lost().await;
    assert!(error.contains("quorum"), "{error}");
    etcd.restart(1);
    source.leader("n1").await;
}

/// A watch that dies without a word while the server lives: the path between swallows everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_watch() {
    let etcd = EtcdCluster::start(1);
    etcd.put(0, "leader", "n1");
    let (mute, muted) = watch::channel(false);
    let direct = etcd.endpoint(0);
    let path = forwarder(direct.strip_prefix("http://").unwrap().to_owned(), muted).await;
    let through = format!("http://127.0.0.1:{}", path.port);
    let mut source = Source::start(&format!("endpoints = [{through:?}, {direct:?}]"));
    source.leader("n1").await;
    source.alive().await;
    mute.send(true).unwrap();
    let dead = Instant::now();
    etcd.put(0, "leader", "n2");
    source.leader("n2").await;
    assert!(dead.elapsed() < Duration::from_secs(5), "{:?}", dead.elapsed());
    assert_eq!(source.stats.connected(), Some(direct.as_str()));
    assert_eq!((path.connections(), source.stats.watch_restarts()), (1, 1));
    assert!(source.stays_for(Duration::from_secs(3)).await >= 2);
}

/// What happened while we were away is compacted: the full read does not need it.
async fn compacted_while_away(version: Version) {
    let (etcd, mut source) = three(version);
    let before = source.leader("n1").await.revision;
    etcd.freeze(0);
    etcd.await_health_of(1);
    (0..20).for_each(|_| etcd.put(1, "status", r#"{"optime":1}"#));
    etcd.put(1, "leader", "n2");
    etcd.ctl(1, &["compact", &(before.0 + 15).to_string()]);
    source.leader("n2").await;
    etcd.thaw(0);
}

/// A store that begins anew under the same name is not believed at once, but in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_store_is_believed_when_it_persists() {
    let mut etcd = EtcdCluster::start(1);
    (0..20).for_each(|_| etcd.put(0, "status", r#"{"optime":1}"#));
    etcd.put(0, "leader", "n1");
    let mut source = Source::start(&format!("endpoints = [{}]", etcd.endpoints()));
    let before = source.leader("n1").await.revision;
    etcd.kill(0);
    etcd.wipe(0);
    etcd.restart(0);
    etcd.await_health();
    let error = source.lost().await;
    let view = source.view(|view| view.revision < before).await;
    assert_eq!(view.leader, None, "what the new store does not have is gone ({error})");
    etcd.put(0, "leader", "n2");
    source.leader("n2").await;
}

/// From the write to the event, over a real watch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latency_from_put_to_view() {
    let (etcd, mut source) = three(Version::Installed);
    source.leader("n1").await;
    let mut client = etcd_client::Client::connect([etcd.endpoint(1)], None).await.unwrap();
    let (mut whole, mut after) = (Vec::new(), Vec::new());
    for round in 0..200 {
        let name = format!("r{round}");
        let start = Instant::now();
        client.put("/service/demo/leader", name.as_str(), None).await.unwrap();
        let written = Instant::now();
        source.leader(&name).await;
        whole.push(start.elapsed());
        after.push(written.elapsed());
    }
    whole.sort();
    after.sort();
    println!("put begun -> view: median {:?}, 99 % {:?}", whole[100], whole[198]);
    println!("put acknowledged -> view: median {:?}, 99 % {:?}", after[100], after[198]);
    assert!(after[100] < Duration::from_millis(50), "{:?}", after[100]);
}
