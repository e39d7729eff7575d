//! The Consul source against real Consul servers: killed, frozen, restarted, without a leader, with tokens and with TLS;
//! and against fakes that say what no Consul says.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use support::consul::{ConsulCluster, Writer};
use support::fake::{FakeServer, forwarder, request};
use support::source::Source;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;

const MEMBER: &str =
    r#"{"conn_url":"postgres://127.0.0.1:5432/postgres","state":"running","role":"primary"}"#;
const READER: &str = "key_prefix \"service/demo/\" { policy = \"read\" }";

fn three() -> (ConsulCluster, Source) {
    let consul = ConsulCluster::start(3);
    consul.put(0, "leader", "n1");
    consul.put(0, "members/n1", MEMBER);
    let source = Source::start_consul(&format!("addresses = [{}]", consul.addresses()));
    (consul, source)
}

fn connected(consul: &ConsulCluster, source: &Source) -> usize {
    consul.node_at(source.stats.connected().expect("an address is in use"))
}

/// One agent: no keys yet, writes, deletions, a hang, and a restart that forgets everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_agent() {
    let mut consul = ConsulCluster::start_dev();
    let mut source = Source::start_consul(&format!("addresses = [{}]", consul.addresses()));
    let view = source.view(|_| true).await;
    assert!(view.leader.is_none() && view.members.is_empty() && view.complaints.is_empty());
    assert!(
        source.stays_for(Duration::from_millis(2500)).await >= 2,
        "no keys yet: signs of life all the same"
    );
    let written = Instant::now();
    consul.put(0, "leader", "n1");
    source.leader("n1").await;
    println!("the first key was seen {:?} after its write began", written.elapsed());
    consul.put(0, "members/n1", MEMBER);
    consul.put(0, "leader", "n2");
    let view = source.leader("n2").await;
    assert_eq!(view.leader.unwrap().revision, view.revision);
    consul.put(0, "leader", "");
    let view = source.view(|view| view.complaints.iter().any(|c| c.problem.contains("empty"))).await;
    assert_eq!(view.leader.unwrap().member.as_str(), "n2", "nonsense takes nothing away");
    consul.delete(0, "leader");
    source.view(|view| view.leader.is_none()).await;
    for other in ["kv/service/demo2/leader", "kv/service/demo0", "kv/other"] {
        assert_eq!(consul.send(0, "PUT", other, "n9").0, 200);
    }
    let views = source.stats.views();
    assert!(source.stays_for(Duration::from_secs(3)).await >= 2, "it shows life every second");
    assert_eq!(source.stats.views(), views, "what is written elsewhere is no news");
    assert_eq!((source.stats.reconnects(), source.stats.watch_restarts()), (0, 0));

    let frozen = Instant::now();
    consul.freeze(0);
    let error = source.lost().await;
    println!("the only agent frozen: lost after {:?}", frozen.elapsed());
    assert!(error.contains("no answer to a blocking query within 3 s"), "{error}");
    assert!(frozen.elapsed() < Duration::from_secs(5));
    consul.thaw(0);
    source.view(|view| view.members.len() == 1).await;

    (0..20).for_each(|number| consul.put(0, "status", &format!("{{\"optime\":{number}}}")));
    let before = source.view(|view| view.optime.is_some_and(|(at, _)| at.0 == 19)).await;
    consul.kill(0);
    let error = source.lost().await;
    assert!(
        error.starts_with("Consul does not work: http://127.") && error.contains("connection"),
        "{error}"
    );
    consul.restart(0);
    let view = source.view(|view| view.revision < before.revision).await;
    assert!(view.members.is_empty(), "what the new store does not have is gone");
    consul.await_health();
    consul.put(0, "leader", "n3");
    source.leader("n3").await;
}

/// The connected server of three is killed, frozen, restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_of_three() {
    let (mut consul, mut source) = three();
    source.leader("n1").await;
    for (round, blow) in ["killed", "frozen", "restarted"].into_iter().enumerate() {
        let node = connected(&consul, &source);
        let begun = Instant::now();
        match blow {
            "frozen" => consul.freeze(node),
            _ => consul.kill(node),
        }
        if blow == "restarted" {
            consul.restart(node);
        }
        let name = format!("r{round}");
        consul.put((node + 1) % 3, "leader", &name);
        let written = begun.elapsed();
        source.leader(&name).await;
        println!(
            "the connected server {blow}: Consul took a write after {written:?}, seen after {:?}",
            begun.elapsed()
        );
        match blow {
            "frozen" => consul.thaw(node),
            "killed" => consul.restart(node),
            _ => {}
        }
        consul.await_health();
    }
    let now = connected(&consul, &source);
    source.stays_for(Duration::from_secs(2)).await;
    assert_eq!(connected(&consul, &source), now, "what works is kept");
}

