//! The committed examples are complete, and the defaults are what the documentation says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    num::{NonZeroU8, NonZeroU32},
    path::Path,
    time::Duration,
};

use pointsman_config::{
    Admin, Balance, Bytes, Cluster, Config, Discovery, Endpoint, Engine, Fallback, Keepalive, ListenerTls,
    Log, LogFormat, LogLevel, OnPromote, Probe, Refuse, Rest, StalePrimary, Target, TrackProxy, VrrpProtocol,
};
use support::{BASE, Pretend};

fn parse(source: &str) -> Config {
    match Config::parse_on(&Pretend::default(), source, "test.toml", Path::new(BASE)) {
        Ok(config) => config,
        Err(diagnostics) => panic!("{diagnostics}"),
    }
}

fn example(name: &str) -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let config = parse(&fs::read_to_string(path).unwrap());
    assert!(config.warnings.is_empty(), "{name}: {}", config.warnings[0]);
    config
}

fn only_cluster(config: &Config) -> &Cluster {
    assert_eq!(config.clusters.len(), 1);
    &config.clusters[0]
}

fn targets(config: &Config) -> Vec<(&str, Target, u16)> {
    config.listeners.iter().map(|l| (l.name.as_str(), l.target, l.bind[0].port())).collect()
}

/// The shortest useful file of the design, and every default.
#[test]
fn shortest_file() {
    let config = parse(
        r#"
        [clusters.main]
        discovery = { etcd = { endpoints = ["http://10.0.0.1:2379", "http://10.0.0.2:2379"] } }

        [[listeners]]
        bind = "0.0.0.0:5000"
        target = "primary"

        [[listeners]]
        bind = "0.0.0.0:5001"
        target = "replicas"

        [admin]
        bind = "0.0.0.0:7000"
        "#,
    );
    assert_eq!(config.node.as_str(), "lb1", "the first label of the host name");
    assert_eq!(config.state_dir, Path::new("/var/lib/pointsman"));
    assert_eq!((config.vrrp, config.vips.len(), config.warnings.len()), (None, 0, 0));
    assert_eq!(config.relay.engine, Engine::Auto);
    assert_eq!(config.relay.threads, None);
    assert_eq!(config.log, Log { format: LogFormat::Text, level: LogLevel::Info, sessions: true });
    assert_eq!(config.shutdown.drain, Duration::from_secs(30));
    let admin = Admin {
        bind: vec![SocketAddr::from(([0, 0, 0, 0], 7000))],
        users: Vec::new(),
        socket: "/run/pointsman/admin.sock".into(),
    };
    assert_eq!(config.admin, admin);

    let [cluster] = config.clusters.as_slice() else { panic!("one cluster") };
    assert_eq!(
        (cluster.name.as_str(), cluster.scope.as_str(), cluster.namespace.as_str()),
        ("main", "main", "/service")
    );
    assert_eq!((cluster.balancers, cluster.stale_primary), (NonZeroU32::MIN, StalePrimary::Hold));
    assert_eq!((&cluster.sql, &cluster.rest), (&None, &Rest::default()));
    let Discovery::Etcd(etcd) = &cluster.discovery else { panic!("etcd") };
    let endpoints: Vec<String> = etcd.endpoints.iter().map(Endpoint::to_string).collect();
    assert_eq!(endpoints, ["http://10.0.0.1:2379", "http://10.0.0.2:2379"]);
    assert_eq!((&etcd.credentials, &etcd.tls), (&None, &None));

    let [primary, replicas] = config.listeners.as_slice() else { panic!("two listeners") };
    assert_eq!((primary.name.as_str(), primary.target), ("primary", Target::Primary));
    assert_eq!((replicas.name.as_str(), replicas.target), ("replicas", Target::Replicas));
    for listener in [primary, replicas] {
        assert_eq!(listener.cluster.as_str(), "main");
        assert_eq!(listener.balance, Balance::LeastConnections);
        assert_eq!((listener.hold, listener.max_held), (Duration::from_secs(60), 10_000));
        assert_eq!((listener.release_rate.get(), listener.refuse), (500, Refuse::Explain));
        assert_eq!((listener.max_lag, listener.on_promote), (None, OnPromote::Drain));
        assert_eq!((listener.fallback, listener.tags.len()), (Fallback::Primary, 0));
        assert_eq!((listener.max_connections, listener.max_connections_per_source), (5000, None));
        assert!(listener.allow.is_empty() && listener.deny.is_empty());
        assert_eq!(listener.connect_timeout, Duration::from_secs(3));
        assert_eq!(listener.startup_timeout, Duration::from_secs(10));
        assert_eq!((listener.idle_timeout, listener.user_timeout), (None, Some(Duration::from_secs(30))));
        let probes = NonZeroU8::new(3).unwrap();
        let keepalive =
            Keepalive { idle: Duration::from_secs(30), interval: Duration::from_secs(10), probes };
        assert_eq!(listener.keepalive, keepalive);
        assert_eq!((listener.accept_proxy, listener.send_proxy), (false, None));
        assert_eq!((&listener.tls, &listener.server_tls), (&ListenerTls::Passthrough, &None));
    }
}

