//! What the register keeps of an established session, measured as resident memory. Alone in its program: nothing else
//! allocates meanwhile.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::net::SocketAddr;
use std::sync::Arc;

use pointsman::sessions::{LoginRef, Phase, SessionGuard, Sessions};
use pointsman::stats::ServerStats;
use pointsman_config::{ClusterName, ListenerName};
use pointsman_core::route::GrantRole;
use pointsman_core::view::MemberName;

const SESSIONS: usize = 100_000;
/// Bytes for each of them, all told: the session, its entry in the register, its share of what it shares with others.
const MOST: usize = 200;

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn an_established_session_takes_less_than_200_bytes() {
    let register = Arc::<Sessions>::default();
    let place = register.place(ClusterName::new("main").unwrap(), ListenerName::new("primary").unwrap());
    let members = ["pg1", "pg2", "pg3"].map(|name| (MemberName::from(name), ServerStats::default()));
    let server = SocketAddr::from(([10, 0, 0, 21], 5432));
    let mut live: Vec<SessionGuard> = vec![place.enter(server, server)];
    live.reserve_exact(SESSIONS);
    // Whoever serves a session holds its guard, so those bytes are part of it.
    let (before, room) = (resident(), size_of::<SessionGuard>() * SESSIONS);
    for n in 0..SESSIONS {
        let [_, a, b, c] = u32::try_from(n).unwrap().to_be_bytes();
        let session = place.enter(([10, a, b, c], 40_000).into(), ([10, 0, 0, 11], 5000).into());
        session.set_login(LoginRef {
            user: Some(["app", "report", "admin"][n % 3]),
            database: Some("shop"),
            application: Some("checkout"),
        });
        let (name, stats) = &members[n / 7 % 3];
        session.set_granted(Some(stats.granted(name, GrantRole::Primary, server)));
        session.set_phase(Phase::Established);
        session.add_in(500);
        session.add_out(2000);
        live.push(session);
    }
    let each = (resident() - before) / SESSIONS;
    println!("{each} bytes for each session, {} of them its guard", room / SESSIONS);
    assert!(each <= MOST, "{each} bytes for each session");
    assert!(each > size_of::<SessionGuard>() + 100, "{each} bytes: the measurement is wrong");
    assert_eq!(register.len(), SESSIONS + 1);
}
