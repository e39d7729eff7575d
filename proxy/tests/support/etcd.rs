//! A real etcd cluster on loopback addresses of its own, killed when it is dropped.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::certs::Certs;

/// How long anything may take to come about.
pub(crate) const SOON: Duration = Duration::from_secs(20);

static CLUSTERS: AtomicU8 = AtomicU8::new(0);

/// Which etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// As installed: 3.4 on Debian 12.
    Installed,
    /// 3.5 of Debian 13, from scripts/install-test-servers.
    V3_5,
}

impl Version {
    fn program(self, name: &str) -> PathBuf {
        match self {
            Self::Installed => name.into(),
            Self::V3_5 => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/etcd-3.5").join(name),
        }
    }
}

/// How servers are started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) version: Version,
    pub(crate) count: u8,
    /// With TLS they want client certificates.
    pub(crate) tls: bool,
    /// More arguments.
    pub(crate) args: &'static [&'static str],
}

impl Default for Setup {
    fn default() -> Self {
        Self { version: Version::Installed, count: 3, tls: false, args: &[] }
    }
}

/// Some etcd servers that form one cluster.
pub(crate) struct EtcdCluster {
    nodes: Vec<Node>,
    certs: Option<Certs>,
    dir: TempDir,
    version: Version,
    /// `--user root:…`, once users are asked for.
    root: Vec<String>,
}

struct Node {
    program: PathBuf,
    ip: String,
    child: Option<Child>,
    args: Vec<String>,
    log: PathBuf,
}

impl EtcdCluster {
    /// Starts servers, in the clear, and waits until they have a leader.
    pub(crate) fn start(count: u8) -> Self {
        Self::start_with(Setup { count, ..Setup::default() })
    }

    /// Starts servers that speak TLS and want client certificates.
    pub(crate) fn start_tls(count: u8) -> Self {
        Self::start_with(Setup { count, tls: true, ..Setup::default() })
    }

    /// Starts servers, and waits until they have a leader.
    pub(crate) fn start_with(setup: Setup) -> Self {
        let subnet = free_subnet(setup.count);
        let ips: Vec<_> = (1..=setup.count).map(|node| format!("{subnet}.{node}")).collect();
        let certs = setup.tls.then(|| Certs::new(&ips));
        let dir = tempfile::tempdir().unwrap();
        let scheme = if certs.is_some() { "https" } else { "http" };
        let peers: Vec<_> = ips.iter().map(|ip| format!("{ip}=http://{ip}:2380")).collect();
        let nodes = ips.iter().map(|ip| {
            let mut args: Vec<String> = [
                "--name",
                ip,
                "--data-dir",
                dir.path().join(ip).to_str().unwrap(),
                "--listen-client-urls",
                &format!("{scheme}://{ip}:2379"),
                "--advertise-client-urls",
                &format!("{scheme}://{ip}:2379"),
                "--listen-peer-urls",
                &format!("http://{ip}:2380"),
                "--initial-advertise-peer-urls",
                &format!("http://{ip}:2380"),
                "--initial-cluster",
                &peers.join(","),
                "--heartbeat-interval",
                "50",
                "--election-timeout",
                "500",
                "--logger",
                "zap",
            ]
            .map(str::to_owned)
            .into();
            if let Some(certs) = &certs {
                let files = [
                    ("--cert-file", "server.pem"),
                    ("--key-file", "server.key"),
                    ("--trusted-ca-file", "ca.pem"),
                ];
                args.extend(files.into_iter().flat_map(|(flag, file)| [flag.to_owned(), certs.path(file)]));
                args.push("--client-cert-auth".to_owned());
            }
            args.extend(setup.args.iter().map(|arg| (*arg).to_owned()));
            let log = dir.path().join(format!("{ip}.log"));
            Node { program: setup.version.program("etcd"), ip: ip.clone(), child: None, args, log }
        });
        let nodes = nodes.collect();
        let mut cluster = Self { nodes, certs, dir, version: setup.version, root: Vec::new() };
        (0..cluster.nodes.len()).for_each(|node| cluster.nodes[node].spawn());
        cluster.await_health();
        cluster
    }

