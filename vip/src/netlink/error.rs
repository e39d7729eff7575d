//! What can go wrong with a request to the kernel, said so that somebody can do something about it.

use std::fmt;
use std::io;
use std::time::Duration;

use ipnet::IpNet;

use super::Task;

/// What the kernel was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Adding these addresses.
    Add(Vec<IpNet>),
    /// Removing these addresses.
    Remove(Vec<IpNet>),
    /// Reading the addresses of an interface.
    Addresses,
    /// Reading an interface.
    Link,
}

/// Why a request to the kernel was not done, or is not known to be.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket, or no thread.
    #[error("cannot open netlink (the kernel's interface to the network configuration): {source}")]
    Open {
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {doing} on the interface {interface}: {source}{}", hint(doing, source))]
    Refused {
        /// What was asked for.
        doing: Doing,
        /// The interface, by name where it has one.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel has not answered in time; the request is under way still.
    #[error("the kernel is busy and did not {doing} within {} ms; it goes on with it", waited.as_millis())]
    Late {
        /// What was asked for.
        doing: Doing,
        /// Since it was asked for.
        waited: Duration,
    },
    /// The kernel is busy with an earlier request that is late. This one was not taken: it would only read, or too many wait.
    #[error("cannot {doing}: the kernel is still busy with earlier requests")]
    Busy {
        /// What was asked for.
        doing: Doing,
    },
    /// The thread that sends requests is gone.
    #[error("cannot {doing}: the thread for netlink has ended")]
    Ended {
        /// What was asked for.
        doing: Doing,
    },
    /// The kernel's answer makes no sense to us.
    #[error("cannot {doing}: the kernel's answer makes no sense: {problem}")]
    Answer {
        /// What was asked for.
        doing: Doing,
        /// What is wrong with it.
        problem: String,
    },
    /// Events cannot be read any more.
    #[error("cannot read the kernel's events about interfaces and addresses: {source}")]
    Events {
        /// Why.
        source: io::Error,
    },
}

impl Doing {
    pub(super) fn of(task: &Task) -> Self {
        match task {
            Task::Add(_, addresses, _) => Self::Add(addresses.clone()),
            Task::Remove(addresses) => Self::Remove(addresses.iter().map(|(_, address)| *address).collect()),
            Task::Addresses(_) => Self::Addresses,
            Task::Link(_) | Task::LinkState(_) => Self::Link,
        }
    }
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list =
            |addresses: &[IpNet]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::Add(addresses) => write!(f, "add {}", list(addresses)),
            Self::Remove(addresses) => write!(f, "remove {}", list(addresses)),
            Self::Addresses => f.write_str("read the addresses"),
            Self::Link => f.write_str("read the state"),
        }
    }
}

/// What to do about it.
fn hint(doing: &Doing, error: &io::Error) -> &'static str {
    let adds_ipv6 = matches!(doing, Doing::Add(addresses) if matches!(addresses.first(), Some(IpNet::V6(_))));
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "; this needs CAP_NET_ADMIN (in the unit: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW)"
        }
        Some(libc::ENODEV) => "; there is no such interface (any more)",
        Some(libc::EACCES) if adds_ipv6 => {
            "; IPv6 is switched off on this interface (sysctl net.ipv6.conf.*.disable_ipv6)"
        }
        Some(libc::EINVAL) => "; is the prefix right for this address, and is it none of this host already?",
        Some(libc::ENOBUFS) if adds_ipv6 => {
            "; the interface is not ready for IPv6: is it up, and its MTU at least 1280?"
        }
        Some(_) | None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_why_and_what_to_do() {
        let error = NetlinkError::Refused {
            doing: Doing::Add(vec!["192.0.2.10/24".parse().unwrap()]),
            interface: "eth0".to_owned(),
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        let text = error.to_string();
        assert!(text.starts_with("cannot add 192.0.2.10/24 on the interface eth0: "), "{text}");
        assert!(text.contains("needs CAP_NET_ADMIN"), "{text}");
    }
}
