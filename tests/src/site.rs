//! The place of one run: a directory, addresses, an account; and the certainty that nothing outlives it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};

use crate::addresses::Addresses;
use crate::tools::{Account, Tools};

/// The cleaner needs some tens of milliseconds; a machine under load more.
const SWEEP_DEADLINE: Duration = Duration::from_secs(15);

/// Where one cluster lives.
///
/// Every server's working directory lies inside [`Site::directory`]; that is how its processes are found again, whatever
/// became of their parents. A small shell process of its own process group waits for the end of this value *or of this
/// process* (its standard input closes in both cases), then kills all of them and removes everything.
#[derive(Debug)]
pub struct Site {
    directory: PathBuf,
    /// Its loopback addresses.
    pub addresses: Addresses,
    /// The programs that are started here.
    pub tools: Tools,
    account: Account,
    sweeper: Child,
    alive: Option<ChildStdin>,
}

impl Site {
    /// Makes the directory below `TMPDIR` (default `/tmp`) and starts the cleaner.
    pub fn new(addresses: Addresses) -> Result<Self> {
        let tools = Tools::find()?;
        let account = Account::of_servers()?;
        let mut named =
            tempfile::Builder::new().prefix("pointsman-").tempdir().context("no temporary directory")?;
        // Removed by the cleaner, which the end of this process cannot stop.
        named.disable_cleanup(true);
        let directory = named.path().canonicalize()?;
        let sweeper = start_sweeper(&directory, &addresses);
        let mut sweeper = match sweeper {
            Ok(sweeper) => sweeper,
            Err(error) => {
                named.disable_cleanup(false);
                return Err(error);
            }
        };
        let alive = sweeper.stdin.take();
        let site = Self { directory, addresses, tools, account, sweeper, alive };
        site.hand_over(&site.directory)?;
        // Open for reading, so that a person can use what the demo writes here. PostgreSQL closes its data itself.
        fs::set_permissions(&site.directory, fs::Permissions::from_mode(0o755))?;
        site.check_reachable()?;
        Ok(site)
    }

    /// The directory of this run.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Who runs the servers.
    pub fn account(&self) -> Account {
        self.account
    }

    /// Makes a directory that belongs to the servers' account.
    pub fn subdirectory(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        self.hand_over(&path)?;
        Ok(path)
    }

    /// Gives a file or directory to the servers' account.
    pub fn hand_over(&self, path: &Path) -> Result<()> {
        match self.account {
            Account::Caller => Ok(()),
            Account::Postgres { uid, gid } => std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .with_context(|| format!("cannot give {} to postgres", path.display())),
        }
    }

    /// The numbers of all processes whose working directory is inside this site.
    pub fn processes(&self) -> Vec<Pid> {
        processes_in(&self.directory)
    }

    /// The account of the servers may be unable to reach a private TMPDIR.
    fn check_reachable(&self) -> Result<()> {
        let mut command = Command::new("test");
        command.arg("-x").arg(&self.directory);
        if let Account::Postgres { uid, gid } = self.account {
            command.uid(uid).gid(gid);
        }
        if !command.status().context("cannot run test")?.success() {
            bail!(
                "the account `postgres` cannot reach {}: set TMPDIR to a directory that it can",
                self.directory.display()
            );
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        drop(self.alive.take());
        let started = Instant::now();
        while self.sweeper.try_wait()?.is_none() {
            if started.elapsed() > SWEEP_DEADLINE {
                bail!("the cleaner of {} did not end", self.directory.display());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.directory.exists() {
            bail!("{} could not be removed", self.directory.display());
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("pointsman-tests: {error:#}");
        }
    }
}

fn start_sweeper(directory: &Path, addresses: &Addresses) -> Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", include_str!("sweep.sh"), "pointsman-sweep"])
        .arg(directory)
        .stdin(Stdio::piped())
        // Holds the addresses until the last server is gone.
        .stdout(addresses.share_lock()?)
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .context("cannot start /bin/sh")
}

/// The numbers of all processes whose working directory is `directory` or below it.
pub fn processes_in(directory: &Path) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let number: i32 = entry.file_name().to_str()?.parse().ok()?;
            let working_directory = fs::read_link(entry.path().join("cwd")).ok()?;
            working_directory.starts_with(directory).then(|| Pid::from_raw(number)).flatten()
        })
        .collect()
}

/// Sends `signal` to every process whose working directory is `directory` or below it; answers how many there were.
///
/// A process that ends meanwhile is no error.
pub fn signal_all(directory: &Path, signal: Signal) -> usize {
    let processes = processes_in(directory);
    for process in &processes {
        // Fails only when it has just ended.
        let _ = rustix::process::kill_process(*process, signal);
    }
    processes.len()
}
