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
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (ip, port) = rest.split_once("]:").ok_or("has no port after the brackets")?;
            ip.parse::<Ipv6Addr>().map_err(|_| "has no IPv6 address in the brackets")?;
            (ip, port)
        } else {
            let (host, port) = text.rsplit_once(':').ok_or("has no port")?;
            if host.contains(':') {
                return Err("has an IPv6 address without brackets");
            }
            (host, port)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, micros) in [
            ("0s", 0),
            ("250us", 250),
            ("30ms", 30_000),
            ("1500ms", 1_500_000),
            ("60s", 60_000_000),
            ("5 m", 300_000_000),
            ("5min", 300_000_000),
            ("24h", 86_400_000_000),
        ] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration, Duration::from_micros(micros), "{text}");
            assert_eq!(parse_duration(&write_duration(duration)), Some(duration), "{text}");
        }
        for text in
            ["", "s", "60", "1.5s", "-1s", "1S", "1 s s", "99999999999999999999s", "18446744073709551615h"]
        {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes, shown) in [
            ("512B", 512, "512B"),
            ("16MiB", 16 << 20, "16MiB"),
            ("16 mib", 16 << 20, "16MiB"),
            ("1GB", 1_000_000_000, "1000000000B"),
            ("2kb", 2000, "2000B"),
            ("1TiB", 1 << 40, "1TiB"),
            ("0B", 0, "0B"),
        ] {
            assert_eq!(parse_bytes(text), Some(Bytes(bytes)), "{text}");
            assert_eq!(Bytes(bytes).to_string(), shown);
            assert_eq!(parse_bytes(shown), Some(Bytes(bytes)));
        }
        for text in ["", "16", "MiB", "1.5GiB", "-1B", "16777216TiB", "1 megabyte"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn hosts_and_ports() {
        for text in ["10.0.0.1:5432", "[fd00::1]:1", "pg1:65535", "pg-1.example_x.com:5432"] {
            assert_eq!(HostPort::parse(text).unwrap().to_string(), text);
        }
        let address = HostPort::parse("[fd00::1]:5432").unwrap();
        assert_eq!((address.host(), address.port()), ("fd00::1", 5432));
        assert_eq!(address.socket_addr(), "[fd00::1]:5432".parse().ok());
        assert_eq!(HostPort::parse("pg1:5432").unwrap().socket_addr(), None);
        for text in [
            "",
            ":1",
            "pg1",
            "pg1:",
            "pg1:0",
            "pg1:+1",
            "pg1:65536",
            "fd00::1",
            "[fd00::1]",
            "[pg1]:1",
            "a b:1",
            "1.2.3:1",
        ] {
            assert!(HostPort::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn centiseconds() {
        assert_eq!(Centiseconds::new(0), None);
        assert_eq!(Centiseconds::new(4096), None);
        assert_eq!(Centiseconds::new(4095).unwrap().as_duration(), Duration::from_millis(40_950));
    }
}