/// All servers: frozen and thawed, killed and restarted, and two of three.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_servers_and_the_quorum() {
    let (mut consul, mut source) = three();
    source.leader("n1").await;
    let begun = Instant::now();
    (0..3).for_each(|node| consul.freeze(node));
    let error = source.lost().await;
    println!("all frozen: lost after {:?}: {error}", begun.elapsed());
    assert!(
        error.starts_with("none of the 3 Consul endpoints works: ") && error.contains("no answer"),
        "{error}"
    );
    (0..3).for_each(|node| consul.thaw(node));
    source.leader("n1").await;
    consul.put(0, "leader", "n2");
    source.leader("n2").await;

    let begun = Instant::now();
    (0..3).for_each(|node| consul.kill(node));
    let error = source.lost().await;
    println!("all killed: lost after {:?}: {error}", begun.elapsed());
    assert!(error.contains("connection"), "{error}");
    (0..3).for_each(|node| consul.restart(node));
    source.leader("n2").await;
    println!("all restarted: back {:?} after the blow", begun.elapsed());

    consul.await_health();
    let begun = Instant::now();
    consul.kill(1);
    consul.kill(2);
    let (memory, error) = source.remembered().await;
    println!("quorum lost: lost after {:?}: {error}", begun.elapsed());
    assert!(error.contains("has lost its quorum") && error.contains("it remembers 2 keys"), "{error}");
    assert_eq!((memory.members.len(), memory.leader.unwrap().member.as_str()), (1, "n2"));
    // Who starts now has nothing but this memory.
    let mut late = Source::start_consul(&format!("addresses = [{:?}]", consul.address(0)));
    let (memory, _) = late.remembered().await;
    assert_eq!(memory.members.len(), 1);
    assert_eq!(late.stats.views(), 0);
    consul.restart(1);
    source.leader("n2").await;
    late.leader("n2").await;
}

/// A path that dies without a word while Consul lives: connections stay open and silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition() {
    let consul = ConsulCluster::start_dev();
    consul.put(0, "leader", "n1");
    let (mute, muted) = watch::channel(false);
    let direct = consul.address(0);
    let path = forwarder(direct.strip_prefix("http://").unwrap().to_owned(), muted).await;
    let through = format!("http://127.0.0.1:{}", path.port);
    let mut source = Source::start_consul(&format!("addresses = [{through:?}, {direct:?}]"));
    source.leader("n1").await;
    source.alive().await;
    assert_eq!(path.connections(), 1, "one connection is kept");
    mute.send(true).unwrap();
    let dead = Instant::now();
    consul.put(0, "leader", "n2");
    source.leader("n2").await;
    println!("a silent path was left after {:?}", dead.elapsed());
    assert!(dead.elapsed() < Duration::from_secs(5), "{:?}", dead.elapsed());
    assert_eq!(source.stats.connected(), Some(direct.as_str()));
    assert_eq!(source.stats.watch_restarts(), 1);

    // From the write to the event.
    let mut whole = Vec::new();
    let mut writer = Writer::connect(&direct).await;
    for round in 0..200 {
        let name = format!("r{round}");
        let written = writer.put("leader", &name).await;
        source.leader(&name).await;
        whole.push(written.elapsed());
    }
    whole.sort();
    println!("put acknowledged -> view: median {:?}, 99 % {:?}", whole[100], whole[198]);
    assert!(whole[100] < Duration::from_millis(50), "{:?}", whole[100]);
}

