//! Counters, and the register of sessions.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use pointsman::sessions::{LoginRef, Phase, Place, Sessions};
use pointsman::shard;
use pointsman::stats::{Gauge, ListenerSessions, ListenerStats};
use pointsman_core::close::{CloseReason, Peer};
use pointsman_core::route::GrantRole;

use crate::fixture::{cluster_name, listener_name, member_name};
use crate::{Micro, Run, micro, repeat};

pub(crate) fn all() -> Vec<Micro> {
    vec![
        micro("count/bytes", 10_000, || bytes(false)),
        micro("count/bytes-on-a-core", 10_000, || bytes(true)),
        micro("count/read", 10_000, read),
        micro("count/close", 5000, close),
        micro("count/gauge", 5000, gauge),
        micro("count/server/3", 5000, || server(3)),
        micro("count/server/1000", 5000, || server(1000)),
        micro("session/enter-leave", 2000, || enter_leave(false)),
        micro("session/enter-leave-on-a-core", 2000, || enter_leave(true)),
        micro("session/life", 1000, life),
        micro("session/count-message", 10_000, count_message),
        micro("session/may-i-write", 10_000, may_i_write),
    ]
}

/// A thread may be a core or not, once and for all: this one becomes the first.
fn become_core(yes: bool) {
    let index = usize::from(yes);
    if !shard::enter(index) {
        eprintln!("there is no core: the numbers are those of a thread that shares");
    }
}

fn stats() -> Arc<ListenerStats> {
    Arc::default()
}

/// What one message costs: the listener and the member.
fn bytes(on_a_core: bool) -> Run {
    let stats = stats();
    let server = stats.server(&member_name(1));
    repeat_on(on_a_core, move |_| {
        stats.bytes_in.add(64);
        server.bytes_in.add(64);
    })
}

fn read() -> Run {
    let stats = stats();
    stats.bytes_in.add(1);
    repeat(move |_| stats.bytes_in.get())
}

fn close() -> Run {
    let stats = stats();
    repeat(move |_| stats.closed(black_box(&CloseReason::Closed(Peer::Client))))
}

fn gauge() -> Run {
    let stats = stats();
    repeat(move |_| drop(Gauge::enter_below(ListenerSessions(Arc::clone(&stats)), 1000)))
}

/// The counters of a member, found by its name.
fn server(members: u64) -> Run {
    let stats = stats();
    let names: Vec<_> = (0..members).map(member_name).collect();
    for name in &names {
        stats.server(name);
    }
    let middle = names.get(names.len() / 2).cloned().unwrap_or_else(|| member_name(0));
    repeat(move |_| stats.server(black_box(&middle)))
}

fn place() -> Arc<Place> {
    Arc::<Sessions>::default().place(cluster_name(), listener_name("primary"))
}

fn ends(turn: u64) -> (SocketAddr, SocketAddr) {
    let [.., a, b] = turn.to_be_bytes();
    (([10, 0, a, b], 40_000).into(), ([10, 0, 0, 11], 5000).into())
}

fn enter_leave(on_a_core: bool) -> Run {
    let place = place();
    repeat_on(on_a_core, move |turn| {
        let (client, local) = ends(turn);
        drop(place.enter(client, local));
    })
}

/// Everything that the register is told of a session, from accept to end.
fn life() -> Run {
    let (place, stats, member) = (place(), stats(), member_name(1));
    let server = stats.server(&member);
    let login = LoginRef { user: Some("app"), database: Some("shop"), application: Some("checkout") };
    let address = SocketAddr::from(([10, 0, 0, 21], 5432));
    repeat_on(true, move |turn| {
        let (client, local) = ends(turn);
        let session = place.enter(client, local);
        session.set_login(black_box(login));
        session.set_phase(Phase::Dialling);
        session.set_granted(Some(server.granted(&member, GrantRole::Primary, address)));
        session.set_phase(Phase::Established);
        session.add_in(500);
        session.add_out(2000);
    })
}

fn count_message() -> Run {
    let (client, local) = ends(1);
    let session = place().enter(client, local);
    repeat(move |_| session.add_in(black_box(64)))
}

/// What is asked before each write.
fn may_i_write() -> Run {
    let (client, local) = ends(1);
    let session = place().enter(client, local);
    repeat(move |_| black_box(&session).is_killed())
}

/// [`repeat`], on a thread that is the first core, or that is none: where the benchmarks before have left us matters not.
fn repeat_on<T>(on_a_core: bool, mut operation: impl FnMut(u64) -> T + Send + 'static) -> Run {
    let mut done = 0;
    Box::new(move |times| {
        let operation = &mut operation;
        let done = &mut done;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                become_core(on_a_core);
                for _ in 0..times {
                    black_box(operation(*done));
                    *done += 1;
                }
            });
            // Its shard is free again only when it is wholly gone, and the scope alone does not wait for that.
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    })
}
