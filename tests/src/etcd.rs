//! etcd: one node or three, spoken to through its JSON gateway, so that the tests share no code with the proxy.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::http::{self, Place};
use crate::process::{RunAs, Server};
use crate::site::Site;
use crate::wait;

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// With TLS the tests have a door of their own, in the clear; nobody is told of it.
const OWN_PORT: u16 = 2378;
const ROOT: &str = "root";
const START_DEADLINE: Duration = Duration::from_secs(30);

/// TLS with client certificates, and users with passwords.
#[derive(Debug, Clone)]
pub struct EtcdGuard {
    /// Who may sign client certificates.
    pub ca: PathBuf,
    /// The servers' certificate, for all of their addresses.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Users, each with its password, what it may do (`READ`, `READWRITE`) and with which prefix.
    pub users: Vec<EtcdUser>,
}

/// A user of etcd and its only role, which has its name.
#[derive(Debug, Clone)]
pub struct EtcdUser {
    /// Its name.
    pub name: &'static str,
    /// Its password.
    pub password: &'static str,
    /// `READ`, `WRITE` or `READWRITE`.
    pub may: &'static str,
    /// All keys that begin with it; its last byte is a slash.
    pub prefix: &'static str,
}

/// An etcd cluster.
#[derive(Debug)]
pub struct Etcd {
    nodes: Vec<Node>,
    initial_cluster: String,
    guard: Option<EtcdGuard>,
    /// Users are asked for.
    auth: bool,
}

#[derive(Debug)]
struct Node {
    name: String,
    address: Ipv4Addr,
    server: Server,
}

impl Etcd {
    /// Starts `count` nodes at `place` of the site's addresses and waits until each answers a linearizable read.
    pub async fn start(site: &Site, place: u8, count: u8, guard: Option<&EtcdGuard>) -> Result<Self> {
        ensure!((1..=3).contains(&count), "etcd has one to three nodes here");
        let at = |index| (node_name(place, index), site.addresses.etcd(place, index));
        let addresses: Vec<_> = (0..count).map(at).collect();
        let initial: Vec<_> =
            addresses.iter().map(|(name, address)| format!("{name}=http://{address}:{PEER_PORT}")).collect();
        let initial_cluster = initial.join(",");
        let mut etcd = Self { nodes: Vec::new(), initial_cluster, guard: guard.cloned(), auth: false };
        for (name, address) in addresses {
            site.subdirectory(&name)?;
            let server = etcd.start_server(site, &name, address)?;
            etcd.nodes.push(Node { name, address, server });
        }
        for index in 0..etcd.nodes.len() {
            etcd.wait_ready(index).await?;
        }
        if let Some(guard) = guard {
            etcd.add_users(&guard.users).await.context("users of etcd")?;
        }
        Ok(etcd)
    }

    /// What the documentation does with `etcdctl`.
    async fn add_users(&mut self, users: &[EtcdUser]) -> Result<()> {
        for EtcdUser { name, password, may, prefix } in users {
            let end = format!("{}0", prefix.strip_suffix('/').context("a prefix ends with a slash")?);
            let permission =
                json!({ "permType": may, "key": BASE64.encode(prefix), "range_end": BASE64.encode(end) });
            self.ask("/v3/auth/user/add", &json!({ "name": name, "password": password })).await?;
            self.ask("/v3/auth/role/add", &json!({ "name": name })).await?;
            self.ask("/v3/auth/role/grant", &json!({ "name": name, "perm": permission })).await?;
            self.ask("/v3/auth/user/grant", &json!({ "user": name, "role": name })).await?;
        }
        self.ask("/v3/auth/user/add", &json!({ "name": ROOT, "password": ROOT })).await?;
        self.ask("/v3/auth/role/add", &json!({ "name": ROOT })).await?;
        self.ask("/v3/auth/user/grant", &json!({ "user": ROOT, "role": ROOT })).await?;
        self.ask("/v3/auth/enable", &json!({})).await?;
        self.auth = true;
        Ok(())
    }

    /// No nodes: the cluster stands on something else.
    pub(crate) fn none() -> Self {
        Self { nodes: Vec::new(), initial_cluster: String::new(), guard: None, auth: false }
    }

    /// What `patroni.yml` says of its store.
    pub(crate) fn patroni(&self) -> Value {
        let hosts: Vec<String> = self.addresses().iter().map(SocketAddr::to_string).collect();
        json!({ "etcd3": { "hosts": hosts } })
    }

