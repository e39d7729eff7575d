//! `[clusters.NAME]`.

use std::{
    collections::BTreeMap,
    num::{NonZeroU16, NonZeroU32},
};

use crate::{
    Cluster, ClusterName, ConnectTo, Consul, Discovery, Etcd, MemberName, PatroniRest, Probe, Rest, Scheme,
    Sql, SqlTls, StalePrimary, StaticMember, StaticMembers,
    read::{report_twice, shared},
    reader::{Span, Table, Value, one_of, quote},
};

/// One cluster as far as it could be read.
pub(super) struct Draft<'a> {
    /// The key, whatever it is.
    pub(super) name: &'a str,
    pub(super) span: Span,
    pub(super) cluster: Option<Cluster>,
    /// The kind of discovery, known even when the rest is wrong.
    pub(super) is_static: bool,
    probes_sql: bool,
    pub(super) is_multi_master: bool,
}

const KINDS: [&str; 4] = ["etcd", "consul", "patroni", "static"];
const DISCOVERY: &str = "{ etcd = { endpoints = [\"http://10.0.0.1:2379\"] } }";
const MEMBER: &str = "[{ name = \"pg1\", address = \"10.0.0.1:5432\" }]";

pub(super) fn read_all<'a>(root: &mut Table<'a>) -> Vec<Draft<'a>> {
    let entries = root.entries("clusters", "{ main = { ... } }");
    entries.into_iter().map(|(span, value)| read(&span, value)).collect()
}

fn read<'a>(span: &Span, value: Value<'a>) -> Draft<'a> {
    let mut draft = Draft {
        name: value.key,
        span: span.clone(),
        cluster: None,
        is_static: false,
        probes_sql: false,
        is_multi_master: false,
    };
    let name: Option<ClusterName> = match shared::name(value.key) {
        Ok(name) => Some(name),
        Err(problem) => {
            value.cx.error(span, problem.message, problem.help);
            None
        }
    };
    let title = format!("[clusters.{}]", value.key);
    let Some(mut table) = value.table("clusters.*", title, "{ discovery = ... }") else { return draft };
    let scope = table.text("scope", "\"main\"");
    let namespace = table.text("namespace", "\"/service\"").unwrap_or_else(|| "/service".to_owned());
    let balancers = table.integer("balancers", 1..=1000, 1);
    let stale_primary = table.choice("stale_primary", StalePrimary::Hold);
    let connect_to = table.choice("connect_to", ConnectTo::ConnUrl);
    let sql = sql(&mut table);
    let rest = rest(&mut table);
    let discovery = discovery(&mut table, &rest, &mut draft);
    let weights = weights(&mut table, draft.is_static);
    if draft.probes_sql && table.get("sql").is_none() {
        let message = format!("{} is probed over SQL, but has no `sql`", table.title());
        let help = "write sql = { user = \"pointsman\", password_file = \"...\" }, or probe = \"tcp\" if every member is writable";
        table.cx.error(&table.span(), message, help);
    }
    table.finish();
    draft.cluster = name.zip(discovery).map(|(name, discovery)| Cluster {
        scope: scope.unwrap_or_else(|| name.to_string()),
        name,
        namespace: slashes(&namespace),
        balancers: NonZeroU32::new(balancers).unwrap_or(NonZeroU32::MIN),
        stale_primary,
        connect_to,
        sql,
        rest,
        discovery,
        weights,
    });
    draft
}

/// As Patroni builds its keys: one slash in front, none at the end.
fn slashes(namespace: &str) -> String {
    match namespace.trim_matches('/') {
        "" => String::new(),
        path => format!("/{path}"),
    }
}

fn weights(table: &mut Table<'_>, is_static: bool) -> BTreeMap<String, NonZeroU16> {
    let written = table.get("weights");
    if let (Some(value), true) = (written, is_static) {
        value.error("`weights` beside a list of members", "write weight = 2 in the member itself");
    }
    let entries = table.entries("weights", "{ pg1 = 2, pg2 = 1 }");
    entries.into_iter().filter_map(|(_, value)| Some((value.key.to_owned(), weight(value)?))).collect()
}

