//! The guard: the process that outlives the worker, so that no address stays behind.
//!
//! `pointsman-vip run` is the guard. It does next to nothing, so that next to nothing can go wrong with it: it starts the
//! worker (the same program again) with one end of a pair of sockets, and listens. The worker tells what there would be to
//! clean up ([`Cover`]), what it holds, and that it lives. When it dies or hangs, the guard kills it, removes the addresses
//! that it held, tells the others with adverts of priority 0, and starts it anew. Everything needed for that is open and
//! ready beforehand.
//!
//! *Invariant:* the worker is dead, or can run no more code, before its addresses are removed: one that woke up again would put
//! them back. The addresses are removed before the adverts are sent.
//!
//! When the guard dies, the worker hears it ([`Command::Gone`]) and ends. When both die at once, the kernel removes the
//! addresses ([`crate::netlink::Lifetime::HELD`]).
//!
//! * Threads: the guard itself, without any runtime; `netlink`; `notify`. It logs through `tracing`, and only when the
//!   cleaning is done.

mod ledger;
mod life;
mod link;
mod service;
mod vigil;
mod wire;
mod worker;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ipnet::IpNet;
use pointsman_config::Config;

pub use link::{Command, GuardLink, LinkError};
pub use wire::{Cover, Farewell, LONGEST, Order, WireError, Word};

use crate::netlink::{Netlink, NetlinkError};
use crate::privileges::{self, PrivilegeError};
use crate::raw::{RawError, VrrpSender};
use crate::sys::process::take_signals;

/// The hidden sub-command that is the worker.
pub const WORKER: &str = "worker";
/// The option that tells the worker the number of its descriptor, for [`GuardLink::from_fd`].
pub const LINK_OPTION: &str = "--link";
/// What the worker is called in lists of processes: it is not started by its name.
const NAME: &str = "pointsman-vip";
/// The exit code for a configuration that is wrong (`EX_CONFIG` of sysexits.h). A first worker that ends with it is not started
/// again, and the guard ends with it, too; later ones are: the file was good once, and somebody is at work on it.
pub const BAD_CONFIGURATION: u8 = 78;
/// The exit code when we may not do what we have to (`EX_NOPERM`).
const NOT_PERMITTED: u8 = 77;
/// The exit code when the kernel does not give us what we need (`EX_OSERR`).
const OS_ERROR: u8 = 71;

/// How long the kernel may take for a change at the start, where nobody waits yet.
const START: Duration = Duration::from_secs(2);

/// Runs the guard until it is told to stop: with the log set up, and on the thread that lives as long as the process (the
/// worker takes the end of the thread that started it for the end of the guard).
///
/// `config` is what `file` says: here it only says which addresses may be left over from an earlier run. The worker, started as
/// `pointsman-vip worker --config FILE --link DESCRIPTOR`, reads the file itself.
pub fn run(config: &Config, file: &Path) -> ExitCode {
    let worker = WorkerProgram {
        program: PathBuf::from("/proc/self/exe"),
        arguments: vec![WORKER.into(), "--config".into(), file.into()],
    };
    let vrrp = config.vrrp.as_ref();
    let lock_memory = vrrp.is_some_and(|vrrp| vrrp.lock_memory).then(privileges::lock_memory);
    let realtime = vrrp.is_some_and(|vrrp| vrrp.realtime).then(privileges::take_realtime);
    for error in [lock_memory, realtime].into_iter().flatten().filter_map(Result::err) {
        tracing::error!("The guard goes on without: {error}");
    }
    let guard = privileges::keep_for_guard().map_err(GuardError::from).and_then(|()| Guard::prepare(worker));
    match guard {
        Ok(guard) => {
            guard.remove_left_over(&left_over(config));
            ExitCode::from(guard.run())
        }
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// The addresses that an earlier run may have left behind, by interface. Not those of an owner (priority 255): they
/// are there for good.
fn left_over(config: &Config) -> Vec<(String, IpNet)> {
    config
        .vips
        .iter()
        .filter(|vip| vip.priority.get() != u8::MAX)
        .flat_map(|vip| vip.addresses.iter().map(|address| (vip.interface.clone(), *address)))
        .collect()
}

/// What the guard starts. `--link` and the number of the descriptor are put behind the arguments.
#[derive(Clone, Debug)]
struct WorkerProgram {
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
enum GuardError {
    /// We may not do what we have to.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// Addresses could not be removed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Adverts could not be sent.
    #[error(transparent)]
    Raw(#[from] RawError),
    /// Signals could not be heard.
    #[error("cannot take signals: {source}")]
    Signals {
        /// Why.
        source: std::io::Error,
    },
}

impl GuardError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Privileges(_) => NOT_PERMITTED,
            Self::Netlink(_) | Self::Raw(_) | Self::Signals { .. } => OS_ERROR,
        }
    }
}

/// The guard, with all that it needs in hand.
#[derive(Debug)]
struct Guard {
    program: WorkerProgram,
    netlink: Netlink,
    sender: VrrpSender,
    signals: OwnedFd,
    service: service::Service,
}

impl Guard {
    /// Opens what the guard needs, in the network namespace of this thread, and takes the signals: SIGTERM and SIGINT
    /// mean stop, SIGHUP means reload. Once for each process.
    fn prepare(program: WorkerProgram) -> Result<Self, GuardError> {
        let signals = take_signals(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
            .map_err(|source| GuardError::Signals { source })?;
        Ok(Self {
            program,
            netlink: Netlink::open()?,
            sender: VrrpSender::open()?,
            signals,
            service: service::Service::start(),
        })
    }

    /// Removes addresses that an earlier run has left on these interfaces, whatever their prefix.
    fn remove_left_over(&self, addresses: &[(String, IpNet)]) {
        let netlink = self.netlink.waiting(START);
        let mut interfaces: Vec<&str> = addresses.iter().map(|(interface, _)| interface.as_str()).collect();
        interfaces.sort_unstable();
        interfaces.dedup();
        for interface in interfaces {
            let is_ours = |address: &IpNet| {
                addresses.iter().any(|(of, ours)| of == interface && ours.addr() == address.addr())
            };
            let result = netlink.link(interface).and_then(|link| {
                let Some(link) = link else { return Ok(Vec::new()) };
                let found: Vec<IpNet> =
                    link.addresses.iter().map(|address| address.net).filter(is_ours).collect();
                netlink
                    .remove_all(found.iter().map(|address| (link.index, *address)).collect())
                    .map(|()| found)
            });
            match result {
                Ok(found) => {
                    for address in found {
                        tracing::info!(%interface, %address, "Removed an address that an earlier run had left behind");
                    }
                }
                Err(error) => tracing::warn!("Left-over addresses may stay behind: {error}"),
            }
        }
    }

    /// Guards a worker until it is told to stop. Answers the exit code.
    fn run(self) -> u8 {
        life::run(self)
    }
}
