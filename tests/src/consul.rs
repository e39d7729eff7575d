//! Consul as it is run in earnest: servers that want a certificate of everybody and a token for everything, and an agent
//! beside each member, as Patroni expects one.
//!
//! Patroni and the proxy speak TLS on 8501. The tests themselves use 8500, in the clear, which Consul 1.8 always offers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::pki::Pki;
use crate::process::{RunAs, Server};
use crate::site::Site;
use crate::{http, wait};

const HTTP_PORT: u16 = 8500;
const HTTPS_PORT: u16 = 8501;
const START_DEADLINE: Duration = Duration::from_secs(30);
/// The token that may do everything.
const MANAGEMENT: &str = "6d3f6f2e-30a5-4c5f-9b5e-0d9d4f3f7a01";
/// The name that Consul wants in the certificate of a server of `dc1`.
pub const SERVER_NAME: &str = "server.dc1.consul";
/// What the documentation tells to allow the proxy.
pub const READER: &str = r#"key_prefix "service/main/" { policy = "read" }"#;
/// What Patroni needs.
const WRITER: &str =
    r#"key_prefix "service/main/" { policy = "write" } session_prefix "" { policy = "write" }"#;

/// Consul's servers and agents.
pub struct Consul {
    /// Signs for everybody who speaks with Consul: `consul`, `patroni`, `pointsman`.
    pub pki: Pki,
    servers: Vec<Node>,
    agents: Vec<Node>,
    /// Where a token for the proxy is kept.
    token_file: PathBuf,
    /// Patroni's token.
    writer: String,
}

#[derive(Debug)]
struct Node {
    name: String,
    address: Ipv4Addr,
    server: Server,
}

impl Consul {
    /// Starts `servers` of them and an agent on each address of `members`; makes policies and tokens.
    pub async fn start(site: &Site, servers: u8, members: u8) -> Result<Self> {
        ensure!((1..=3).contains(&servers), "Consul has one to three servers here");
        let addresses: Vec<_> = (0..servers).map(|index| site.addresses.consul(index)).collect();
        let hosts: Vec<_> = (0..members).map(|index| site.addresses.member(0, index)).collect();
        let pki = Pki::new(site, "consul-pki")?;
        let all: Vec<IpAddr> = addresses.iter().chain(&hosts).copied().map(IpAddr::from).collect();
        pki.leaf(site, "consul", &all, &[SERVER_NAME, "localhost"])?;
        pki.leaf(site, "patroni", &[], &["patroni"])?;
        pki.leaf(site, "pointsman", &[], &["pointsman"])?;
        let token_file = site.directory().join("consul.token");
        let mut consul =
            Self { pki, servers: Vec::new(), agents: Vec::new(), token_file, writer: String::new() };
        for (number, address) in (1..).zip(&addresses) {
            let node = consul.node(site, format!("consul{number}"), *address, &addresses, true)?;
            consul.servers.push(node);
        }
        consul.wait_all_ready().await?;
        for (number, address) in (1..).zip(&hosts) {
            let node = consul.node(site, format!("consul-agent{number}"), *address, &addresses, false)?;
            consul.agents.push(node);
        }
        consul.writer = consul.token(WRITER).await?;
        consul.renew_token().await?;
        consul.wait_agents().await?;
        Ok(consul)
    }

    fn node(
        &self,
        site: &Site,
        name: String,
        address: Ipv4Addr,
        servers: &[Ipv4Addr],
        is_server: bool,
    ) -> Result<Node> {
        let directory = site.subdirectory(&name)?;
        let mut settings = json!({
            "node_name": name,
            "server": is_server,
            "bind_addr": address,
            "client_addr": address,
            "data_dir": "data",
            "retry_join": servers,
            "retry_interval": "1s",
            "ports": { "http": HTTP_PORT, "https": HTTPS_PORT, "dns": -1, "grpc": -1, "serf_wan": -1 },
            "verify_incoming": true,
            "verify_outgoing": true,
            "verify_server_hostname": true,
            "ca_file": self.pki.path("ca.pem"),
            "cert_file": self.pki.path("consul.pem"),
            "key_file": self.pki.path("consul.key"),
            "acl": {
                "enabled": true,
                "default_policy": "deny",
                "tokens": { "master": MANAGEMENT, "agent": MANAGEMENT },
            },
            "performance": { "raft_multiplier": 1 },
            "disable_update_check": true,
            "log_level": "info",
        });
        if is_server && let Some(table) = settings.as_object_mut() {
            table.insert("bootstrap_expect".to_owned(), servers.len().into());
        }
        std::fs::write(directory.join("consul.json"), settings.to_string())?;
        let server = start_server(site, &directory)?;
        Ok(Node { name, address, server })
    }

    /// Where the servers speak TLS, as URLs.
    pub fn endpoints(&self) -> Vec<String> {
        self.addresses().iter().map(|address| format!("https://{address}")).collect()
    }