    /// `"http://…", "http://…"`: for a configuration file.
    pub(crate) fn endpoints(&self) -> String {
        (0..self.nodes.len()).map(|node| format!("{:?}", self.endpoint(node))).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn endpoint(&self, node: usize) -> String {
        let scheme = if self.certs.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:2379", self.nodes[node].ip)
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

    /// Takes a killed server's memory away.
    pub(crate) fn wipe(&self, node: usize) {
        std::fs::remove_dir_all(self.dir.path().join(&self.nodes[node].ip)).unwrap();
    }

    pub(crate) fn freeze(&self, node: usize) {
        self.nodes[node].signal(Signal::STOP);
    }

    pub(crate) fn thaw(&self, node: usize) {
        self.nodes[node].signal(Signal::CONT);
    }

    /// Runs etcdctl against one server, and returns what it says if it succeeds.
    pub(crate) fn try_ctl(&self, node: usize, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(self.version.program("etcdctl"));
        command.env("ETCDCTL_API", "3").args(["--command-timeout", "4s", "--dial-timeout", "2s"]);
        command.args(["--endpoints", &self.endpoint(node)]).args(&self.root).args(args);
        if let Some(certs) = &self.certs {
            command.args(["--cacert", &certs.path("ca.pem"), "--cert", &certs.path("client.pem")]);
            command.args(["--key", &certs.path("client.key")]);
        }
        let output = command.output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(out.into_owned()) } else { Err(err.into_owned()) }
    }

    pub(crate) fn ctl(&self, node: usize, args: &[&str]) -> String {
        self.try_ctl(node, args).unwrap_or_else(|error| panic!("etcdctl {args:?}: {error}"))
    }

    /// Writes a key of the cluster `demo` through a server. Again, if etcd was just electing its leader.
    pub(crate) fn put(&self, node: usize, key: &str, value: &str) {
        let deadline = Instant::now() + SOON;
        while let Err(error) = self.try_ctl(node, &["put", &format!("/service/demo/{key}"), value]) {
            assert!(Instant::now() < deadline, "etcdctl put {key} {value}: {error}");
        }
    }

    /// Users are asked for from now on; this test's own commands are root's.
    pub(crate) fn enable_auth(&mut self) {
        for args in [
            &["user", "add", "root:rootpw"][..],
            &["user", "grant-role", "root", "root"],
            &["auth", "enable"],
        ] {
            self.ctl(0, args);
        }
        self.root = vec!["--user".to_owned(), "root:rootpw".to_owned()];
    }

    /// Waits until every running server answers with a quorum behind it.
    pub(crate) fn await_health(&self) {
        (0..self.nodes.len())
            .filter(|node| self.nodes[*node].child.is_some())
            .for_each(|node| self.await_health_of(node));
    }

    /// The same of one server.
    pub(crate) fn await_health_of(&self, node: usize) {
        let deadline = Instant::now() + SOON;
        while let Err(error) = self.try_ctl(node, &["get", "/none"]) {
            // Once users are asked for, a refusal is an answer too.
            if error.contains("user name is empty") {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "etcd does not start: {error}\n{}",
                self.nodes[node].last_log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Node {
    fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("etcd is installed (scripts/install-test-servers)"));
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    fn last_log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
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

/// `127.x.y`, on which nobody listens: different for each process and each cluster of it.
fn free_subnet(count: u8) -> String {
    let pid = std::process::id();
    loop {
        let third = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let subnet = format!("127.{}.{third}", 20 + pid % 200);
        let free = |node| {
            [2379, 2380].iter().all(|port| TcpListener::bind((format!("{subnet}.{node}"), *port)).is_ok())
        };
        if (1..=count).all(free) {
            return subnet;
        }
    }
}

/// What has to be so whatever the version.
macro_rules! on_both_versions {
    ($($name:ident),*) => {
        mod installed { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name($crate::support::etcd::Version::Installed).await }
        )* }
        mod v3_5 { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name($crate::support::etcd::Version::V3_5).await }
        )* }
    };
}
pub(crate) use on_both_versions;
