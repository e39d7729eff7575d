//! What Pointsman is told at scale: a real etcd (or Consul) with the keys of as many members as are wanted, and one answerer
//! for all of their REST APIs. Behind them is one server that listens on every address.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::load::socket::begin;
use crate::peers::pointsman::{start_consul, start_etcd};
use crate::process::Server;
use crate::site::{CONSUL, Cores, ETCD, Site};
use crate::wire::Pattern;

const REST_PORT: u16 = 8008;
/// Of the server that answers for the members.
pub const SERVER_PORT: u16 = 5432;
/// Operations in one transaction: etcd's own limit is 128, Consul's is 64.
const BATCH: usize = 60;
/// How long etcd may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// One answerer has as many threads as there are members that are asked.
const STACK: usize = 128 * 1024;

/// A cluster of made-up members.
#[derive(Debug, Clone, Copy)]
pub struct Cluster {
    /// Its scope.
    pub scope: &'static str,
    /// The second byte of its members' addresses; no other cluster has it.
    pub net: u8,
    /// How many members.
    pub members: usize,
    /// Of their servers.
    pub port: u16,
    /// Where its keys are.
    pub kept: Kept,
}

/// The stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// etcd.
    Etcd,
    /// Consul's KV store.
    Consul,
}

impl Kept {
    /// As `discovery` of a cluster wants it.
    pub fn discovery(self) -> String {
        match self {
            Self::Etcd => format!("{{ etcd = {{ endpoints = [\"http://{ETCD}\"] }} }}"),
            Self::Consul => format!("{{ consul = {{ addresses = [\"http://{CONSUL}\"] }} }}"),
        }
    }
}

impl Cluster {
    /// The server of a member, counted from 0.
    pub fn server(&self, member: usize) -> SocketAddr {
        let byte = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
        let address = Ipv4Addr::new(127, self.net, byte(member / 250), byte(member % 250 + 1));
        SocketAddr::from((address, self.port))
    }

    fn member_of(address: Ipv4Addr) -> (u8, usize) {
        let [_, net, high, low] = address.octets();
        (net, usize::from(high) * 250 + usize::from(low).saturating_sub(1))
    }

    /// A key of the cluster. Consul's have no slash in front.
    fn path(&self, key: &str) -> String {
        let root = if self.kept == Kept::Consul { "" } else { "/" };
        format!("{root}service/{}/{key}", self.scope)
    }

    /// As Patroni 4 writes it.
    fn key(&self, member: usize, leader: usize) -> (String, String) {
        let server = self.server(member);
        let rest = SocketAddr::new(server.ip(), REST_PORT);
        let role = if member == leader {
            r#""role":"primary""#
        } else {
            r#""role":"replica","replication_state":"streaming","replay_lsn":84307568,"receive_lsn":84307568"#
        };
        let value = format!(
            r#"{{"conn_url":"postgres://{server}/postgres","api_url":"http://{rest}/patroni","state":"running",{role},"version":"4.1.5","xlog_location":84307568,"timeline":1}}"#
        );
        (self.path(&format!("members/{}", name(member))), value)
    }
}

fn name(member: usize) -> String {
    format!("pg{member}")
}