/// Tokens: the policy of the documentation, a wrong one, rights that are taken away, a token that is replaced, revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens() {
    let consul = ConsulCluster::start_acl();
    consul.put(0, "leader", "n1");
    consul.put(0, "members/n1", MEMBER);
    let policy = consul.policy(READER);
    let (first, first_name) = consul.token(&[&policy]);
    let (second, second_name) = consul.token(&[&policy]);
    let (stranger, _) = consul.token(&[]);
    let file = consul.dir().join("token");
    let with = format!("addresses = [{}], token_file = {file:?}", consul.addresses());

    fs::write(&file, &stranger).unwrap();
    let error = Source::start_consul(&with).lost().await;
    assert!(error.contains("may not read service/demo/") && error.contains(READER), "{error}");
    let error = Source::start_consul(&format!("addresses = [{}]", consul.addresses())).lost().await;
    assert!(error.contains("set token_file"), "{error}");
    fs::write(&file, "00000000-0000-4000-8000-000000000000").unwrap();
    let error = Source::start_consul(&with).lost().await;
    assert!(error.contains("it does not know the token from") && !error.contains("00000000"), "{error}");

    fs::write(&file, format!("{first}\n")).unwrap();
    let mut source = Source::start_consul(&with);
    source.leader("n1").await;
    // Replaced, and the old one revoked: nobody notices.
    fs::write(file.with_extension("new"), &second).unwrap();
    fs::rename(file.with_extension("new"), &file).unwrap();
    consul.revoke(&first_name);
    source.stays_for(Duration::from_millis(2500)).await;
    consul.put(0, "leader", "n2");
    source.leader("n2").await;
    assert_eq!(source.stats.reconnects(), 0);

    // Rights that are taken away: the keys are hidden, not gone.
    consul.change_policy(&policy, "key_prefix \"service/demo/members/\" { policy = \"read\" }");
    let views = source.stats.views();
    let error = source.lost().await;
    assert!(error.contains("may not read service/demo/leader"), "{error}");
    assert_eq!(source.stats.views(), views, "what is hidden is not gone");
    consul.change_policy(&policy, READER);
    source.leader("n2").await;

    let revoked = Instant::now();
    consul.revoke(&second_name);
    let error = source.lost().await;
    println!("token revoked: lost after {:?}", revoked.elapsed());
    assert!(error.contains("it was deleted or has expired") && !error.contains(&second), "{error}");
    let (third, _) = consul.token(&[&policy]);
    fs::write(&file, third).unwrap();
    source.leader("n2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutual_tls() {
    let consul = ConsulCluster::start_tls();
    consul.put(0, "leader", "n1");
    let certs = consul.certs();
    let with = |ca: &str, rest: &str| {
        format!("addresses = [{}], tls = {{ ca = {:?}{rest} }}", consul.addresses(), certs.path(ca))
    };
    let files =
        |cert: &str, key: &str| format!(", cert = {:?}, key = {:?}", certs.path(cert), certs.path(key));
    let client = files("client.pem", "client.key");
    let error = Source::start_consul(&with("other-ca.pem", &client)).lost().await;
    assert!(error.contains("not trusted here"), "{error}");
    let error = Source::start_consul(&with("ca.pem", "")).lost().await;
    assert!(error.contains("client certificate"), "{error}");
    let named = format!("{client}, server_name = \"elsewhere.example.com\"");
    let error = Source::start_consul(&with("ca.pem", &named)).lost().await;
    assert!(error.contains("names another host"), "{error}");
    Source::start_consul(&with("ca.pem", &format!("{named}, verify = \"ca\""))).leader("n1").await;
    let clear = consul.addresses().replace("https", "http");
    let error = Source::start_consul(&format!("addresses = [{clear}]")).lost().await;
    assert!(error.contains("not HTTP") || error.contains("broke") || error.contains("400"), "{error}");

    // Certificates that are replaced are used soon, over a new connection that nobody notices; half of a pair is not.
    let copy = |from: &str, to: &str| {
        let new = format!("{}.new", certs.path(to));
        fs::copy(certs.path(from), &new).unwrap();
        fs::rename(new, certs.path(to)).unwrap();
    };
    copy("client.pem", "mine.pem");
    copy("client.key", "mine.key");
    let mut source = Source::start_consul(&with("ca.pem", &files("mine.pem", "mine.key")));
    source.leader("n1").await;
    copy("stranger.pem", "mine.pem");
    source.stays_for(Duration::from_millis(2500)).await;
    copy("client.pem", "mine.pem");
    source.stays_for(Duration::from_millis(2500)).await;
    assert_eq!(source.stats.reconnects(), 0);
    copy("stranger.pem", "mine.pem");
    copy("stranger.key", "mine.key");
    let replaced = Instant::now();
    let error = source.lost().await;
    println!("a certificate of a stranger was used after {:?}: {error}", replaced.elapsed());
    // The refusal can be overtaken by the connection's end.
    assert!(error.contains("client certificate") || error.contains("connection"), "{error}");
    copy("client.pem", "mine.pem");
    copy("client.key", "mine.key");
    source.leader("n1").await;
}

