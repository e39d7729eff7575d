//! Networks for tests: each test runs in namespaces of its own, which the kernel clears away however it ends.
//!
//! The test program starts itself again within new namespaces (`unshare`, util-linux), as root of the host or, where that is
//! allowed, as an ordinary user who is root in there only. Nothing outside is touched, so tests run side by side.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pointsman_vip::netlink::Netlink;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

/// Set within the namespaces.
const INSIDE: &str = "POINTSMAN_TEST_INSIDE";

/// True within namespaces of our own. Outside it runs the test of this name there, fails if that fails, and is false.
pub(crate) fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        return true;
    }
    let output = in_namespaces(&["--exact", test, "--nocapture", "--include-ignored"]).output();
    let output = output.expect("this needs `setpriv` and `unshare` (Debian: util-linux)");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test}, in a namespace: {}", output.status);
    false
}

/// This program within new namespaces of network and processes. All of it dies with the thread that starts it.
pub(crate) fn in_namespaces(arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare"]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--pid", "--fork", "--kill-child=KILL"]);
    command.arg(std::env::current_exe().unwrap()).args(arguments).env(INSIDE, "1");
    command
}

/// Runs `ip` (iproute2).
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.expect("this needs `ip` (Debian: iproute2)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {said}");
}

/// What `ip` says.
pub(crate) fn ip_says(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Two ends of a cable, both here and up: `v0` and `v1`.
pub(crate) fn cable() {
    ip("link add v0 type veth peer name v1");
    ip("link set v0 up");
    ip("link set v1 up");
}

/// Addresses of interfaces that are made from now on can be used at once.
fn without_duplicate_detection() {
    for scope in ["all", "default"] {
        // Without IPv6 there is nothing to switch off.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"), "0");
    }
}

/// Another host: a network namespace with a cable to ours, `v1` there and `v0` here.
pub(crate) struct Host(Child);

impl Host {
    /// Connects one by a cable; both ends are up. `v0` is 02:00:00:00:00:01, `v1` is 02:00:00:00:00:02.
    pub(crate) fn connected() -> Self {
        let host = Self::start();
        without_duplicate_detection();
        host.within(without_duplicate_detection);
        ip("link add v0 address 02:00:00:00:00:01 type veth peer name v1 address 02:00:00:00:00:02");
        ip(&format!("link set v1 netns {}", host.0.id()));
        ip("link set v0 up");
        host.run("link set v1 up");
        host
    }

    fn start() -> Self {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", "echo ready; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// Runs `ip` there.
    pub(crate) fn run(&self, arguments: &str) {
        self.within(|| ip(arguments));
    }

    /// Runs something there, on a thread of its own. Sockets that it opens stay there.
    pub(crate) fn within<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(&self.process());
                    run()
                })
                .join()
                .unwrap()
        })
    }

    /// A process there, to [`enter`] by.
    pub(crate) fn process(&self) -> OwnedFd {
        pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty()).unwrap()
    }
}

/// Moves this thread to the network of a process.
pub(crate) fn enter(process: &OwnedFd) {
    move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::NETWORK).unwrap();
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Netlink that waits: whoever else runs tests makes and deletes interfaces all the time, and the kernel does one thing at a time
/// for all namespaces.
pub(crate) fn patient_netlink() -> Netlink {
    Netlink::open().unwrap().waiting(Duration::from_secs(10))
}

/// A runtime for this thread.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
