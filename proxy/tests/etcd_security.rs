//! The etcd source where etcd trusts nobody: users, roles and tokens, TLS on both sides, and certificates that are replaced.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;
#[path = "support/versions.rs"]
mod versions;

use std::fs;
use std::time::Duration;

use support::etcd::{EtcdCluster, Setup, Version};
use support::fake::FakeServer;
use support::source::Source;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

versions::on_both_versions!(
    a_user_who_may_read_the_prefix_only,
    tokens_expire,
    rights_are_taken_away_and_given_back,
    a_certificate_instead_of_a_password,
    certificates_are_replaced,
    mutual_tls
);

const DOCUMENTED: &str = include_str!("../../docs/discovery/etcd.md");

/// Carries out what the documentation tells an administrator to type, with passwords that are no secret.
fn follow_the_documentation(etcd: &mut EtcdCluster) {
    let commands: Vec<_> = DOCUMENTED.lines().filter_map(|line| line.strip_prefix("etcdctl ")).collect();
    let grant = "role grant-permission reader --prefix=true read /service/main/";
    assert!(commands.contains(&grant), "{commands:?}");
    for command in commands {
        let command = command.replace("/service/main/", "/service/demo/");
        match command.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["user", "add", "root"] | ["user", "grant-role", "root", "root"] | ["auth", "enable"] => {}
            ["user", "add", user] => drop(etcd.ctl(0, &["user", "add", &format!("{user}:secret")])),
            words => drop(etcd.ctl(0, words)),
        }
    }
    etcd.enable_auth();
}

/// The source's configuration: `user` with the password in the file `password`, which is written.
fn login(etcd: &EtcdCluster, user: &str, password: &str) -> String {
    let file = etcd.dir().join("password");
    fs::write(&file, format!("{password}\n")).unwrap();
    let (endpoints, file) = (etcd.endpoints(), file.to_str().unwrap());
    format!("endpoints = [{endpoints}], username = {user:?}, password_file = {file:?}")
}

fn tls(etcd: &EtcdCluster, ca: &str, client: &str) -> String {
    let path = |file: &str| etcd.certs().path(file);
    let (ca, cert, key) = (path(ca), path(&format!("{client}.pem")), path(&format!("{client}.key")));
    format!("endpoints = [{}], tls = {{ ca = {ca:?}, cert = {cert:?}, key = {key:?} }}", etcd.endpoints())
}

async fn a_user_who_may_read_the_prefix_only(version: Version) {
    let mut etcd = EtcdCluster::start_with(Setup { version, count: 1, ..Setup::default() });
    etcd.put(0, "leader", "n1");
    etcd.ctl(0, &["user", "add", "stranger:secret"]);
    // Before authentication is enabled, credentials do no harm.
    Source::start(&login(&etcd, "reader", "secret")).leader("n1").await;
    follow_the_documentation(&mut etcd);

    let mut source = Source::start(&login(&etcd, "reader", "secret"));
    source.leader("n1").await;
    etcd.put(0, "leader", "n2");
    source.leader("n2").await;
    // The range that is asked for is the range that is granted: one key more would be refused.
    let reader = |args: &[&str]| etcd.try_ctl(0, &[&["--user", "reader:secret"], args].concat());
    reader(&["get", "--prefix", "/service/demo/"]).unwrap();
    for refused in [
        &["get", "--prefix", "/service/demo"][..],
        &["get", "/service/demo0"],
        &["put", "/service/demo/leader", "x"],
    ] {
        let error = reader(refused).unwrap_err();
        assert!(error.contains("permission denied"), "{refused:?}: {error}");
    }

    let error = Source::start(&login(&etcd, "stranger", "secret")).lost().await;
    assert!(error.contains("may not read /service/demo/"), "{error}");
    let error = Source::start(&format!("endpoints = [{}]", etcd.endpoints())).lost().await;
    assert!(error.contains("wants a user and a password"), "{error}");

    // A wrong password, which is corrected in its file while we try.
    let mut source = Source::start(&login(&etcd, "reader", "wrong"));
    let error = source.lost().await;
    assert!(error.contains("authentication failed for user \"reader\""), "{error}");
    assert!(!error.contains("wrong"), "a password was shown: {error}");
    login(&etcd, "reader", "secret");
    source.leader("n2").await;
}

