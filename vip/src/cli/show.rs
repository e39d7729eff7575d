//! The answers of a running process as text for people.
//!
//! They are read as plain JSON, so that a newer or an older process can be asked too: what is missing is left out.

use std::fmt::Write as _;

use pointsman_process::table::{Column, clean, table};
use serde_json::Value;

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn number(value: &Value, pointer: &str) -> Option<u64> {
    value.pointer(pointer).and_then(Value::as_u64)
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer) == Some(&Value::Bool(true))
}

/// An age that people can say.
fn age(value: &Value, pointer: &str) -> String {
    let Some(ms) = number(value, pointer) else { return "never".to_owned() };
    let units = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)];
    // Two of the smaller unit say more than one of the greater.
    match units.into_iter().find(|(_, size)| ms >= 2 * size) {
        Some((unit, size)) => format!("{} {unit}", ms / size),
        None => format!("{ms} ms"),
    }
}

/// `pointsman-vip status`.
pub(super) fn status(answer: &Value) -> String {
    let mut out = String::new();
    let (node, version) = (clean(text(answer, "/node")), clean(text(answer, "/version")));
    let pid = number(answer, "/pid").unwrap_or(0);
    let _ = writeln!(out, "{node}: pointsman-vip {version} (pid {pid}), {}", proxy(answer));
    if answer.get("alive") == Some(&Value::Bool(false)) {
        out.push_str("STUCK: the thread that decides has shown nothing for seconds; what follows is old\n");
    }
    if answer.pointer("/reload/ok") == Some(&Value::Bool(false)) {
        out.push_str("the last reload failed and the old configuration stays:\n");
        for line in text(answer, "/reload/text").lines() {
            let _ = writeln!(out, "{}", format!("  {}", clean(line)).trim_end());
        }
    }
    out.push('\n');
    out.push_str(&routers(answer));
    let peers = list(answer, "/peers");
    if !peers.is_empty() {
        out.push('\n');
        out.push_str(&hosts(peers));
    }
    let remarks = remarks(answer);
    if !remarks.is_empty() {
        out.push('\n');
        out.push_str(&remarks);
    }
    out
}

fn proxy(answer: &Value) -> String {
    match text(answer, "/proxy/state") {
        "well" => "the proxy serves".to_owned(),
        "unwell" => format!("THE PROXY DOES NOT SERVE: {}", clean(text(answer, "/proxy/why"))),
        _ => "nothing is known of the proxy".to_owned(),
    }
}

fn routers(answer: &Value) -> String {
    use Column::{Left, Right};
    let columns = [
        Left("ROUTER"),
        Left("STATE"),
        Right("SINCE"),
        Right("PRIORITY"),
        Left("ADDRESSES"),
        Left("INTERFACE"),
        Right("VRID"),
        Left("HOLDER"),
    ];
    let rows: Vec<_> = list(answer, "/routers")
        .iter()
        .map(|router| {
            let addresses: Vec<_> = list(router, "/addresses").iter().filter_map(Value::as_str).collect();
            vec![
                text(router, "/name").to_owned(),
                text(router, "/state").to_owned(),
                age(router, "/since_ms"),
                priority(router),
                addresses.join(", "),
                text(router, "/interface").to_owned(),
                number(router, "/router_id").unwrap_or(0).to_string(),
                holder(router),
            ]
        })
        .collect();
    table(&columns, &rows)
}

/// `150`, or `1 (of 150)` when something lowers it.
fn priority(router: &Value) -> String {
    let now = number(router, "/priority").unwrap_or(0);
    let base = number(router, "/base_priority").unwrap_or(now);
    if now == base { now.to_string() } else { format!("{now} (of {base})") }
}

fn holder(router: &Value) -> String {
    if text(router, "/state") == "active" {
        return "this host".to_owned();
    }
    let Some(holder) = router.get("holder").filter(|holder| holder.is_object()) else {
        return "nobody is heard".to_owned();
    };
    let (address, priority) = (text(holder, "/address"), number(holder, "/priority").unwrap_or(0));
    match text(holder, "/node") {
        "" => format!("{address}, priority {priority}"),
        node => format!("{node} ({address}, priority {priority})"),
    }
}

