//! Real Consul servers on loopback addresses of their own, killed when they are dropped.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::certs::Certs;
use super::etcd::SOON;

/// The token that may do everything, where there are tokens.
pub(crate) const MANAGEMENT: &str = "6d3f6f2e-30a5-4c5f-9b5e-0d9d4f3f7a01";
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.cache/consul/consul");

static CLUSTERS: AtomicU8 = AtomicU8::new(0);

/// Some Consul servers that form one cluster.
pub(crate) struct ConsulCluster {
    nodes: Vec<Node>,
    certs: Option<Certs>,
    dir: TempDir,
}

struct Node {
    ip: String,
    child: Option<Child>,
    args: Vec<String>,
    log: PathBuf,
}

impl ConsulCluster {
    /// Starts servers, in the clear and without tokens, and waits until they have a leader.
    pub(crate) fn start(count: u8) -> Self {
        Self::start_on(&addresses(count), None, &json!({}))
    }

    /// One agent that keeps nothing: after a restart its index begins anew.
    pub(crate) fn start_dev() -> Self {
        Self::start_on(&addresses(1), None, &json!({ "data_dir": null }))
    }

    /// One server that wants tokens.
    pub(crate) fn start_acl() -> Self {
        let acl = json!({ "enabled": true, "default_policy": "deny", "tokens": { "master": MANAGEMENT } });
        Self::start_on(&addresses(1), None, &json!({ "acl": acl }))
    }

    /// One server that speaks TLS and wants client certificates.
    pub(crate) fn start_tls() -> Self {
        let ips = addresses(1);
        let certs = Certs::new(&ips);
        let tls = json!({
            "ports": { "http": -1, "https": 8500 },
            "verify_incoming": true,
            "verify_outgoing": true,
            "ca_file": certs.path("ca.pem"),
            "cert_file": certs.path("server.pem"),
            "key_file": certs.path("server.key"),
        });
        Self::start_on(&ips, Some(certs), &tls)
    }

    fn start_on(ips: &[String], certs: Option<Certs>, more: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let nodes = ips.iter().map(|ip| {
            let configuration = configuration(dir.path(), ips, ip, more);
            let file = dir.path().join(format!("{ip}.json"));
            std::fs::write(&file, configuration.to_string()).unwrap();
            let mut args = vec!["agent".to_owned(), format!("-config-file={}", file.display())];
            if configuration.get("data_dir").is_none() {
                args.push("-dev".to_owned());
            }
            Node { ip: ip.clone(), child: None, args, log: dir.path().join(format!("{ip}.log")) }
        });
        let mut cluster = Self { nodes: nodes.collect(), certs, dir };
        (0..cluster.nodes.len()).for_each(|node| cluster.nodes[node].spawn());
        cluster.await_health();
        cluster
    }

