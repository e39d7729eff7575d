//! `[vrrp]` and `[[vips]]`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU8,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    Centiseconds, Checksum, NodeName, Peers, Secret, Vip, VipName, Vrrp, VrrpProtocol,
    read::{
        process::check_sockets,
        report_twice,
        shared::{self, Bind, Binds},
        track::{Group, track},
    },
    reader::{Problem, Span, Table, Value, one_of, quote},
    units::{minutes, seconds, write_duration},
};

const SOCKET: &str = "/run/pointsman/vip.sock";
const EXAMPLE: &str = "[{ interface = \"eth0\", router_id = 51, ... }]";
const PEERS: &str = "{ lb1 = \"10.0.0.11:7001\", lb2 = \"10.0.0.12:7001\" }";
const PRIORITY: &str = "{ lb1 = 150, lb2 = 100, lb3 = 50 }";
const ADDRESSES: &str = "[\"192.168.60.110/24\"]";

pub(super) fn read_all(
    root: &mut Table<'_>,
    node: Option<&NodeName>,
    binds: &mut Binds,
    admin_socket: &PathBuf,
) -> (Option<Vrrp>, Vec<Vip>) {
    let mut vrrp = None;
    if let Some(value) = root.get("vrrp")
        && let Some(table) =
            value.table("vrrp", "[vrrp]".to_owned(), "{ socket = \"/run/pointsman/vip.sock\" }")
    {
        vrrp = Some(vrrp_section(table, node, binds, admin_socket));
    }
    let tables = root.tables("vips", EXAMPLE);
    if !tables.is_empty() && vrrp.is_none() {
        vrrp = Some(Vrrp {
            socket: root.cx.resolve(SOCKET),
            bind: Vec::new(),
            peers: None,
            realtime: false,
            lock_memory: false,
        });
    }
    let peers = vrrp.as_ref().and_then(|vrrp| vrrp.peers.as_ref()).map(|peers| &peers.nodes);
    let mut vips: Vec<(Span, Vip)> = Vec::new();
    for table in tables {
        let span = table.span();
        let cx = table.cx;
        let Some(vip) = vip(table, node, peers) else { continue };
        if let Some((message, first)) =
            vips.iter().find_map(|(first, other)| Some((clash(&vip, other)?, first)))
        {
            report_twice(
                cx,
                &span,
                &message,
                first,
                "give each virtual router its own name, router_id and addresses",
            );
        }
        vips.push((span, vip));
    }
    (vrrp, vips.into_iter().map(|(_, vip)| vip).collect())
}

/// What two virtual routers of one host must not share.
fn clash(vip: &Vip, other: &Vip) -> Option<String> {
    let same_router = vip.interface == other.interface && vip.router_id == other.router_id;
    if same_router && vip.is_ipv6() == other.is_ipv6() {
        return Some(format!("router_id {} on {}", vip.router_id, vip.interface));
    }
    let shared = |net: &&IpNet| other.addresses.iter().any(|theirs| theirs.addr() == net.addr());
    if let Some(net) = vip.addresses.iter().find(shared) {
        return Some(format!("address `{}`", net.addr()));
    }
    (vip.name == other.name).then(|| format!("vip {}", quote(vip.name.as_str())))
}