    fn start_server(&self, site: &Site, name: &str, address: Ipv4Addr) -> Result<Server> {
        let client = self.url(address);
        let own = format!("{client},http://{address}:{OWN_PORT}");
        let listen = if self.guard.is_some() { &own } else { &client };
        let peer = format!("http://{address}:{PEER_PORT}");
        let arguments = [
            ("--name", name),
            ("--data-dir", "data"),
            ("--listen-client-urls", listen),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &self.initial_cluster),
            ("--initial-cluster-state", "new"),
        ];
        let mut arguments: Vec<_> =
            arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()]).collect();
        if let Some(guard) = &self.guard {
            let file = |flag: &str, file: &PathBuf| [flag.to_owned(), file.display().to_string()];
            arguments.extend(file("--cert-file", &guard.cert));
            arguments.extend(file("--key-file", &guard.key));
            arguments.extend(file("--trusted-ca-file", &guard.ca));
            // Hashing passwords well would take the tests' time.
            arguments.extend(["--client-cert-auth", "--bcrypt-cost", "4"].map(str::to_owned));
        }
        Server::start(site, RunAs::Servers, &site.directory().join(name), &site.tools.etcd, arguments)
    }

    async fn wait_ready(&mut self, index: usize) -> Result<()> {
        let node = self.nodes.get_mut(index).context("no such etcd node")?;
        let port = if self.guard.is_some() { OWN_PORT } else { CLIENT_PORT };
        let (address, auth) = (SocketAddr::from((node.address, port)), self.auth);
        let server = &mut node.server;
        let ready = wait::until(format!("{} to answer", node.name), START_DEADLINE, async || {
            server.check_running()?;
            let key = json!({ "key": BASE64.encode("ready") });
            call(address, auth, "/v3/kv/range", &key).await.map(drop)
        });
        ready.await.with_context(|| node.server.tail())
    }

    /// The client address of each node.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| SocketAddr::from((node.address, CLIENT_PORT))).collect()
    }

    /// The client URL of each node.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| self.url(node.address)).collect()
    }

    fn url(&self, address: Ipv4Addr) -> String {
        let scheme = if self.guard.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}:{CLIENT_PORT}")
    }

    /// Where the tests themselves ask each node.
    fn doors(&self) -> impl Iterator<Item = SocketAddr> {
        let port = if self.guard.is_some() { OWN_PORT } else { CLIENT_PORT };
        self.nodes.iter().map(move |node| SocketAddr::from((node.address, port)))
    }

    /// The value of `key`, from the first node that answers. `None`: there is no such key.
    pub async fn get(&self, key: &str) -> Result<Option<String>> {
        let answer = self.ask("/v3/kv/range", &json!({ "key": BASE64.encode(key) })).await?;
        first_value(&answer)
    }

    /// Writes `value` to `key`, through the first node that answers.
    pub async fn put(&self, key: &str, value: &str) -> Result<()> {
        let body = json!({ "key": BASE64.encode(key), "value": BASE64.encode(value) });
        self.ask("/v3/kv/put", &body).await.map(drop)
    }

    /// Deletes `key`.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.ask("/v3/kv/deleterange", &json!({ "key": BASE64.encode(key) })).await.map(drop)
    }

    async fn ask(&self, path: &str, body: &Value) -> Result<Value> {
        let mut failed = String::from("there are no nodes");
        for address in self.doors() {
            match call(address, self.auth, path, body).await {
                Ok(answer) => return Ok(answer),
                Err(error) => failed = format!("{error:#}"),
            }
        }
        bail!("no etcd node answers: {failed}")
    }

    fn node(&mut self, index: usize) -> Result<&mut Node> {
        self.nodes.get_mut(index).with_context(|| format!("there is no etcd node {index}"))
    }

    /// Kills node `index` and waits until it is gone.
    pub async fn kill(&mut self, index: usize) -> Result<()> {
        self.node(index)?.server.kill().await
    }

    /// Stops node `index` in its tracks: its connections stay open and silent.
    pub fn freeze(&mut self, index: usize) -> Result<()> {
        self.node(index)?.server.signal(Signal::STOP)
    }

    /// Lets a frozen node go on.
    pub fn thaw(&mut self, index: usize) -> Result<()> {
        self.node(index)?.server.signal(Signal::CONT)
    }

    /// Starts node `index` again, on its old data, and does not wait: alone it may have no quorum.
    pub async fn restart(&mut self, site: &Site, index: usize) -> Result<()> {
        self.kill(index).await?;
        let node = self.node(index)?;
        let (name, address) = (node.name.clone(), node.address);
        let server = self.start_server(site, &name, address)?;
        self.node(index)?.server = server;
        Ok(())
    }

    /// Waits until every node answers a linearizable read.
    pub async fn wait_all_ready(&mut self) -> Result<()> {
        for index in 0..self.nodes.len() {
            self.wait_ready(index).await?;
        }
        Ok(())
    }
}

fn node_name(place: u8, index: u8) -> String {
    match place {
        0 => format!("etcd{}", index + 1),
        _ => format!("etcd{}-{}", index + 1, place + 1),
    }
}

/// `auth`: as root, with a token of its own, so that none can expire.
async fn call(address: SocketAddr, auth: bool, path: &str, body: &Value) -> Result<Value> {
    let mut place = Place::from(address);
    if auth {
        let login = json!({ "name": ROOT, "password": ROOT });
        let answer = post(place.clone(), "/v3/auth/authenticate", &login).await?;
        let token = answer.get("token").and_then(Value::as_str).context("no token")?;
        place = place.authorized(token.to_owned());
    }
    post(place, path, body).await
}

async fn post(place: Place, path: &str, body: &Value) -> Result<Value> {
    let answer = http::send(place, Method::POST, path, body).await?;
    ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.body);
    answer.json()
}

fn first_value(answer: &Value) -> Result<Option<String>> {
    let Some(key_value) = answer.pointer("/kvs/0") else { return Ok(None) };
    // etcd leaves an empty value out.
    let encoded = key_value.get("value").and_then(Value::as_str).unwrap_or_default();
    Ok(Some(String::from_utf8(BASE64.decode(encoded)?)?))
}
