//! What concerns the process as a whole: `[admin]`, `[relay]`, `[log]`, `[shutdown]`.

use std::{fmt, net::SocketAddr, num::NonZeroU16, path::PathBuf, time::Duration};

use crate::choice::choice;

/// `[admin]`: the dashboard, metrics, health answers and the command line's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// HTTP addresses; empty: none.
    pub bind: Vec<SocketAddr>,
    /// Who may sign in. Empty: pages are readable by all, actions by nobody.
    pub users: Vec<User>,
    /// The UNIX socket of the command line, 0660.
    pub socket: PathBuf,
}

/// One user of the dashboard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name to sign in with.
    pub name: String,
    /// As `pointsman passwd` prints it.
    pub password_hash: PasswordHash,
    /// What it may do.
    pub role: Role,
}

choice!(
    /// What a user of the dashboard may do.
    Role {
        /// Look.
        Viewer = "viewer",
        /// Look and act: drain, maint, ready, kill.
        Admin = "admin",
    }
);

/// A password's hash in crypt format (`$argon2id$`, `$6$`, `$5$`). `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(pub(crate) Box<str>);

impl PasswordHash {
    /// The hash, for the comparison with a password.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// `[relay]`: the engine of established sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Which system interface.
    pub engine: Engine,
    /// Loops. `None`: one for each core.
    pub threads: Option<NonZeroU16>,
}

choice!(
    /// The system interface of the relay engine.
    Engine {
        /// The better one that this kernel allows.
        Auto = "auto",
        /// epoll and splice.
        Epoll = "epoll",
        /// `io_uring`; an error at start where the kernel has none.
        IoUring = "io_uring",
    }
);

/// `[log]`: what is written to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// The shape of a line.
    pub format: LogFormat,
    /// The least important level that is written.
    pub level: LogLevel,
    /// One line for each finished session.
    pub sessions: bool,
}

choice!(
    /// The shape of a log line.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object for each line.
        Json = "json",
        /// Session lines as HAProxy's `option tcplog` writes them.
        Haproxy = "haproxy",
    }
);

choice!(
    /// How much is logged.
    LogLevel {
        /// Something failed.
        Error = "error",
        /// Somebody should look.
        Warn = "warn",
        /// A state changed.
        Info = "info",
        /// Why it changed.
        Debug = "debug",
        /// Everything, per packet.
        Trace = "trace",
    }
);

/// `[shutdown]`: how the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// After SIGTERM: how long sessions may finish before they are cut. Zero: cut at once.
    pub drain: Duration,
}