fn weight(value: Value<'_>) -> Option<NonZeroU16> {
    value.integer(&(1..=256)).and_then(|weight| NonZeroU16::new(u16::try_from(weight).ok()?))
}

fn sql(table: &mut Table<'_>) -> Option<Sql> {
    let example = "{ user = \"pointsman\", password_file = \"...\" }";
    let value = table.get("sql")?;
    let mut sql = value.table("clusters.*.sql", format!("`sql` of {}", table.title()), example)?;
    let user = sql.required("user", "\"pointsman\"").and_then(|value| value.text("\"pointsman\""));
    let dbname = sql.text("dbname", "\"postgres\"").unwrap_or_else(|| "postgres".to_owned());
    let (password, _) = shared::secret(&mut sql, "password_file", Some("password_env"));
    let tls = sql.choice("tls", SqlTls::Prefer);
    let ca = shared::pem_file(&mut sql, "ca", shared::Pem::Certificate);
    let cert_key = shared::cert_key(&mut sql);
    if let (Some(value), false) = (sql.get("ca"), matches!(tls, SqlTls::VerifyCa | SqlTls::VerifyFull)) {
        let message = format!("`ca` is not used with tls = \"{tls}\"");
        value.error(message, "write tls = \"verify-full\", or remove ca");
    }
    if let (Some(value), SqlTls::Disable) = (sql.get("cert"), tls) {
        value.error(
            "`cert` is not used with tls = \"disable\"",
            "write tls = \"require\", or remove cert and key",
        );
    }
    sql.finish();
    Some(Sql { user: user?.to_owned(), dbname, password, tls, ca, cert_key })
}

fn rest(table: &mut Table<'_>) -> Rest {
    let Some(value) = table.get("rest") else { return Rest::default() };
    let title = format!("`rest` of {}", table.title());
    let Some(mut rest) = value.table("clusters.*.rest", title, "{ tls = { ca = \"ca.pem\" } }") else {
        return Rest::default();
    };
    let tls = shared::client_tls(&mut rest, "tls", "clusters.*.rest.tls").map(|(tls, _)| tls);
    let credentials = shared::credentials(&mut rest, "user");
    rest.finish();
    Rest { tls, credentials }
}

/// Exactly one of the four.
fn discovery(table: &mut Table<'_>, rest: &Rest, draft: &mut Draft<'_>) -> Option<Discovery> {
    let value = table.required("discovery", DISCOVERY)?;
    let title = format!("`discovery` of {}", table.title());
    let mut kinds = value.table("clusters.*.discovery", title, DISCOVERY)?;
    let written: Vec<(&'static str, Value<'_>)> =
        KINDS.into_iter().filter_map(|kind| Some((kind, kinds.get(kind)?))).collect();
    let cluster = draft.name;
    let title = |kind| format!("[clusters.{cluster}.discovery.{kind}]");
    if let [_, (second, value), ..] = written.as_slice() {
        let message = format!("{} has two kinds of discovery", table.title());
        value.error(message, format!("keep exactly one of {}; `{second}` is the second", one_of(KINDS)));
    }
    if value.entries(DISCOVERY).is_empty() {
        let message = format!("{} has no kind of discovery", table.title());
        value.error(message, format!("write discovery = {DISCOVERY}; it can be {}", one_of(KINDS)));
    }
    let mut read: Option<Discovery> = None;
    for (kind, value) in written {
        let one = match kind {
            "etcd" => etcd(value, title(kind)).map(Discovery::Etcd),
            "consul" => consul(value, title(kind)).map(Discovery::Consul),
            "patroni" => patroni(value, title(kind), rest).map(Discovery::Patroni),
            _ => {
                draft.is_static = true;
                fixed(value, title(kind), draft).map(Discovery::Static)
            }
        };
        read = read.or(one);
    }
    kinds.finish();
    read
}

