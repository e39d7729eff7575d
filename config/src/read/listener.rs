//! `[[listeners]]`.

use std::{
    collections::BTreeMap,
    num::{NonZeroU8, NonZeroU32},
    time::Duration,
};

use crate::{
    Balance, ClientTls, ClusterName, Fallback, Keepalive, Listener, ListenerName, ListenerTls, OnPromote,
    Refuse, Target,
    read::{
        A_DAY,
        shared::{self, Bind, Pem},
    },
    reader::{Span, Table, Value},
    units::{minutes, seconds},
};

/// One listener as far as it could be read.
pub(super) struct Draft {
    /// Everything; `cluster` is a placeholder until [`Draft::cluster`] is known.
    listener: Option<Listener>,
    pub(super) name: Option<(ListenerName, Span)>,
    pub(super) cluster: Option<ClusterName>,
    /// `cluster` as written, with its place.
    pub(super) cluster_written: Option<(String, Span)>,
    pub(super) target: Option<(Target, Span)>,
    pub(super) tags: Option<Span>,
    pub(super) binds: Vec<Bind>,
    pub(super) span: Span,
}

impl Draft {
    /// The listener, once its cluster is known.
    pub(super) fn finish(self) -> Option<Listener> {
        Some(Listener { cluster: self.cluster?, ..self.listener? })
    }
}

const EXAMPLE: &str = "[{ bind = \"0.0.0.0:5000\", target = \"primary\" }]";
const TLS: &str = "{ mode = \"terminate\", cert = \"server.pem\", key = \"server.key\" }";

pub(super) fn read_all(root: &mut Table<'_>) -> Vec<Draft> {
    root.tables("listeners", EXAMPLE).into_iter().map(read).collect()
}

fn read(mut table: Table<'_>) -> Draft {
    let span = table.span();
    let target = table
        .required("target", "\"primary\"")
        .and_then(|value| Some((value.choice::<Target>()?, value.span())));
    let name = name(&mut table, target.as_ref());
    let cluster_written = table.get("cluster").and_then(|v| Some((v.text("\"main\"")?.to_owned(), v.span())));
    let binds = binds(&mut table);
    let tags = table.get("tags").map(|value| value.span());
    let kind = target.as_ref().map_or(Target::Any, |(target, _)| *target);
    let listener = settings(&mut table, name.as_ref(), &binds, kind);
    warn_unused(&mut table, kind);
    table.finish();
    Draft { listener, name, cluster: None, cluster_written, target, tags, binds, span }
}

fn name(table: &mut Table<'_>, target: Option<&(Target, Span)>) -> Option<(ListenerName, Span)> {
    if let Some(value) = table.get("name") {
        return Some((value.parse("\"primary\"", shared::name)?, value.span()));
    }
    let (target, span) = target?;
    Some((ListenerName::new(target.as_str()).ok()?, span.clone()))
}

fn binds(table: &mut Table<'_>) -> Vec<Bind> {
    let Some(value) = table.required("bind", "\"0.0.0.0:5000\"") else { return Vec::new() };
    if value.one_or_more().is_empty() {
        value.error("`bind` is empty", "write bind = \"0.0.0.0:5000\"");
    }
    shared::binds(value, 5000)
}

fn settings(
    table: &mut Table<'_>,
    name: Option<&(ListenerName, Span)>,
    binds: &[Bind],
    target: Target,
) -> Option<Listener> {
    let (tls, server_tls) = tls(table);
    let per_source = table.integer("max_connections_per_source", 0..=10_000_000, 0);
    let listener = Listener {
        // The cluster's name follows in `Draft::finish`.
        cluster: ClusterName::new("-").ok()?,
        name: name.map(|(name, _)| name.clone()).or_else(|| ListenerName::new("-").ok())?,
        bind: binds.iter().map(|bind| bind.address).collect(),
        target,
        balance: table.choice("balance", Balance::LeastConnections),
        hold: table.duration("hold", Duration::ZERO..=minutes(60), seconds(60)),
        max_held: table.integer("max_held", 1..=1_000_000, 10_000),
        release_rate: positive(table.integer("release_rate", 1..=1_000_000, 500)),
        refuse: table.choice("refuse", Refuse::Explain),
        max_lag: table.get("max_lag").and_then(|value| value.bytes()),
        on_promote: table.choice("on_promote", OnPromote::Drain),
        fallback: table.choice("fallback", Fallback::Primary),
        tags: tags(table),
        max_connections: table.integer("max_connections", 1..=10_000_000, 5000),
        max_connections_per_source: NonZeroU32::new(per_source),
        allow: shared::networks(table, "allow"),
        deny: shared::networks(table, "deny"),
        connect_timeout: table.duration(
            "connect_timeout",
            Duration::from_millis(10)..=minutes(10),
            seconds(3),
        ),
        startup_timeout: table.duration(
            "startup_timeout",
            Duration::from_millis(100)..=minutes(10),
            seconds(10),
        ),
        idle_timeout: zero_is_off(table, "idle_timeout", Duration::ZERO),
        keepalive: keepalive(table),
        user_timeout: zero_is_off(table, "user_timeout", seconds(30)),
        accept_proxy: table.boolean("accept_proxy", false),
        send_proxy: table.get("send_proxy").and_then(|value| value.choice()),
        tls,
        server_tls,
    };
    Some(listener)
}

fn positive(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}

