//! A process for one test, and what it has.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::engine::Engine;

/// Says which test a process was made for.
const ALONE: &str = "POINTSMAN_ALONE";

/// Both backends, each with a name. io_uring only where the kernel has it: elsewhere the engine takes epoll for both, and says so.
pub(super) fn engines() -> [(&'static str, Engine); 2] {
    use pointsman_config::Engine::{Epoll, IoUring};
    [Epoll, IoUring].map(|backend| {
        let engine = super::super::real(backend).unwrap();
        (engine.cores().backend(), engine)
    })
}

/// Runs a test again in a process of its own, and waits for it. `true`: this is that process.
pub(super) fn is_alone(test: &str) -> bool {
    is_alone_as(test, None)
}

/// The same, with the process started as another user if there is the right to do so.
pub(super) fn is_alone_as(test: &str, user: Option<u32>) -> bool {
    if std::env::var(ALONE).is_ok_and(|alone| alone == test) {
        return true;
    }
    let name = format!("listener::tests::alone::{test}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &name, "--include-ignored", "--nocapture", "--test-threads", "1"])
        .env(ALONE, test);
    if let Some(user) = user.filter(|_| rustix::process::geteuid().is_root()) {
        command.uid(user);
    }
    assert!(command.status().unwrap().success(), "{name} has failed in its own process");
    false
}

/// Open descriptors, by what they lead to.
pub(super) fn descriptors(of: &str) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    let targets = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with(of)).count()
}

/// Resident memory, in bytes.
pub(super) fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}