#[test]
fn patroni_etcd_vip() {
    let config = example("1-patroni-etcd-vip.toml");
    let Discovery::Etcd(etcd) = &only_cluster(&config).discovery else { panic!("etcd") };
    assert_eq!(etcd.endpoints.len(), 3);
    let credentials = etcd.credentials.as_ref().unwrap();
    assert_eq!((credentials.user.as_str(), credentials.password.expose()), ("reader", "reader's password"));
    let (cert, key) = etcd.tls.as_ref().unwrap().cert_key.as_ref().unwrap();
    assert_eq!(
        (cert.as_path(), key.as_path()),
        (Path::new("/etc/pointsman/client.pem"), Path::new("/etc/pointsman/client.key"))
    );
    assert_eq!(targets(&config), [("primary", Target::Primary, 5000), ("replicas", Target::Replicas, 5001)]);
    assert_eq!(config.listeners[1].max_lag, Some(Bytes(16 << 20)));
    assert_eq!(config.vrrp.as_ref().unwrap().peers.as_ref().unwrap().nodes.len(), 3);
    let vip = &config.vips[0];
    assert_eq!((vip.priority.get(), vip.priorities.len()), (150, 3), "this node is lb1");
    assert_eq!(vip.advert_interval(), Duration::from_millis(100));
    assert!(matches!(vip.protocol, VrrpProtocol::V3 { .. }));
    assert_eq!(vip.track.proxy, TrackProxy::Release);
    assert!(!format!("{config:?}").contains("password\""), "Debug shows no secret");
}

#[test]
fn patroni_consul() {
    let config = example("2-patroni-consul.toml");
    let Discovery::Consul(consul) = &only_cluster(&config).discovery else { panic!("consul") };
    assert_eq!(consul.token.as_ref().unwrap().expose(), "b1gs33cr3t");
    assert!(!format!("{config:?}").contains("b1gs33cr3t"));
    assert_eq!(targets(&config)[2], ("sync", Target::Sync, 5002));
}

#[test]
fn cloud_balancer() {
    let config = example("3-cloud-balancer.toml");
    assert_eq!(targets(&config), [("rw", Target::Primary, 5432), ("ro", Target::Replicas, 5433)]);
    assert!(config.listeners.iter().all(|listener| listener.accept_proxy));
    assert_eq!(config.listeners[1].tags.get("zone").map(String::as_str), Some("a"));
    assert_eq!(config.admin.bind[0].port(), 8404);
}

#[test]
fn multi_master() {
    let config = example("4-multi-master.toml");
    let cluster = only_cluster(&config);
    assert!(cluster.is_multi_master());
    assert_eq!((cluster.weight("pg1").get(), cluster.weight("pg2").get()), (2, 1));
    let balances: Vec<Balance> = config.listeners.iter().map(|listener| listener.balance).collect();
    assert_eq!(balances, [Balance::RoundRobin, Balance::LeastConnections, Balance::Source]);
    assert_eq!(config.admin.users.len(), 1);
}

#[test]
fn repmgr() {
    let config = example("4b-repmgr.toml");
    let cluster = only_cluster(&config);
    let Discovery::Static(fixed) = &cluster.discovery else { panic!("static") };
    assert_eq!((fixed.probe, fixed.members.len()), (Probe::Sql, 2));
    assert_eq!(cluster.sql.as_ref().unwrap().user, "pointsman");
}