fn etcd(value: Value<'_>, title: String) -> Option<Etcd> {
    let mut table =
        value.table("clusters.*.discovery.etcd", title, "{ endpoints = [\"http://10.0.0.1:2379\"] }")?;
    let tls = shared::client_tls(&mut table, "tls", "clusters.*.discovery.etcd.tls");
    let endpoints = shared::endpoints(&mut table, "endpoints", 2379, tls.is_some());
    let credentials = shared::credentials(&mut table, "username");
    shared::check_tls_used(table.cx, tls.as_ref(), &endpoints);
    table.finish();
    Some(Etcd { endpoints, credentials, tls: tls.map(|(tls, _)| tls) })
}

fn consul(value: Value<'_>, title: String) -> Option<Consul> {
    let mut table =
        value.table("clusters.*.discovery.consul", title, "{ addresses = [\"http://127.0.0.1:8500\"] }")?;
    let tls = shared::client_tls(&mut table, "tls", "clusters.*.discovery.consul.tls");
    let port = if tls.is_some() { 8501 } else { 8500 };
    let addresses = shared::endpoints(&mut table, "addresses", port, tls.is_some());
    let (token, _) = shared::secret(&mut table, "token_file", Some("token_env"));
    let datacenter = table.text("datacenter", "\"dc1\"");
    shared::check_tls_used(table.cx, tls.as_ref(), &addresses);
    table.finish();
    Some(Consul { addresses, token, datacenter, tls: tls.map(|(tls, _)| tls) })
}

fn patroni(value: Value<'_>, title: String, rest: &Rest) -> Option<PatroniRest> {
    let example = "[\"10.0.0.1:8008\", \"10.0.0.2:8008\"]";
    let mut table =
        value.table("clusters.*.discovery.patroni", title, "{ members = [\"10.0.0.1:8008\"] }")?;
    let scheme = if rest.tls.is_some() { Scheme::Https } else { Scheme::Http };
    let read = |item: &Value<'_>| {
        item.parse("[\"10.0.0.1:8008\"]", |text| {
            shared::endpoint(text, 8008, rest.tls.is_some(), Some(scheme))
        })
    };
    let members = table.required("members", example).map(|value| shared::distinct(value, example, read));
    table.finish();
    Some(PatroniRest { members: members? })
}

fn fixed(value: Value<'_>, title: String, draft: &mut Draft<'_>) -> Option<StaticMembers> {
    let mut table = value.table("clusters.*.discovery.static", title, "{ members = [...] }")?;
    let probe = table.get("probe").map_or(Some(Probe::Sql), |value| value.choice());
    draft.is_multi_master = probe == Some(Probe::Tcp);
    draft.probes_sql = probe == Some(Probe::Sql);
    let items = table.required("members", MEMBER).and_then(|value| Some((value, value.list(MEMBER)?)));
    table.finish();
    let (value, items) = items?;
    if items.is_empty() {
        value.error("`members` is empty", format!("write members = {MEMBER}"));
    }
    let mut members: Vec<StaticMember> = Vec::new();
    let mut spans: Vec<Span> = Vec::new();
    for item in items {
        let Some(member) = fixed_member(item) else { continue };
        let same =
            |other: &(&StaticMember, &Span)| other.0.name == member.name || other.0.address == member.address;
        if let Some((other, span)) = members.iter().zip(&spans).find(same) {
            let what = if other.name == member.name {
                format!("member {}", quote(member.name.as_str()))
            } else {
                format!("address `{}`", member.address)
            };
            report_twice(item.cx, &item.span(), &what, span, "give each member its own name and address");
        }
        members.push(member);
        spans.push(item.span());
    }
    Some(StaticMembers { members, probe: probe? })
}

fn fixed_member(item: Value<'_>) -> Option<StaticMember> {
    let schema = "clusters.*.discovery.static.members";
    let mut table = item.table(schema, "this member".to_owned(), MEMBER)?;
    let name: Option<MemberName> =
        table.required("name", "\"pg1\"").and_then(|value| value.parse("\"pg1\"", shared::name));
    let example = "\"10.0.0.1:5432\"";
    let address = table
        .required("address", example)
        .and_then(|value| value.parse(example, |text| shared::host_port(text, 5432)));
    let weight = table.get("weight").map_or(Some(NonZeroU16::MIN), weight);
    table.finish();
    Some(StaticMember { name: name?, address: address?, weight: weight? })
}
