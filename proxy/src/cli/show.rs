//! The answers of the admin interface as text for people.
//!
//! They are read as plain JSON, so that a newer or an older process can be asked too: what is missing is
//! left out.

use std::fmt::Write as _;

use pointsman_core::event::{Span, confirmed_by};
use pointsman_process::table::{Column, bytes, clean, table};
use serde_json::Value;

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn number(value: &Value, pointer: &str) -> Option<u64> {
    value.pointer(pointer).and_then(Value::as_u64)
}

fn count(value: &Value, pointer: &str) -> String {
    number(value, pointer).unwrap_or(0).to_string()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn names(value: &Value, pointer: &str) -> String {
    list(value, pointer).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

fn span(value: &Value, pointer: &str) -> String {
    number(value, pointer).map_or_else(|| "?".to_owned(), |ms| Span(ms).to_string())
}

/// `pointsman status`.
pub(super) fn status(answer: &Value, vip: Option<&Value>) -> String {
    let mut out = String::new();
    let process = answer.get("process").unwrap_or(&Value::Null);
    let _ = writeln!(
        out,
        "{}: {}, up {}, {} session{}, pointsman {} (pid {})",
        clean(text(process, "/node")),
        clean(text(process, "/life")),
        span(process, "/uptime_ms"),
        count(process, "/sessions"),
        if number(process, "/sessions") == Some(1) { "" } else { "s" },
        clean(text(process, "/version")),
        count(process, "/pid"),
    );
    if process.pointer("/reload/ok") == Some(&Value::Bool(false)) {
        let _ = writeln!(out, "the last reload failed and the old configuration stays:");
        for line in text(process, "/reload/text").lines() {
            let _ = writeln!(out, "{}", format!("  {}", clean(line)).trim_end());
        }
    } else if !text(process, "/reload/text").is_empty() {
        let _ = writeln!(out, "the last reload was not complete: {}", clean(text(process, "/reload/text")));
    }
    out.push_str(&vip.map(virtual_ip).unwrap_or_default());
    congestion(&mut out, answer);
    for cluster in list(answer, "/clusters") {
        out.push('\n');
        one_cluster(&mut out, cluster);
    }
    out.push('\n');
    out.push_str(&listeners(list(answer, "/listeners")));
    out
}

/// The virtual IP on this host, in one line; nothing if none is configured.
fn virtual_ip(vip: &Value) -> String {
    match text(vip, "/state") {
        "running" => {}
        "absent" => return "virtual IP: pointsman-vip does not run on this host\n".to_owned(),
        "broken" => return format!("virtual IP: {}\n", clean(text(vip, "/why"))),
        _ => return String::new(),
    }
    let routers = list(vip, "/status/routers").iter().map(|router| {
        let holder = match (text(router, "/holder/node"), text(router, "/holder/address")) {
            _ if text(router, "/state") == "active" => "on this host",
            ("", "") => "held by nobody who is heard",
            ("", address) => &format!("on {address}"),
            (node, _) => &format!("on {node}"),
        };
        let alarms =
            if list(router, "/alarms").is_empty() { "" } else { ", ALARM: see pointsman-vip status" };
        clean(&format!("{} {holder}{alarms}", names(router, "/addresses")))
    });
    format!("virtual IP: {}\n", routers.collect::<Vec<_>>().join("; "))
}

/// Connections that nobody accepts in time.
fn congestion(out: &mut String, answer: &Value) {
    let overflows = number(answer, "/process/listen_overflows").unwrap_or(0);
    if overflows > 0 {
        let times = if overflows == 1 { "connection was" } else { "connections were" };
        let _ =
            writeln!(out, "{overflows} {times} dropped by the kernel: an accept queue of this host was full");
    }
    for queue in list(answer, "/listeners").iter().flat_map(|listener| list(listener, "/backlog")) {
        let (waiting, limit) = (number(queue, "/waiting").unwrap_or(0), number(queue, "/limit").unwrap_or(0));
        if waiting > limit / 2 {
            let address = clean(text(queue, "/address"));
            let _ = writeln!(out, "{address}: {waiting} of {limit} connections wait to be accepted");
        }
    }
}

fn one_cluster(out: &mut String, cluster: &Value) {
    let (name, source) = (clean(text(cluster, "/name")), clean(text(cluster, "/source")));
    let Some(status) = cluster.get("status").filter(|status| status.is_object()) else {
        let _ = writeln!(out, "cluster {name} ({source}): not looked at yet");
        return;
    };
    let age = number(status, "/store/age_ms")
        .map_or_else(|| "never answered".to_owned(), |ms| format!("{} ago", Span(ms)));
    let _ = writeln!(out, "cluster {name} ({source}: {}, {age})", clean(text(status, "/store/state")));
    let _ = writeln!(out, "  primary  {}", primary(status));
    let members = list(status, "/members");
    let used = members.iter().filter(|member| !list(member, "/serves").is_empty()).count();
    let _ = writeln!(out, "  members  {} known, {used} in use", members.len());
    if !text(status, "/store/error").is_empty() {
        let _ = writeln!(out, "  source   {}", clean(text(status, "/store/error")));
    }
    for alarm in list(status, "/alarms").iter().filter_map(Value::as_str) {
        let _ = writeln!(out, "  ALARM    {}", clean(alarm));
    }
    for complaint in list(status, "/complaints") {
        let (key, problem) = (clean(text(complaint, "/key")), clean(text(complaint, "/problem")));
        let _ = writeln!(out, "  source   {key} was not understood: {problem}");
    }
}

fn primary(status: &Value) -> String {
    let state = clean(text(status, "/primary/state"));
    let since = span(status, "/primary/since_ms");
    let name = text(status, "/primary/member");
    let members = list(status, "/members");
    if !members.is_empty() && members.iter().all(|member| text(member, "/role") == "writable") {
        return "none: every member takes writes".to_owned();
    }
    match text(status, "/primary/why_not/reason") {
        "standby-cluster" => return "none: this is a standby cluster".to_owned(),
        "discovering" => return "none: nothing has been learned of the cluster yet".to_owned(),
        _ if name.is_empty() => return format!("none for {since}"),
        _ => {}
    }
    let member = members.iter().find(|member| text(member, "/name") == name);
    let place = member.map(|member| names(member, "/addresses")).filter(|place| !place.is_empty());
    let place = place.map(|place| format!(" at {}", clean(&place))).unwrap_or_default();
    let by = match text(status, "/primary/confirmed_by") {
        "" => String::new(),
        by => {
            format!(" (by {}, {} ago)", clean(confirmed_by(by)), span(status, "/primary/confirmed_ms"))
        }
    };
    format!("{}{place}, {state} for {since}{by}", clean(name))
}

fn listeners(all: &[Value]) -> String {
    use Column::{Left, Right};
    let columns = [
        Left("LISTENER"),
        Left("ADDRESS"),
        Left("TARGET"),
        Left("STATE"),
        Right("SESSIONS"),
        Right("HELD"),
        Right("ACCEPTED"),
        Right("IN"),
        Right("OUT"),
        Left("ROUTED TO"),
    ];
    let rows: Vec<_> = all
        .iter()
        .map(|listener| {
            let why = text(listener, "/why");
            vec![
                text(listener, "/name").to_owned(),
                names(listener, "/bind"),
                text(listener, "/target").to_owned(),
                text(listener, "/state").to_owned(),
                count(listener, "/sessions"),
                count(listener, "/held"),
                count(listener, "/accepted"),
                bytes(number(listener, "/bytes_in").unwrap_or(0)),
                bytes(number(listener, "/bytes_out").unwrap_or(0)),
                if why.is_empty() { names(listener, "/candidates") } else { why.to_owned() },
            ]
        })
        .collect();
    table(&columns, &rows)
}

/// `pointsman members`.
pub(super) fn members(answer: &Value) -> String {
    use Column::{Left, Right};
    let columns = [
        Left("MEMBER"),
        Left("ROLE"),
        Left("STATE"),
        Left("ADDRESS"),
        Right("TL"),
        Right("LAG"),
        Left("HEALTH"),
        Left("ADMIN"),
        Right("SESSIONS"),
        Right("TOTAL"),
        Left("SERVES"),
        Left("REMARKS"),
    ];
    let rows: Vec<_> = list(answer, "").iter().map(member).collect();
    if rows.is_empty() { "no member has been seen yet\n".to_owned() } else { table(&columns, &rows) }
}

fn member(member: &Value) -> Vec<String> {
    let yes = |pointer| member.pointer(pointer) == Some(&Value::Bool(true));
    let mut role = text(member, "/role").to_owned();
    if yes("/leader") {
        role.push_str(" (leader)");
    } else if yes("/sync") {
        role.push_str(" (sync)");
    }
    let serves: Vec<_> = list(member, "/serves")
        .iter()
        .map(|pair| match text(pair, "/1") {
            "fallback" => format!("{} (fallback)", text(pair, "/0")),
            _ => text(pair, "/0").to_owned(),
        })
        .collect();
    let remark = if !yes("/present") {
        "it is no longer listed"
    } else if yes("/leader") {
        ""
    } else {
        text(member, "/excluded")
    };
    vec![
        format!("{}/{}", text(member, "/cluster"), text(member, "/name")),
        role,
        text(member, "/state").to_owned(),
        names(member, "/addresses"),
        number(member, "/timeline").map_or_else(|| "-".to_owned(), |timeline| timeline.to_string()),
        number(member, "/lag_bytes").map_or_else(|| "-".to_owned(), bytes),
        text(member, "/health").to_owned(),
        text(member, "/admin").to_owned(),
        count(member, "/sessions"),
        count(member, "/sessions_total"),
        serves.join(", "),
        remark.to_owned(),
    ]
}

/// `pointsman sessions`.
pub(super) fn sessions(answer: &Value) -> String {
    use Column::{Left, Right};
    let columns = [
        Right("SESSION"),
        Left("LISTENER"),
        Left("CLIENT"),
        Left("STATE"),
        Left("MEMBER"),
        Right("AGE"),
        Right("IN"),
        Right("OUT"),
        Left("USER"),
        Left("DATABASE"),
        Left("APPLICATION"),
    ];
    let rows: Vec<_> = list(answer, "/sessions")
        .iter()
        .map(|session| {
            vec![
                count(session, "/id"),
                text(session, "/listener").to_owned(),
                text(session, "/client").to_owned(),
                text(session, "/phase").to_owned(),
                text(session, "/granted/member").to_owned(),
                span(session, "/age_ms"),
                bytes(number(session, "/bytes_in").unwrap_or(0)),
                bytes(number(session, "/bytes_out").unwrap_or(0)),
                text(session, "/login/user").to_owned(),
                text(session, "/login/database").to_owned(),
                text(session, "/login/application").to_owned(),
            ]
        })
        .collect();
    let total = number(answer, "/total").unwrap_or(0);
    if total == 0 {
        return "no sessions\n".to_owned();
    }
    let mut out = table(&columns, &rows);
    if total > rows.len() as u64 {
        let _ = writeln!(out, "({} of {total} sessions; --limit shows more)", rows.len());
    }
    out
}

/// `pointsman events`.
pub(super) fn events(answer: &Value) -> String {
    match list(answer, "/entries") {
        [] => "nothing has happened since the start\n".to_owned(),
        entries => entries.iter().map(event).collect(),
    }
}

/// One line of `pointsman events`.
pub(super) fn event(entry: &Value) -> String {
    let mark = if text(entry, "/loudness") == "warn" { "!" } else { " " };
    format!(
        "{:>6}  {}  {} {}: {}\n",
        count(entry, "/seq"),
        clean(text(entry, "/at")),
        mark,
        clean(text(entry, "/cluster")),
        clean(text(entry, "/text")),
    )
}
