use std::future::Future as _;
use std::pin::pin;
use std::sync::Barrier;
use std::sync::atomic::AtomicU32;
use std::task::{Context, Wake};
use std::thread;

use super::*;

fn place(register: &Arc<Sessions>) -> Arc<Place> {
    register.place(ClusterName::new("main").unwrap(), ListenerName::new("primary").unwrap())
}

fn v4(last: u8, port: u16) -> SocketAddr {
    ([127, 0, 0, last], port).into()
}

fn login(user: &str) -> LoginRef<'_> {
    LoginRef { user: Some(user), database: Some("shop"), application: None }
}

/// How many logins the register keeps.
fn logins(register: &Sessions) -> usize {
    register.homes.iter().map(|home| lock(&home.0).logins.known.len()).sum()
}

#[derive(Default)]
struct CountingWaker(AtomicU32);

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_session_shows_what_it_was_entered_with() {
    let register = Arc::<Sessions>::default();
    let six: SocketAddr = "[::1]:4711".parse().unwrap();
    let sessions =
        [place(&register).enter(v4(1, 40_000), v4(2, 5000)), place(&register).enter(six, v4(3, 5001))];
    let shown: Vec<_> = register.list().iter().map(|one| (one.id.0, one.client(), one.local())).collect();
    assert_eq!(shown, [(1, v4(1, 40_000), v4(2, 5000)), (2, six, v4(3, 5001))]);
    assert_eq!((sessions[0].cluster().as_str(), sessions[0].listener().as_str()), ("main", "primary"));
    assert_eq!(
        (sessions[0].phase(), sessions[0].login(), sessions[0].granted()),
        (Phase::Startup, None, None)
    );
    for phase in Phase::ALL {
        sessions[0].set_phase(phase);
        assert_eq!(sessions[0].phase(), phase);
    }
    sessions[1].add_in(3);
    sessions[1].add_in(4);
    sessions[1].add_out(5);
    assert_eq!((sessions[1].bytes_in(), sessions[1].bytes_out(), sessions[0].bytes_in()), (7, 5, 0));
    assert_eq!(register.get(SessionId(2)).map(|found| found.client()), Some(six));
    assert!(register.get(SessionId(3)).is_none());
    assert_eq!(format!("{:?}", sessions[0].place), "primary@main");
}

#[test]
fn ages_are_told_to_the_microsecond() {
    let register = Arc::<Sessions>::default();
    let before = Instant::now();
    let session = place(&register).enter(v4(1, 1), v4(1, 2));
    while before.elapsed() < Duration::from_millis(2) {
        std::hint::spin_loop();
    }
    let age = session.age();
    assert!(age > Duration::from_millis(1) && age <= before.elapsed() + Duration::from_micros(1), "{age:?}");
}

#[test]
fn the_register_holds_exactly_who_is_live_and_uses_room_again() {
    let register = Arc::<Sessions>::default();
    let place = place(&register);
    let mut live: Vec<_> = (0..3000).map(|port| place.enter(v4(1, port), v4(2, 5000))).collect();
    let slots = || register.homes.iter().map(|home| lock(&home.0).slots.len()).sum::<usize>();
    for round in 0..3 {
        let mut at = 0;
        live.retain(|_| {
            at += 1;
            at % 3 != round
        });
        live.extend((live.len()..3000).map(|_| place.enter(v4(1, 1), v4(2, 5000))));
        let ids: Vec<_> = register.list().iter().map(|session| session.id).collect();
        let mut expected: Vec<_> = live.iter().map(|session| session.id).collect();
        expected.sort_unstable();
        assert_eq!(ids, expected);
        assert_eq!(register.len(), 3000);
    }
    assert!(slots() < 4000, "{} slots for 3,000 sessions", slots());
    live.clear();
    assert!(register.is_empty() && register.list().is_empty());
    assert_eq!(Arc::strong_count(&place), 1, "no session is left behind");
}

#[test]
fn the_room_of_a_rush_is_given_back() {
    let register = Arc::<Sessions>::default();
    let place = place(&register);
    let rush: Vec<_> = (0..SHARED_HOMES * 1100).map(|port| place.enter(v4(1, port), v4(2, 5000))).collect();
    drop(rush);
    assert!(register.homes.iter().all(|home| lock(&home.0).slots.capacity() == 0));
}

#[test]
fn full_is_full_and_refusing_is_told_once() {
    let register = Arc::<Sessions>::default();
    let place = place(&register);
    register.set_room(Some(10));
    let mut live: Vec<_> = (0..10).map(|port| place.enter(v4(1, port), v4(2, 5000))).collect();
    assert!(register.is_full());
    assert!(register.begins_to_refuse() && !register.begins_to_refuse());
    live.pop();
    assert!(!register.is_full() && !register.begins_to_refuse(), "still nearly full");
    live.pop();
    assert!(register.begins_to_refuse());
}