/// Who leads which cluster, by the second byte of the addresses.
type Leaders = BTreeMap<u8, (&'static str, usize)>;

/// etcd, REST and a server for all of them.
#[derive(Debug)]
pub struct World {
    etcd: Mutex<Store>,
    consul: OnceLock<(Mutex<Store>, Server)>,
    leaders: Arc<Mutex<Leaders>>,
    _etcd: Server,
    _backend: Server,
}

impl World {
    /// Starts all of it on `cores`.
    pub fn start(site: &Site, cores: &Cores) -> Result<Self> {
        let etcd = start_etcd(site, cores)?;
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT)).to_string();
        let threads = cores.count().to_string();
        let directory = site.fresh_directory("backend")?;
        let mut backend =
            Server::start(&directory, None, cores, &site.own, ["backend", &threads, &everywhere])?;
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, SERVER_PORT));
        backend.wait_until("to answer", DEADLINE, || begin(server, None, Pattern::Sink).map(drop))?;
        let leaders: Arc<Mutex<Leaders>> = Arc::default();
        answer_for_all(Arc::clone(&leaders))?;
        let store = Mutex::new(Store::connect(ETCD, Kept::Etcd)?);
        Ok(Self { etcd: store, consul: OnceLock::new(), leaders, _etcd: etcd, _backend: backend })
    }

    /// Starts Consul too, if it does not run yet.
    pub fn with_consul(&self, site: &Site, cores: &Cores) -> Result<()> {
        if self.consul.get().is_none() {
            let server = start_consul(site, cores)?;
            let store = Mutex::new(Store::connect(CONSUL, Kept::Consul)?);
            let _ = self.consul.set((store, server)); // nobody else starts it
        }
        Ok(())
    }

    fn store(&self, cluster: &Cluster) -> Result<MutexGuard<'_, Store>> {
        match cluster.kept {
            Kept::Etcd => Ok(locked(&self.etcd)),
            Kept::Consul => {
                self.consul.get().map(|(store, _)| locked(store)).context("Consul was not started")
            }
        }
    }

    /// Writes the keys of a cluster that its first member leads.
    pub fn create(&self, cluster: &Cluster) -> Result<()> {
        locked(&self.leaders).insert(cluster.net, (cluster.scope, 0));
        let mut keys = vec![(cluster.path("leader"), name(0))];
        keys.extend((0..cluster.members).map(|member| cluster.key(member, 0)));
        let mut store = self.store(cluster)?;
        keys.chunks(BATCH).try_for_each(|batch| store.put(batch))
    }

    /// Makes `leader` the leader: its REST API says so, the leader key names it, and a moment later the member keys of both
    /// say so. The instant is that before the leader key was put.
    pub fn lead(&self, cluster: &Cluster, leader: usize) -> Result<Instant> {
        let before = locked(&self.leaders).insert(cluster.net, (cluster.scope, leader));
        let mut store = self.store(cluster)?;
        let at = Instant::now();
        store.put(&[(cluster.path("leader"), name(leader))])?;
        let before = before.map_or(leader, |(_, before)| before);
        store.put(&[cluster.key(leader, leader), cluster.key(before, leader)][..])?;
        Ok(at)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection to etcd's JSON gateway (its documentation, "gRPC gateway") or to Consul's HTTP API ("transactions"): a client
/// that is started anew for each key would take longer than what is measured.
#[derive(Debug)]
struct Store {
    kept: Kept,
    address: SocketAddr,
    socket: BufReader<TcpStream>,
}

impl Store {
    fn connect(address: SocketAddr, kept: Kept) -> Result<Self> {
        let socket = TcpStream::connect(address).context("cannot connect to the store")?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        Ok(Self { kept, address, socket: BufReader::new(socket) })
    }

    /// Puts all of them in one revision.
    fn put(&mut self, pairs: &[(String, String)]) -> Result<()> {
        let mut puts: Vec<String> = Vec::new();
        for (key, value) in pairs {
            let value = BASE64.encode(value);
            let put = match self.kept {
                Kept::Etcd => {
                    format!(r#"{{"requestPut":{{"key":"{}","value":"{value}"}}}}"#, BASE64.encode(key))
                }
                Kept::Consul => format!(r#"{{"KV":{{"Verb":"set","Key":"{key}","Value":"{value}"}}}}"#),
            };
            // One key twice in a transaction is an error.
            if !puts.contains(&put) {
                puts.push(put);
            }
        }
        let puts = puts.join(",");
        let (request, body, done) = match self.kept {
            Kept::Etcd => ("POST /v3/kv/txn", format!(r#"{{"success":[{puts}]}}"#), r#""succeeded":true"#),
            Kept::Consul => ("PUT /v1/txn", format!("[{puts}]"), r#""Errors":null"#),
        };
        let head = format!(
            "{request} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        self.socket.get_mut().write_all((head + &body).as_bytes())?;
        let (status, body) = read_response(&mut self.socket).context("the store does not answer")?;
        ensure!(status == 200 && body.contains(done), "the store did not put a key: {status} {body}");
        Ok(())
    }
}

/// Status and body of a response that says its length, or ends with the connection.
pub fn read_response(from: &mut BufReader<TcpStream>) -> Result<(u16, String)> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no HTTP response")?;
    let (mut length, mut chunked) = (None, false);
    loop {
        line.clear();
        ensure!(from.read_line(&mut line)? > 0, "the head of a response has no end");
        let Some((field, value)) = line.split_once(':') else { break };
        if field.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<usize>().ok();
        }
        chunked |= field.eq_ignore_ascii_case("transfer-encoding") && value.trim() == "chunked";
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            line.clear();
            from.read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim(), 16).context("no size of a chunk")?;
            from.take(size).read_to_end(&mut body)?;
            line.clear();
            from.read_line(&mut line)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = length {
        from.take(length as u64).read_to_end(&mut body)?;
    } else {
        from.read_to_end(&mut body)?;
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Answers like the REST APIs of all members, as long as this process lives. The address that was called tells which.
fn answer_for_all(leaders: Arc<Mutex<Leaders>>) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, REST_PORT)).context("cannot answer REST")?;
    thread::Builder::new().name("rest".to_owned()).spawn(move || {
        for client in listener.incoming().flatten() {
            let leaders = Arc::clone(&leaders);
            let answerer = thread::Builder::new().name("rest-answer".to_owned()).stack_size(STACK);
            // Without a thread it is not answered, which Pointsman bears.
            let _ = answerer.spawn(move || answer_all(client, &leaders));
        }
    })?;
    Ok(())
}

/// Answers every request of one connection. An error is its end.
fn answer_all(mut client: TcpStream, leaders: &Mutex<Leaders>) -> Result<()> {
    client.set_nodelay(true)?;
    let IpAddr::V4(address) = client.local_addr()?.ip() else { return Ok(()) };
    let (net, member) = Cluster::member_of(address);
    let mut lines = BufReader::new(client.try_clone()?).lines();
    loop {
        // A request has no body and ends in an empty line.
        loop {
            match lines.next().transpose()? {
                Some(line) if line.is_empty() => break,
                Some(_) => {}
                None => return Ok(()),
            }
        }
        let Some((scope, leader)) = locked(leaders).get(&net).copied() else { return Ok(()) };
        let body = status_body(scope, member, leader);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        client.write_all((head + &body).as_bytes())?;
    }
}

/// The body of `GET /patroni`.
fn status_body(scope: &str, member: usize, leader: usize) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (role, xlog) = if member == leader {
        ("primary", r#"{"location": 84307568}"#)
    } else {
        (
            "replica",
            r#"{"received_location": 84307568, "replayed_location": 84307568, "replayed_timestamp": null, "paused": false}"#,
        )
    };
    let mut body = String::from("{");
    // Writing to a string cannot fail.
    let _ = write!(
        body,
        r#""state": "running", "postmaster_start_time": "2026-01-01 00:00:00.000000+00:00", "role": "{role}", "server_version": 150020, "xlog": {xlog}, "timeline": 1, "#
    );
    if member != leader {
        body.push_str(r#""replication_state": "streaming", "#);
    }
    let _ = write!(
        body,
        r#""dcs_last_seen": {now}, "database_system_identifier": "7710522097598104786", "patroni": {{"version": "4.1.5", "scope": "{scope}", "name": "{}"}}}}"#,
        name(member)
    );
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_member() {
        let cluster = Cluster { scope: "x", net: 19, members: 1_000, port: 5432, kept: Kept::Etcd };
        for member in [0, 1, 249, 250, 999] {
            let SocketAddr::V4(address) = cluster.server(member) else { panic!("an IPv6 address") };
            assert_eq!(Cluster::member_of(*address.ip()), (19, member));
        }
        assert_eq!(cluster.server(250).to_string(), "127.19.1.1:5432");
    }

    #[test]
    fn responses_with_a_length_in_chunks_and_until_the_end() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let answers = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab\
                       HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ncde\r\n1\r\nf\r\n0\r\n\r\n\
                       HTTP/1.1 404 Not Found\r\n\r\nrest";
        server.write_all(answers.as_bytes()).unwrap();
        drop(server);
        let mut socket = BufReader::new(socket);
        let wanted = [(200, "ab"), (200, "cdef"), (404, "rest")];
        for (status, body) in wanted {
            assert_eq!(read_response(&mut socket).unwrap(), (status, body.to_owned()));
        }
    }
}