/// A token lives for a second here, a watch for much longer; and a server that starts anew knows no token at all.
async fn tokens_expire(version: Version) {
    let args = &["--auth-token-ttl", "1"];
    let mut etcd = EtcdCluster::start_with(Setup { version, args, ..Setup::default() });
    etcd.put(0, "leader", "n1");
    follow_the_documentation(&mut etcd);
    let mut source = Source::start(&login(&etcd, "reader", "secret"));
    source.leader("n1").await;
    source.stays_for(Duration::from_secs(4)).await;
    etcd.put(1, "leader", "n2");
    source.leader("n2").await;
    println!("{version:?}: {} watches ended while tokens expired", source.stats.watch_restarts());
    // One after the other, and so every server that may remember a token.
    for (node, leader) in [(0, "n3"), (1, "n4"), (2, "n5")] {
        etcd.kill(node);
        etcd.restart(node);
        etcd.await_health();
        etcd.put(node, "leader", leader);
        source.leader(leader).await;
    }
}

/// The administrator takes the right to read away, and the user, and gives them back.
async fn rights_are_taken_away_and_given_back(version: Version) {
    let mut etcd = EtcdCluster::start_with(Setup { version, ..Setup::default() });
    etcd.put(0, "leader", "n1");
    follow_the_documentation(&mut etcd);
    let mut source = Source::start(&login(&etcd, "reader", "secret"));
    source.leader("n1").await;
    etcd.ctl(0, &["role", "revoke-permission", "reader", "--prefix=true", "/service/demo/"]);
    // A watch that is there already may go on. The next read may not.
    for node in 0..3 {
        etcd.kill(node);
        etcd.restart(node);
        etcd.await_health();
    }
    let error = source.lost().await;
    assert!(
        error.contains("permission denied: the role of \"reader\" may not read /service/demo/"),
        "{error}"
    );
    etcd.ctl(0, &["role", "grant-permission", "reader", "--prefix=true", "read", "/service/demo/"]);
    source.leader("n1").await;

    // The user comes back with another password; its watch, if it has ended, is begun anew with what the file says then.
    etcd.ctl(0, &["user", "delete", "reader"]);
    etcd.ctl(0, &["user", "add", "reader:changed"]);
    etcd.ctl(0, &["user", "grant-role", "reader", "reader"]);
    login(&etcd, "reader", "changed");
    for node in 0..3 {
        etcd.kill(node);
        etcd.restart(node);
        etcd.await_health();
    }
    etcd.put(0, "leader", "n2");
    source.leader("n2").await;
}

/// etcd may take the common name of our certificate as the user's: then there is no password.
async fn a_certificate_instead_of_a_password(version: Version) {
    let mut etcd = EtcdCluster::start_with(Setup { version, count: 1, tls: true, ..Setup::default() });
    etcd.put(0, "leader", "n1");
    follow_the_documentation(&mut etcd);
    let mut source = Source::start(&tls(&etcd, "ca.pem", "reader"));
    source.leader("n1").await;
    etcd.put(0, "leader", "n2");
    source.leader("n2").await;
    let error = Source::start(&tls(&etcd, "ca.pem", "client")).lost().await;
    assert!(error.contains("permission denied") || error.contains("user name not found"), "{error}");
}

