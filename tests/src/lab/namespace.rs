//! One network namespace, kept by a file.

use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::tools::program;

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: PathBuf,
}

impl Namespace {
    /// A new one, whose file is made in `directory`.
    pub fn create(name: &str, directory: &Path) -> Result<Self> {
        let file = directory.join(name);
        File::create(&file)?;
        let mut option = std::ffi::OsString::from("--net=");
        option.push(&file);
        let status = Command::new(program("unshare")?).arg(option).arg("true").status()?;
        ensure!(status.success(), "cannot make the network namespace {name}: unshare, {status}");
        let namespace = Self { name: name.to_owned(), file };
        // No address may be tentative: nobody has the same one here, and tests do not wait.
        for (setting, value) in [
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/dad_transmits", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv6/conf/default/router_solicitations", "0"),
            // As where something on the host configures the interface anew.
            ("ipv6/conf/all/keep_addr_on_down", "1"),
            ("ipv6/conf/default/keep_addr_on_down", "1"),
        ] {
            namespace.set(setting, value)?;
        }
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that keeps it, for `ip link set … netns`.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Calls `work` in a thread that is in this namespace: a socket that it opens stays there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(&self.file)?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("cannot enter a network namespace")?;
                work()
            });
            thread.join().map_err(|_| anyhow!("the thread in {} panicked", self.name))?
        })
    }

    /// A handle with which a thread can [`enter`](move_into_link_name_space) it for good.
    pub(super) fn handle(&self) -> Result<File> {
        Ok(File::open(&self.file)?)
    }

    /// Writes `/proc/sys/net/SETTING`.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(setting);
        self.within(|| {
            std::fs::write(&path, value).with_context(|| format!("cannot set {} to {value}", path.display()))
        })
    }

    /// A command that runs there; its process is that of the program.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let mut option = std::ffi::OsString::from("--net=");
        option.push(&self.file);
        let mut command = Command::new(crate::tools::program("nsenter")?);
        command.arg(option).arg("--").arg(program);
        Ok(command)
    }

    /// Runs commands of `ip`, one a line.
    pub fn ip(&self, commands: &str) -> Result<()> {
        let mut command = self.command(&program("ip")?)?;
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.take().context("no input")?.write_all(commands.as_bytes())?;
        let output = child.wait_with_output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip in {}: {errors}\n{commands}", self.name);
        Ok(())
    }

    /// What `ip` says as JSON.
    pub fn ip_json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command(&program("ip")?)?.arg("-json").args(arguments).output()?;
        if !output.status.success() {
            bail!("ip {arguments:?} in {}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        // No entries: no output.
        if output.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Array(Vec::new()));
        }
        serde_json::from_slice(&output.stdout).context("ip printed no JSON")
    }

    /// The addresses of interface `eth0`, but not the link-local ones.
    pub fn addresses(&self) -> Result<Vec<IpAddr>> {
        let links = self.ip_json(&["address", "show", "dev", "eth0"])?;
        let infos = links.pointer("/0/addr_info").and_then(Value::as_array).context("no addr_info")?;
        let global = infos.iter().filter(|info| info.get("scope").and_then(Value::as_str) != Some("link"));
        Ok(global.filter_map(|info| info.get("local")?.as_str()?.parse().ok()).collect())
    }

    /// The number of an interface.
    pub fn index(&self, interface: &str) -> Result<u32> {
        self.within(|| {
            let socket = udp()?;
            netdevice::name_to_index(&socket, interface).with_context(|| format!("no interface {interface}"))
        })
    }
}

/// A socket for questions about interfaces.
fn udp() -> Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}