/// A server that answers each request with the same bytes, and perhaps goes on for ever.
async fn fake(answer: String, rest: Rest) -> FakeServer {
    FakeServer::start(move |_, mut stream| {
        let answer = answer.clone();
        async move {
            while request(&mut stream).await.is_some() {
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                match rest {
                    Rest::Nothing => {}
                    Rest::Close => return,
                    Rest::Flood => while stream.write_all(&vec![b' '; 65536]).await.is_ok() {},
                    Rest::Drip => {
                        while stream.write_all(b"1\r\n \r\n").await.is_ok() {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    }
                }
            }
        }
    })
    .await
}

#[derive(Clone, Copy)]
enum Rest {
    Nothing,
    Close,
    Flood,
    Drip,
}

fn whole(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

const INDEX: &str = "X-Consul-Index: 5\r\n";

/// Whatever answers in Consul's place, its words are taken for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_answers() {
    let key = |key: &str, value: &str| format!("[{{\"Key\":\"{key}\",\"Value\":{value},\"ModifyIndex\":5}}]");
    let stale = format!("{INDEX}X-Consul-KnownLeader: false\r\n");
    let filtered = format!("{INDEX}X-Consul-Results-Filtered-By-ACLs: true\r\n");
    let old = format!("{INDEX}X-Consul-KnownLeader: true\r\nX-Consul-LastContact: 60000\r\n");
    let good = key("service/demo/leader", "\"bjE=\"");
    for (answer, rest, problem) in [
        (whole(200, INDEX, "[{\"Key\":\"serv"), Rest::Nothing, "no list of keys"),
        (whole(200, INDEX, "{}"), Rest::Nothing, "no list of keys"),
        (whole(200, INDEX, &key("service/demo/leader", "\"b\"")), Rest::Nothing, "not base64"),
        (whole(200, INDEX, &key("elsewhere", "null")), Rest::Nothing, "not asked for"),
        (whole(200, "", &good), Rest::Nothing, "this is not Consul"),
        (whole(200, "X-Consul-Index: many\r\n", &good), Rest::Nothing, "this is not Consul"),
        (whole(200, &stale, &good), Rest::Nothing, "has no leader"),
        (
            whole(503, "", "<html>\n\u{1b}[31mno</html>"),
            Rest::Nothing,
            "it answers 503: <html>  [31mno</html>",
        ),
        (whole(200, &filtered, &good), Rest::Nothing, "cannot be read: set token_file"),
        (whole(200, &old, &good), Rest::Nothing, "cut off from the others"),
        (whole(302, "Location: http://elsewhere\r\n", ""), Rest::Nothing, "it answers 302"),
        (
            format!("HTTP/1.1 200 X\r\n{INDEX}Content-Length: 100\r\n\r\n[{{"),
            Rest::Close,
            "the connection broke",
        ),
        (
            format!("HTTP/1.1 200 X\r\n{INDEX}Content-Length: 1073741824\r\n\r\n["),
            Rest::Flood,
            "longer than 16384 KiB",
        ),
        (
            format!("HTTP/1.1 200 X\r\n{INDEX}Transfer-Encoding: chunked\r\n\r\n"),
            Rest::Drip,
            "no answer to a read",
        ),
        (format!("HTTP/1.1 200 X\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)), Rest::Close, "not HTTP"),
        ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), Rest::Nothing, "not HTTP"),
        (String::new(), Rest::Nothing, "no answer to a read within 2 s"),
        (String::new(), Rest::Close, "the connection broke"),
    ] {
        let server = fake(answer, rest).await;
        let mut source = Source::start_consul(&format!("addresses = [\"http://127.0.0.1:{}\"]", server.port));
        let error = source.lost().await;
        assert!(error.contains(problem), "{problem}: {error}");
        assert!(!error.contains('\u{1b}'), "{error}");
        assert_eq!(source.stats.views(), 0, "{problem}");
    }
}

/// An index that is always another, or never one: no loop without a pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_never_rests() {
    let body = "[{\"Key\":\"service/demo/leader\",\"Value\":\"bjE=\",\"ModifyIndex\":5}]";
    for headers in [INDEX, "X-Consul-Index: 0\r\n"] {
        let server = fake(whole(200, headers, body), Rest::Nothing).await;
        let mut source = Source::start_consul(&format!("addresses = [\"http://127.0.0.1:{}\"]", server.port));
        source.leader("n1").await;
        let alive = source.stays_for(Duration::from_secs(2)).await;
        assert!((100..400).contains(&alive), "{alive} answers in two seconds");
    }
}