fn vrrp_section(mut table: Table<'_>, node: Option<&NodeName>, binds: &mut Binds, admin: &PathBuf) -> Vrrp {
    let (socket, span) = shared::socket(&mut table, "socket", SOCKET);
    check_sockets(&table, &span, &socket, admin);
    let heartbeat =
        table.duration("heartbeat", Duration::from_millis(3)..=seconds(1), Duration::from_millis(30));
    let pages = table.get("bind").map(|value| shared::binds(value, 7002)).unwrap_or_default();
    let bind = pages.iter().map(|page| page.address).collect();
    binds.extend(pages);
    let realtime = table.boolean("realtime", false);
    let lock_memory = table.boolean("lock_memory", false);
    let (key, key_span) = shared::secret(&mut table, "key_file", None);
    if let (Some(key), Some(span)) = (&key, &key_span) {
        check_key(&table, key, span);
    }
    let peers = table.get("peers");
    let nodes = peers.map(|value| nodes(value, node, binds)).unwrap_or_default();
    match (&peers, &key_span) {
        (Some(peers), None) => {
            let help =
                "write key_file = \"/etc/pointsman/peers.key\"; make one with: openssl rand -base64 32";
            peers.error("`peers` without `key_file`: anybody could speak for them", help);
        }
        (None, Some(span)) => {
            table.cx.error(
                span,
                "`key_file` without `peers`",
                format!("write peers = {PEERS}, or remove it"),
            );
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    table.finish();
    let peers = peers.and(key).map(|key| Peers { nodes, key, heartbeat });
    Vrrp { socket, bind, peers, realtime, lock_memory }
}

fn check_key(table: &Table<'_>, key: &Secret, span: &Span) {
    if key.expose().len() < 16 {
        let message = format!("{} holds fewer than 16 bytes", key.source());
        table.cx.error(
            span,
            message,
            "make a new one on one host, and copy it to the others: openssl rand -base64 32",
        );
    }
}

fn nodes(value: Value<'_>, node: Option<&NodeName>, binds: &mut Binds) -> BTreeMap<NodeName, SocketAddr> {
    let mut nodes: BTreeMap<NodeName, SocketAddr> = BTreeMap::new();
    for (span, entry) in value.entries(PEERS) {
        let name: Option<NodeName> = node_name(entry, &span);
        let address = entry.parse("\"10.0.0.11:7001\"", peer_address);
        let (Some(name), Some(address)) = (name, address) else { continue };
        if nodes.values().any(|other| *other == address) {
            entry.error(format!("address `{address}` is there twice"), "give each node its own address");
        }
        if Some(&name) == node {
            binds.extend([Bind { address, span: entry.span(), written: true }]);
        }
        nodes.insert(name, address);
    }
    if let (Some(node), true) = (node, value.is_table())
        && !nodes.contains_key(node)
    {
        missing_node(value, node, nodes.keys(), "\"10.0.0.13:7001\"");
    }
    nodes
}

fn node_name(entry: Value<'_>, span: &Span) -> Option<NodeName> {
    match shared::name(entry.key) {
        Ok(name) => Some(name),
        Err(problem) => {
            entry.cx.error(span, problem.message, problem.help);
            None
        }
    }
}

/// The file serves several hosts, and this one is not among them: mostly a host name that is not the short one.
fn missing_node<'n>(
    value: Value<'_>,
    node: &NodeName,
    known: impl Iterator<Item = &'n NodeName>,
    example: &str,
) {
    let known = one_of(known.map(NodeName::as_str));
    let message = format!("`{}` does not name this node, {}", value.key, quote(node.as_str()));
    value.error(
        message,
        format!("write node = ... at the top of the file ({known}), or add {node} = {example} here"),
    );
}

fn peer_address(text: &str) -> Result<SocketAddr, Problem> {
    let help = "write the IP address and port at which the other hosts reach it, as in \"10.0.0.11:7001\"";
    let address =
        shared::socket_addr(text, 7001).map_err(|problem| Problem { help: help.to_owned(), ..problem })?;
    if address.ip().is_unspecified() {
        let message = format!("{} is not the address of one host", quote(text));
        return Err(Problem::new(message, help));
    }
    Ok(address)
}

fn vip(
    mut table: Table<'_>,
    node: Option<&NodeName>,
    peers: Option<&BTreeMap<NodeName, SocketAddr>>,
) -> Option<Vip> {
    let interface = table.required("interface", "\"eth0\"").and_then(interface);
    let router_id = table.required("router_id", "51").and_then(|value| small(value, 255));
    let name_written = table.get("name");
    let name: Option<VipName> = name_written.and_then(|value| value.parse("\"write\"", shared::name));
    let addresses = addresses(&mut table);
    let ipv6 = matches!(addresses.first(), Some((IpNet::V6(_), _)));
    let priority_written = table.required("priority", PRIORITY);
    let priority = priority_written.and_then(|value| priorities(value, node));
    if let (Some(value), Some((_, all)), Some(peers)) = (priority_written, &priority, peers) {
        compare_hosts(value, all, peers);
    }
    let protocol = protocol(&mut table, ipv6);
    let unicast = unicast(&mut table, ipv6);
    let preempt = table.boolean("preempt", true);
    let preempt_delay = table.duration("preempt_delay", Duration::ZERO..=minutes(60), seconds(5));
    let group = priority.as_ref().map(|(own, all)| Group { own: *own, all, preempt });
    let track = track(&mut table, interface.as_deref(), group.as_ref());
    let notify = table.get("notify").and_then(executable);
    if let (Some((own, _)), false, Some(value)) = (&priority, preempt, table.get("preempt"))
        && own.get() == 255
    {
        let help = "write a priority from 1 to 254, or preempt = true";
        value.error("a router with priority 255 owns its addresses and always takes them", help);
    }
    table.finish();
    let (interface, router_id) = (interface?, router_id?);
    let (priority, priorities) = priority?;
    let name = match (name_written, name) {
        (Some(_), name) => name?,
        (None, _) => VipName::new(&default_name(&interface, router_id)).ok()?,
    };
    let addresses = addresses.into_iter().map(|(net, _)| net).collect();
    Some(Vip {
        name,
        interface,
        router_id,
        priority,
        priorities,
        addresses,
        protocol: protocol?,
        unicast,
        preempt,
        preempt_delay,
        track,
        notify,
    })
}

/// `eth0-51`; what an interface may be called and a name may not becomes a dash.
fn default_name(interface: &str, router_id: NonZeroU8) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
    format!("{}-{router_id}", interface.chars().map(clean).collect::<String>())
}

