//! What both programs need of a process that people run: a log, sockets to be asked through, HTTP on them, a command line that
//! asks, and the service manager. Nothing here knows of PostgreSQL or of VRRP.
//!
//! * [`logging`]: the log. [`service`]: signals and systemd.
//! * [`bind`], [`server`]: a UNIX socket for operators and addresses for everybody, with HTTP on both; [`request`] and [`answer`] are
//!   its two halves.
//! * [`client`]: HTTP to such a socket. [`cli`], [`table`]: what the command lines have in common.

pub mod answer;
pub mod bind;
pub mod cli;
pub mod client;
pub mod logging;
pub mod request;
pub mod server;
pub mod service;
pub mod table;

/// One of the two programs, as messages and files name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program and its systemd unit.
    pub name: &'static str,
    /// The section of the configuration file that names its addresses (`bind`) and its socket (`socket`).
    pub section: &'static str,
    /// Its socket, unless the file names another.
    pub socket: &'static str,
}

/// The proxy.
pub const PROXY: Program =
    Program { name: "pointsman", section: "admin", socket: "/run/pointsman/admin.sock" };

/// The virtual IP.
pub const VIP: Program =
    Program { name: "pointsman-vip", section: "vrrp", socket: "/run/pointsman/vip.sock" };