#[test]
fn equal_logins_are_kept_once_and_die_with_their_last_session() {
    let register = Arc::<Sessions>::default();
    let place = place(&register);
    // Sixteen parts, each with logins of its own: these two share one.
    let mut sessions: Vec<_> = (0..17).map(|port| place.enter(v4(1, port), v4(2, 5000))).collect();
    let last = sessions.pop().unwrap();
    sessions[0].set_login(login("alice"));
    last.set_login(login("alice"));
    assert!(Arc::ptr_eq(&sessions[0].login().unwrap(), &last.login().unwrap()));
    sessions[1].set_login(login("bob"));
    assert_eq!(logins(&register), 2);
    last.set_login(login("mallory"));
    assert_eq!(last.login().unwrap().user.as_deref(), Some("alice"), "the first one stays");
    drop(last);
    assert_eq!(logins(&register), 2);
    drop(sessions);
    assert_eq!(logins(&register), 0);
}

#[test]
fn many_logins_are_bounded_and_a_forgotten_one_makes_room() {
    let register = Arc::<Sessions>::default();
    let place = place(&register);
    let names: Vec<_> = (0..Logins::MOST * 20).map(|n| format!("user{n}")).collect();
    let sessions: Vec<_> = names
        .iter()
        .map(|name| {
            let session = place.enter(v4(1, 1), v4(2, 5000));
            session.set_login(login(name));
            session
        })
        .collect();
    let most = Logins::MOST * usize::from(SHARED_HOMES);
    assert_eq!(logins(&register), most);
    assert!(
        sessions.iter().zip(&names).all(|(one, name)| one.login().unwrap().user.as_deref() == Some(name))
    );
    // Whoever is being looked at while it leaves leaves its login behind, for a while.
    let looked_at: Vec<_> = sessions.iter().map(|session| session.login()).collect();
    drop(sessions);
    assert_eq!(logins(&register), most);
    drop(looked_at);
    let again: Vec<_> = (0..16).map(|_| place.enter(v4(1, 1), v4(2, 5000))).collect();
    for session in &again {
        session.set_login(login("carol"));
    }
    assert_eq!(logins(&register), 16);
}

#[tokio::test]
async fn the_first_kill_counts_and_wakes() {
    let register = Arc::<Sessions>::default();
    let session = place(&register).enter(v4(1, 1), v4(2, 5000));
    let waiting = {
        let session = Arc::clone(&session);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { session.killed().await });
        tasks
    };
    tokio::task::yield_now().await;
    assert!(!session.is_killed() && session.kill_reason().is_none());
    session.kill(CloseReason::VipMoved);
    session.kill(CloseReason::Killed);
    assert_eq!(waiting.join_all().await, [CloseReason::VipMoved]);
    assert_eq!(session.kill_reason(), Some(&CloseReason::VipMoved));
    assert_eq!(session.killed().await, CloseReason::VipMoved, "and for whoever asks later");
}

#[test]
fn a_wait_that_is_given_up_and_begun_again_is_woken_once_more() {
    let session = place(&Arc::default()).enter(v4(1, 1), v4(2, 5000));
    let (first, second) = (Arc::new(CountingWaker::default()), Arc::new(CountingWaker::default()));
    {
        let given_up = pin!(session.killed());
        assert!(given_up.poll(&mut Context::from_waker(&Arc::clone(&first).into())).is_pending());
    }
    let mut again = pin!(session.killed());
    let waker = Waker::from(Arc::clone(&second));
    assert!(again.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    session.kill(CloseReason::Killed);
    assert_eq!((first.0.load(Ordering::SeqCst), second.0.load(Ordering::SeqCst)), (0, 1));
    assert!(again.poll(&mut Context::from_waker(&waker)).is_ready());
}

#[test]
fn a_kill_at_the_moment_of_registering_is_seen_or_wakes() {
    let register = Arc::<Sessions>::default();
    let place = place(&register);
    for _ in 0..3000 {
        let session = place.enter(v4(1, 1), v4(2, 5000));
        let woken = Arc::new(CountingWaker::default());
        let start = Barrier::new(2);
        let seen = thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                session.kill(CloseReason::Killed);
            });
            start.wait();
            session.set_kill_waker(&Arc::clone(&woken).into());
            session.kill_reason().is_some()
        });
        assert!(seen || woken.0.load(Ordering::SeqCst) > 0);
    }
}

#[test]
fn threads_enter_and_leave_beside_one_another() {
    let register = Arc::<Sessions>::default();
    let place = place(&register);
    let start = Barrier::new(5);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..200 {
                    let some: Vec<_> = (0..8).map(|port| place.enter(v4(1, port), v4(2, 5000))).collect();
                    for session in &some {
                        session.set_login(login("alice"));
                    }
                }
            });
        }
        start.wait();
        for _ in 0..50 {
            let listed = register.list();
            assert!(listed.len() <= 32 && listed.windows(2).all(|pair| pair[0].id < pair[1].id));
        }
    });
    assert!(register.is_empty() && register.list().is_empty());
}

#[test]
fn a_session_is_small() {
    assert_eq!(size_of::<SessionGuard>(), size_of::<usize>());
    assert_eq!(size_of::<Option<Arc<Session>>>(), size_of::<usize>(), "an entry of the register");
    assert!(size_of::<Session>() <= 136, "{}", size_of::<Session>());
}
