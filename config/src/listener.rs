//! `[[listeners]]`: the addresses that clients connect to.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::{NonZeroU8, NonZeroU32},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

use crate::{Bytes, ClusterName, ListenerName, ServerTls, choice::choice};

/// One listener: one or more addresses with one target.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Its name, unique in the file; the target's name unless given.
    pub name: ListenerName,
    /// At least one address; none of them overlaps with another of the file.
    pub bind: Vec<SocketAddr>,
    /// The cluster to route to; it exists.
    pub cluster: ClusterName,
    /// What to route to.
    pub target: Target,
    /// How to choose among several candidates.
    pub balance: Balance,
    /// How long a new session waits for a candidate. Zero: refused at once.
    pub hold: Duration,
    /// How many sessions may wait at once.
    pub max_held: u32,
    /// Sessions released or admitted per second on a fresh primary, over all balancers of the cluster.
    pub release_rate: NonZeroU32,
    /// How a session is refused.
    pub refuse: Refuse,
    /// Replicas that are further behind are drained. `None`: no limit.
    pub max_lag: Option<Bytes>,
    /// What happens to replica sessions when their member is promoted.
    pub on_promote: OnPromote,
    /// Where replica sessions go when there is no replica.
    pub fallback: Fallback,
    /// Only members that carry all these Patroni tags.
    pub tags: BTreeMap<String, String>,
    /// Sessions at once, over all addresses of the listener; never zero.
    pub max_connections: u32,
    /// Sessions at once from one client address. `None`: no limit.
    pub max_connections_per_source: Option<NonZeroU32>,
    /// Only these networks may connect; empty: all.
    pub allow: Vec<IpNet>,
    /// These networks may not connect, whatever `allow` says.
    pub deny: Vec<IpNet>,
    /// The deadline for a server's first byte on one dial.
    pub connect_timeout: Duration,
    /// The deadline for a client's start-up message, PROXY header and TLS handshake.
    pub startup_timeout: Duration,
    /// A session without any byte for so long is cut. `None`: never.
    pub idle_timeout: Option<Duration>,
    /// TCP keepalive on both sides.
    pub keepalive: Keepalive,
    /// `TCP_USER_TIMEOUT` on both sides. `None`: the kernel's own patience.
    pub user_timeout: Option<Duration>,
    /// A PROXY protocol header (version 1 or 2) must come first.
    pub accept_proxy: bool,
    /// Send a PROXY protocol header to the server.
    pub send_proxy: Option<ProxyVersion>,
    /// Whether TLS ends here or at the server.
    pub tls: ListenerTls,
    /// With [`ListenerTls::Terminate`]: TLS to the server. `None`: in the clear.
    pub server_tls: Option<ServerTls>,
}

choice!(
    /// What a listener routes to.
    Target {
        /// The one member that is writable.
        Primary = "primary",
        /// Every healthy replica.
        Replicas = "replicas",
        /// The synchronous standby.
        Sync = "sync",
        /// The replicas that are not the synchronous standby.
        Async = "async",
        /// Every healthy member.
        Any = "any",
    }
);

choice!(
    /// How to choose among several candidates.
    Balance {
        /// Each in turn, by weight.
        RoundRobin = "round-robin",
        /// The fewest sessions for its weight; dials in progress count.
        LeastConnections = "least-connections",
        /// The same client address goes to the same member, on every load balancer (rendezvous hashing).
        Source = "source",
        /// The better of two chosen at random.
        RandomTwo = "random-two",
        /// The first healthy one in the order of names, or of the file.
        First = "first",
    }
);

choice!(
    /// How a session is refused.
    Refuse {
        /// The start-up message is read and answered with an error that says why.
        Explain = "explain",
        /// Closed in silence.
        Close = "close",
    }
);

choice!(
    /// What happens to sessions of a replica target when their member becomes the primary.
    OnPromote {
        /// No new ones; old ones finish.
        Drain = "drain",
        /// Nothing changes for them.
        Keep = "keep",
        /// Closed at once.
        Cut = "cut",
    }
);

choice!(
    /// Where sessions of a replica target go when there is no candidate.
    Fallback {
        /// To the primary.
        Primary = "primary",
        /// They are held, then refused.
        None = "none",
    }
);

choice!(
    /// The version of the PROXY protocol that is sent.
    ProxyVersion {
        /// One line of text.
        V1 = "v1",
        /// Binary.
        V2 = "v2",
    }
);

/// TCP keepalive (`TCP_KEEPIDLE`, `TCP_KEEPINTVL`, `TCP_KEEPCNT`); whole seconds, as the kernel counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Quiet time before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes after which the peer is dead.
    pub probes: NonZeroU8,
}

/// Whether TLS ends here or at the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerTls {
    /// Client and server agree on TLS with each other; we pass bytes.
    Passthrough,
    /// We are the TLS server.
    Terminate {
        /// Our certificate with its chain, PEM.
        cert: PathBuf,
        /// Its key, PEM.
        key: PathBuf,
        /// A PEM file with the CAs of client certificates; given: every TLS client must show one.
        client_ca: Option<PathBuf>,
        /// Refuse clients that do not ask for TLS.
        require: bool,
    },
}

impl ListenerTls {
    /// The word of the file: `passthrough` or `terminate`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Passthrough => "passthrough",
            Self::Terminate { .. } => "terminate",
        }
    }
}
