//! etcd: one node or three, spoken to through its JSON gateway, so that the tests share no code with the proxy.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::process::{RunAs, Server};
use crate::site::Site;
use crate::{http, wait};

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const START_DEADLINE: Duration = Duration::from_secs(30);

/// An etcd cluster.
#[derive(Debug)]
pub struct Etcd {
    nodes: Vec<Node>,
    initial_cluster: String,
}

#[derive(Debug)]
struct Node {
    name: String,
    address: Ipv4Addr,
    server: Server,
}

impl Etcd {
    /// Starts `count` nodes and waits until each answers a linearizable read.
    pub async fn start(site: &Site, count: u8) -> Result<Self> {
        ensure!((1..=3).contains(&count), "etcd has one to three nodes here");
        let addresses: Vec<_> =
            (0..count).map(|index| (node_name(index), site.addresses.etcd(index))).collect();
        let initial: Vec<_> =
            addresses.iter().map(|(name, address)| format!("{name}=http://{address}:{PEER_PORT}")).collect();
        let mut etcd = Self { nodes: Vec::new(), initial_cluster: initial.join(",") };
        for (name, address) in addresses {
            site.subdirectory(&name)?;
            let server = etcd.start_server(site, &name, address)?;
            etcd.nodes.push(Node { name, address, server });
        }
        for index in 0..etcd.nodes.len() {
            etcd.wait_ready(index).await?;
        }
        Ok(etcd)
    }

    /// No nodes: the cluster stands on something else.
    pub(crate) fn none() -> Self {
        Self { nodes: Vec::new(), initial_cluster: String::new() }
    }

    /// What `patroni.yml` says of its store.
    pub(crate) fn patroni(&self) -> Value {
        let hosts: Vec<String> = self.addresses().iter().map(SocketAddr::to_string).collect();
        json!({ "etcd3": { "hosts": hosts } })
    }

    fn start_server(&self, site: &Site, name: &str, address: Ipv4Addr) -> Result<Server> {
        let client = format!("http://{address}:{CLIENT_PORT}");
        let peer = format!("http://{address}:{PEER_PORT}");
        let arguments = [
            ("--name", name),
            ("--data-dir", "data"),
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &self.initial_cluster),
            ("--initial-cluster-state", "new"),
        ];
        let arguments = arguments.into_iter().flat_map(|(flag, value)| [flag, value]);
        Server::start(site, RunAs::Servers, &site.directory().join(name), &site.tools.etcd, arguments)
    }

    async fn wait_ready(&mut self, index: usize) -> Result<()> {
        let node = self.nodes.get_mut(index).context("no such etcd node")?;
        let address = SocketAddr::from((node.address, CLIENT_PORT));
        let server = &mut node.server;
        let ready = wait::until(format!("{} to answer", node.name), START_DEADLINE, async || {
            server.check_running()?;
            range(address, "ready").await.map(drop)
        });
        ready.await.with_context(|| node.server.tail())
    }

    /// The client address of each node.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| SocketAddr::from((node.address, CLIENT_PORT))).collect()
    }

    /// The client URL of each node.
    pub fn endpoints(&self) -> Vec<String> {
        self.addresses().iter().map(|address| format!("http://{address}")).collect()
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
        for address in self.addresses() {
            match call(address, path, body).await {
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

fn node_name(index: u8) -> String {
    format!("etcd{}", index + 1)
}

async fn range(address: SocketAddr, key: &str) -> Result<Option<String>> {
    first_value(&call(address, "/v3/kv/range", &json!({ "key": BASE64.encode(key) })).await?)
}

async fn call(address: SocketAddr, path: &str, body: &Value) -> Result<Value> {
    let answer = http::send(address, Method::POST, path, body).await?;
    ensure!(answer.status == 200, "http://{address}{path}: {} {}", answer.status, answer.body);
    answer.json()
}

fn first_value(answer: &Value) -> Result<Option<String>> {
    let Some(key_value) = answer.pointer("/kvs/0") else { return Ok(None) };
    // etcd leaves an empty value out.
    let encoded = key_value.get("value").and_then(Value::as_str).unwrap_or_default();
    Ok(Some(String::from_utf8(BASE64.decode(encoded)?)?))
}
