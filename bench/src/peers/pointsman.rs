//! Pointsman, and what it routes by: a real etcd with the keys that Patroni writes, and the answers of Patroni's REST API.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Engine, Listeners, Peer, first_line};
use crate::process::{Server, output};
use crate::scale::world::read_response;
use crate::site::{BACKEND, CONSUL, Cores, ETCD, ETCD_PEER, POSTGRES, Site, program};

const REST_PORT: u16 = 8008;
const ETCD_DEADLINE: Duration = Duration::from_secs(20);
/// The two clusters: their scope, and their only member's server.
const CLUSTERS: [(&str, SocketAddr); 2] = [("bench", BACKEND), ("postgres", POSTGRES)];
/// The name of that member.
const MEMBER: &str = "pg1";

/// etcd, with two clusters in it.
#[derive(Debug)]
pub struct Store {
    _server: Server,
}

impl Store {
    /// Starts etcd on `cores`, writes the keys, and answers for the members.
    pub fn start(site: &Site, cores: &Cores) -> Result<Self> {
        let server = start_etcd(site, cores)?;
        for (scope, address) in CLUSTERS {
            // A primary is believed when its member key is newer than the leader key.
            put(&format!("/service/{scope}/leader"), MEMBER)?;
            put(&format!("/service/{scope}/members/{MEMBER}"), &member_key(address))?;
            answer_for(scope, address)?;
        }
        Ok(Self { _server: server })
    }
}

/// Starts an empty etcd on `cores` and waits until it takes a key.
pub(crate) fn start_etcd(site: &Site, cores: &Cores) -> Result<Server> {
    let etcd = program("etcd").context("etcd is not installed")?;
    let directory = site.fresh_directory("etcd")?;
    let client = format!("http://{ETCD}");
    let peer = format!("http://{ETCD_PEER}");
    let initial = format!("default={peer}");
    let arguments = [
        ["--data-dir", "data"],
        ["--listen-client-urls", &client],
        ["--advertise-client-urls", &client],
        ["--listen-peer-urls", &peer],
        ["--initial-advertise-peer-urls", &peer],
        ["--initial-cluster", &initial],
    ];
    let mut server = Server::start(&directory, Some(site.account), cores, &etcd, arguments.as_flattened())?;
    server.wait_until("to answer", ETCD_DEADLINE, || put("/pointsman-bench", "ready"))?;
    Ok(server)
}

/// Starts an empty Consul, one server without others, on `cores`, and waits until it leads itself.
pub(crate) fn start_consul(site: &Site, cores: &Cores) -> Result<Server> {
    let installed = site.repository.join(".cache/consul/consul").canonicalize();
    let consul =
        installed.map_err(|_| anyhow!("Consul is not installed: run scripts/install-test-servers"))?;
    let directory = site.fresh_directory("consul")?;
    let (address, port) = (CONSUL.ip().to_string(), CONSUL.port().to_string());
    let address = address.as_str();
    let arguments = [
        ["agent", "-server"],
        ["-bootstrap-expect", "1"],
        ["-data-dir", "data"],
        ["-node", "bench"],
        ["-bind", address],
        ["-client", address],
        ["-http-port", &port],
        ["-log-level", "warn"],
    ];
    let mut server = Server::start(&directory, Some(site.account), cores, &consul, arguments.as_flattened())?;
    server.wait_until("to lead itself", ETCD_DEADLINE, || {
        let mut socket = TcpStream::connect(CONSUL)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let head =
            format!("PUT /v1/kv/pointsman-bench HTTP/1.1\r\nHost: {CONSUL}\r\nContent-Length: 0\r\n\r\n");
        socket.write_all(head.as_bytes())?;
        let (status, body) = read_response(&mut BufReader::new(socket))?;
        ensure!(status == 200, "{status} {body}");
        Ok(())
    })?;
    Ok(server)
}

fn put(key: &str, value: &str) -> Result<()> {
    let etcdctl = program("etcdctl").context("etcdctl is not installed")?;
    let endpoint = format!("http://{ETCD}");
    let mut command = Command::new(etcdctl);
    command.env("ETCDCTL_API", "3").args([
        "--endpoints",
        &endpoint,
        "--command-timeout=2s",
        "put",
        "--",
        key,
        value,
    ]);
    output(&mut command).map(drop)
}

/// As Patroni 4 writes it.
fn member_key(address: SocketAddr) -> String {
    let rest = SocketAddr::new(address.ip(), REST_PORT);
    format!(
        r#"{{"conn_url":"postgres://{address}/postgres","api_url":"http://{rest}/patroni","state":"running","role":"primary","version":"4.1.5","xlog_location":84307568,"timeline":1}}"#
    )
}

/// The body of `GET /patroni` on a running primary.
fn status_body(scope: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    format!(
        r#"{{"state": "running", "postmaster_start_time": "2026-01-01 00:00:00.000000+00:00", "role": "primary", "server_version": 150020, "xlog": {{"location": 84307568}}, "timeline": 1, "dcs_last_seen": {now}, "database_system_identifier": "7710522097598104786", "patroni": {{"version": "4.1.5", "scope": "{scope}", "name": "{MEMBER}"}}}}"#
    )
}

/// Answers like Patroni's REST API, as long as this process lives.
fn answer_for(scope: &'static str, address: SocketAddr) -> Result<()> {
    let address = SocketAddr::new(address.ip(), REST_PORT);
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    thread::Builder::new().name(format!("rest-{scope}")).spawn(move || {
        for client in listener.incoming().flatten() {
            // Two Pointsman at most, each with one connection that it keeps.
            thread::spawn(move || answer_all(client, scope));
        }
    })?;
    Ok(())
}

/// Answers every request of one connection. An error is its end.
fn answer_all(client: TcpStream, scope: &str) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut lines = BufReader::new(client.try_clone()?).lines();
    let mut client = client;
    loop {
        // A request has no body and ends in an empty line.
        loop {
            match lines.next() {
                Some(Ok(line)) if line.is_empty() => break,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            }
        }
        let body = status_body(scope);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        client.write_all((head + &body).as_bytes())?;
    }
}

pub(super) fn start(site: &Site, cores: &Cores, peer: Peer, engine: Engine) -> Result<Server> {
    let program = site.pointsman.as_ref().context("no program was given")?;
    let directory = site.fresh_directory(peer.name())?;
    std::fs::write(directory.join("pointsman.toml"), configuration(peer.listeners(), engine))?;
    Server::start(&directory, Some(site.account), cores, program, ["run", "--config", "pointsman.toml"])
}

/// The defaults, without limits on connections and without a log line for each session: nobody else writes one here.
fn configuration(listeners: Listeners, engine: Engine) -> String {
    let engine = engine.name();
    let admin = SocketAddr::new(listeners.bench.ip(), 7000);
    let mut text = format!(
        r#"state_dir = "state"
[admin]
bind = "{admin}"
socket = "admin.sock"
[relay]
engine = "{engine}"
[log]
sessions = false
[shutdown]
drain = "1s"
"#
    );
    for ((scope, _), bind) in CLUSTERS.into_iter().zip([listeners.bench, listeners.postgres]) {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            r#"[clusters.{scope}]
discovery = {{ etcd = {{ endpoints = ["http://{ETCD}"] }} }}
[[listeners]]
name = "{scope}"
cluster = "{scope}"
bind = "{bind}"
target = "primary"
max_connections = 1000000
release_rate = 1000000
"#
        );
    }
    text
}

pub(super) fn version(site: &Site) -> Option<String> {
    first_line(site.pointsman.as_ref()?, &["--version"])
}