/// A new authority signs everything anew, as administrators do it: both are trusted for a while.
async fn certificates_are_replaced(version: Version) {
    let mut etcd = EtcdCluster::start_with(Setup { version, tls: true, ..Setup::default() });
    etcd.put(0, "leader", "n1");
    let certs = |etcd: &EtcdCluster, files: &[&str], into: &str| etcd.certs().concat(files, into);
    certs(&etcd, &["ca.pem"], "ours.pem");
    let mut source = Source::start(&tls(&etcd, "ours.pem", "client"));
    source.leader("n1").await;
    for file in ["ca.pem", "client.pem", "client.key"] {
        certs(&etcd, &[file], &format!("old-{file}"));
    }

    // Leaves by the new authority, in the files of everybody; etcd reads its own with each handshake, the CA at its start.
    etcd.certs().replace_leaves();
    certs(&etcd, &["old-ca.pem", "new-ca.pem"], "ca.pem");
    for node in [1, 2] {
        etcd.kill(node);
        etcd.restart(node);
        etcd.await_health_of(node);
    }
    certs(&etcd, &["new-ca.pem"], "ours.pem");
    etcd.put(1, "leader", "n2");
    source.leader("n2").await;
    assert!(source.stays_for(Duration::from_secs(2)).await >= 1);
    assert_eq!(
        (source.stats.reconnects(), source.stats.watch_restarts()),
        (0, 0),
        "the connection in use stays"
    );

    // The next connection can be made with the new files only.
    etcd.kill(0);
    etcd.await_health_of(1);
    etcd.put(1, "leader", "n3");
    source.leader("n3").await;
    etcd.restart(0);
    etcd.await_health();
    let error = Source::start(&tls(&etcd, "old-ca.pem", "client")).lost().await;
    assert!(error.contains("not trusted here"), "{error}");

    // The servers' certificate is replaced by one that we cannot trust: who is connected stays so; then it is put right.
    let before = source.stats.watch_restarts();
    etcd.certs().replace_server_by_a_stranger();
    let error = Source::start(&tls(&etcd, "ours.pem", "client")).lost().await;
    assert!(error.contains("not trusted here"), "{error}");
    source.stays_for(Duration::from_secs(1)).await;
    assert_eq!(source.stats.watch_restarts(), before);
}

/// Names instead of addresses: looked up with each connection, and what certificates have to carry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_as_an_endpoint() {
    let etcd = EtcdCluster::start_tls(1);
    etcd.put(0, "leader", "n1");
    let direct = etcd.endpoint(0);
    let direct = direct.strip_prefix("https://").unwrap().to_owned();
    let path = FakeServer::start(move |_, mut near| {
        let direct = direct.clone();
        async move {
            let mut far = TcpStream::connect(direct).await.unwrap();
            let _ = copy_bidirectional(&mut near, &mut far).await;
        }
    })
    .await;
    let named = format!("\"https://localhost:{}\"", path.port);
    let by_name = |ca| tls(&etcd, ca, "client").replace(&etcd.endpoints(), &named);
    let mut source = Source::start(&by_name("ca.pem"));
    source.leader("n1").await;
    etcd.put(0, "leader", "n2");
    source.leader("n2").await;
    assert_eq!(source.stats.connected(), Some(named.trim_matches('"')));
    let elsewhere = by_name("ca.pem").replace("tls = {", "tls = { server_name = \"etcd1.example.com\",");
    let error = Source::start(&elsewhere).lost().await;
    assert!(error.contains("names another host"), "{error}");
}

/// What is wrong with the certificates is said.
async fn mutual_tls(version: Version) {
    let etcd = EtcdCluster::start_with(Setup { version, count: 1, tls: true, ..Setup::default() });
    etcd.put(0, "leader", "n1");
    let certs = etcd.certs();
    let with = |ca: &str, rest: &str| {
        format!("endpoints = [{}], tls = {{ ca = {:?}{rest} }}", etcd.endpoints(), certs.path(ca))
    };
    let client = format!(", cert = {:?}, key = {:?}", certs.path("client.pem"), certs.path("client.key"));
    let mut source = Source::start(&with("ca.pem", &client));
    source.leader("n1").await;
    etcd.put(0, "leader", "n2");
    source.leader("n2").await;

    let error = Source::start(&with("other-ca.pem", &client)).lost().await;
    assert!(error.contains("not trusted here"), "{error}");
    let error = Source::start(&with("ca.pem", "")).lost().await;
    assert!(error.contains("client certificate"), "{error}");
    let named = format!("{client}, server_name = \"elsewhere.example.com\"");
    let error = Source::start(&with("ca.pem", &named)).lost().await;
    assert!(error.contains("names another host"), "{error}");
    Source::start(&with("ca.pem", &format!("{named}, verify = \"ca\""))).leader("n2").await;
    let unchecked = format!("endpoints = [{}], tls = {{ verify = \"none\"{client} }}", etcd.endpoints());
    Source::start(&unchecked).leader("n2").await;

    let clear = etcd.endpoints().replace("https", "http");
    let error = Source::start(&format!("endpoints = [{clear}]")).lost().await;
    assert!(error.contains("connection broke") || error.contains("closed"), "{error}");
}
