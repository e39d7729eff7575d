//! `[admin]`, `[relay]`, `[log]`, `[shutdown]`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    path::PathBuf,
    time::Duration,
};

use crate::{
    Admin, Engine, Log, LogFormat, LogLevel, PasswordHash, Relay, Role, Shutdown, User,
    read::{
        A_DAY, report_twice,
        shared::{self, Bind},
    },
    reader::{Problem, Span, Table, quote},
    units::seconds,
};

const USERS: &str = "[{ name = \"admin\", password_hash = \"...\", role = \"admin\" }]";
const SOCKET: &str = "/run/pointsman/admin.sock";

/// A table of the top level that may be absent.
fn section<'a>(root: &mut Table<'a>, key: &'static str, title: &str, example: &str) -> Option<Table<'a>> {
    root.get(key).and_then(|value| value.table(key, title.to_owned(), example))
}

pub(super) fn admin(root: &mut Table<'_>) -> (Admin, Vec<Bind>) {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 7000));
    let Some(mut table) = section(root, "admin", "[admin]", "{ bind = \"0.0.0.0:7000\" }") else {
        let admin = Admin { bind: vec![local], users: Vec::new(), socket: root.cx.resolve(SOCKET) };
        return (admin, vec![default_bind(local, root)]);
    };
    let binds = match table.get("bind") {
        Some(value) => shared::binds(value, 7000),
        None => vec![default_bind(local, &table)],
    };
    let users = users(&mut table);
    let (socket, _) = shared::socket(&mut table, "socket", SOCKET);
    table.finish();
    (Admin { bind: binds.iter().map(|bind| bind.address).collect(), users, socket }, binds)
}

fn default_bind(address: SocketAddr, table: &Table<'_>) -> Bind {
    Bind { address, span: table.span(), written: false }
}

fn users(table: &mut Table<'_>) -> Vec<User> {
    let items = table.get("users").and_then(|value| value.list(USERS)).unwrap_or_default();
    let mut users: Vec<User> = Vec::new();
    let mut spans: Vec<Span> = Vec::new();
    for item in items {
        let Some(mut inner) = item.table("admin.users", "this user".to_owned(), USERS) else { continue };
        let name = inner.required("name", "\"admin\"").and_then(|value| value.parse("\"admin\"", user_name));
        let hash = inner
            .required("password_hash", "\"...\", as `pointsman passwd` prints it")
            .and_then(|value| value.parse("\"...\"", password_hash));
        let role = inner.choice("role", Role::Viewer);
        inner.finish();
        let (Some(name), Some(password_hash)) = (name, hash) else { continue };
        if let Some((_, span)) = users.iter().zip(&spans).find(|(user, _)| user.name == name) {
            report_twice(
                item.cx,
                &item.span(),
                &format!("user {}", quote(&name)),
                span,
                "remove one of the two",
            );
        }
        users.push(User { name, password_hash, role });
        spans.push(item.span());
    }
    users
}

/// HTTP's Basic authentication ends the name at the first colon.
fn user_name(text: &str) -> Result<String, Problem> {
    if text.is_empty() || text.len() > 64 || text.contains(|c: char| c == ':' || c.is_control()) {
        let message = format!("{} cannot be the name of a user", quote(text));
        return Err(Problem::new(message, "write 1 to 64 characters without a colon"));
    }
    Ok(text.to_owned())
}

/// Crypt formats that `pointsman passwd` prints or that HAProxy's userlists hold. The message never repeats it.
fn password_hash(text: &str) -> Result<PasswordHash, Problem> {
    let known = ["$argon2id$", "$6$", "$5$"].iter().any(|prefix| text.starts_with(prefix));
    let shape = text.len() <= 512 && text.chars().all(|c| c.is_ascii_graphic());
    if known && shape && text.matches('$').count() >= 3 {
        return Ok(PasswordHash(text.into()));
    }
    let message = "`password_hash` is not a hash that starts with $argon2id$, $6$ or $5$";
    Err(Problem::new(message, "run `pointsman passwd` and paste what it prints"))
}

pub(super) fn relay(root: &mut Table<'_>) -> Relay {
    let Some(mut table) = section(root, "relay", "[relay]", "{ engine = \"auto\" }") else {
        return Relay { engine: Engine::Auto, threads: None };
    };
    let engine = table.choice("engine", Engine::Auto);
    let threads = table.integer("threads", 0..=1024, 0);
    table.finish();
    Relay { engine, threads: u16::try_from(threads).ok().and_then(NonZeroU16::new) }
}

pub(super) fn log(root: &mut Table<'_>) -> Log {
    let mut log = Log { format: LogFormat::Text, level: LogLevel::Info, sessions: true };
    if let Some(mut table) = section(root, "log", "[log]", "{ level = \"info\" }") {
        log.format = table.choice("format", log.format);
        log.level = table.choice("level", log.level);
        log.sessions = table.boolean("sessions", log.sessions);
        table.finish();
    }
    log
}

pub(super) fn shutdown(root: &mut Table<'_>) -> Shutdown {
    let mut drain = seconds(30);
    if let Some(mut table) = section(root, "shutdown", "[shutdown]", "{ drain = \"30s\" }") {
        drain = table.duration("drain", Duration::ZERO..=A_DAY, drain);
        table.finish();
    }
    Shutdown { drain }
}

/// Two programs cannot share one socket.
pub(super) fn check_sockets(table: &Table<'_>, span: &Span, vip: &PathBuf, admin: &PathBuf) {
    if vip == admin {
        let message = format!("{} is the socket of [admin] too", vip.display());
        table.cx.error(span, message, "write another path, as in socket = \"/run/pointsman/vip.sock\"");
    }
}
