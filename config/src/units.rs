//! Quantities and addresses, each with one way to write it.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};

use serde::{Serialize, Serializer};

use crate::choice::choice;

/// A number of bytes, for example a distance between two WAL positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Bytes(pub u64);

const BINARY_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const DECIMAL_UNITS: [(&str, u64); 4] =
    [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1000)];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |&&(_, size): &&(&str, u64)| self.0 >= size && self.0.is_multiple_of(size);
        match BINARY_UNITS.iter().find(fits) {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// Reads `16MiB`, `1 GB`, `512B`. Units are binary (`KiB`) or decimal (`kB`), upper or lower case.
pub(crate) fn parse_bytes(text: &str) -> Option<Bytes> {
    let (number, unit) = split_unit(text)?;
    let all = BINARY_UNITS.iter().chain(&DECIMAL_UNITS);
    let (_, size) = all.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.checked_mul(*size).map(Bytes)
}

const TIME_UNITS: [(&str, u64); 6] =
    [("us", 1), ("ms", 1000), ("s", 1_000_000), ("m", 60_000_000), ("min", 60_000_000), ("h", 3_600_000_000)];

/// Reads `30s`, `100ms`, `5m`, `1h`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let (_, micros) = TIME_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*micros).map(Duration::from_micros)
}

/// The shortest text that [`parse_duration`] reads back as the same value.
pub(crate) fn write_duration(value: Duration) -> String {
    let micros = value.as_micros();
    for (unit, size) in [("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1000)] {
        if micros >= size && micros.is_multiple_of(size) {
            return format!("{}{unit}", micros / size);
        }
    }
    if micros == 0 { "0s".to_owned() } else { format!("{micros}us") }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// A host name or an IP address, and a port: `10.0.0.1:5432`, `[fd00::1]:5432`, `pg1.example.com:5432`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    host: Box<str>,
    port: NonZeroU16,
}

impl HostPort {
    /// The host name or IP address, IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port.get()
    }

    /// The socket address, when the host is an IP address: nothing needs to be resolved.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port.get()))
    }

    /// Reads `host:port`; the error says what is wrong, as the end of the sentence "it ...".
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("has no host");
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (ip, port) = rest.split_once("]:").ok_or("has no port after the brackets")?;
                ip.parse::<Ipv6Addr>().map_err(|_| "has no IPv6 address in the brackets")?;
                (ip, port)
            }
            None => {
                let (host, port) = text.rsplit_once(':').ok_or("has no port")?;
                if host.contains(':') {
                    return Err("has an IPv6 address without brackets");
                }
                (host, port)
            }
        };
        let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_ip = host.parse::<IpAddr>().is_ok();
        if host.is_empty() {
            return Err("has no host");
        }
        if !is_ip && (!host.chars().all(name) || host.len() > 253) {
            return Err("has a host that is neither an IP address nor a host name");
        }
        let numeric = host.chars().all(|c| c.is_ascii_digit() || c == '.');
        if !is_ip && numeric {
            return Err("has an IP address that does not exist");
        }
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = if digits { port.parse().ok() } else { None };
        Ok(Self { host: host.into(), port: port.ok_or("needs a port from 1 to 65535")? })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

choice!(
    /// How to speak to an HTTP or gRPC endpoint.
    Scheme {
        /// In the clear.
        Http = "http",
        /// Over TLS.
        Https = "https",
    }
);

/// Where a store or a Patroni REST interface answers: `https://10.0.0.1:2379`. No path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// In the clear or over TLS.
    pub scheme: Scheme,
    /// Host and port.
    pub address: HostPort,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.address)
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A time in hundredths of a second, as VRRP version 3 carries it (RFC 9568, Max Advertise Interval: 12 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Centiseconds(NonZeroU16);

impl Centiseconds {
    /// 1 to 4095 hundredths of a second.
    pub fn new(value: u16) -> Option<Self> {
        NonZeroU16::new(value).filter(|value| value.get() <= 4095).map(Self)
    }

    /// The number on the wire.
    pub fn get(self) -> u16 {
        self.0.get()
    }

    /// As a duration.
    pub fn as_duration(self) -> Duration {
        Duration::from_millis(u64::from(self.0.get()) * 10)
    }
}

pub(crate) const fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

pub(crate) const fn minutes(number: u64) -> Duration {
    Duration::from_secs(number * 60)
}