fn small(value: Value<'_>, high: u32) -> Option<NonZeroU8> {
    value.integer(&(1..=high)).and_then(|number| NonZeroU8::new(u8::try_from(number).ok()?))
}

/// As Linux names its interfaces (IFNAMSIZ: 15 bytes).
pub(super) fn interface(value: Value<'_>) -> Option<String> {
    let name = value.text("\"eth0\"")?;
    let bad = |c: char| c == '/' || c.is_whitespace() || !c.is_ascii();
    if name.len() > 15 || name.contains(bad) || matches!(name, "." | "..") {
        let message = format!("{} cannot be the name of a network interface", quote(name));
        value.error(message, "write a name as `ip link` shows it, of at most 15 characters");
        return None;
    }
    Some(name.to_owned())
}

/// At least one, with its prefix, all of the same family.
fn addresses(table: &mut Table<'_>) -> Vec<(IpNet, Span)> {
    let Some(value) = table.required("addresses", ADDRESSES) else { return Vec::new() };
    let Some(items) = value.list(ADDRESSES) else { return Vec::new() };
    if items.is_empty() {
        value.error("`addresses` is empty", format!("write addresses = {ADDRESSES}"));
    }
    let mut nets: Vec<(IpNet, Span)> = Vec::new();
    for item in items {
        let Some(net) = item.parse(ADDRESSES, address) else { continue };
        let is_v4 = |net: &IpNet| matches!(net, IpNet::V4(_));
        if nets.first().is_some_and(|(first, _)| is_v4(first) != is_v4(&net)) {
            let help = "write a second [[vips]] for the other family";
            item.error("IPv4 and IPv6 addresses in one virtual router", help);
        }
        if nets.iter().any(|(other, _)| other.addr() == net.addr()) {
            item.error(format!("address `{}` is there twice", net.addr()), "remove one of the two");
        }
        nets.push((net, item.span()));
    }
    nets
}

