//! Namespaces of our own: network, processes, mounts, shared memory.
//!
//! This program starts itself again through `unshare` (util-linux) as the first process of a namespace of processes. When it
//! ends, however it ends, the kernel kills everything in there, and with it go the network and the file system in memory:
//! there is nothing to clean up. The outer program dies of Ctrl-C as usual, `setpriv` passes that on.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::site::{Account, Site, program};

/// Set in the inner program.
const INSIDE: &str = "POINTSMAN_BENCH_INSIDE";
/// Where the file system in memory is mounted: a directory that is always there and means nothing to anybody. Only we
/// see what is mounted.
const DIRECTORY: &str = "/mnt";
/// Descriptors for each process; 50,000 proxied sessions need twice as many.
const DESCRIPTORS: u64 = 1_000_000;

/// True in the program that [`enter`] has started.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Starts this program again inside, with the same arguments, and answers how it ended.
pub fn enter() -> Result<ExitCode> {
    ensure!(rustix::process::geteuid().is_root(), "needs root for namespaces: run it with sudo");
    let setpriv = program("setpriv").context("there is no `setpriv` (Debian: util-linux)")?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let status = Command::new(setpriv)
        .args(["--pdeathsig", "KILL", "unshare", "--net", "--ipc", "--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc"])
        .arg(std::env::current_exe()?)
        .args(arguments)
        .env(INSIDE, "1")
        .status()
        .context("cannot run setpriv")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Prepares the inside: priority, limits, network, directory. This program and `pointsman` are copied there.
pub fn prepare(repository: PathBuf, pointsman: Option<&Path>, nice: i32) -> Result<Site> {
    take_precedence(nice)?;
    raise_limits()?;
    prepare_network()?;
    // Read before anything is mounted over them.
    let own = image(&std::env::current_exe()?)?;
    let pointsman = pointsman.map(image).transpose()?;
    let directory = PathBuf::from(DIRECTORY);
    mount("pointsman-bench", &directory, "tmpfs", MountFlags::NOSUID, c"mode=0755")
        .context("cannot mount a file system in memory")?;
    let own = install(&directory.join("pointsman-bench"), &own)?;
    let pointsman = pointsman.map(|image| install(&directory.join("pointsman"), &image)).transpose()?;
    Ok(Site { directory, account: Account::of_servers()?, repository, own, pointsman })
}

fn image(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn install(path: &Path, image: &[u8]) -> Result<PathBuf> {
    fs::write(path, image).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(path.to_owned())
}

/// What we start inherits the limits. Only a privileged root may go beyond the hard one: without, it must do.
fn raise_limits() -> Result<()> {
    let wanted = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        let hard = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    }
    Ok(())
}

/// How many descriptors a process may have.
pub fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS)
}

/// How many sessions a proxy may have: two descriptors each, beside its pipes and what else it needs.
pub fn sessions() -> u64 {
    descriptors().saturating_sub(1_200) / 2
}

/// Lets the processes of this run go before other work on the machine. Where the scheduler groups tasks by session
/// (autogroup, see sched(7)), a nice value counts inside the group only, and the group has one of its own.
fn take_precedence(nice: i32) -> Result<()> {
    rustix::process::setsid().context("cannot begin a session")?;
    rustix::process::setpriority_process(None, nice).context("cannot set the priority")?;
    let group = Path::new("/proc/self/autogroup");
    if group.exists() {
        fs::write(group, nice.to_string()).context("cannot set the priority of the session")?;
    }
    Ok(())
}

fn prepare_network() -> Result<()> {
    let ip = program("ip").context("there is no `ip` (Debian: iproute2)")?;
    let status = Command::new(ip).args(["link", "set", "lo", "up"]).status()?;
    ensure!(status.success(), "cannot bring up the loopback interface of the namespace");
    // The same for everybody. bbr, where it is the default, doubles the cost of bulk.
    set("net/ipv4/tcp_congestion_control", "reno")?;
    // Connect-churn: thousands of closed connections a second leave their ports for a minute.
    set("net/ipv4/ip_local_port_range", "1024 65535")?;
    set("net/ipv4/tcp_tw_reuse", "1")?;
    set("net/core/somaxconn", "16384")?;
    set("net/ipv4/tcp_max_syn_backlog", "16384")?;
    Ok(())
}

fn set(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    if let Err(error) = fs::write(&path, value) {
        bail!("cannot set {} to {value}: {error}", path.display());
    }
    Ok(())
}
