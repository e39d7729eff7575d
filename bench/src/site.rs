//! Where everything is: addresses inside our network, directories, cores, the account of the servers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Our own server.
pub const BACKEND: SocketAddr = address(2, 5432);
/// PostgreSQL.
pub const POSTGRES: SocketAddr = address(3, 5432);
/// The cluster store that Pointsman watches.
pub const ETCD: SocketAddr = address(4, 2379);
/// The other cluster store.
pub const CONSUL: SocketAddr = address(5, 8500);
/// etcd's other port.
pub const ETCD_PEER: SocketAddr = address(4, 2380);

const fn address(host: u8, port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, host)), port)
}

/// The account that servers and proxies run as: the privileges of root would spare them limits that bind in practice.
#[derive(Debug, Clone, Copy)]
pub struct Account {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Account {
    /// `postgres`, which Debian's package makes.
    pub fn of_servers() -> Result<Self> {
        let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        Self::find(&passwd).context("there is no account `postgres`: scripts/install-test-servers makes it")
    }

    fn find(passwd: &str) -> Option<Self> {
        let line = passwd.lines().find_map(|line| line.strip_prefix("postgres:"))?;
        let mut fields = line.split(':').skip(1);
        Some(Self { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    }
}

/// The cores that something may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(Vec<usize>);

impl Cores {
    /// All that this process was given.
    pub fn all() -> Self {
        let set = sched_getaffinity(None).unwrap_or_default();
        Self((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
    }

    /// The `index`-th of them alone; the last, if there are fewer.
    #[must_use]
    pub fn one(&self, index: usize) -> Self {
        Self(self.0.get(index).or(self.0.last()).into_iter().copied().collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len().max(1)
    }

    /// Confines the calling thread, and what it starts from now on.
    pub fn confine_this_thread(&self) -> Result<()> {
        let mut set = CpuSet::new();
        self.0.iter().for_each(|core| set.set(*core));
        sched_setaffinity(None, &set).context("cannot confine a thread to its cores")
    }
}

/// The place of one run. It is a file system in memory that the kernel removes with the namespace it is mounted in.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its directory.
    pub directory: PathBuf,
    /// Who runs the servers.
    pub account: Account,
    /// Where the repository is, for what is installed in its cache.
    pub repository: PathBuf,
    /// This program, copied so that nobody changes it meanwhile.
    pub own: PathBuf,
    /// The program to measure, copied so that nobody changes it meanwhile.
    pub pointsman: Option<PathBuf>,
}

impl Site {
    /// Makes an empty directory that belongs to the servers' account.
    pub fn fresh_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        self.hand_over(&path)?;
        Ok(path)
    }

    fn hand_over(&self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.account.uid), Some(self.account.gid))
            .with_context(|| format!("cannot give {} to the servers' account", path.display()))
    }
}

/// The first of `names` that is an executable in the usual places.
pub fn program(name: &str) -> Option<PathBuf> {
    let places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    places.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_found_in_passwd() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres:x:105:111:,,,:/var/lib/postgresql:/bin/bash\n";
        let account = Account::find(passwd).unwrap();
        assert_eq!((account.uid, account.gid), (105, 111));
        assert!(Account::find("root:x:0:0::/root:/bin/sh\n").is_none());
    }

    #[test]
    fn a_confined_thread_has_one_core() {
        std::thread::spawn(|| {
            let all = Cores::all();
            all.one(1).confine_this_thread().unwrap();
            assert_eq!(Cores::all(), all.one(1));
            assert_eq!(Cores::all().count(), 1);
        })
        .join()
        .unwrap();
    }
}
