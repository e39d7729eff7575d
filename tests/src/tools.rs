//! Where the servers' programs are, and which account runs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

/// What installs everything that is looked for here.
const INSTALLER: &str = "scripts/install-test-servers";

/// The repository's root directory.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// The programs of the test servers.
#[derive(Debug, Clone)]
pub struct Tools {
    /// `etcd`
    pub etcd: PathBuf,
    /// The newer `etcd`, 3.5.
    pub etcd_3_5: PathBuf,
    /// The library that lets a program see another wall clock, if it is preloaded.
    pub faketime: PathBuf,
    /// `haproxy`
    pub haproxy: PathBuf,
    /// `psql`
    pub psql: PathBuf,
    /// `patroni`, inside its Python environment.
    pub patroni: PathBuf,
    /// `patronictl`, beside it.
    pub patronictl: PathBuf,
    /// The directory of `initdb` and `postgres`: of the newest version that is installed.
    pub postgres_bin: PathBuf,
}

impl Tools {
    /// Finds all of them, or says which one is missing and what installs it.
    pub fn find() -> Result<Self> {
        let venv = resolved(".cache/patroni-venv/bin", "Patroni")?;
        Ok(Self {
            etcd: program("etcd")?,
            etcd_3_5: resolved(".cache/etcd-3.5/etcd", "etcd 3.5")?,
            faketime: faketime()?,
            haproxy: program("haproxy")?,
            psql: program("psql")?,
            patroni: venv.join("patroni"),
            patronictl: venv.join("patronictl"),
            postgres_bin: postgres_bin()?,
        })
    }
}

/// `patroni` of Debian 12, version 3.0, beside the newest in [`Tools`].
pub fn old_patroni() -> Result<PathBuf> {
    program("patroni")
}

/// `pgbouncer`.
pub fn pgbouncer() -> Result<PathBuf> {
    program("pgbouncer")
}

/// A path in the checkout. Resolved, because an account other than ours may be unable to follow the way through it.
fn resolved(path: &str, what: &str) -> Result<PathBuf> {
    let path = repository().join(path);
    path.canonicalize().map_err(|_| anyhow!("{what} is not installed: run {INSTALLER}"))
}

fn faketime() -> Result<PathBuf> {
    let mut architectures = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    architectures
        .find_map(|entry| {
            let library = entry.path().join("faketime/libfaketime.so.1");
            library.is_file().then_some(library)
        })
        .with_context(|| format!("libfaketime is not installed: run {INSTALLER}"))
}

impl Tools {
    /// `consul`, which only some tests need.
    pub fn consul(&self) -> Result<PathBuf> {
        resolved(".cache/consul/consul", "Consul")
    }
}

pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed: run {INSTALLER}"))
}

fn postgres_bin() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions
        .filter_map(|entry| {
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            bin.join("initdb").is_file().then_some((version, bin))
        })
        .max()
        .map(|(_, bin)| bin)
        .with_context(|| format!("the PostgreSQL server is not installed: run {INSTALLER}"))
}

/// Who runs the servers: PostgreSQL refuses to be run by root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// We are not root: whoever we are.
    Caller,
    /// We are root: the account `postgres`.
    Postgres {
        /// Its user number.
        uid: u32,
        /// Its group number.
        gid: u32,
    },
}

impl Account {
    /// Decides by who we are.
    pub fn of_servers() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Caller);
        }
        Ok(Self::Postgres { uid: id_of_postgres("-u")?, gid: id_of_postgres("-g")? })
    }
}

fn id_of_postgres(flag: &str) -> Result<u32> {
    let output = Command::new("id").args([flag, "postgres"]).output().context("cannot run id")?;
    if !output.status.success() {
        bail!("there is no account `postgres`, which runs the servers for root: run {INSTALLER}");
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}