fn address(text: &str) -> Result<IpNet, Problem> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let example = if ip.is_ipv4() { 24 } else { 64 };
        let message = format!("{} has no prefix", quote(text));
        return Err(Problem::new(
            message,
            format!("write \"{ip}/{example}\", with the prefix of your network"),
        ));
    }
    let net: Option<IpNet> = text.parse().ok();
    let unusable =
        |net: &IpNet| net.addr().is_unspecified() || net.addr().is_multicast() || net.addr().is_loopback();
    net.filter(|net| !unusable(net)).ok_or_else(|| {
        let message = format!("{} is not an address with a prefix that a host can have", quote(text));
        Problem::new(message, "write \"192.168.60.110/24\" or \"fd00::110/64\"")
    })
}

/// A number, or one for each node: ours and all of them.
fn priorities(
    value: Value<'_>,
    node: Option<&NodeName>,
) -> Option<(NonZeroU8, BTreeMap<NodeName, NonZeroU8>)> {
    if value.is_integer() {
        return small(value, 255).map(|own| (own, BTreeMap::new()));
    }
    let mut all: BTreeMap<NodeName, NonZeroU8> = BTreeMap::new();
    for (span, entry) in value.entries(PRIORITY) {
        let (Some(name), Some(priority)) = (node_name(entry, &span), small(entry, 255)) else { continue };
        if let Some((other, _)) = all.iter().find(|(_, other)| **other == priority) {
            let message = format!("`{other}` and `{name}` have the same priority");
            entry.error(message, "give each node its own, some way apart: 150, 100, 50");
        }
        all.insert(name, priority);
    }
    let own = node.and_then(|node| all.get(node).copied());
    if let (None, Some(node), true) = (own, node, value.is_table()) {
        missing_node(value, node, all.keys(), "50");
    }
    own.map(|own| (own, all))
}

/// The hosts that signal each other and those of a virtual router are mostly meant to be the same.
fn compare_hosts(
    value: Value<'_>,
    priorities: &BTreeMap<NodeName, NonZeroU8>,
    peers: &BTreeMap<NodeName, SocketAddr>,
) {
    if priorities.is_empty() {
        return;
    }
    let names = |names: Vec<&NodeName>| {
        names.iter().map(|name| quote(name.as_str())).collect::<Vec<_>>().join(" and ")
    };
    let without_priority: Vec<_> = peers.keys().filter(|name| !priorities.contains_key(*name)).collect();
    if !without_priority.is_empty() {
        let message = format!("`peers` names {}, and `priority` does not", names(without_priority));
        let help = "add it here; leave it out only if it has no part in this virtual router";
        value.cx.warning(&value.span(), message, help);
    }
    let without_signals: Vec<_> = priorities.keys().filter(|name| !peers.contains_key(*name)).collect();
    if !without_signals.is_empty() {
        let message = format!("`priority` names {}, and `peers` does not", names(without_signals));
        let help = "add it to `peers` in [vrrp]; without that its loss is noticed by VRRP's timers only";
        value.cx.warning(&value.span(), message, help);
    }
}

fn protocol(table: &mut Table<'_>, ipv6: bool) -> Option<VrrpProtocol> {
    let version = table.get("version");
    let number = version.map_or(Some(3), |value| value.integer(&(2..=3)));
    let interval = table.get("advert_interval");
    let auth_written = table.get("auth");
    let auth = auth_written.and_then(|value| auth(table, value));
    let checksum_written = table.get("checksum");
    let checksum = checksum_written.and_then(|value| value.choice());
    if number? == 2 {
        if let (Some(value), true) = (version, ipv6) {
            value.error("version 2 has no IPv6", "write version = 3");
        }
        if let Some(value) = checksum_written {
            value.error("`checksum` is not used with version 2", "remove it");
        }
        let interval_seconds = interval.map_or(Some(NonZeroU8::MIN), whole_seconds)?;
        return Some(VrrpProtocol::V2 { interval_seconds, auth });
    }
    if let Some(value) = auth_written {
        let help = "write version = 2 to join a keepalived group with a password, or remove auth";
        value.error("`auth` exists in version 2 only", help);
    }
    let interval = interval.map_or_else(|| Centiseconds::new(10), centiseconds)?;
    Some(VrrpProtocol::V3 { interval, checksum: checksum.unwrap_or(Checksum::PseudoHeader) })
}