    /// Where the servers speak TLS.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|node| SocketAddr::from((node.address, HTTPS_PORT))).collect()
    }

    /// The file with the proxy's token, which may read and no more.
    pub fn token_file(&self) -> &std::path::Path {
        &self.token_file
    }

    /// Makes a new token for the proxy and puts it into its file.
    pub async fn renew_token(&self) -> Result<()> {
        Ok(std::fs::write(&self.token_file, self.token(READER).await?)?)
    }

    /// What `patroni.yml` of member `index` says of its store.
    pub(crate) fn patroni(&self, index: usize) -> Result<Value> {
        let agent = self.agents.get(index).with_context(|| format!("there is no agent {index}"))?;
        Ok(json!({ "consul": {
            "host": format!("{}:{HTTPS_PORT}", agent.address),
            "scheme": "https",
            "cacert": self.pki.path("ca.pem"),
            "cert": self.pki.path("patroni.pem"),
            "key": self.pki.path("patroni.key"),
            "token": self.writer,
        } }))
    }

    /// The value of `key` (without a slash before it), from the first server that answers. `None`: there is no such key.
    pub async fn get(&self, key: &str) -> Result<Option<String>> {
        let answer = self.ask(Method::GET, &format!("kv/{key}"), "").await?;
        if answer.status == 404 {
            return Ok(None);
        }
        let answer = answer.json()?;
        let value = answer.pointer("/0/Value").and_then(Value::as_str).unwrap_or_default();
        Ok(Some(String::from_utf8(BASE64.decode(value)?)?))
    }

    /// Writes `value` to `key`, through the first server that answers.
    pub async fn put(&self, key: &str, value: &str) -> Result<()> {
        self.ask(Method::PUT, &format!("kv/{key}"), value).await.map(drop)
    }

    /// Deletes `key`.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.ask(Method::DELETE, &format!("kv/{key}"), "").await.map(drop)
    }

    /// A new token with a new policy; its secret.
    async fn token(&self, rules: &str) -> Result<String> {
        let policies = self.ask(Method::GET, "acl/policies", "").await?.json()?;
        let name = format!("policy{}", policies.as_array().map_or(0, Vec::len));
        let policy = json!({ "Name": name, "Rules": rules }).to_string();
        let policy = self.ask(Method::PUT, "acl/policy", &policy).await?.json()?;
        let id = policy.get("ID").context("a policy has an ID")?;
        let token = json!({ "Policies": [{ "ID": id }] }).to_string();
        let token = self.ask(Method::PUT, "acl/token", &token).await?.json()?;
        Ok(token.get("SecretID").and_then(Value::as_str).context("a token has a secret")?.to_owned())
    }

    async fn ask(&self, method: Method, path: &str, body: &str) -> Result<http::Answer> {
        let mut failed = String::from("there are no servers");
        for node in &self.servers {
            match call(node.address, method.clone(), path, body).await {
                Ok(answer) => return Ok(answer),
                Err(error) => failed = format!("{error:#}"),
            }
        }
        bail!("no Consul server answers: {failed}")
    }

    fn server(&mut self, index: usize) -> Result<&mut Node> {
        self.servers.get_mut(index).with_context(|| format!("there is no Consul server {index}"))
    }

    /// Kills server `index` and waits until it is gone.
    pub async fn kill(&mut self, index: usize) -> Result<()> {
        self.server(index)?.server.kill().await
    }

    /// Stops server `index` in its tracks: its connections stay open and silent.
    pub fn freeze(&mut self, index: usize) -> Result<()> {
        self.server(index)?.server.signal(Signal::STOP)
    }

    /// Lets a frozen server go on.
    pub fn thaw(&mut self, index: usize) -> Result<()> {
        self.server(index)?.server.signal(Signal::CONT)
    }

    /// Starts server `index` again, on its old data, and does not wait: alone it may have no quorum.
    pub async fn restart(&mut self, site: &Site, index: usize) -> Result<()> {
        self.kill(index).await?;
        let node = self.server(index)?;
        node.server = start_server(site, &site.directory().join(&node.name))?;
        Ok(())
    }

    /// Waits until every server answers a read with a leader behind it, and knows tokens.
    pub async fn wait_all_ready(&mut self) -> Result<()> {
        for node in &mut self.servers {
            node.wait_ready().await?;
        }
        Ok(())
    }

    /// Waits until every agent has found the servers.
    async fn wait_agents(&mut self) -> Result<()> {
        for node in &mut self.agents {
            node.wait_ready().await?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Consul {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consul")
            .field("servers", &self.servers)
            .field("agents", &self.agents)
            .finish_non_exhaustive()
    }
}

impl Node {
    async fn wait_ready(&mut self) -> Result<()> {
        let (address, server) = (self.address, &mut self.server);
        let ready = wait::until(format!("{} to answer", self.name), START_DEADLINE, async || {
            server.check_running()?;
            call(address, Method::GET, "kv/none", "").await?;
            // Consul comes up with the access lists of old, which know no policies, until its servers have agreed on the new.
            call(address, Method::GET, "acl/policies", "").await.map(drop)
        });
        ready.await.with_context(|| self.server.tail())
    }
}

fn start_server(site: &Site, directory: &std::path::Path) -> Result<Server> {
    let program = site.tools.consul()?;
    Server::start(site, RunAs::Servers, directory, &program, ["agent", "-config-file=consul.json"])
}

/// 200, or 404: no such key.
async fn call(address: Ipv4Addr, method: Method, path: &str, body: &str) -> Result<http::Answer> {
    let address = SocketAddr::from((address, HTTP_PORT));
    let path = format!("/v1/{path}?token={MANAGEMENT}");
    let answer = http::send_text(address, method, &path, body).await?;
    ensure!(matches!(answer.status, 200 | 404), "{address}: {} {}", answer.status, answer.body);
    Ok(answer)
}