fn hosts(peers: &[Value]) -> String {
    let columns = [
        Column::Left("HOST"),
        Column::Left("STATE"),
        Column::Right("HEARD"),
        Column::Left("ADDRESS"),
        Column::Left("REMARK"),
    ];
    let rows: Vec<_> = peers
        .iter()
        .map(|peer| {
            vec![
                text(peer, "/node").to_owned(),
                text(peer, "/state").to_owned(),
                age(peer, "/heard_ms"),
                text(peer, "/address").to_owned(),
                text(peer, "/how").to_owned(),
            ]
        })
        .collect();
    table(&columns, &rows)
}

/// What somebody should look at, or wonders about.
fn remarks(answer: &Value) -> String {
    let mut out = String::new();
    for router in list(answer, "/routers") {
        let name = clean(text(router, "/name"));
        for alarm in list(router, "/alarms") {
            let _ = writeln!(out, "ALARM  {name}: {}", clean(text(alarm, "/text")));
        }
        if router.get("link_fault").is_some_and(Value::is_object) {
            let _ = writeln!(out, "FAULT  {name}: {}", clean(text(router, "/link_fault/text")));
        }
        if is(router, "/yielded") {
            let _ = writeln!(
                out,
                "YIELD  {name}: others hold the addresses if they can, until `pointsman-vip resume`"
            );
        } else if !text(router, "/unfit").is_empty() {
            let _ = writeln!(out, "UNFIT  {name}: {}", clean(text(router, "/unfit")));
        }
    }
    for foreign in list(answer, "/foreign") {
        let (id, from) = (number(foreign, "/router_id").unwrap_or(0), clean(text(foreign, "/from")));
        let (interface, count) = (clean(text(foreign, "/interface")), number(foreign, "/count").unwrap_or(0));
        let _ = writeln!(
            out,
            "also on {interface}: router_id {id} of {from}, which is none of ours ({count} adverts)"
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_quiet_host_has_two_tables() {
        let answer = json!({
            "node": "lb1", "version": "0.1.0", "pid": 7, "alive": true, "proxy": { "state": "well" },
            "routers": [{
                "name": "eth0-51", "state": "active", "since_ms": 7_300_000, "priority": 150, "base_priority": 150,
                "addresses": ["192.168.60.110/24", "192.168.60.111/24"], "interface": "eth0", "router_id": 51,
            }],
            "peers": [
                { "node": "lb2", "state": "alive", "heard_ms": 12, "address": "10.0.0.12:7001" },
                { "node": "lb3", "state": "lost", "heard_ms": 90_000, "address": "10.0.0.13:7001",
                  "how": "it has fallen silent" },
            ],
        });
        assert_eq!(
            status(&answer),
            "lb1: pointsman-vip 0.1.0 (pid 7), the proxy serves\n\n\
             ROUTER   STATE   SINCE  PRIORITY  ADDRESSES                             INTERFACE  VRID  HOLDER\n\
             eth0-51  active    2 h       150  192.168.60.110/24, 192.168.60.111/24  eth0         51  this host\n\n\
             HOST  STATE  HEARD  ADDRESS         REMARK\n\
             lb2   alive  12 ms  10.0.0.12:7001\n\
             lb3   lost    90 s  10.0.0.13:7001  it has fallen silent\n"
        );
    }

    #[test]
    fn what_is_wrong_is_a_sentence() {
        let answer = json!({
            "node": "lb2", "version": "0.1.0", "pid": 7, "alive": false,
            "proxy": { "state": "unwell", "why": "nobody answers\u{1b}[31m" },
            "routers": [{
                "name": "w", "state": "backup", "since_ms": 1999, "priority": 1, "base_priority": 100, "yielded": true,
                "addresses": ["10.0.0.1/24"], "interface": "eth0", "router_id": 1,
                "holder": { "address": "10.0.0.11", "priority": 150, "node": null },
                "alarms": [{ "kind": "same-priority", "text": "10.0.0.13 has the same priority" }],
            }],
            "foreign": [{ "interface": "eth0", "router_id": 9, "from": "10.0.0.99", "count": 3 }],
        });
        let text = status(&answer);
        for part in [
            "THE PROXY DOES NOT SERVE: nobody answers\u{fffd}[31m\n",
            "STUCK: ",
            "1999 ms  1 (of 100)",
            "10.0.0.11, priority 150",
            "\nALARM  w: 10.0.0.13 has the same priority\n",
            "YIELD  w: ",
            "also on eth0: router_id 9 of 10.0.0.99",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
