//! Why a packet counts for nothing, in words for people and in labels for metrics.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// Why a packet counts for nothing. One for each rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reject {
    /// Its IP header makes no sense.
    #[error("its IP header makes no sense")]
    Header,
    /// It is of another protocol.
    #[error("it is of IP protocol {theirs} and not of VRRP, 112")]
    Protocol {
        /// The IP protocol.
        theirs: u8,
    },
    /// It is a part of a packet.
    #[error("it is a fragment of a packet: an advert fits into one, so have fewer addresses or a larger MTU")]
    Fragment,
    /// It is IPv6 and this router IPv4, or the reverse.
    #[error(
        "it is {}, and the addresses of this virtual router are not",
        if *ipv6 { "IPv6" } else { "IPv4" }
    )]
    Family {
        /// It is IPv6.
        ipv6: bool,
    },
    /// Its sender is no host.
    #[error("its source address {host} is not one that a host can have")]
    Source {
        /// Its source.
        host: IpAddr,
    },
    /// Sent to this host alone, while this router uses multicast.
    #[error(
        "it was sent by unicast, to {destination}, and this router uses multicast: give all hosts the same `unicast`, or \
         none of them"
    )]
    Unicast {
        /// Where it went.
        destination: IpAddr,
    },
    /// Sent by multicast, while this router uses unicast.
    #[error(
        "it was sent by multicast, and this router uses unicast: give all hosts the same `unicast`, or none of them"
    )]
    Multicast,
    /// Sent by unicast, by a host that is not configured.
    #[error(
        "its sender {host} is not among the hosts of `unicast`: add it there if it belongs to this group"
    )]
    Stranger {
        /// Its source.
        host: IpAddr,
    },
    /// A router has passed it on.
    #[error(
        "its hop limit is {hop_limit} and has to be at least {least}: a router has passed it on, or it was sent without care"
    )]
    HopLimit {
        /// What was left.
        hop_limit: u8,
        /// What had to be left.
        least: u8,
    },
    /// Shorter or longer than it says itself.
    #[error("it is {length} bytes long, and should be {expected} by what it says itself")]
    Length {
        /// Its length.
        length: usize,
        /// The length that would be right; the least one where not even the header is there.
        expected: usize,
    },
    /// Another version of the protocol.
    #[error(
        "it speaks version {theirs} of VRRP and this router version {ours}: give all hosts the same `version`"
    )]
    Version {
        /// Its version.
        theirs: u8,
        /// Ours.
        ours: u8,
    },
    /// No advertisement.
    #[error("its type is {theirs}, and VRRP knows only type 1")]
    Type {
        /// Its type.
        theirs: u8,
    },
    /// The virtual router 0.
    #[error("its router_id is 0, which is none")]
    RouterId,
    /// It announces nothing.
    #[error("it announces no address at all")]
    NoAddresses,
    /// Damaged on its way, or computed in a way that neither RFC 9568 nor keepalived knows.
    #[error("its checksum is wrong: it was damaged on its way, or its sender counts in another way")]
    Checksum,
    /// Another type of authentication.
    #[error(
        "it uses {theirs} and this router {ours}: give all hosts the same `auth` (keepalived: `auth_type PASS` or no \
         authentication)"
    )]
    AuthType {
        /// Its type of authentication.
        theirs: AuthType,
        /// Ours.
        ours: AuthType,
    },
    /// Another password.
    #[error(
        "its password is another one: give all hosts the same (keepalived's `auth_pass`, of which 8 bytes count)"
    )]
    Password,
    /// Version 2: another interval.
    #[error(
        "it is sent every {} s and ours every {} s: with version 2 all hosts have to have the same `advert_interval`",
        theirs.as_secs(),
        ours.as_secs()
    )]
    Interval {
        /// Its interval.
        theirs: Duration,
        /// Ours.
        ours: Duration,
    },
    /// Version 3: an interval of zero.
    #[error("its interval is zero")]
    NoInterval,
}

/// How a version 2 packet proves where it comes from: the number on the wire (RFC 2338, section 5.3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuthType(pub u8);

impl AuthType {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A password in plain text.
    pub const PASSWORD: Self = Self(1);
    /// An authentication header of `IPsec` (keepalived's `auth_type AH`).
    pub const HEADER: Self = Self(2);
}

impl fmt::Display for AuthType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NONE => f.write_str("no authentication"),
            Self::PASSWORD => f.write_str("a password"),
            Self::HEADER => f.write_str("an authentication header (AH)"),
            Self(other) => write!(f, "authentication of type {other}"),
        }
    }
}

impl Reject {
    /// The label of metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Protocol { .. } => "protocol",
            Self::Fragment => "fragment",
            Self::Family { .. } => "family",
            Self::Source { .. } => "source",
            Self::Unicast { .. } => "unicast",
            Self::Multicast => "multicast",
            Self::Stranger { .. } => "stranger",
            Self::HopLimit { .. } => "hop-limit",
            Self::Length { .. } => "length",
            Self::Version { .. } => "version",
            Self::Type { .. } => "type",
            Self::RouterId => "router-id",
            Self::NoAddresses => "no-addresses",
            Self::Checksum => "checksum",
            Self::AuthType { .. } => "auth-type",
            Self::Password => "password",
            Self::Interval { .. } => "interval",
            Self::NoInterval => "no-interval",
        }
    }

    /// Every label, for counters that begin at zero.
    pub const LABELS: [&'static str; 19] = [
        "header",
        "protocol",
        "fragment",
        "family",
        "source",
        "unicast",
        "multicast",
        "stranger",
        "hop-limit",
        "length",
        "version",
        "type",
        "router-id",
        "no-addresses",
        "checksum",
        "auth-type",
        "password",
        "interval",
        "no-interval",
    ];
}