fn auth(table: &Table<'_>, value: Value<'_>) -> Option<Secret> {
    let example = "{ password_file = \"/etc/pointsman/vrrp.password\" }";
    let mut auth = value.table("vips.auth", format!("`auth` of {}", table.title()), example)?;
    let (secret, span) = shared::secret(&mut auth, "password_file", Some("password_env"));
    match (&secret, &span) {
        (None, None) => {
            auth.cx.error(&value.span(), "`auth` without a password", format!("write auth = {example}"));
        }
        (Some(secret), Some(span)) if secret.expose().len() > 8 => {
            let message = format!("{} holds more than 8 bytes", secret.source());
            auth.cx.error(
                span,
                message,
                "VRRP version 2 carries 8 bytes; keepalived cuts off the rest: do the same in the file",
            );
        }
        (Some(_) | None, _) => {}
    }
    auth.finish();
    secret
}

/// Version 2 carries whole seconds, 1 to 255.
fn whole_seconds(value: Value<'_>) -> Option<NonZeroU8> {
    let time = value.duration(&(Duration::ZERO..=minutes(60)), "\"1s\"")?;
    let number = u8::try_from(time.as_secs()).ok().and_then(NonZeroU8::new);
    let number = number.filter(|_| time.subsec_nanos() == 0);
    if number.is_none() {
        let message = format!("version 2 cannot carry an interval of {}", write_duration(time));
        value.error(message, "write whole seconds from \"1s\" to \"255s\", or version = 3");
    }
    number
}

/// Version 3 carries hundredths of a second, 1 to 4095.
fn centiseconds(value: Value<'_>) -> Option<Centiseconds> {
    let time = value.duration(&(Duration::ZERO..=minutes(60)), "\"100ms\"")?;
    let whole = time.as_micros().is_multiple_of(10_000);
    let number = u16::try_from(time.as_millis() / 10).ok().and_then(Centiseconds::new).filter(|_| whole);
    if number.is_none() {
        let message = format!("version 3 cannot carry an interval of {}", write_duration(time));
        value.error(message, "write a multiple of \"10ms\" up to \"40950ms\"");
    }
    number
}

fn unicast(table: &mut Table<'_>, ipv6: bool) -> Vec<IpAddr> {
    let example = if ipv6 { "[\"fd00::11\", \"fd00::12\"]" } else { "[\"10.0.0.11\", \"10.0.0.12\"]" };
    let items = table.get("unicast").and_then(|value| value.list(example)).unwrap_or_default();
    let mut list = Vec::new();
    for item in items {
        let read = |text: &str| {
            let message = format!("{} is not an IP address", quote(text));
            text.parse::<IpAddr>().map_err(|_| Problem::new(message, format!("write unicast = {example}")))
        };
        let Some(ip) = item.parse(example, read) else { continue };
        if ip.is_ipv6() != ipv6 {
            let message = format!("`{ip}` is of another family than `addresses`");
            item.error(message, format!("write unicast = {example}"));
        } else if ip.is_multicast() || ip.is_unspecified() {
            item.error(format!("`{ip}` is not the address of one host"), "leave unicast out for multicast");
        }
        list.push(ip);
    }
    list
}

/// A program that exists. Whether it may be run is known only to the user that runs it.
fn executable(value: Value<'_>) -> Option<PathBuf> {
    let path = value.cx.resolve(value.text("\"/etc/pointsman/notify.sh\"")?);
    shared::read_file(value, Path::new(&path))?;
    Some(path)
}
