//! `[clusters.NAME]`: one Patroni scope, or one fixed set of servers.

use std::{
    collections::BTreeMap,
    num::{NonZeroU16, NonZeroU32},
    path::PathBuf,
};

use crate::{ClusterName, Credentials, Endpoint, HostPort, MemberName, Secret, choice::choice};

/// One cluster of PostgreSQL servers.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// The table's name.
    pub name: ClusterName,
    /// Patroni's `scope`.
    pub scope: String,
    /// Patroni's `namespace`, with a slash in front and none at the end; empty for the root.
    pub namespace: String,
    /// How many load balancers share this cluster: each takes its part of `release_rate`.
    pub balancers: NonZeroU32,
    /// What to do when nothing has confirmed the leader for a ttl.
    pub stale_primary: StalePrimary,
    /// Which of a member's addresses its sessions go to.
    pub connect_to: ConnectTo,
    /// How to ask the servers over SQL, if at all.
    pub sql: Option<Sql>,
    /// How to ask Patroni's REST interface.
    pub rest: Rest,
    /// Where the members are learned from.
    pub discovery: Discovery,
    /// Weights by member name, for members that the store names. See [`Cluster::weight`].
    pub weights: BTreeMap<String, NonZeroU16>,
}

impl Cluster {
    /// The weight of a member in `round-robin`, `least-connections`, `source` and `random-two`: 1 unless the
    /// file gives another, at most 256.
    pub fn weight(&self, member: &str) -> NonZeroU16 {
        let fixed = match &self.discovery {
            Discovery::Static(fixed) => {
                fixed.members.iter().find(|m| m.name.as_str() == member).map(|m| m.weight)
            }
            Discovery::Etcd(_) | Discovery::Consul(_) | Discovery::Patroni(_) => {
                self.weights.get(member).copied()
            }
        };
        fixed.unwrap_or(NonZeroU16::MIN)
    }

    /// True when the file itself says that several members are writable at once, so that there is no primary.
    pub fn is_multi_master(&self) -> bool {
        matches!(&self.discovery, Discovery::Static(fixed) if fixed.probe == Probe::Tcp)
    }
}

choice!(
    /// What to do with the primary when neither the source nor the leader itself (REST or SQL) has confirmed it for a ttl.
    StalePrimary {
        /// Hold new sessions.
        Hold = "hold",
        /// Go on routing to the last one known.
        Route = "route",
    }
);

choice!(
    /// Which address of a member key sessions go to.
    ConnectTo {
        /// PostgreSQL itself (Patroni: `postgresql.connect_address`).
        ConnUrl = "conn_url",
        /// The connection pool beside it (Patroni: `postgresql.proxy_address`), where the member has one.
        ProxyUrl = "proxy_url",
    }
);

/// Where the members and their roles are learned from.
#[derive(Clone, Debug, PartialEq)]
pub enum Discovery {
    /// Patroni's keys in etcd, version 3 API.
    Etcd(Etcd),
    /// Patroni's keys in Consul's KV store.
    Consul(Consul),
    /// Patroni's REST interface on each member; no store.
    Patroni(PatroniRest),
    /// A fixed list of servers.
    Static(StaticMembers),
}

impl Discovery {
    /// The word of the file: `etcd`, `consul`, `patroni` or `static`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Etcd(_) => "etcd",
            Self::Consul(_) => "consul",
            Self::Patroni(_) => "patroni",
            Self::Static(_) => "static",
        }
    }
}

/// `[clusters.NAME.discovery.etcd]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Etcd {
    /// At least one; all of the same store.
    pub endpoints: Vec<Endpoint>,
    /// etcd's user and password authentication.
    pub credentials: Option<Credentials>,
    /// For `https` endpoints: own CA, client certificate. `None`: the system's CAs, no client certificate.
    pub tls: Option<ClientTls>,
}

/// `[clusters.NAME.discovery.consul]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Consul {
    /// At least one agent or server.
    pub addresses: Vec<Endpoint>,
    /// An ACL token that may read the KV prefix.
    pub token: Option<Secret>,
    /// Consul's datacenter; `None`: that of the agent.
    pub datacenter: Option<String>,
    /// For `https` addresses: own CA, client certificate.
    pub tls: Option<ClientTls>,
}

/// `[clusters.NAME.discovery.patroni]`.
#[derive(Clone, Debug, PartialEq)]
pub struct PatroniRest {
    /// At least one REST interface; `https` where the file says so or `rest.tls` is given.
    pub members: Vec<Endpoint>,
}

/// `[clusters.NAME.discovery.static]`.
#[derive(Clone, Debug, PartialEq)]
pub struct StaticMembers {
    /// At least one, no name and no address twice.
    pub members: Vec<StaticMember>,
    /// How to find out which of them is what.
    pub probe: Probe,
}

/// One server of a fixed list.
#[derive(Clone, Debug, PartialEq)]
pub struct StaticMember {
    /// Its name.
    pub name: MemberName,
    /// Where PostgreSQL listens.
    pub address: HostPort,
    /// Its share, 1 to 256.
    pub weight: NonZeroU16,
}

choice!(
    /// How the members of a fixed list are asked.
    Probe {
        /// The role comes from `pg_is_in_recovery()`; needs `[clusters.NAME.sql]`.
        Sql = "sql",
        /// Every healthy member is writable (multi-master); only `target = "any"`.
        Tcp = "tcp",
    }
);

/// `[clusters.NAME.rest]`: how to ask Patroni's REST interface, wherever its addresses come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rest {
    /// For `https` addresses: own CA, client certificate.
    pub tls: Option<ClientTls>,
    /// Patroni's `restapi.authentication`; the read-only questions that we ask do not need it by default.
    pub credentials: Option<Credentials>,
}

/// How we, as a TLS client, check the other side and prove who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// A PEM file with the CAs to trust. `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Our own certificate (PEM, with its chain) and its key.
    pub cert_key: Option<(PathBuf, PathBuf)>,
    /// The name to expect in the certificate. `None`: the host of the address.
    pub server_name: Option<String>,
    /// How far to check.
    pub verify: Verify,
}

/// How we, as a TLS client, speak to PostgreSQL behind a listener that terminates TLS.
pub type ServerTls = ClientTls;

choice!(
    /// How far a server's certificate is checked.
    Verify {
        /// The chain and the name.
        Full = "full",
        /// The chain only: for certificates that do not name the address.
        Ca = "ca",
        /// Nothing: encrypted, but anybody could be at the other end.
        None = "none",
    }
);

/// `[clusters.NAME.sql]`: how to ask the servers over SQL.
#[derive(Clone, Debug, PartialEq)]
pub struct Sql {
    /// The PostgreSQL user. It needs no more than CONNECT.
    pub user: String,
    /// The database to connect to.
    pub dbname: String,
    /// Its password; `None` where `pg_hba.conf` asks for none.
    pub password: Option<Secret>,
    /// As libpq's `sslmode`.
    pub tls: SqlTls,
    /// A PEM file with the CAs to trust, for `verify-ca` and `verify-full`. `None`: the system's.
    pub ca: Option<PathBuf>,
    /// A client certificate and its key.
    pub cert_key: Option<(PathBuf, PathBuf)>,
}

choice!(
    /// libpq's `sslmode`, without `allow`.
    SqlTls {
        /// Never.
        Disable = "disable",
        /// When the server offers it.
        Prefer = "prefer",
        /// Always, without a check of the certificate.
        Require = "require",
        /// Always, and the certificate must come from a CA that we trust.
        VerifyCa = "verify-ca",
        /// Always, and the certificate must name the server too.
        VerifyFull = "verify-full",
    }
);