#[test]
fn laptop() {
    let config = example("5-laptop.toml");
    assert_eq!(config.admin.socket, Path::new("/etc/pointsman/admin.sock"), "beside the file");
    assert!(config.listeners.iter().all(|listener| listener.bind[0].ip().is_loopback()));
}

#[test]
fn every_example_is_tested() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let names: BTreeSet<String> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let tested = include_str!("examples.rs");
    assert_eq!(names.len(), 6);
    for name in names {
        assert!(tested.contains(&format!("example(\"{name}\")")), "{name}");
    }
}

#[test]
fn secrets_compare_by_content() {
    let with = |secret: &str| {
        let sql = format!("sql = {{ user = \"x\", {secret} }}");
        parse(&format!(
            "[clusters.main]\n{sql}\ndiscovery.patroni.members = [\"10.0.0.1:8008\"]\n[[listeners]]\nbind = \"127.0.0.1:5000\"\ntarget = \"any\"\n"
        ))
    };
    let file = with("password_file = \"/etc/pointsman/sql.password\"");
    let relative = with("password_file = \"sql.password\"");
    let variable = with("password_env = \"POINTSMAN_SQL_PASSWORD\"");
    assert_eq!(file, relative);
    assert_ne!(file, variable);
    let password = variable.clusters[0].sql.as_ref().unwrap().password.as_ref().unwrap();
    assert_eq!(password.expose(), "from the environment");
    assert_eq!(format!("{password:?}"), "***");
}

#[test]
fn addresses_that_do_not_overlap() {
    let config = parse(
        r#"
        [clusters.main]
        namespace = "db/"
        weights = { pg1 = 3 }
        rest = { tls = {} }
        discovery = { patroni = { members = ["10.0.0.1:8008", "http://[fd00::2]:8008"] } }

        [[listeners]]
        bind = ["0.0.0.0:5000", "[::]:5000", "127.0.0.1:5001"]
        target = "primary"

        [[listeners]]
        bind = ["127.0.0.2:5001", "[::1]:5001"]
        target = "any"
        tls = { mode = "terminate", cert = "server.pem", key = "server.key", client_ca = "client-ca.pem" }
        server_tls = { ca = "ca.pem", verify = "ca" }
        send_proxy = "v2"
        tags = { zone = "a", ssd = true, rack = 7 }
        idle_timeout = "1h"
        user_timeout = "0s"

        [admin]
        bind = []
        "#,
    );
    assert_eq!(config.clusters[0].namespace, "/db");
    assert_eq!(config.clusters[0].weight("pg1").get(), 3);
    let Discovery::Patroni(patroni) = &config.clusters[0].discovery else { panic!("patroni") };
    let members: Vec<String> = patroni.members.iter().map(Endpoint::to_string).collect();
    assert_eq!(members, ["https://10.0.0.1:8008", "http://[fd00::2]:8008"]);
    let listener = &config.listeners[1];
    assert!(matches!(&listener.tls, ListenerTls::Terminate { client_ca: Some(_), require: false, .. }));
    assert!(listener.server_tls.is_some());
    assert_eq!((listener.idle_timeout, listener.user_timeout), (Some(Duration::from_secs(3600)), None));
    let tags: Vec<(&str, &str)> = listener.tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(tags, [("rack", "7"), ("ssd", "true"), ("zone", "a")]);
    assert!(config.admin.bind.is_empty());
}

/// What the file itself may do wrong before there is any text in it.
#[test]
fn files_that_cannot_be_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let missing = Config::load(&directory.path().join("none.toml")).unwrap_err().to_string();
    assert!(missing.contains("No such file"), "{missing}");
    let folder = Config::load(directory.path()).unwrap_err().to_string();
    assert!(folder.contains("it is a directory"), "{folder}");
    let path = directory.path().join("latin1.toml");
    fs::write(&path, b"node = \"lb1\"\n# caf\xe9\n").unwrap();
    let latin = Config::load(&path).unwrap_err().to_string();
    assert!(latin.contains("not UTF-8") && latin.contains(":2:6"), "{latin}");
    fs::write(&path, "# ".repeat(1 << 20)).unwrap();
    assert!(Config::load(&path).unwrap_err().to_string().contains("larger than 1 MiB"));
    let laptop = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/5-laptop.toml");
    assert_eq!(Config::load(Path::new(laptop)).unwrap().listeners.len(), 2);
}