/// A time of which zero means that there is no limit.
fn zero_is_off(table: &mut Table<'_>, key: &'static str, default: Duration) -> Option<Duration> {
    let time = table.duration(key, Duration::ZERO..=A_DAY * 30, default);
    if let (Some(value), true) = (table.get(key), !time.is_zero() && time < seconds(1)) {
        value.error(
            format!("`{key}` is below one second"),
            format!("write {key} = \"1s\" or more, or \"0s\" for never"),
        );
    }
    (!time.is_zero()).then_some(time)
}

fn keepalive(table: &mut Table<'_>) -> Keepalive {
    let example = "{ idle = \"30s\", interval = \"10s\", probes = 3 }";
    let mut keepalive = Keepalive {
        idle: seconds(30),
        interval: seconds(10),
        probes: NonZeroU8::new(3).unwrap_or(NonZeroU8::MIN),
    };
    let Some(value) = table.get("keepalive") else { return keepalive };
    let title = format!("`keepalive` of {}", table.title());
    let Some(mut inner) = value.table("listeners.keepalive", title, example) else { return keepalive };
    keepalive.idle = whole_seconds(&mut inner, "idle", keepalive.idle);
    keepalive.interval = whole_seconds(&mut inner, "interval", keepalive.interval);
    let probes = inner.integer("probes", 1..=127, 3);
    keepalive.probes = u8::try_from(probes).ok().and_then(NonZeroU8::new).unwrap_or(NonZeroU8::MIN);
    inner.finish();
    keepalive
}

/// The kernel counts keepalive in seconds, at most 32767 of them.
fn whole_seconds(table: &mut Table<'_>, key: &'static str, default: Duration) -> Duration {
    let time = table.duration(key, seconds(1)..=seconds(32_767), default);
    if let (Some(value), true) = (table.get(key), time.subsec_nanos() != 0) {
        let help = format!("write {key} = \"{}s\"", time.as_secs());
        value.error(format!("`{key}` must be whole seconds"), help);
    }
    time
}

/// Patroni tags may be texts, booleans or numbers; they are compared as texts.
fn tags(table: &mut Table<'_>) -> BTreeMap<String, String> {
    let entries = table.entries("tags", "{ zone = \"a\" }");
    let text = |value: &Value<'_>| {
        let number = value.signed().map(|number| number.to_string());
        if number.is_some() {
            return number;
        }
        if value.is_string() {
            value.text("\"a\"").map(str::to_owned)
        } else {
            value.boolean().map(|b| b.to_string())
        }
    };
    entries.into_iter().filter_map(|(_, value)| Some((value.key.to_owned(), text(&value)?))).collect()
}

fn tls(table: &mut Table<'_>) -> (ListenerTls, Option<ClientTls>) {
    let tls = table.get("tls").and_then(|value| terminate(table, value)).unwrap_or(ListenerTls::Passthrough);
    let server_tls = shared::client_tls(table, "server_tls", "listeners.server_tls");
    if let (Some((_, span)), ListenerTls::Passthrough, true) = (&server_tls, &tls, !asks_to_terminate(table))
    {
        let message = "`server_tls` needs a listener that terminates TLS";
        table.cx.error(span, message, format!("write tls = {TLS}, or remove server_tls"));
    }
    (tls, server_tls.map(|(tls, _)| tls))
}

/// True when `tls` asks for termination, even if the rest of it is wrong.
fn asks_to_terminate(table: &mut Table<'_>) -> bool {
    let entries =
        table.get("tls").filter(Value::is_table).map(|value| value.entries(TLS)).unwrap_or_default();
    entries.iter().any(|(_, value)| value.key == "mode" && value.string("\"terminate\"") == Some("terminate"))
}

fn terminate(table: &Table<'_>, value: Value<'_>) -> Option<ListenerTls> {
    let mut tls = value.table("listeners.tls", format!("`tls` of {}", table.title()), TLS)?;
    let mode = tls.required("mode", "\"terminate\"").and_then(|value| {
        let written = value.string("\"terminate\"")?;
        let word = ["passthrough", "terminate"].into_iter().find(|word| *word == written);
        if word.is_none() {
            value.unknown_word(written, ["passthrough", "terminate"].into_iter());
        }
        word
    });
    let keys = ["cert", "key", "client_ca", "require"];
    let written: Vec<Value<'_>> = keys.into_iter().filter_map(|key| tls.get(key)).collect();
    let read = if mode == Some("terminate") {
        tls.required("cert", "\"server.pem\"");
        tls.required("key", "\"server.key\"");
        let cert = shared::pem_file(&mut tls, "cert", Pem::Certificate);
        let key = shared::pem_file(&mut tls, "key", Pem::Key);
        let client_ca = shared::pem_file(&mut tls, "client_ca", Pem::Certificate);
        let require = tls.boolean("require", false);
        cert.zip(key).map(|(cert, key)| ListenerTls::Terminate { cert, key, client_ca, require })
    } else {
        if let (Some("passthrough"), Some(value)) = (mode, written.first()) {
            let message = format!("`{}` is not used with mode = \"passthrough\"", value.key);
            value.error(message, "write mode = \"terminate\", or remove it");
        }
        Some(ListenerTls::Passthrough)
    };
    tls.finish();
    read
}

/// Keys that say something about replicas, on a listener that has none.
fn warn_unused(table: &mut Table<'_>, target: Target) {
    if target != Target::Primary {
        return;
    }
    for key in ["max_lag", "on_promote", "fallback"] {
        if let Some(value) = table.get(key) {
            let message = format!("`{key}` has no effect with target = \"primary\"");
            table.cx.warning(&value.span(), message, format!("remove {key}"));
        }
    }
}
