//! What `pointsman-vip` may do, and what it gives up: of all that root may do it needs two things.
//!
//! Capabilities belong to a thread and are handed on to the threads and programs that it starts. So they are given up first of
//! all, before there is a second thread. As root it then is like any other user to files that belong to somebody else.
//!
//! The order: [`lock_memory`] and [`take_realtime`] (which root may do by what it gives up), then [`keep_for_guard`] or
//! [`keep_for_worker`].

use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

/// Addresses and their removal; packets below TCP and UDP.
const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);
/// Before all that is scheduled as usual; behind whatever else on this host asks for more.
const PRIORITY: libc::c_int = 10;

/// Why we may not do what we have to, or what we were asked to.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Something that nothing works without.
    #[error(
        "pointsman-vip needs {missing}: start it by its systemd unit (AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW) or as \
         root"
    )]
    Missing {
        /// The names of what is missing.
        missing: String,
    },
    /// The kernel does not tell, or does not let us give up what we do not need.
    #[error("cannot {doing}: {source}")]
    Capabilities {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// `[vrrp] realtime`.
    #[error(
        "cannot be scheduled before others ([vrrp] realtime): {source}; in the unit, set LimitRTPRIO={PRIORITY} or higher, \
         and do not set RestrictRealtime="
    )]
    Realtime {
        /// Why.
        source: io::Error,
    },
    /// `[vrrp] lock_memory`.
    #[error("cannot lock the memory ([vrrp] lock_memory): {source}; in the unit, set LimitMEMLOCK=infinity")]
    Memory {
        /// Why.
        source: io::Error,
    },
}

/// Looks whether we may do what we have to.
pub fn check() -> Result<(), PrivilegeError> {
    let effective = current()?.effective;
    let missing: Vec<&str> =
        [(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::NET_RAW, "CAP_NET_RAW")]
            .into_iter()
            .filter_map(|(capability, name)| (!effective.contains(capability)).then_some(name))
            .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(PrivilegeError::Missing { missing: missing.join(" and ") })
}

/// The guard's part: gives up what it does not need, and hands what is needed on to the worker that it starts.
///
/// Limits of the bounding set are left to the worker: as root it may be scheduled first and lock its memory (with what it
/// gets back when it is started) before it gives that up.
pub fn keep_for_guard() -> Result<(), PrivilegeError> {
    check()?;
    let doing = "give up unneeded capabilities";
    set_capabilities(None, CapabilitySets { effective: NEEDED, permitted: NEEDED, inheritable: NEEDED })
        .map_err(|error| PrivilegeError::Capabilities { doing, source: error.into() })?;
    for capability in NEEDED.iter() {
        // Root hands them on without; so where the kernel refuses that (SECBIT_NO_CAP_AMBIENT_RAISE), the worker will say it.
        let _ = configure_capability_in_ambient_set(capability, true);
    }
    Ok(())
}

/// The worker's part: keeps what is needed for itself alone. A program that it starts (a hook) has nothing of it, even
/// if it runs as root.
pub fn keep_for_worker() -> Result<(), PrivilegeError> {
    check()?;
    let failed = |source: rustix::io::Errno| PrivilegeError::Capabilities {
        doing: "give up unneeded capabilities",
        source: source.into(),
    };
    clear_ambient_capability_set().map_err(failed)?;
    if current()?.effective.contains(CapabilitySet::SETPCAP) {
        // A kernel knows fewer than the set has room for.
        for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
            if capability_is_in_bounding_set(capability) == Ok(true) {
                remove_capability_from_bounding_set(capability).map_err(failed)?;
            }
        }
    }
    let kept = CapabilitySets { effective: NEEDED, permitted: NEEDED, inheritable: CapabilitySet::empty() };
    set_capabilities(None, kept).map_err(failed)
}

/// Schedules this thread before all others of the host that are scheduled as usual (`SCHED_FIFO`, low priority). What it
/// starts is scheduled as usual.
pub fn take_realtime() -> Result<(), PrivilegeError> {
    crate::sys::process::schedule_first(PRIORITY).map_err(|source| PrivilegeError::Realtime { source })
}

/// Keeps this process in memory, now and from now on, so that it never waits for a disk.
pub fn lock_memory() -> Result<(), PrivilegeError> {
    let failed = |source: io::Error| PrivilegeError::Memory { source };
    // With a limit, some later demand for memory would fail, and end the process. So there must be none; the right to
    // go beyond it is given up soon.
    if getrlimit(Resource::Memlock).current.is_some() {
        setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })
            .map_err(|error| failed(error.into()))?;
    }
    mlockall(MlockAllFlags::CURRENT).map_err(|error| failed(error.into()))?;
    // What comes later is locked when it is first used: a thread's stack of megabytes is mostly never.
    mlockall(MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(|error| failed(error.into()))
}

fn current() -> Result<CapabilitySets, PrivilegeError> {
    capabilities(None).map_err(|error| PrivilegeError::Capabilities {
        doing: "read the capabilities",
        source: error.into(),
    })
}
