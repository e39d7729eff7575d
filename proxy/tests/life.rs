//! The process as systemd sees it: the real program, its signals and its notifications.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(30);

struct Process {
    child: Child,
    notifications: UnixDatagram,
    dir: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start() -> Process {
    let dir = tempfile::tempdir().unwrap();
    let notifications = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    notifications.set_read_timeout(Some(SOON)).unwrap();
    let config = format!(
        "node = \"lb1\"\nstate_dir = \"state\"\n[clusters.main]\n\
         discovery = {{ etcd = {{ endpoints = [\"http://127.0.0.1:{}\"] }} }}\n\
         [[listeners]]\nbind = \"127.0.0.1:{}\"\ntarget = \"primary\"\n\
         [admin]\nbind = \"127.0.0.1:{}\"\nsocket = \"admin.sock\"\n[shutdown]\ndrain = \"0s\"\n",
        free_port(),
        free_port(),
        free_port(),
    );
    let file = dir.path().join("pointsman.toml");
    std::fs::write(&file, config).unwrap();
    let log = File::create(dir.path().join("log")).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .arg("run")
        .arg("--config")
        .arg(&file)
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .env("WATCHDOG_USEC", "100000")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    Process { child, notifications, dir }
}

impl Process {
    /// The next notification that holds `wanted`.
    fn told(&self, wanted: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let count = self.notifications.recv(&mut buffer).unwrap_or_else(|error| {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
                panic!("no {wanted}: {error}\n{log}")
            });
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if text.lines().any(|line| line.starts_with(wanted)) {
                return text;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

#[test]
fn the_service_manager_is_told_of_every_step() {
    let mut process = start();
    let ready = process.told("READY=1");
    assert!(ready.contains("STATUS="), "{ready}");
    process.told("WATCHDOG=1");
    assert!(process.dir.path().join("admin.sock").exists());

    process.signal(Signal::HUP);
    let reloading = process.told("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "Type=notify-reload needs both at once: {reloading}");
    process.told("READY=1");

    process.signal(Signal::TERM);
    let stopping = process.told("STOPPING=1");
    assert!(
        stopping.contains("EXTEND_TIMEOUT_USEC=30000000"),
        "a margin, however short the drain is: {stopping}"
    );
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
    assert!(!process.dir.path().join("admin.sock").exists(), "the socket is removed");
}

#[test]
fn an_interrupt_ends_it_too() {
    let mut process = start();
    process.told("READY=1");
    process.signal(Signal::INT);
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reload_with_errors_keeps_the_process_and_says_so() {
    let process = start();
    process.told("READY=1");
    std::fs::write(process.dir.path().join("pointsman.toml"), "nonsense = 1\n").unwrap();
    process.signal(Signal::HUP);
    process.told("RELOADING=1");
    process.told("READY=1");
    let status = Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .args(["status", "--socket"])
        .arg(process.dir.path().join("admin.sock"))
        .output()
        .unwrap();
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.contains("the last reload failed and the old configuration stays"), "{text}");
}
