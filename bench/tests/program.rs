//! The program as it is used: inside its namespaces, which only root can make.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

/// The program with a plan of one row; `None` for anybody but root, who could not run it.
fn bench(out: &Path, peers: &str, seconds: &str) -> Option<Command> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tested: it needs root");
        return None;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman-bench"));
    command.args(["--rows", "^churn$", "--peers", peers, "--runs", "1", "--pinned-only", "--nice", "0"]);
    command.args(["--seconds", seconds, "--out"]).arg(out).stdin(Stdio::null());
    Some(command)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < DEADLINE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_comparison_of_nobody_and_haproxy_is_written_down() {
    let out = tempfile::tempdir().unwrap();
    let Some(mut command) = bench(out.path(), "^(direct|haproxy)$", "0.2") else { return };
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let csv = fs::read_to_string(out.path().join("results.csv")).unwrap();
    assert!(csv.lines().any(|line| line.starts_with("pinned,churn,direct,1,connections,")), "{csv}");
    assert!(csv.lines().any(|line| line.starts_with("pinned,churn,haproxy,1,connections,")), "{csv}\n{said}");
    let readme = fs::read_to_string(out.path().join("README.md")).unwrap();
    assert!(readme.contains("| churn | CPU, × HAProxy | epoll |"), "{readme}");
    assert!(fs::read_to_string(out.path().join("cpu.svg")).unwrap().contains("<svg"));
}

/// `child` and everything below it. By the kernel's own list, which needs no look at processes of others.
fn below(child: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{child}/task/{child}/children")).unwrap_or_default();
    let children = list.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.flat_map(|pid| [vec![pid], below(pid)].concat()).collect()
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn however_it_ends_nothing_is_left() {
    let out = tempfile::tempdir().unwrap();
    let Some(mut command) = bench(out.path(), "^haproxy$", "500") else { return };
    let mut running = Ended(command.stdout(Stdio::null()).spawn().unwrap());
    let mut started = Vec::new();
    wait_until("HAProxy to run inside", || {
        started = below(running.0.id());
        started.iter().any(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "haproxy")
        })
    });
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    wait_until("all that it has started to be gone", || {
        started.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
    assert!(!out.path().join("results.csv").exists());
}