    /// `"http://…", "http://…"`: for a configuration file.
    pub(crate) fn addresses(&self) -> String {
        (0..self.nodes.len()).map(|node| format!("{:?}", self.address(node))).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn address(&self, node: usize) -> String {
        let scheme = if self.certs.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:8500", self.nodes[node].ip)
    }

    /// The server at this address.
    pub(crate) fn node_at(&self, address: &str) -> usize {
        (0..self.nodes.len()).find(|node| self.address(*node) == address).unwrap()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn certs(&self) -> &Certs {
        self.certs.as_ref().unwrap()
    }

    pub(crate) fn kill(&mut self, node: usize) {
        let mut child = self.nodes[node].child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self, node: usize) {
        self.nodes[node].spawn();
    }

    pub(crate) fn freeze(&self, node: usize) {
        self.nodes[node].signal(Signal::STOP);
    }

    pub(crate) fn thaw(&self, node: usize) {
        self.nodes[node].signal(Signal::CONT);
    }

    /// Sends a request to one server; its status and body.
    pub(crate) fn send(&self, node: usize, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["--silent", "--max-time", "4", "--request", method, "--data-binary", body]);
        command.args(["--write-out", "\n%{http_code}", "--header", &format!("X-Consul-Token: {MANAGEMENT}")]);
        if let Some(certs) = &self.certs {
            command.args(["--cacert", &certs.path("ca.pem"), "--cert", &certs.path("client.pem")]);
            command.args(["--key", &certs.path("client.key")]);
        }
        let output = command.arg(format!("{}/v1/{path}", self.address(node))).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    /// Writes a key of the cluster `demo` through a server. Again, if Consul was just electing its leader.
    pub(crate) fn put(&self, node: usize, key: &str, value: &str) {
        self.until(node, "a write", || {
            let (status, body) = self.send(node, "PUT", &format!("kv/service/demo/{key}"), value);
            if status == 200 { Ok(()) } else { Err(format!("{status} {body}")) }
        });
    }

    pub(crate) fn delete(&self, node: usize, key: &str) {
        assert_eq!(self.send(node, "DELETE", &format!("kv/service/demo/{key}"), "").0, 200);
    }

    /// Makes or changes a policy; makes a token that has it.
    pub(crate) fn policy(&self, rules: &str) -> String {
        let body = json!({ "Name": "pointsman", "Rules": rules }).to_string();
        let (status, answer) = self.send(0, "PUT", "acl/policy", &body);
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str::<Value>(&answer).unwrap()["ID"].as_str().unwrap().to_owned()
    }

    pub(crate) fn change_policy(&self, id: &str, rules: &str) {
        let body = json!({ "ID": id, "Name": "pointsman", "Rules": rules }).to_string();
        let (status, answer) = self.send(0, "PUT", &format!("acl/policy/{id}"), &body);
        assert_eq!(status, 200, "{answer}");
    }

    /// Makes a token with these policies; its secret and its name for [`ConsulCluster::revoke`].
    pub(crate) fn token(&self, policies: &[&str]) -> (String, String) {
        let policies: Vec<_> = policies.iter().map(|id| json!({ "ID": id })).collect();
        let (status, answer) = self.send(0, "PUT", "acl/token", &json!({ "Policies": policies }).to_string());
        assert_eq!(status, 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let text = |key: &str| answer[key].as_str().unwrap().to_owned();
        (text("SecretID"), text("AccessorID"))
    }

    pub(crate) fn revoke(&self, accessor: &str) {
        assert_eq!(self.send(0, "DELETE", &format!("acl/token/{accessor}"), "").0, 200);
    }

    /// Waits until every running server answers with a leader behind it.
    pub(crate) fn await_health(&self) {
        (0..self.nodes.len())
            .filter(|node| self.nodes[*node].child.is_some())
            .for_each(|node| self.await_health_of(node));
    }

    /// The same of one server.
    pub(crate) fn await_health_of(&self, node: usize) {
        self.until(node, "a read", || match self.send(node, "GET", "kv/none", "") {
            (404, _) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    fn until(&self, node: usize, what: &str, mut attempt: impl FnMut() -> Result<(), String>) {
        let deadline = Instant::now() + SOON;
        while let Err(error) = attempt() {
            assert!(
                Instant::now() < deadline,
                "Consul does not do {what}: {error}\n{}",
                self.nodes[node].last_log()
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// One connection that only writes, for measurements.
pub(crate) struct Writer(TcpStream);

impl Writer {
    pub(crate) async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address.strip_prefix("http://").unwrap()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    /// Writes a key of the cluster `demo`; returns when Consul had acknowledged it.
    pub(crate) async fn put(&mut self, key: &str, value: &str) -> Instant {
        let head = format!(
            "PUT /v1/kv/service/demo/{key} HTTP/1.1\r\nHost: consul\r\nContent-Length: {}\r\n\r\n{value}",
            value.len()
        );
        self.0.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"true\n") && !answer.ends_with(b"true") {
            assert!(self.0.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
        }
        let acknowledged = Instant::now();
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        acknowledged
    }
}

fn configuration(dir: &Path, ips: &[String], ip: &str, more: &Value) -> Value {
    let mut configuration = json!({
        "server": true,
        "node_name": ip,
        "bind_addr": ip,
        "client_addr": ip,
        "data_dir": dir.join(ip),
        "bootstrap_expect": ips.len(),
        "retry_join": ips,
        "retry_interval": "1s",
        "performance": { "raft_multiplier": 1 },
        "ports": { "http": 8500, "dns": -1, "grpc": -1, "serf_wan": -1 },
        "disable_update_check": true,
        "log_level": "warn",
    });
    let settings = configuration.as_object_mut().unwrap();
    for (key, value) in more.as_object().unwrap() {
        match (settings.get_mut(key).and_then(Value::as_object_mut), value.as_object()) {
            (Some(table), Some(more)) => table.extend(more.clone()),
            _ => drop(settings.insert(key.clone(), value.clone())),
        }
    }
    if settings["data_dir"].is_null() {
        for key in ["data_dir", "bootstrap_expect", "retry_join", "retry_interval"] {
            settings.remove(key);
        }
    } else if ips.len() == 1 {
        settings.remove("retry_join");
    }
    configuration
}

impl Node {
    fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(&self.args).stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("Consul is installed (scripts/install-test-servers)"));
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    fn last_log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().rev().take(8).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Addresses of `127.x.y.0/24`, on which nobody listens: different for each process and each cluster of it.
fn addresses(count: u8) -> Vec<String> {
    let pid = std::process::id();
    loop {
        let third = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let ips: Vec<_> = (1..=count).map(|node| format!("127.{}.{third}.{node}", 20 + pid % 200)).collect();
        let free = |ip: &String| {
            [8300, 8301, 8500].iter().all(|port| TcpListener::bind((ip.as_str(), *port)).is_ok())
        };
        if ips.iter().all(free) {
            return ips;
        }
    }
}
