//! The two URLs of a member key.

use std::net::Ipv6Addr;
use std::sync::Arc;

use crate::view::{Address, ApiUrl};

/// PostgreSQL's port where a `conn_url` names none.
const POSTGRES_PORT: u16 = 5432;

/// Reads `postgres://user@h1:5432,[fd00::1]:5433/db?x=y` (RFC 3986, with libpq's lists of hosts). User,
/// database and parameters are of no use to us.
///
/// A host without a port takes the port that stands at the end of the list, as Patroni itself reads it. Patroni writes a
/// list that has an IPv6 address in it with one pair of brackets around all of it: `[h1,fd00::1]:5432`.
pub(super) fn conn_url(url: &str) -> Result<Arc<[Address]>, String> {
    let rest =
        ["postgres://", "postgresql://"].iter().find_map(|scheme| strip_prefix_ignore_case(url, scheme));
    let rest = rest.ok_or("it does not begin with postgres:// or postgresql://")?;
    let authority = authority(rest);
    let hosts = match list_in_brackets(authority) {
        Some((list, port)) => {
            let port = port_after(port)?;
            list.split(',').map(|host| Ok((bare_host(host)?, port))).collect::<Result<Vec<_>, String>>()?
        }
        None => authority.split(',').map(host_and_port).collect::<Result<Vec<_>, _>>()?,
    };
    let fallback = hosts.last().and_then(|(_, port)| *port).unwrap_or(POSTGRES_PORT);
    Ok(hosts.into_iter().map(|(host, port)| Address { host, port: port.unwrap_or(fallback) }).collect())
}

/// Reads `https://10.0.0.1:8008/patroni`.
pub(super) fn api_url(url: &str) -> Result<ApiUrl, String> {
    let (tls, rest) = match strip_prefix_ignore_case(url, "https://") {
        Some(rest) => (true, rest),
        None => (
            false,
            strip_prefix_ignore_case(url, "http://").ok_or("it does not begin with http:// or https://")?,
        ),
    };
    let (host, port) = host_and_port(authority(rest))?;
    let port = port.unwrap_or(if tls { 443 } else { 80 });
    Ok(ApiUrl { tls, address: Address { host, port } })
}

/// Reads a host and a port that are given apart, as `GET /cluster` does. The host may be a list, and an IPv6 address in it
/// has no brackets.
pub(super) fn hosts(list: &str, port: Option<u16>) -> Result<Arc<[Address]>, String> {
    let address = |text: &str| {
        let text = text.trim_start_matches('[').trim_end_matches(']');
        let host = if text.contains(':') { ipv6(text) } else { host_name(text) }?;
        Ok(Address { host, port: port.unwrap_or(POSTGRES_PORT) })
    };
    list.split(',').map(address).collect()
}

fn strip_prefix_ignore_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// The part between `//` and path, parameters or fragment, without the user.
fn authority(rest: &str) -> &str {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = rest.get(..end).unwrap_or(rest);
    authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts)
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (ip, port) = rest.split_once(']').ok_or("an IPv6 address lacks its closing bracket")?;
        (ipv6(ip)?, port)
    } else {
        let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        (host_name(host)?, port)
    };
    Ok((host, port_after(port)?))
}

/// `[h1,h2]:port`: the list, and what follows it.
fn list_in_brackets(text: &str) -> Option<(&str, &str)> {
    let (list, port) = text.strip_prefix('[')?.split_once(']')?;
    list.contains(',').then_some((list, port))
}

/// A host of such a list: brackets of its own would be of no help there.
fn bare_host(text: &str) -> Result<String, String> {
    if text.contains(':') { ipv6(text) } else { host_name(text) }
}

/// What follows a host: a colon and a port, or nothing.
fn port_after(text: &str) -> Result<Option<u16>, String> {
    match text.strip_prefix(':') {
        None if !text.is_empty() => Err("something other than a port follows a host".to_owned()),
        None | Some("") => Ok(None),
        Some(digits) => Ok(Some(port_number(digits)?)),
    }
}

/// An IPv6 address, perhaps with a zone: `fe80::1%25eth0` (RFC 6874), or `fe80::1%eth0`, as Patroni writes it.
fn ipv6(text: &str) -> Result<String, String> {
    let (number, zone) = text.split_once('%').map_or((text, None), |(number, zone)| (number, Some(zone)));
    number.parse::<Ipv6Addr>().map_err(|_| "what stands in the brackets is not an IPv6 address")?;
    let Some(zone) = zone else { return Ok(number.to_owned()) };
    let zone = percent_decoded(zone.strip_prefix("25").unwrap_or(zone))?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    if zone.is_empty() || zone.len() > 15 || !zone.chars().all(allowed) {
        return Err("what follows the % is not the name of a network interface".to_owned());
    }
    Ok(format!("{number}%{zone}"))
}

fn host_name(host: &str) -> Result<String, String> {
    let host = percent_decoded(host)?;
    if host.is_empty() {
        return Err("it names no host".to_owned());
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if host.len() > 253 || !host.bytes().all(allowed) {
        return Err("a host is neither an IP address nor a host name".to_owned());
    }
    Ok(host)
}

fn port_number(digits: &str) -> Result<u16, String> {
    let numeric = digits.bytes().all(|b| b.is_ascii_digit());
    let port = if numeric { digits.parse().ok().filter(|port| *port != 0) } else { None };
    port.ok_or_else(|| "a port is not a number from 1 to 65535".to_owned())
}

fn percent_decoded(text: &str) -> Result<String, String> {
    const WRONG: &str = "a % is not followed by two hexadecimal digits of UTF-8 text";
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
            let (high, low) = (digit(bytes.next()).ok_or(WRONG)?, digit(bytes.next()).ok_or(WRONG)?);
            u8::try_from(high * 16 + low).map_err(|_| WRONG)?
        } else {
            byte
        });
    }
    String::from_utf8(decoded).map_err(|_| WRONG.to_owned())
}
